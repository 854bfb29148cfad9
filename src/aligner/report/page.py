"""The report as one web page that needs nothing but itself: what ran, curves, results, and every prompt with all answers.

    text = render(Sources(params, pins, metrics, curves, ranking, report, references, answers, pairs))

Pure functions of what stands in files, so that the same run gives the same bytes. What models and people wrote reaches the page
in two ways alone: escaped by Jinja, or as JSON in a block that no browser runs, which page.js writes out with `textContent`.
A Content-Security-Policy lets the page's own style and script run, by their hashes, and forbids everything else.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aligner.keywords.groups import idea
from aligner.markdown import HIDDEN, figure, interval, p_value, visible
from aligner.report import blind, charts
from aligner.report.highlight import Mark, marks
from aligner.report.labels import label
from aligner.run.params import StageParams
from aligner.scoring.answers import Answer
from aligner.scoring.pairs import compare, name_of

HERE = Path(__file__)
# What each curve's file shows: a title, the unit of its values, and what to look for.
CURVES = {
    "sft": ("SFT loss", "nats per token", "Held out should fall with training; where it rises again, SFT runs too long."),
    "dpo_loss": (
        "DPO loss",
        "nats per pair",
        "Held out starts at ln 2 = 0.693, where the policy is its own reference; the training objective adds dpo.sft_weight "
        "times the chosen answers' own loss.",
    ),
    "dpo_rewards": ("Implicit rewards", "nats, times beta", "The margin is chosen minus rejected."),
    "dpo_accuracy": ("Reward accuracy", "share of pairs", "Pairs whose chosen answer has the higher reward."),
    "dpo_logps": ("Log-probability", "nats per answer", "Of held-out answers; both may fall, the rejected one should fall more."),
}
FIRST = ("hit_rate", "lift", "all_hit_rate")
# Of text health, what a reader needs; the rest stands in reports/score.json.
HEALTH = (
    *("degenerate", "stuffed", "truncated", "empty", "echo", "refusal", "duplicate"),
    *("repetition_4", "distinct_2", "ead_2"),
)
OUTCOMES = ("won", "tied", "lost")
ACTIVE = re.compile(f"[<>&\u2028\u2029{HIDDEN.pattern[1:-1]}]")
MAIN_PINS = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers", "safetensors", "dvc", "numpy")


class Sources(NamedTuple):
    """All that the page is made from; `curves` holds each plot's rows, `pins` the lines of requirements.txt.

    ranking: dpo's rows on held-out pairs; report: all that score found.
    """

    params: StageParams
    pins: list[str]
    metrics: dict[str, dict[str, Any]]
    curves: dict[str, list[dict[str, str]]]
    ranking: list[dict[str, str]]
    report: dict[str, Any]
    references: list[dict[str, Any]]
    answers: dict[str, list[Answer]]
    pairs: Sequence[tuple[str, str]]


def render(sources: Sources) -> str:
    """The whole page as HTML."""
    from markupsafe import Markup

    style, script, data = part(".css"), part(".js"), data_of(sources)
    policy = f"default-src 'none'; script-src {source_hash(script)}; style-src {source_hash(style)}; "
    policy += "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    return template().render(
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        data=Markup(inert_json(data)),
        run=data["run"],
        **context(sources),
    )


@functools.cache
def template() -> Any:
    """page.html, compiled once; every value that it shows is escaped, and one that is missing is an error."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, finalize=harmless, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    shown = {"three": three, "plain": plain, "interval": ends, "p_value": p_value, "signed": signed, "label": label}
    environment.filters |= shown
    return environment.from_string(part(".html"))


def part(suffix: str) -> str:
    """The template, the style or the script, which stand beside this module."""
    return HERE.with_suffix(suffix).read_text(encoding="utf-8")


def source_hash(text: str) -> str:
    """An inline style or script as a Content-Security-Policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def inert_json(value: Any) -> str:
    """JSON that cannot end its <script> block, begin a comment in it, or do anything to a terminal that shows it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return ACTIVE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def harmless(value: Any) -> Any:
    """What the template writes: in texts of others, control and bidi characters are shown and not obeyed."""
    from markupsafe import Markup

    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


# ---- Prompts and answers, for page.js ----------------------------------------------------------------------------------


def data_of(sources: Sources) -> dict[str, Any]:
    """What page.js shows and what a blind vote needs. Models have names in one place alone; all else counts them."""
    texts = {name: [answer.text for answer in given] for name, given in sources.answers.items()}
    run = blind.fingerprint(sources.references, texts)
    names = list(sources.answers)
    return {
        "run": run,
        "version": blind.VERSION,
        "verdicts": list(blind.VERDICTS),
        "models": [{"alias": blind.alias(run, name), "name": name} for name in names],
        "pairs": [[names.index(first), names.index(second)] for first, second in sources.pairs],
        "prompts": [prompt_of(place, reference, sources) for place, reference in enumerate(sources.references)],
    }


def prompt_of(place: int, reference: dict[str, Any], sources: Sources) -> dict[str, Any]:
    given = {name: answers[place] for name, answers in sources.answers.items()}
    threshold = sources.report["settings"]["tie_threshold"]
    return {
        "id": reference["id"],
        "prompt": reference["prompt"],
        "topic": reference["topic"],
        "kind": reference.get("kind", "").replace("_", " "),
        "ideas": [idea(group) for group in reference["keywords"]],
        "answers": [answer_of(answer, reference) for answer in given.values()],
        "outcomes": [outcome(given[first].rate, given[second].rate, threshold) for first, second in sources.pairs],
    }


def answer_of(answer: Answer, reference: dict[str, Any]) -> dict[str, Any]:
    """An answer cut where marks begin and end: text, marked text, text, …; hits, flags and length beside it."""
    named = list(itertools.compress(reference["keywords"], answer.keyword.matched))
    flags = [flag for flag in answer.keyword.flags if flag != "empty"]
    return {
        "parts": parts_of(answer.text, marks(answer.text, named, reference["prompt"])),
        "hits": answer.keyword.hits,
        "named": [int(hit) for hit in answer.keyword.matched],
        "flags": flags + (["cut at the longest length"] if answer.stop == "length" else []),
        "words": answer.words,
    }


def parts_of(text: str, marked: Sequence[Mark]) -> list[str]:
    """The text in pieces, every second of them marked; joined they are the text."""
    pieces, last = [], 0
    for start, end, _ in marked:
        pieces += [text[last:start], text[start:end]]
        last = end
    return [*pieces, text[last:]]


def outcome(first: float, second: float, threshold: float) -> int:
    """1 where the first model won the prompt, 0 for a tie, -1 where it lost."""
    found = compare([first], [second], threshold)
    return found.wins - found.losses


# ---- What the template writes down -------------------------------------------------------------------------------------


def context(sources: Sources) -> dict[str, Any]:
    report = sources.report
    names = list(sources.answers)
    return {
        "models": names,
        "prompts": report["prompts"],
        "settings": report["settings"],
        "measures": measures(report["models"], names),
        "health": measures({name: {key: report["models"][name]["health"][key] for key in HEALTH} for name in names}, names),
        "lengths": {name: report["models"][name]["lengths"] for name in names},
        "contests": [
            {"first": first, "second": second, **report["pairs"][name_of((first, second))]} for first, second in sources.pairs
        ],
        "canaries": report["canaries"],
        "by_kind": charts.intervals(rate_rows(report, names, whole=True, part="kinds")),
        "by_topic": charts.intervals(rate_rows(report, names, whole=False, part="topics")),
        "outcomes": outcome_bars(report, names, sources.pairs),
        "curves": list(panels(sources.curves)),
        "training": {stage: sources.metrics[stage][stage] for stage in ("sft", "dpo")},
        "held_out": measures(held_out(sources.metrics["sft"]["sft"], sources.metrics["dpo"]["dpo"], sources.ranking), names),
        "ranking": sources.ranking,
        "kl": kl_of(sources.metrics["dpo"]["dpo"]),
        **rows_of_data(sources.metrics["prepare"]),
        "settings_of_run": sections(sources.params),
        "main_pins": [pin for pin in sources.pins if pin.split("==")[0] in MAIN_PINS],
        "pins": sources.pins,
    }


def measures(found: dict[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for every measure that the report holds of its models, the most telling first: (name, estimates by model)."""
    keys = [key for key in found[names[0]] if is_estimate(found[names[0]][key])]
    ordered = [*(key for key in FIRST if key in keys), *(key for key in keys if key not in FIRST)]
    rows = [{"name": key, "values": [found[name][key] for name in names]} for key in ordered]
    return [row | {"same": all(undefined_alike(row["values"][0], value) for value in row["values"])} for row in rows]


def undefined_alike(first: dict[str, Any], other: dict[str, Any]) -> bool:
    return first["estimate"] is None and first == other


def is_estimate(value: Any) -> bool:
    return isinstance(value, dict) and "estimate" in value


def held_out(sft: dict[str, Any], dpo: dict[str, Any], ranking: list[dict[str, str]]) -> dict[str, dict[str, Any]]:
    """How each model finds what it was not trained on: the SFT answers, and the answers of preference pairs."""
    found: dict[str, dict[str, Any]] = {"base": {}, "sft": {}, "dpo": {}}
    for key in ("perplexity", "bits_per_byte"):
        values = {"base": sft[f"base_{key}"], "sft": sft[key], "dpo": dpo[key]}
        for model, value in values.items():
            found[model][key] = {"estimate": value, "reason": "the answers hold no text"}
    for row in ranking:
        estimate, low, high = (float(row[key]) for key in ("ranking_accuracy", "low", "high"))
        found[row["model"]][f"ranking_{row['group']}"] = {"estimate": estimate, "low": low, "high": high}
    return found


def kl_of(dpo: dict[str, Any]) -> dict[str, Any]:
    keys = {"estimate": "", "low": "_low", "high": "_high"}
    found = {key: dpo[f"kl_per_answer_sampled{end}"] for key, end in keys.items()}
    return found | {"reason": "the prompts leave no position for an answer"}


def rate_rows(report: dict[str, Any], names: Sequence[str], whole: bool, part: str) -> list[dict[str, Any]]:
    """(group, model, estimate, interval, n) of the hit rate, for all prompts and for the groups of one kind."""
    groups = {"all prompts": {name: report["models"][name]["hit_rate"] for name in names}} if whole else {}
    groups |= {group: found["models"] for group, found in report["exploratory"][part].items()}
    return [
        {"group": group, "model": name, **{key: rates[name][key] for key in ("estimate", "low", "high", "n")}}
        for group, rates in groups.items()
        for name in names
    ]


def outcome_bars(report: dict[str, Any], names: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A bar a pair; each part has the colour of the model whose answers were better."""
    rows = []
    for first, second in pairs:
        found = report["pairs"][name_of((first, second))]
        counts = [found[key] for key in ("wins", "ties", "losses")]
        told = ", ".join(f"{count} {word}" for count, word in zip(counts, OUTCOMES, strict=True))
        kinds = (f"m{names.index(first)}", "tie", f"m{names.index(second)}")
        rows.append((f"{first} against {second}: {told}", list(zip(kinds, counts, strict=True))))
    return charts.shares(rows)


def rows_of_data(counts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The files that have rows, and for every count of any of them a value by file ("" where it has none)."""
    files = [name for name, found in counts.items() if "rows" in found]
    keys = dict.fromkeys(key for name in files for key in counts[name])
    table = {key: [counts[name].get(key, "") for name in files] for key in keys}
    return {"files": files, "rows_of_data": table, "leakage": counts["leakage"]}


def panels(curves: dict[str, list[dict[str, str]]]) -> Iterator[dict[str, Any]]:
    """Every curve's drawing, and its values as a table of steps by series."""
    for name, (title, unit, hint) in CURVES.items():
        rows = curves[name]
        drawn = charts.lines([(float(row["step"]), row["series"], float(row["value"])) for row in rows])
        series = [each["name"] for each in drawn["series"]]
        values: dict[int, dict[str, str]] = {}
        for row in rows:
            values.setdefault(int(row["step"]), {})[row["series"]] = row["value"]
        table = [(step, [given.get(each, "") for each in series]) for step, given in sorted(values.items())]
        yield {"name": name, "title": title, "unit": unit, "hint": hint, "table": table, **drawn}


def sections(params: StageParams) -> dict[str, list[tuple[str, str]]]:
    """Every parameter as (dotted name, value), by section; single values stand together in front."""
    values = params.model_dump()
    values["models"] = values.pop("model_entry")
    found: dict[str, list[tuple[str, str]]] = {"run": []}
    for name, value in sorted(values.items()):
        leaves = list(flat(value, name))
        (found.setdefault(name, []) if isinstance(value, dict) else found["run"]).extend(leaves)
    return found


def flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if not isinstance(value, dict):
        yield name, json.dumps(value, ensure_ascii=False) if isinstance(value, bool | list | None) else str(value)
        return
    for key, inner in value.items():
        yield from flat(inner, f"{name}.{key}")


def pins_of(requirements: str) -> list[str]:
    """The pinned libraries, without what restricts them to a system."""
    lines = (line.split(";")[0].split("#")[0].strip() for line in requirements.splitlines())
    return [line for line in lines if line]


# ---- Numbers as people read them ---------------------------------------------------------------------------------------


def minus(text: str) -> str:
    """The text of a number with a true minus."""
    return text.replace("-", "\u2212")


def three(value: float | int | None) -> str:
    return minus(figure(value))


def ends(estimate: dict[str, Any]) -> str:
    return minus(interval(estimate))


def plain(value: Any) -> str:
    """A number as it stands in the file."""
    if value is None:
        return "undefined"
    return value if isinstance(value, str) else minus(str(value))


def signed(value: float) -> str:
    return minus(f"{value:+g}") if value else "0"
