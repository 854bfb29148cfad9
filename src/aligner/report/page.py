"""The report as one self-contained web page: the results, the training, the parameters, and every prompt with all answers.

    text = render(Sources(params, pins, figures, curves, ranking, report, references, answers, pairs))

Pure functions of the files' contents, so the same run gives the same bytes. Text of models and people reaches the page in only
two ways: escaped by Jinja, or as JSON in a block that no browser runs, which page.js displays with `textContent`. A
Content-Security-Policy allows the page's own style and script, by their hashes, and forbids everything else.
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
from aligner.report.labels import grouped, label
from aligner.run.params import StageParams
from aligner.scoring.answers import Answer
from aligner.scoring.pairs import pair_name, prompt_outcomes
from aligner.scoring.unscored import with_keywords

HERE = Path(__file__)
# For each curve: a title, the unit of its values, and what to look for.
CURVE_CAPTIONS = {
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
FIRST = ("hit_rate", "precision", "repeats", "hits_per_100_words", "lift", "all_hit_rate")
# The rows of text health that a reader needs; the others are in reports/score.json.
HEALTH = (
    *("degenerate", "stuffed", "truncated", "empty", "echo", "refusal", "duplicate"),
    *("repetition_4", "distinct_2", "ead_2"),
)
OUTCOME_WORDS = ("won", "tied", "lost")
ACTIVE = re.compile(f"[<>&\u2028\u2029{HIDDEN.pattern[1:-1]}]")
MAIN_PINS = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers", "safetensors", "dvc", "numpy")


class Sources(NamedTuple):
    """Everything that the page shows.

    pins: the pinned libraries of requirements.txt. figures: reports/<stage>.json of prepare, sft and dpo. curves: the rows of
    each plot. ranking: the rows of plots/dpo_ranking.csv; without figures (the league) the page leaves out the training and the
    rows of data. report: reports/score.json, or the part of reports/league.json that is about these models. family: the tests
    over which p-values were adjusted, in words, if the page does not show them all. program: the script that writes the page.
    """

    params: StageParams
    pins: list[str]
    figures: dict[str, dict[str, Any]]
    curves: dict[str, list[dict[str, str]]]
    ranking: list[dict[str, str]]
    report: dict[str, Any]
    references: list[dict[str, Any]]
    answers: dict[str, list[Answer]]
    pairs: Sequence[tuple[str, str]]
    family: str | None = None
    program: str = "src/score.py"


def render(sources: Sources) -> str:
    """The whole page as HTML."""
    from markupsafe import Markup

    style, script, data = part(".css"), part(".js"), page_data(sources)
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
    """page.html, compiled once. Every value is escaped; a missing value is an error."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, finalize=harmless, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"figure": shown_figure, "interval": shown_interval, "as_written": as_written}
    environment.filters |= {"p_value": p_value, "signed": signed, "label": label}
    return environment.from_string(part(".html"))


def part(suffix: str) -> str:
    """The template (".html"), the style (".css") or the script (".js") beside this module."""
    return HERE.with_suffix(suffix).read_text(encoding="utf-8")


def source_hash(text: str) -> str:
    """The hash by which a Content-Security-Policy allows an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def inert_json(value: Any) -> str:
    """JSON that cannot end its <script> block, start a comment in it, or control a terminal that displays it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return ACTIVE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def harmless(value: Any) -> Any:
    """A value of the template, with control and bidi characters made visible."""
    from markupsafe import Markup

    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


# ---- Prompts and answers, for page.js ----------------------------------------------------------------------------------


def page_data(sources: Sources) -> dict[str, Any]:
    """The data of page.js. Only "models" holds names of models; everything else refers to them by number, for the blind vote."""
    texts = {name: [answer.text for answer in given] for name, given in sources.answers.items()}
    run = blind.answers_fingerprint(sources.references, texts)
    names = list(sources.answers)
    outcomes = [outcomes_of(pair, sources) for pair in sources.pairs]
    return {
        "run": run,
        "version": blind.VERSION,
        "verdicts": list(blind.VERDICTS),
        "models": [{"alias": blind.alias(run, name), "name": name} for name in names],
        "pairs": [[names.index(first), names.index(second)] for first, second in sources.pairs],
        "prompts": [
            prompt_data(reference, [given[number] for given in sources.answers.values()])
            | {"outcomes": [by_prompt[number] for by_prompt in outcomes]}
            for number, reference in enumerate(sources.references)
        ],
    }


def outcomes_of(pair: tuple[str, str], sources: Sources) -> list[int | None]:
    """For each prompt 1 where the first model won, 0 for a tie, -1 where it lost, by the report's rule; None without keywords."""
    keyed = with_keywords(sources.references)
    first, second = ([sources.answers[name][number].rate for number in keyed] for name in pair)
    outcomes = dict(zip(keyed, prompt_outcomes(first, second, sources.params.score.tie_threshold), strict=True))
    return list(map(outcomes.get, range(len(sources.references))))


def prompt_data(reference: dict[str, Any], answers: Sequence[Answer]) -> dict[str, Any]:
    return {
        "id": reference["id"],
        "prompt": reference["prompt"],
        "topic": reference["topic"],
        "kind": reference.get("kind", "").replace("_", " "),
        "ideas": [idea(group) for group in reference["keywords"]],
        "answers": [answer_data(answer, reference) for answer in answers],
    }


def answer_data(answer: Answer, reference: dict[str, Any]) -> dict[str, Any]:
    """An answer in parts, with its hits, flags and length."""
    named = list(itertools.compress(reference["keywords"], answer.keyword.matched))
    flags = [flag for flag in answer.keyword.flags if flag != "empty"]
    return {
        "parts": marked_parts(answer.text, marks(answer.text, named, reference["prompt"])),
        "hits": answer.keyword.hits,
        "named": [int(hit) for hit in answer.keyword.matched],
        "flags": flags + (["cut at the maximum length"] if answer.stop == "length" else []),
        "words": answer.words,
    }


def marked_parts(text: str, marked: Sequence[Mark]) -> list[str]:
    """The text cut where marks begin and end; every second part is marked."""
    parts, last = [], 0
    for start, end, _ in marked:
        parts += [text[last:start], text[start:end]]
        last = end
    return [*parts, text[last:]]


# ---- The template's values ---------------------------------------------------------------------------------------------


def context(sources: Sources) -> dict[str, Any]:
    report = sources.report
    names = list(sources.answers)
    keyed = report.get("prompts_with_keywords", report["prompts"])
    figures = measures({name: model | {"repeats": model["health"]["repeats"]} for name, model in report["models"].items()}, names)
    return {
        "models": names,
        "prompts": report["prompts"],
        "keyed": keyed,
        "settings": report["settings"],
        "family": sources.family or f"these {2 * len(sources.pairs)}",
        "program": sources.program,
        "measures": [row for row in figures if keyed or not row["same"]],
        "health": measures({name: {key: report["models"][name]["health"][key] for key in HEALTH} for name in names}, names),
        "lengths": {name: report["models"][name]["lengths"] for name in names},
        "contests": [
            {"first": first, "second": second, **report["pairs"][pair_name((first, second))]} for first, second in sources.pairs
        ],
        "canaries": report["canaries"],
        "by_kind": charts.intervals(rate_points(report, names, whole=True, part="kinds")),
        "by_topic": charts.intervals(rate_points(report, names, whole=False, part="topics")),
        "outcomes": outcome_bars(report, names, sources.pairs),
        "settings_of_run": sections(sources.params),
        "main_pins": [pin for pin in sources.pins if pin.split("==")[0] in MAIN_PINS],
        "pins": sources.pins,
        "training": training(sources, names) if sources.figures else None,
        "prepared": rows_of_data(sources.figures["prepare"]) if sources.figures else None,
    }


def training(sources: Sources, names: Sequence[str]) -> dict[str, Any]:
    """The values of the section on training, from the files of sft and dpo."""
    sft, dpo = (sources.figures[stage][stage] for stage in ("sft", "dpo"))
    return {
        "curves": list(panels(sources.curves)),
        "sft": sft,
        "dpo": grouped(dpo),
        "held_out": measures(held_out(sft, dpo, sources.ranking), names),
        "ranking": sources.ranking,
        "kl": kl_estimate(dpo),
    }


def measures(estimates: dict[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each estimate of the models, the main ones first, with one value per model."""
    keys = [key for key, value in estimates[names[0]].items() if is_estimate(value)]
    ordered = [*(key for key in FIRST if key in keys), *(key for key in keys if key not in FIRST)]
    rows = [{"name": key, "values": [estimates[name][key] for name in names]} for key in ordered]
    return [row | {"same": all(undefined_alike(row["values"][0], value) for value in row["values"])} for row in rows]


def undefined_alike(first: dict[str, Any], other: dict[str, Any]) -> bool:
    return first["estimate"] is None and first == other


def is_estimate(value: Any) -> bool:
    return isinstance(value, dict) and "estimate" in value


def held_out(sft: dict[str, Any], dpo: dict[str, Any], ranking: list[dict[str, str]]) -> dict[str, dict[str, Any]]:
    """Each model's likelihood of the held-out SFT answers, and its ranking accuracy on the held-out pairs."""
    estimates: dict[str, dict[str, Any]] = {"base": {}, "sft": {}, "dpo": {}}
    for key in ("perplexity", "bits_per_byte"):
        values = {"base": sft[f"base_{key}"], "sft": sft[key], "dpo": dpo[key]}
        for model, value in values.items():
            estimates[model][key] = {"estimate": value, "reason": "the answers hold no text"}
    for row in ranking:
        estimate, low, high = (float(row[key]) for key in ("ranking_accuracy", "low", "high"))
        estimates[row["model"]][f"ranking_{row['group']}"] = {"estimate": estimate, "low": low, "high": high}
    return estimates


def kl_estimate(dpo: dict[str, Any]) -> dict[str, Any]:
    """DPO's KL divergence from its reference, in nats per answer that it samples."""
    suffixes = {"estimate": "", "low": "_low", "high": "_high"}
    values = {key: dpo[f"kl_per_answer_sampled{suffix}"] for key, suffix in suffixes.items()}
    return values | {"reason": "the prompts leave no position for an answer"}


def rate_points(report: dict[str, Any], names: Sequence[str], whole: bool, part: str) -> list[dict[str, Any]]:
    """The hit rates of a chart: one row per group and model, for the groups of `part` and, if `whole`, for all prompts."""
    groups = {"all prompts": {name: report["models"][name]["hit_rate"] for name in names}} if whole else {}
    groups |= {group: result["models"] for group, result in report["exploratory"][part].items()}
    return [
        {"group": group, "model": name, **{key: rates[name][key] for key in ("estimate", "low", "high", "n")}}
        for group, rates in groups.items()
        for name in names
        if rates[name]["estimate"] is not None
    ]


def outcome_bars(report: dict[str, Any], names: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """One bar per pair; each part has the colour of the model whose answers were better."""
    rows = []
    for first, second in pairs:
        result = report["pairs"][pair_name((first, second))]
        counts = [result[key] for key in ("wins", "ties", "losses")]
        text = ", ".join(f"{count} {word}" for count, word in zip(counts, OUTCOME_WORDS, strict=True))
        kinds = (f"m{names.index(first)}", "tie", f"m{names.index(second)}")
        rows.append((f"{first} against {second}: {text}", list(zip(kinds, counts, strict=True))))
    return charts.shares(rows)


def rows_of_data(counts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The files with counted rows, and for each count one value per file ("" where a file has none)."""
    files = [name for name, figures in counts.items() if "rows" in figures]
    keys = dict.fromkeys(key for name in files for key in counts[name])
    table = {key: [counts[name].get(key, "") for name in files] for key in keys}
    return {"files": files, "rows_of_data": table, "leakage": counts["leakage"]}


def panels(curves: dict[str, list[dict[str, str]]]) -> Iterator[dict[str, Any]]:
    """Each curve's drawing, and its values as a table of steps by series."""
    for name, (title, unit, hint) in CURVE_CAPTIONS.items():
        rows = curves[name]
        drawn = charts.lines([(float(row["step"]), row["series"], float(row["value"])) for row in rows])
        series = [line["name"] for line in drawn["series"]]
        values: dict[int, dict[str, str]] = {}
        for row in rows:
            values.setdefault(int(row["step"]), {})[row["series"]] = row["value"]
        table = [(step, [at_step.get(line, "") for line in series]) for step, at_step in sorted(values.items())]
        yield {"name": name, "title": title, "unit": unit, "hint": hint, "table": table, **drawn}


def sections(params: StageParams) -> dict[str, list[tuple[str, str]]]:
    """Every parameter as (name in params.yaml, value), by section. The first section, "run", holds the top-level values."""
    values = params.model_dump()
    values[f"models.{params.model}"] = values.pop("model_entry")
    named: dict[str, list[tuple[str, str]]] = {"run": []}
    for name, value in sorted(values.items()):
        named.setdefault(name if isinstance(value, dict) else "run", []).extend(leaves(value, name))
    return named


def leaves(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if not isinstance(value, dict):
        yield name, json.dumps(value, ensure_ascii=False) if isinstance(value, bool | list | None) else str(value)
        return
    for key, inner in value.items():
        yield from leaves(inner, f"{name}.{key}")


def pins_of(requirements: str) -> list[str]:
    """The pinned libraries of a requirements file, without comments and platform markers."""
    lines = (line.split(";")[0].split("#")[0].strip() for line in requirements.splitlines())
    return [line for line in lines if line]


# ---- Number formats ----------------------------------------------------------------------------------------------------


def minus(text: str) -> str:
    """The text of a number with a true minus."""
    return text.replace("-", "\u2212")


def shown_figure(value: float | int | None) -> str:
    return minus(figure(value))


def shown_interval(estimate: dict[str, Any]) -> str:
    return minus(interval(estimate))


def as_written(value: Any) -> str:
    """A value as the file has it, with a true minus; "undefined" for None."""
    if value is None:
        return "undefined"
    return value if isinstance(value, str) else minus(str(value))


def signed(value: float) -> str:
    return minus(f"{value:+g}") if value else "0"
