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
SHARD_INDEX = "model.safetensors.index.json"


def quiet() -> None:
    """Silences what the libraries would say on their own: progress bars, advice, deprecations, telemetry, hub pings.

    Also sets what Intel's library and torch read from the environment once, before their first tensor.
    """
    import logging
    import warnings

    os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_PROGRESS_BARS="1")
    os.environ.setdefault("CI", "1")  # trl asks the hub on every trainer it builds, unless it believes itself in CI
    os.environ.setdefault("MKL_CBWR", "AUTO")  # sums in Intel's library in one order, wherever in memory their terms lie
    warnings.filterwarnings("ignore")
    logging.captureWarnings(True)
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def runtime(model: SimpleNamespace, seed: int) -> SimpleNamespace:
    """Sets threads and seeds, chooses device and precision, and says so once: `device` and `dtype` as torch knows them."""
    import torch
    from transformers import set_seed

    if model.threads:
        torch.set_num_threads(model.threads)
    set_seed(seed)
    device = _device(model.device)
    dtype = _dtype(model.dtype, device)
    print(
        f"device {device}, {str(dtype).removeprefix('torch.')}, {model.attn_implementation} attention, "
        f"{torch.get_num_threads()} threads, seed {seed}",
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
    """The base model of an entry, in the precision and on the device of `where`.

    Raises InputError unless its folder holds all weights of the architecture that its config.json names, as safetensors.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    folder = model_folder(model.path, model.revision, TOKENIZER_FILES + WEIGHT_FILES)
    check_shards(folder)
    of_the_files = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, ImportError, RuntimeError)
    try:
        base, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=where.dtype,
            attn_implementation=model.attn_implementation,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (*of_the_files, SafetensorError, StrictDataclassError) as error:
        raise InputError(f"{model.path} cannot be loaded as a causal language model: {_reason(error)}") from None
    if missing := sorted(found["missing_keys"]):  # transformers would draw them at random
        raise InputError(
            f"{model.path} lacks {len(missing)} of the weights that its config.json asks for, such as {missing[0]}; "
            "copy or download the model's files again"
        )
    return base.to(where.device)


def check_shards(folder: Path) -> None:
    """Raises InputError unless the weights are safetensors files of the folder itself; an index could name any other file."""
    if not list(folder.glob("*.safetensors")):
        raise InputError(f"{folder} holds no *.safetensors; weights in other formats can run code and are not loaded")
    index = folder / SHARD_INDEX
    if not index.is_file():
        return
    try:
        shards = [str(shard) for shard in read_json(index)["weight_map"].values()]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise InputError(f"{index} is no index of weights; copy or download the model's files again") from None
    if strange := sorted({shard for shard in shards if Path(shard).name != shard or not shard.endswith(".safetensors")}):
        raise InputError(f"{index} names {strange[0]!r}, which is no safetensors file of the same folder; it is not loaded")


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
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    way = "the stage before writes it. Run: dvc repro (or: dvc pull)"
    if not (folder / ADAPTER).is_file():
        raise InputError(f"{folder / ADAPTER} is missing; {way}")
    try:
        with safe_open(folder / ADAPTER, framework="pt") as file:
            there = set(file.keys())
        model = PeftModel.from_pretrained(base, folder, is_trainable=trainable, use_safetensors=True)
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"{folder / ADAPTER} is damaged ({_reason(error)}); {way}") from None
    if there != set(get_peft_model_state_dict(model)):  # peft would leave what is missing as it was drawn
        raise InputError(f"{folder / ADAPTER} does not hold the weights that {ADAPTER_CONFIG} describes; {way}")
    return model


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


def _reason(error: BaseException) -> str:
    """The first line of a library's error; the second as well where the first one only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if "ignore_mismatched_sizes" in lines[0]:
        return "its weights are of other shapes than its config.json says"
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
