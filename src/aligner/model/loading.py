"""Loads a base model and adapters, saves adapters, and checks that they belong together.

Only safetensors weights are read, and no code from a model repository runs.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from aligner.files import read_json, write_json
from aligner.model.chat import Chat
from aligner.model.hub import TOKENIZER_FILES, WEIGHT_FILES, model_folder
from aligner.model.runtime import Runtime
from aligner.run import ranks
from aligner.run.errors import InputError
from aligner.run.params import ModelEntry

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
PROVENANCE = "provenance.json"
PREPARED_CHAT = Path("data/prepared/chat.json")  # the fingerprint of the tokenizer and template that prepare used
SHARD_INDEX = "model.safetensors.index.json"


def load_chat(entry: ModelEntry) -> Chat:
    """The chat renderer of a model entry."""
    return Chat.load(model_folder(entry.path, entry.revision, TOKENIZER_FILES), entry.chat_template)


def check_chat(chat: Chat, prepared: dict[str, Any]) -> None:
    """Raises InputError unless prepare used the tokenizer and chat template of `chat`; `prepared` is the content of chat.json."""
    if prepared["fingerprint"] != chat.fingerprint:
        raise InputError(
            "data/prepared was made with another tokenizer or chat template. Run: dvc repro --force --single-item prepare"
        )


def base_folder(entry: ModelEntry) -> Path:
    """The folder that holds a base's files; InputError unless all its weights are safetensors files in it."""
    folder = model_folder(entry.path, entry.revision, TOKENIZER_FILES + WEIGHT_FILES)
    check_shards(folder)
    return folder


def load_base(entry: ModelEntry, runtime: Runtime):
    """The base model of an entry, in the precision and on the device of `runtime`.

    Raises InputError unless the model's folder holds, as safetensors, every weight that its config.json asks for.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    folder = base_folder(entry)
    load_errors = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, ImportError, RuntimeError)
    try:
        # A pair, because of output_loading_info; transformers' annotation names the model alone.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=runtime.dtype,
            attn_implementation=entry.attn_implementation,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **_sharding(),
        )
    except (*load_errors, SafetensorError, StrictDataclassError) as error:
        raise InputError(f"{entry.path} cannot be loaded as a causal language model: {_reason(error)}") from None
    base, info = loaded
    if missing := sorted(info["missing_keys"]):  # transformers would initialise them at random
        raise InputError(
            f"{entry.path} lacks {len(missing)} of the weights that its config.json asks for, such as {missing[0]}; "
            "copy or download the model's files again"
        )
    return base.to(runtime.device)


def _sharding() -> dict[str, Any]:
    """Arguments that give each process a part of the frozen base (FSDP2) while it loads; adapters stay whole on each process."""
    if not ranks.sharded():
        return {}
    from transformers.distributed.configuration_utils import DistributedConfig

    return {"distributed_config": DistributedConfig(fsdp_size=ranks.world())}


def check_shards(folder: Path) -> None:
    """Raises InputError unless all weights are safetensors files in `folder` itself; an index could name any file."""
    if not list(folder.glob("*.safetensors")):
        raise InputError(f"{folder} holds no *.safetensors; weights in other formats can run code, so they are not loaded")
    index = folder / SHARD_INDEX
    if not index.is_file():
        return
    try:
        shards = [str(shard) for shard in read_json(index)["weight_map"].values()]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise InputError(f"{index} is not a valid weight index; copy or download the model's files again") from None
    if strange := sorted({shard for shard in shards if Path(shard).name != shard or not shard.endswith(".safetensors")}):
        raise InputError(f"{index} names {strange[0]!r}, which is not a safetensors file in the same folder, so it is not loaded")


def base_fingerprint(entry: ModelEntry) -> str:
    """SHA-256 over a base's weights and configuration; an adapter fits exactly one base."""
    folder = model_folder(entry.path, entry.revision, TOKENIZER_FILES + WEIGHT_FILES)
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def load_adapter(base, folder: Path, trainable: bool = False):
    """The base with the adapter in `folder`, named "default" as trl requires.

    Raises InputError when the adapter is missing or damaged, or lacks weights that its configuration describes.
    """
    from peft import PeftModel
    from safetensors import SafetensorError, safe_open

    remedy = "the previous stage writes it. Run: dvc repro (or: dvc pull)"
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise InputError(f"{folder / ADAPTER_WEIGHTS} is missing; {remedy}")
    try:
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
            stored = set(file.keys())
        model = PeftModel.from_pretrained(base, folder, is_trainable=trainable, use_safetensors=True)
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"{folder / ADAPTER_WEIGHTS} is damaged ({_reason(error)}); {remedy}") from None
    if stored != set(_adapter_state(model)):  # peft would leave missing weights at their random values
        raise InputError(f"{folder / ADAPTER_WEIGHTS} does not hold the weights that {ADAPTER_CONFIG} describes; {remedy}")
    return model


def save_adapter(model, folder: Path, model_path: str, provenance: dict[str, str]) -> None:
    """Writes the adapter, its normalised configuration and its provenance: the same bytes for the same training.

    peft keeps `target_modules` in a set, whose order follows the hash seed, and records absolute paths; this normalises both.
    """
    from safetensors.torch import save_file

    if not ranks.first():
        return
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in _adapter_state(model).items()}
    save_file(state, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = model.peft_config["default"].to_dict()
    config.update(base_model_name_or_path=model_path, inference_mode=True)
    write_json(folder / ADAPTER_CONFIG, {key: _plain(config[key]) for key in sorted(config)})
    write_json(folder / PROVENANCE, provenance)


def _adapter_state(model) -> dict[str, Any]:
    """The adapter's tensors by peft's names. With a sharded base peft would first gather all of it, which needs every process."""
    from peft import get_peft_model_state_dict

    if not ranks.sharded():
        return get_peft_model_state_dict(model)
    own = {name: parameter for name, parameter in model.named_parameters() if model.base_model.prefix in name}
    return get_peft_model_state_dict(model, state_dict=own, save_embedding_layers=False)


def check_provenance(folder: Path, expected: dict[str, str]) -> None:
    """Raises InputError unless the adapter in `folder` was trained on the expected base and chat template (SHA-256 each)."""
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
    """The first line of a library's error, and the second if the first only announces it with a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if "ignore_mismatched_sizes" in lines[0]:
        return "its weights have other shapes than its config.json says"
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
