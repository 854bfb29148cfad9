"""One loaded base, seen three ways: plain, with the SFT adapter, with the DPO adapter.

Every choice of device, precision and threads is made here, once, and printed. Weights are read as safetensors only, and no
code of a model repository is run.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from aligner.chat import Chat
from aligner.errors import InputError
from aligner.files import read_json, write_json
from aligner.hub import TOKENIZER_FILES, WEIGHT_FILES, model_folder

ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
PROVENANCE = "provenance.json"


def quiet() -> None:
    """Silences what the libraries would say on their own: progress bars, advice, deprecations, telemetry, hub pings."""
    import logging
    import warnings

    os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_PROGRESS_BARS="1")
    os.environ.setdefault("CI", "1")  # trl asks the hub on every trainer it builds, unless it believes itself in CI
    warnings.filterwarnings("ignore")
    logging.captureWarnings(True)
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def runtime(model: SimpleNamespace, seed: int) -> SimpleNamespace:
    """Sets threads and seeds, chooses device and precision, and says so: `device` and `dtype` as torch knows them."""
    os.environ.setdefault("MKL_CBWR", "AUTO")  # sums in Intel's library in one order, wherever in memory their terms lie
    import torch
    from transformers import set_seed

    if model.threads:
        torch.set_num_threads(model.threads)
    set_seed(seed)
    device = _device(model.device)
    dtype = _dtype(model.dtype, device)
    print(
        f"device {device}, {str(dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads, seed {seed}",
        file=sys.stderr,
    )
    return SimpleNamespace(device=device, dtype=dtype, threads=torch.get_num_threads())


def _device(wanted: str) -> str:
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(device for device, there in present.items() if there)
    if not present[wanted]:
        raise InputError(f"params.yaml: models.<name>.device is {wanted}, but torch sees none here; set it to auto or cpu")
    return wanted


def _dtype(wanted: str, device: str):
    """`auto` is bfloat16 on a GPU that has it and float32 elsewhere: bfloat16 on most CPUs is far slower."""
    import torch

    if wanted == "auto":
        wanted = "bfloat16" if device == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    return getattr(torch, wanted)


def load_chat(model: SimpleNamespace) -> Chat:
    """The renderer of a model entry."""
    return Chat.load(model_folder(model.path, model.revision, TOKENIZER_FILES), model.chat_template)


def check_chat(chat: Chat, prepared: dict[str, Any]) -> None:
    """Raises InputError unless data/prepared came from the tokenizer and template that this stage sees."""
    if prepared["fingerprint"] != chat.fingerprint:
        raise InputError(
            "data/prepared was made with another tokenizer or chat template. Run: dvc repro --force --single-item prepare"
        )


def load_base(model: SimpleNamespace, where: SimpleNamespace):
    """The base model of an entry, in the precision and on the device of `where`."""
    from transformers import AutoModelForCausalLM

    folder = model_folder(model.path, model.revision, TOKENIZER_FILES + WEIGHT_FILES)
    if not list(folder.glob("*.safetensors")):
        raise InputError(f"{folder} holds no *.safetensors; weights in other formats can run code and are not loaded")
    try:
        base = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=where.dtype,
            attn_implementation=model.attn_implementation,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(f"{model.path} cannot be loaded as a causal language model: {_first_line(error)}") from None
    return base.to(where.device)


def base_fingerprint(model: SimpleNamespace) -> str:
    """SHA-256 over the weights and configuration of a base: an adapter belongs to exactly one."""
    folder = model_folder(model.path, model.revision, TOKENIZER_FILES + WEIGHT_FILES)
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def load_adapter(base, folder: Path, trainable: bool = False):
    """The base with the adapter of `folder` on it, named "default", as trl wants it."""
    from peft import PeftModel

    if not (folder / ADAPTER).is_file():
        raise InputError(f"{folder / ADAPTER} is missing; the stage before writes it. Run: dvc repro (or: dvc pull)")
    return PeftModel.from_pretrained(base, folder, is_trainable=trainable, use_safetensors=True)


def save_adapter(model, folder: Path, model_path: str, provenance: dict[str, str]) -> None:
    """Writes adapter, normalised configuration and provenance: the same bytes for the same training, and nothing else.

    peft keeps `target_modules` as a set, whose order follows the hash seed, and records absolute paths; both are mended here.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in get_peft_model_state_dict(model).items()}
    save_file(state, folder / ADAPTER, metadata={"format": "pt"})
    config = model.peft_config["default"].to_dict()
    config.update(base_model_name_or_path=model_path, inference_mode=True)
    write_json(folder / ADAPTER_CONFIG, {key: _plain(config[key]) for key in sorted(config)})
    write_json(folder / PROVENANCE, provenance)


def check_provenance(folder: Path, expected: dict[str, str]) -> None:
    """Raises InputError unless the adapter of `folder` was made on this base and with this chat template."""
    found = read_json(folder / PROVENANCE)
    for part, fingerprint in expected.items():
        if found.get(part) != fingerprint:
            raise InputError(
                f"{folder} was trained with another {part} ({found.get(part)} there, {fingerprint} here). Run: dvc repro --force"
            )


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in sorted(value.items())}
    return json.loads(json.dumps(value, default=str))


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
