"""The setup that all training stages share: the prepared process, provenance, TRL's arguments, the faster forward pass."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligner.files import read_json
from aligner.model import runtime
from aligner.model.chat import Chat
from aligner.model.loading import PREPARED_CHAT, base_fingerprint, check_chat, load_chat
from aligner.model.runtime import Runtime
from aligner.run import ranks
from aligner.run.errors import InputError
from aligner.run.params import ModelEntry, Optimisation, StageParams, Training
from aligner.run.record import Run
from aligner.training import checkpoints, reporting
from aligner.training.checkpoints import Checkpoints


@dataclass(frozen=True)
class Setup:
    """The result of `begin`."""

    params: StageParams
    runtime: Runtime
    chat: Chat
    provenance: dict[str, str]

    def checkpoints(self, stage: str, files: list[Path]) -> AbstractContextManager[Checkpoints]:
        """The checkpoints of the run that these parameters, this machine and the bytes of `files` determine.

        The number of processes is no part of a run's identity: a run may resume with another number.
        """
        entry = self.params.model_entry.model_copy(update={"processes": 1, "shard": False})
        params = self.params.model_copy(update={"model_entry": entry})
        determined_by = {"params": params, "runtime": self.runtime, "provenance": self.provenance}
        return checkpoints.locked(stage, checkpoints.run_fingerprint(stage, [PREPARED_CHAT, *files], **determined_by))


def begin(run: Run, params: StageParams, alone: bool = False) -> Setup:
    """Prepares the process and loads the chat renderer; InputError unless prepare used the same tokenizer and template.

    alone: the stage trains on one process only.
    """
    run.note(params=params, seed=params.seed, report_to=reporting.chosen())
    if alone:
        refuse_several(params.model_entry)
    else:
        ranks.start(processes(params.model_entry), params.model_entry.shard)  # helpers load their libraries meanwhile
    started = runtime.start(params.model_entry, params.seed, training=True)
    ranks.join(started.device)
    chat = load_chat(params.model_entry)
    check_chat(chat, read_json(PREPARED_CHAT))
    run.note(device=started.device, dtype=str(started.dtype), threads=started.threads, processes=ranks.world())
    return Setup(params, started, chat, {"base": base_fingerprint(params.model_entry), "chat": chat.fingerprint})


def refuse_several(entry: ModelEntry) -> None:
    """InputError if the entry asks for several processes, or for a sharded base; `auto` is one process here."""
    if getattr(entry, "processes", 1) not in ("auto", 1) or getattr(entry, "shard", False):
        raise InputError("params.yaml: only sft and dpo train on several processes; set processes to 1 and shard to false")


def processes(entry: ModelEntry) -> int:
    """The number of processes that an entry asks for; `auto` is one for each GPU, and one without a GPU."""
    if entry.processes != "auto":
        return entry.processes
    if entry.device not in ("auto", "cuda"):
        return 1
    runtime.set_environment()  # before torch loads
    import torch

    return max(1, torch.cuda.device_count())


def training_arguments(
    stage: Training, optimisation: Optimisation, entry: ModelEntry, seed: int, runtime: Runtime
) -> dict[str, Any]:
    """The keyword arguments that SFTConfig and DPOConfig share; surprising defaults are overridden.

    `stage` is a section of params.yaml (sft or dpo), and `optimisation` the section of the same name in the model's entry.
    """
    import torch

    return {
        "output_dir": tempfile.gettempdir(),
        "num_train_epochs": stage.num_train_epochs,
        "learning_rate": optimisation.learning_rate,
        "lr_scheduler_type": stage.lr_scheduler_type,
        "warmup_steps": stage.warmup_steps,
        "weight_decay": stage.weight_decay,
        "max_grad_norm": stage.max_grad_norm,
        "per_device_train_batch_size": optimisation.per_device_train_batch_size,
        "gradient_accumulation_steps": optimisation.gradient_accumulation_steps,
        "logging_steps": stage.logging_steps,
        "seed": seed,
        "data_seed": seed,
        "bf16": runtime.dtype is torch.bfloat16,
        "fp16": False,
        "gradient_checkpointing": entry.gradient_checkpointing,
        "use_cpu": runtime.device == "cpu",
        "dataloader_pin_memory": runtime.device == "cuda",
        "max_length": None,  # prepare has removed rows that are too long
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,
    }


def trainer_tokenizer(chat: Chat):
    """The tokenizer as trl's trainers need it; they use it for padding only."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=chat.tokenizer, eos_token=chat.eos_token, pad_token=chat.pad_token)


def speed_up(trainer, entry: ModelEntry, pairs: bool) -> None:
    """Applies what the model's entry asks for: the padding-free forward pass, and compiled layers.

    pairs: the second half of each batch holds the rejected answers to the prompts of the first half.
    """
    from aligner.training import padding_free

    if entry.padding_free:
        padding_free.merge_lora_forward(trainer.model)
        padding_free.unpad(trainer, pairs)
    if entry.torch_compile:
        compile_layers(trainer)


def compile_layers(trainer) -> None:
    """Compiles the decoder layers for training steps, once for all layers and any number of tokens.

    Measures and generation use the layers uncompiled, since each would need its own compilation: outside a training step torch's
    stance is `force_eager` for the whole process. Raises InputError if the model names no layers, or without a C++ compiler.
    """
    import torch

    model = trainer.model.get_base_model()
    layers = [module for module in model.modules() if type(module).__name__ in set(model._no_split_modules or ())]
    off = "set models.<name>.torch_compile to false in params.yaml"
    if not layers:
        raise InputError(f"{type(model).__name__} does not name its layers, so they cannot be compiled; {off}")
    if model.device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise InputError(f"torch.compile needs a C++ compiler on a CPU, and none is installed; install g++, or {off}")
    for layer in layers:
        layer.compile(dynamic=True)
    stock = trainer.training_step

    def training_step(*args, **kwargs):
        with torch.compiler.set_stance("default"):
            return stock(*args, **kwargs)

    trainer.training_step = training_step
    torch.compiler.set_stance("force_eager")


def keep_input_dtype(trainer) -> None:
    """In bfloat16, stops peft from casting the adapters' input in training steps: autocast does so, and a second cast costs time.

    Measures run outside autocast and need peft's cast.
    """
    from peft.helpers import disable_input_dtype_casting

    stock = trainer.training_step

    def training_step(*args, **kwargs):
        with disable_input_dtype_casting(trainer.model):
            return stock(*args, **kwargs)

    if trainer.args.bf16:
        trainer.training_step = training_step
