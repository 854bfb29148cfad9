"""The training loop: progress line, held-out measures, curves, and a check for divergence."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from aligner.files import write_csv
from aligner.run import ranks
from aligner.run.errors import InputError
from aligner.run.record import Run
from aligner.run.terminal import bar
from aligner.training import reporting
from aligner.training.checkpoints import Checkpoints
from aligner.training.setup import keep_input_dtype
from aligner.training.shares import deal_rows


def train(
    trainer,
    checkpoints: Checkpoints,
    run: Run,
    tokens: int,
    eval_steps: int,
    evaluate: Callable[[], dict[str, float]],
    curves: dict[Path, dict[str, str]] | None = None,
) -> dict[str, float]:
    """Trains to the end with a progress line and returns the last held-out measures; InputError if training diverged.

    Several processes train together; afterwards rank 0 continues alone, unless the base is sharded (aligner/run/ranks.py).

    run is the stage's record; `observe` explains the other arguments. curves: plots that are written at each new point, so that
    they can be watched, and once more at the end.
    """
    stage = checkpoints.stage
    latest = observe(trainer, stage, tokens, eval_steps, evaluate, curves or {})
    reporting.attach(trainer, run.path.with_suffix(""))
    deal_rows(trainer)
    keep_input_dtype(trainer)
    earlier = checkpoints.train(trainer)
    new = 1 - earlier / trainer.state.max_steps
    run.note(earlier_steps=earlier, tokens_per_second=round(new * tokens / run.phase("train")))
    require_finite(stage, latest)
    ranks.part()
    write_curves(trainer.state.log_history, curves or {})
    return latest


def observe(
    trainer,
    stage: str,
    tokens: int,
    eval_steps: int,
    evaluate: Callable[[], dict[str, float]],
    curves: dict[Path, dict[str, str]] | None = None,
) -> dict[str, float]:
    """Replaces the trainer's prints by one progress line (loss, tokens/s, time left), and measures held-out data during training.

    tokens: the number of tokens, without padding, of the whole run. evaluate: returns the measures for the curve; it is called
    before the first step, every `eval_steps` steps and after the last step. A resumed run has the earlier measures in its log.
    Returns a dictionary that always holds the newest measures.
    """
    from transformers import PrinterCallback, TrainerCallback

    latest: dict[str, float] = {}

    class Observer(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.bar = bar(stage, state.max_steps, "step", state.global_step)
            self.started, self.first, self.loss = time.monotonic(), state.global_step, ""
            if not state.global_step:
                self._measure(state)

        def on_step_end(self, args, state, control, **kwargs):
            done = tokens * (state.global_step - self.first) / state.max_steps
            self.bar.set_postfix_str(f"{self.loss}{done / (time.monotonic() - self.started):,.0f} tokens/s", refresh=False)
            self.bar.update()
            if state.global_step % eval_steps == 0 or state.global_step == state.max_steps:
                self._measure(state)

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in (logs or {}):
                self.loss = f"loss {logs['loss']:.4g}, "
                self._draw(state)

        def on_train_end(self, args, state, control, **kwargs):
            self.bar.close()

        def _measure(self, state):
            latest.update(evaluate())
            state.log_history.append({"step": state.global_step, **latest})
            self._draw(state)
            if reporting.chosen() != "none":
                trainer.callback_handler.on_log(trainer.args, state, trainer.control, dict(latest))

        def _draw(self, state):
            with contextlib.suppress(ValueError):  # a loss that is not finite; the end of the training says so
                write_curves(state.log_history, curves or {})

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Observer())
    return latest


def first_measures(log_history: list[dict[str, float]], names: Iterable[str]) -> dict[str, float]:
    """The measures before the first step, from the log, which a resumed run shares with the earlier one."""
    return next({name: entry[name] for name in names} for entry in log_history if set(names) <= set(entry))


def curve(log_history: list[dict[str, float]], series: dict[str, str]) -> list[list[Any]]:
    """Rows (step, series, value) for a plot, from the trainer's log; `series` maps log keys to names of series."""
    points = [(int(entry["step"]), name, entry[key]) for entry in log_history for key, name in series.items() if key in entry]
    order = list(series.values())
    return [list(point) for point in sorted(points, key=lambda point: (order.index(point[1]), point[0]))]


def write_curves(log_history: list[dict[str, float]], curves: dict[Path, dict[str, str]]) -> None:
    """Writes each plot of `curves` (path -> series, as in `curve`) from the trainer's log. ValueError for NaN and infinities."""
    for path, series in curves.items():
        write_csv(path, ["step", "series", "value"], curve(log_history, series))


def require_finite(stage: str, measured: dict[str, float]) -> None:
    """Raises InputError if a measure is not finite, before anything is saved."""
    broken = [name for name, value in measured.items() if not math.isfinite(value)]
    if broken:
        raise InputError(
            f"{stage} diverged ({broken[0]} is not finite); lower models.<name>.{stage}.learning_rate in params.yaml"
        )
