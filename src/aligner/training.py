"""What sft and dpo have in common around TRL's trainers: arguments, progress, curves, and the order of a training run."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

from aligner.chat import Chat
from aligner.errors import InputError
from aligner.progress import bar


def training_arguments(
    stage: SimpleNamespace, hardware: SimpleNamespace, model: SimpleNamespace, seed: int, where: SimpleNamespace
) -> dict[str, Any]:
    """Keyword arguments that SFTConfig and DPOConfig share; every default that would surprise is set on purpose.

    `stage` is a section of params.yaml (sft or dpo), `hardware` the section of the same name of the model entry.
    """
    import torch

    return {
        "num_train_epochs": stage.num_train_epochs,
        "learning_rate": hardware.learning_rate,
        "lr_scheduler_type": stage.lr_scheduler_type,
        "warmup_steps": stage.warmup_steps,
        "weight_decay": stage.weight_decay,
        "max_grad_norm": stage.max_grad_norm,
        "per_device_train_batch_size": hardware.per_device_train_batch_size,
        "gradient_accumulation_steps": hardware.gradient_accumulation_steps,
        "logging_steps": stage.logging_steps,
        "seed": seed,
        "data_seed": seed,
        "bf16": where.dtype is torch.bfloat16,
        "fp16": False,
        "gradient_checkpointing": model.gradient_checkpointing,
        "use_cpu": where.device == "cpu",
        "dataloader_pin_memory": where.device == "cuda",
        "max_length": None,  # prepare has seen to it
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
    }


def compact_head() -> None:
    """Lets trl score supervised positions only, on every device: it does so by itself where Triton runs, and nowhere else.

    The losses are the same to the bit; on two CPU cores a DPO step takes a fifth less time.
    """
    import trl.trainer.utils

    trl.trainer.utils._use_triton = lambda device: True


def trainer_tokenizer(chat: Chat):
    """The tokenizer in the form that trl's trainers ask for; they use it for padding alone."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=chat.tokenizer, eos_token=chat.eos_token, pad_token=chat.pad_token)


def train(
    trainer, kept, run, stage: str, tokens: int, eval_steps: int, evaluate: Callable[[], dict[str, float]]
) -> dict[str, float]:
    """Trains to the end under a progress line and returns the last measures of held-out data; InputError when it diverged.

    kept: the run's Checkpoints; run: the stage's record; the other arguments are those of `observe`.
    """
    latest = observe(trainer, stage, tokens, eval_steps, evaluate)
    take_inputs_as_they_come(trainer)
    earlier = kept.train(trainer)
    new = 1 - earlier / trainer.state.max_steps
    run.note(earlier_steps=earlier, tokens_per_second=round(new * tokens / run.phase("train")))
    require_finite(stage, latest)
    return latest


def take_inputs_as_they_come(trainer) -> None:
    """In bfloat16, adapters take a training step's input as it is: autocast casts it anyway, and peft's cast doubles the traffic.

    Measures run outside of autocast and need the cast.
    """
    from peft.helpers import disable_input_dtype_casting

    stock = trainer.training_step

    def training_step(*args, **kwargs):
        with disable_input_dtype_casting(trainer.model):
            return stock(*args, **kwargs)

    if trainer.args.bf16:
        trainer.training_step = training_step


def compile_layers(trainer) -> None:
    """Has torch compile the decoder layers for training steps, once for all layers and for any number of tokens.

    Measures and answers take the layers as they are, since each would ask for a compilation of its own. Raises InputError where
    there is nothing to compile, or nothing to compile with.
    """
    import torch

    model = trainer.model.get_base_model()
    layers = [module for module in model.modules() if type(module).__name__ in set(model._no_split_modules or ())]
    off = "set models.<name>.torch_compile to false in params.yaml"
    if not layers:
        raise InputError(f"{type(model).__name__} does not say what its layers are, so they cannot be compiled; {off}")
    if model.device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise InputError(f"torch.compile needs a C++ compiler on a CPU, and there is none; install g++, or {off}")
    for layer in layers:
        layer.compile(dynamic=True)
    stock = trainer.training_step

    def training_step(*args, **kwargs):
        with torch.compiler.set_stance("default"):
            return stock(*args, **kwargs)

    trainer.training_step = training_step
    torch.compiler.set_stance("force_eager")


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


def padded(sequences: list[list[int]], value: int, device: str):
    """Right-padded tensor (n, longest) of id sequences, and its attention mask."""
    import torch

    longest = max(map(len, sequences))
    ids = torch.tensor([row + [value] * (longest - len(row)) for row in sequences], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in sequences], device=device)
    return ids, mask


def token_log_probabilities(model, ids, attention_mask):
    """log p(ids[:, t] | ids[:, :t]) for t >= 1, in float32: shape (n, length - 1); the logits of the same positions beside it."""
    import torch

    logits = model(input_ids=ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1].float()
    return torch.log_softmax(logits, dim=-1).gather(-1, ids[:, 1:, None]).squeeze(-1), logits


def batches(rows: list, size: int, length: Callable[[Any], int]) -> list[list[int]]:
    """Indices of `rows` in batches of similar length, a fixed order that depends on the rows alone."""
    order = sorted(range(len(rows)), key=lambda index: (length(rows[index]), index))
    return [order[start : start + size] for start in range(0, len(order), size)]
