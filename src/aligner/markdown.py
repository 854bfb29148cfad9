"""Markdown for the reports: tables, and text of models and data that shows as it is and does nothing else."""

from __future__ import annotations

import re
from typing import Any


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; cells are Markdown already."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *rows])


def markdown(text: str) -> str:
    """Text as Markdown that shows it and does nothing else: no markup, no link, no end of a table cell, no terminal command."""
    visible = re.sub(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "\N{REPLACEMENT CHARACTER}", " ".join(text.split()))
    escaped = re.sub(r"([\\`*_{}\[\]()#+!|~$&]|(?<=www)\.)", r"\\\1", visible)
    return escaped.replace("<", "&lt;").replace(">", "&gt;").replace("://", ":&#47;/")


def three(found: dict[str, Any]) -> str:
    return "undefined" if found["estimate"] is None else f"{found['estimate']:.3f}"


def interval(found: dict[str, Any]) -> str:
    return "undefined" if found.get("low") is None else f"{found['low']:.3f} to {found['high']:.3f}"


def outcome_table(pairs: dict[str, Any]) -> str:
    rows = []
    for name, found in pairs.items():
        counts, rate = (str(found[outcome]) for outcome in ("wins", "ties", "losses")), found["win_rate"]
        words = filter(None, [found["decision"]["verdict"], found.get("cannot_be_significant")])
        decided = [f"{found['p_holm']:.2g}", "; ".join(words)]
        rows.append([name.replace("_vs_", " over "), *counts, three(rate), interval(rate), *decided])
    return table(["comparison", "won", "tied", "lost", "win rate (ties half)", "95% interval", "adjusted p", "verdict"], rows)
