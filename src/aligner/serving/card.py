"""The model card of an exported model, from the records and figures of the run that trained it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from aligner.markdown import table, with_interval
from aligner.model.hub import model_folder
from aligner.run.params import ModelEntry
from aligner.serving.export import Parity

EXPERIMENTS = Path("experiments")
REPORTS = Path("reports")
DECODING = """## Decoding

`generation_config.json` holds the decoding of the results below, but for one thing: there, logits of tokens that the answer
already held were divided by {penalty:g}, those of the prompt not. transformers' `repetition_penalty` would count the prompt too;
for the same answers pass to `generate`:
`logits_processor=[RepetitionPenaltyLogitsProcessor({penalty:g}, prompt_ignore_length=PROMPT_TOKENS)]`"""
UNKNOWN = "other"  # the hub's word for a licence that is none of its list


def record_of(stage: str) -> dict[str, Any] | None:
    """The newest completed record of a stage whose figures are those of reports/<stage>.json; None if there is none.

    A model that came with `dvc pull` has no record here, and a record of another run would describe another model.
    """
    figures = _json(REPORTS / f"{stage}.json")
    for path in sorted(EXPERIMENTS.glob(f"{stage}-*.json"), reverse=True):
        record = _json(path)
        if record and figures and record.get("state") == "completed" and record.get("metrics") == figures:
            return record
    return None


def licence_of(entry: ModelEntry) -> str:
    """The licence of the base: from its own card, or from pyproject.toml for a folder of this repository; else "other"."""
    if not Path(entry.path).is_dir():
        card = model_folder(entry.path, entry.revision, ["README.md"]) / "README.md"
    else:
        card = Path(entry.path) / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    if text.startswith("---"):
        named = [line for line in text.split("---")[1].splitlines() if line.startswith("license:")]
        if named:
            return named[0].partition(":")[2].strip()
    project = Path("pyproject.toml")
    own = Path(entry.path).is_dir() and Path(entry.path).resolve().is_relative_to(Path.cwd()) and project.is_file()
    return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["license"].lower() if own else UNKNOWN


def card(name: str, entry: ModelEntry, parity: Parity, notes: list[str], penalty: float) -> str:
    """The text of README.md in the hub's format. notes: one line about each further file. penalty: of the report's answers."""
    record, licence = record_of(name), licence_of(entry)
    base = entry.path + (f" at {entry.revision}" if entry.revision else "")
    parts = [
        f"---\nlicense: {licence}\npipeline_tag: text-generation\nlibrary_name: transformers\n---",
        f"# {name}",
        f"A causal language model: `{base}` with the LoRA adapter of stage `{name}` merged into its weights."
        if name != "base"
        else f"A causal language model: `{base}`, unchanged.",
        "```python\nfrom transformers import pipeline\n\n"
        'chat = pipeline("text-generation", model="FOLDER")\n'
        'print(chat([{"role": "user", "content": "What is a median?"}])[0]["generated_text"][-1]["content"])\n```',
        "## Same as the trained model\n\nOn all eval prompts, beside the adapter on its base: " + parity.line() + ".",
        *([] if penalty == 1 else [DECODING.format(penalty=penalty)]),
        *([] if not notes else ["## Further files\n\n" + "\n".join(f"- {note}" for note in notes)]),
        "## Results\n\n" + results(name),
        "## Training\n\n" + training(name, record),
        f"## Licence\n\nThe base's licence: {licence if licence != UNKNOWN else 'see the page of ' + base}.",
    ]
    return "\n\n".join(parts) + "\n"


def results(name: str) -> str:
    """The headline figures of reports/score.json with their intervals."""
    found = (_json(REPORTS / "score.json") or {}).get("models", {}).get(name)
    if not found:
        return "Not measured."
    measures = ("hit_rate", "all_hit_rate", "precision", "lift")
    rows = [
        [measure, with_interval(found[measure]), str(found[measure].get("n", ""))] for measure in measures if measure in found
    ]
    return table(["measure", "estimate (95% interval)", "prompts"], rows)


def training(name: str, record: dict[str, Any] | None) -> str:
    """Data, parameters and versions of the run."""
    if name == "base":
        return "None in this run."
    if record is None:
        return "The record of this run is on another machine."
    data = _json(REPORTS / "prepare.json") or {}
    state = record["git"]
    facts = {
        "git revision": f"{state['revision']}{' with uncommitted changes' if state['dirty'] else ''}",
        "started": record["started"],
        "seconds": record["seconds"].get("total"),
        "seed": record.get("seed"),
        "device": f"{record.get('device')}, {record.get('dtype')}, {record.get('threads')} threads",
        "versions": ", ".join(f"{library} {version}" for library, version in record["versions"].items()),
        **{f"rows of {file}": _rows(found) for file, found in data.items() if isinstance(found, dict) and "train" in found},
        **dict(_flat(record.get("params") or {})),
    }
    return table(["", ""], [[key, f"`{value}`"] for key, value in facts.items()])


def _rows(found: dict[str, Any]) -> str:
    return ", ".join(f"{found[key]} {key}" for key in ("train", "validation") if key in found)


def _flat(values: dict[str, Any], prefix: str = ""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
