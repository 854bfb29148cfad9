"""In: an answer and the keyword groups of its prompt. Out: which groups it names, and its hit rate.

The five names of a first use come from here. They are looked up when they are used, so that a stage which only checks groups
does not depend on how answers are scored.
"""

from importlib import import_module
from typing import Any

_HOME = {"hits": "groups", "prepare": "text", "score": "scorer", "Scorer": "scorer", "Index": "scorer"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
