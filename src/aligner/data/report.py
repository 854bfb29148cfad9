"""The data report: reports/data.json, the counts in metrics/prepare.json, and the same in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aligner.data import leakage
from aligner.data.audit import LISTED, ON_PAGE, Audit, Listed, shared_prompts
from aligner.data.leakage import EvalPrompts
from aligner.markdown import markdown, table


def data_report(audits: dict[str, Audit], prompts: EvalPrompts, eval_warnings: Mapping[str, Listed]) -> dict[str, Any]:
    """The content of reports/data.json."""
    overlaps = prompts.overlaps()
    return {
        "listed_at_most": LISTED,
        **{name: audit.report() for name, audit in audits.items()},
        "eval": {"warnings": {kind: eval_warnings[kind].report() for kind in sorted(eval_warnings)}},
        "leakage": {
            "rule": leakage.RULE,
            "prompts": len(prompts.ids),
            **prompts.counts(),
            "longest_words": max((overlap["words"] for overlap in overlaps), default=0),
            "held_out_rows_with_a_trained_prompt": shared_prompts(audits.values()),
            "prompts_with_a_run": len(overlaps),
            "listed": overlaps[:LISTED],
        },
    }


def report_figures(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The figures of the report that `dvc metrics diff` compares, beside the counts of rows."""
    sft, dpo, found = report["sft"], report["dpo"], report["leakage"]
    return {
        "sft_data": {
            "near_duplicate": sft["near_duplicates"]["rows"],
            "damaged": sft["damaged_rows"],
            "supervised_share": sft["tokens"]["supervised_share"],
        },
        "dpo_data": {
            "near_duplicate": dpo["near_duplicates"]["rows"],
            "damaged": dpo["damaged_rows"],
            "contradictory": dpo["contradictions"]["pairs"],
            "longer_chosen": dpo["length_bias"]["longer_is_chosen"],
            "length_gap": dpo["length_bias"]["median_gap"],
        },
        "leakage": {
            **{level: found[level] for level in leakage.LEVELS},
            "longest_run": found["longest_words"],
            "validation_prompts": found["held_out_rows_with_a_trained_prompt"],
        },
    }


# ---- The same for people ------------------------------------------------------------------------------------------------


def data_page(report: dict[str, Any], counts: dict[str, dict[str, Any]]) -> str:
    """reports/data.md: every count, and the first ON_PAGE of each list."""
    parts = [
        "# What the data are like",
        f"Written by `prepare`. Lists show the first {ON_PAGE}; `reports/data.json` holds up to {report['listed_at_most']}.",
        *_leakage_section(report["leakage"]),
    ]
    for name, title in (("sft", "SFT examples"), ("dpo", "Preference pairs")):
        parts += [f"## {title}", _count_table(report[name], counts[f"{name}_data"]), *_file_lists(report[name])]
    return "\n\n".join(parts) + "\n"


def _leakage_section(found: dict[str, Any]) -> list[str]:
    rows = [
        ["equal to a trained text", str(found["exact"])],
        ["… or 13 words in a row, or all of a shorter one, stand in one (`prepare.max_leakage`)", str(found["ngram_13"])],
        ["… or 8 words in a row, or all of a shorter one", str(found["ngram_8"])],
    ]
    listed = [
        [f"`{one['id']}`", one["level"] or "", f"{one['words']} of {one['prompt_words']}", f"{one['where']} `{one['row']}`",
         markdown(one["shared"])]
        for one in found["listed"][:ON_PAGE]
    ]  # fmt: skip
    parts = ["## Eval prompts in what is trained on", table([f"of {found['prompts']} prompts", "prompts"], rows)]
    if listed:
        parts += [
            f"{found['prompts_with_a_run']} prompts share five words in a row or more with a trained text; the longest runs:",
            table(["prompt", "level", "words", "found in", "shared words"], listed),
        ]
    shared = found["held_out_rows_with_a_trained_prompt"]
    return [*parts, f"Validation rows whose prompt is trained on in other case, spacing or punctuation: {shared}."]


def _count_table(found: dict[str, Any], counts: dict[str, Any]) -> str:
    rows = [[name.replace("_", " "), str(value)] for name, value in counts.items()]
    near = found["near_duplicates"]
    if not near["complete"]:
        rows.append(["near duplicates are more, perhaps", f"the search ended after {near['compared']} comparisons"])
    if bias := found.get("length_bias"):
        rows.append(["longer chosen, 95% interval", f"{bias['low']} to {bias['high']}"])
        rows.append(["mirrored pairs", str(found["contradictions"]["mirrored_pairs"])])
        rows.append(["pairs whose answers differ in case, spacing or punctuation alone", str(found["same_answers"]["rows"])])
    return table(["what", "figure"], rows)


def _file_lists(found: dict[str, Any]) -> Iterator[str]:
    """The lists of one file, those alone that hold anything."""
    for kind, warned in found["warnings"].items():
        yield f"Warned about, {kind.replace('_', ' ')}: {_ids(warned['listed'])}"
    if found["too_long"]["rows"]:
        yield f"Too long, {found['too_long']['policy']}: {_ids(found['too_long']['listed'])}"
    if groups := found["exact_duplicates"]["listed"]:
        yield table(["the same rows"], [[_ids(group)] for group in groups[:ON_PAGE]])
    if pairs := found["near_duplicates"]["listed"][:ON_PAGE]:
        yield table(["similarity", "nearly the same rows"], [[f"{pair['jaccard']:.2f}", _ids(pair["rows"])] for pair in pairs])
    if contradictions := found.get("contradictions", {}).get("listed"):
        yield table(
            ["chosen by", "rejected by", "answer"],
            [[_ids(one["chosen_by"]), _ids(one["rejected_by"]), markdown(one["answer"])] for one in contradictions[:ON_PAGE]],
        )


def _ids(ids: list[str]) -> str:
    return ", ".join(f"`{id}`" for id in ids[:ON_PAGE]) + (", …" if len(ids) > ON_PAGE else "")
