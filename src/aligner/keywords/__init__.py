"""Scores an answer on the keyword groups of its prompt: the groups that it names, and its hit rate.

A keyword group is one idea in all its wordings; texts for readers call it a "key idea".

The package exports the five common names. It imports each on first use, so a stage that only checks groups does not depend on
the scorer.
"""

from importlib import import_module
from typing import Any

_HOME = {"hits": "groups", "prepare": "text", "score": "scorer", "Scorer": "scorer", "Index": "scorer"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
