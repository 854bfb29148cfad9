"""Markdown for the reports: tables, and text of models and data that shows as it is and does nothing else."""

from __future__ import annotations

import re


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; cells are Markdown already."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *rows])


def markdown(text: str) -> str:
    """Text as Markdown that shows it and does nothing else: no markup, no link, no end of a table cell, no terminal command."""
    visible = re.sub(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "\N{REPLACEMENT CHARACTER}", " ".join(text.split()))
    escaped = re.sub(r"([\\`*_{}\[\]()#+!|~$&]|(?<=www)\.)", r"\\\1", visible)
    return escaped.replace("<", "&lt;").replace(">", "&gt;").replace("://", ":&#47;/")
