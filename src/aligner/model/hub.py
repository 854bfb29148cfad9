"""Finds a model's files: in a local folder, or at a pinned revision of a Hugging Face repository."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from aligner.run.errors import InputError

REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*", re.A)
TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"]
WEIGHT_FILES = ["*.safetensors", "model.safetensors.index.json", "generation_config.json"]


def model_folder(path: str, revision: str | None, patterns: list[str]) -> Path:
    """The folder that holds a model's files; downloads missing ones to the Hugging Face cache.

    Raises InputError with the command to run when the model is not available (no such folder, no network, no access).
    """
    if Path(path).is_dir():
        return Path(path)
    if "://" in path:
        raise InputError(f"{path} is an address; models.<name>.path must be a folder, or a Hugging Face repository as owner/name")
    if path.startswith((".", "/", "~", "models/", "data/")) or path.count("/") != 1:
        raise InputError(f"model folder {path} is missing. If it is part of this repository: git checkout -- {shlex.quote(path)}")
    if not REPOSITORY.fullmatch(path):
        raise InputError(f"{path!r} is neither a folder nor a Hugging Face repository (owner/name; letters, digits, ., _ and -)")
    if not revision or not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise InputError(
            f"{path} is a Hugging Face model and needs a pinned commit: set models.<name>.revision in params.yaml to its 40 hex "
            f"digits (see https://huggingface.co/{path}/commits/main)"
        )
    return _snapshot(path, revision, patterns)


def _snapshot(path: str, revision: str, patterns: list[str]) -> Path:
    from httpx2 import HTTPError  # what the hub's client raises, also for a broken connection
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # each retry would print a warning
    command = f"hf download {path} --revision {revision}"
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=patterns))
    except GatedRepoError:
        raise InputError(f"{path} is gated: accept its terms on huggingface.co, then: hf auth login && {command}") from None
    except LocalEntryNotFoundError:
        raise InputError(f"{path} is not in the local cache and the hub cannot be reached. With a network: {command}") from None
    except (HTTPError, HFValidationError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            f"{path} at {revision} cannot be downloaded ({reason}). Check name, revision, network: {command}"
        ) from None
