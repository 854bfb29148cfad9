"""Markdown for the reports: tables, figures with their intervals, and foreign text made harmless."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Characters that are replaced by U+FFFD: controls other than tab and line feed, and marks of text direction.
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; cells are Markdown already."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *rows])


def visible(text: str) -> str:
    """The text with every hidden character as U+FFFD; page.js does the same."""
    return HIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)


def markdown(text: str) -> str:
    """Escapes text for Markdown: it starts no markup or link, ends no table cell and sends no terminal command."""
    escaped = re.sub(r"([\\`*_{}\[\]()#+!|~$&]|(?<=www)\.)", r"\\\1", visible(" ".join(text.split())))
    return escaped.replace("<", "&lt;").replace(">", "&gt;").replace("://", ":&#47;/")


# ---- Figures -----------------------------------------------------------------------------------------------------------


def figure(value: float | None) -> str:
    """A float with three decimals, an integer as it is, "undefined" for None."""
    if value is None:
        return "undefined"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def interval(estimate: Mapping[str, Any]) -> str:
    """The two ends of an estimate's interval, "0.380 to 0.440"; empty when it has none."""
    return "" if estimate.get("low") is None else f"{estimate['low']:.3f} to {estimate['high']:.3f}"


def with_interval(estimate: Mapping[str, Any]) -> str:
    """The estimate with its interval: "0.412 (0.380 to 0.440)"; "0.412" without one; or "undefined (reason)"."""
    inside = estimate["reason"] if estimate["estimate"] is None else interval(estimate)
    return figure(estimate["estimate"]) + (f" ({inside})" if inside else "")


def p_value(p: float) -> str:
    """Four decimals, or "below 0.0001"."""
    return "below 0.0001" if p < 0.0001 else f"{p:.4f}"


def two_cells(estimate: Mapping[str, Any]) -> list[str]:
    """The estimate and its interval, in one cell each."""
    return [figure(estimate["estimate"]), interval(estimate) or "undefined"]


def outcome_table(pairs: Mapping[str, Any]) -> str:
    """One row per claim: prompts won, tied and lost, the win rate with its interval, the adjusted p and the verdict.

    The claims are those about whole answers, then those at equal length, as far as a pair has one.
    """
    claims = {name.replace("_vs_", " over "): result for name, result in pairs.items()}
    claims |= {f"{name}, at equal length": each["equal_length"] for name, each in claims.items() if "equal_length" in each}
    rows = []
    for name, result in claims.items():
        counts = (str(result[outcome]) for outcome in ("wins", "ties", "losses"))
        words = filter(None, [result["decision"]["verdict"], result.get("cannot_be_significant")])
        decided = [f"{result['p_holm']:.2g}", "; ".join(words)]
        rows.append([name, *counts, *two_cells(result["win_rate"]), *decided])
    return table(["comparison", "won", "tied", "lost", "win rate (ties half)", "95% interval", "adjusted p", "verdict"], rows)
