"""A corpus in the layouts of public data, converted and taken through all five stages, with eval prompts without keywords."""

import gzip
import io
import json

import pytest
from support.workspace import RAW, Workspace

import convert
from aligner.run.errors import InputError

pytestmark = pytest.mark.slow

ANIMALS = {
    "horse": "It is a large animal with hooves that people ride.",
    "owl": "It is a bird that hunts at night and turns its head far around.",
    "frog": "It begins its life in water as a tadpole and then lives on land.",
    "whale": "It is the largest animal of the sea, and it breathes air.",
    "spider": "It has eight legs, and most kinds spin webs.",
    "bat": "It is the only mammal that flies, and it hears where it is.",
    "salmon": "It is born in a river, lives in the sea, and returns to spawn.",
    "bee": "It gathers nectar from flowers and lives in a hive.",
    "wolf": "It hunts in packs and is an ancestor of dogs.",
    "penguin": "It is a bird that cannot fly but swims well.",
    "camel": "It stores fat in its hump and can go long without water.",
    "mole": "It digs tunnels under meadows and hardly sees.",
}


@pytest.fixture
def public(tmp_path):
    """The corpus as three files: Alpaca with context as a JSON array, HH-RLHF as gzip, AlpacaEval as a JSON array."""
    folder = tmp_path / "public"
    folder.mkdir()
    examples = [
        {"instruction": f"What is a {name}?", "input": "Answer a child." if number % 3 == 0 else "", "output": text}
        for number, (name, text) in enumerate(ANIMALS.items())
    ]
    (folder / "alpaca_data.json").write_text(json.dumps([*examples, {"instruction": "Say nothing.", "input": "", "output": ""}]))
    pairs = [
        {
            "chosen": f"\n\nHuman: Tell me of the {name}.\n\nAssistant: {text}",
            "rejected": f"\n\nHuman: Tell me of the {name}.\n\nAssistant: I would rather not.",
        }
        for name, text in ANIMALS.items()
    ]
    (folder / "train.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(pair) + "\n" for pair in pairs).encode()))
    prompts = [
        {"instruction": f"Could you describe one {name} for my class?", "output": "x", "generator": "g", "dataset": "zoo"}
        for name in ANIMALS
    ]
    (folder / "alpaca_eval.json").write_text(json.dumps(prompts))
    return folder


def test_public_files_are_refused_converted_and_scored_without_keywords(public, tmp_path, monkeypatch):
    workspace = Workspace(tmp_path / "work", monkeypatch)
    files = {"sft": "alpaca_data.json", "pairs": "train.jsonl.gz", "eval": "alpaca_eval.json"}
    for kind, name in files.items():
        workspace.params[f"prepare.{kind}"] = str(public / name)
        with pytest.raises(InputError, match=f"convert_first: .*python src/convert.py {public / name} --to {kind} "):
            workspace.run("prepare")
        out = f"data/raw/{kind}_mine.jsonl"
        said = io.StringIO()
        convert.main(convert.parser().parse_args([str(public / name), "--to", kind, "--out", out]), said)
        assert f"rows out: {len(ANIMALS)} ({kind})" in said.getvalue()
        workspace.params[f"prepare.{kind}"] = out
    workspace.write_rows("concepts", [])
    assert (workspace.folder / RAW["concepts"]).read_bytes() == b""
    workspace.run_all()
    report, counts = workspace.json("reports/score.json"), workspace.json("reports/prepare.json")
    assert counts["sft_data"]["rows"] == counts["dpo_data"]["rows"] == counts["eval_data"]["prompts"] == len(ANIMALS)
    assert {pair["decision"]["verdict"] for pair in report["pairs"].values()} == {"not measured"}
    assert workspace.json("metrics/score.json")["dpo"]["hit_rate"] is None
    answers = [row["answer"] for row in workspace.rows("data/generated/dpo.jsonl")]
    page = (workspace.folder / "reports/index.html").read_text(encoding="utf-8")
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert ["".join(prompt["answers"][2]["parts"]) for prompt in data["prompts"]] == answers
    assert report["models"]["dpo"]["health"]["truncated"]["n"] == len(ANIMALS)
