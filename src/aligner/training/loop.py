"""The training run: progress, measures of held-out data, curves, and the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

from aligner.run.errors import InputError
from aligner.run.record import Run
from aligner.run.terminal import bar
from aligner.training.checkpoints import Checkpoints
from aligner.training.setup import keep_input_dtype


def train(
    trainer, checkpoints: Checkpoints, run: Run, tokens: int, eval_steps: int, evaluate: Callable[[], dict[str, float]]
) -> dict[str, float]:
    """Trains to the end under a progress line and returns the last measures of held-out data; InputError when it diverged.

    run: the stage's record; the other arguments are those of `observe`.
    """
    stage = checkpoints.stage
    latest = observe(trainer, stage, tokens, eval_steps, evaluate)
    keep_input_dtype(trainer)
    earlier = checkpoints.train(trainer)
    new = 1 - earlier / trainer.state.max_steps
    run.note(earlier_steps=earlier, tokens_per_second=round(new * tokens / run.phase("train")))
    require_finite(stage, latest)
    return latest


def observe(trainer, stage: str, tokens: int, eval_steps: int, evaluate: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Shows one progress line (tokens/s, time left) in place of the trainer's prints, and measures held-out data on the way.

    tokens: tokens (not padding) of the whole run; evaluate: returns the measures that go into the curve, called before the
    first step, every `eval_steps` and after the last. A run that goes on from a checkpoint has the earlier ones in its log.
    Returns a dictionary that holds the newest measures.
    """
    from transformers import PrinterCallback, TrainerCallback

    latest: dict[str, float] = {}

    class Observer(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.bar = bar(stage, state.max_steps, "step", state.global_step)
            self.started, self.first = time.monotonic(), state.global_step
            if not state.global_step:
                self._measure(state)

        def on_step_end(self, args, state, control, **kwargs):
            done = tokens * (state.global_step - self.first) / state.max_steps
            self.bar.set_postfix_str(f"{done / (time.monotonic() - self.started):,.0f} tokens/s", refresh=False)
            self.bar.update()
            if state.global_step % eval_steps == 0 or state.global_step == state.max_steps:
                self._measure(state)

        def on_train_end(self, args, state, control, **kwargs):
            self.bar.close()

        def _measure(self, state):
            latest.update(evaluate())
            state.log_history.append({"step": state.global_step, **latest})

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Observer())
    return latest


def first_measures(log_history: list[dict[str, float]], names: Iterable[str]) -> dict[str, float]:
    """What `observe` measured before the first step; a run that went on from a checkpoint has it in its log too."""
    return next({name: entry[name] for name in names} for entry in log_history if set(names) <= set(entry))


def curve(log_history: list[dict[str, float]], series: dict[str, str]) -> list[list[Any]]:
    """Rows (step, series, value) for a plot, from the trainer's log; `series` names the log keys that are wanted."""
    points = [(int(entry["step"]), name, entry[key]) for entry in log_history for key, name in series.items() if key in entry]
    order = list(series.values())
    return [list(point) for point in sorted(points, key=lambda point: (order.index(point[1]), point[0]))]


def require_finite(stage: str, measured: dict[str, float]) -> None:
    """Raises InputError when training diverged, before anything of it is saved."""
    broken = [name for name, value in measured.items() if not math.isfinite(value)]
    if broken:
        raise InputError(f"{stage} diverged ({broken[0]} is no number); lower models.<name>.{stage}.learning_rate in params.yaml")
