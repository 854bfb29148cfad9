"""The data of the repository: correct arithmetic, wording, composition from the bank, and no training text in the evaluation."""

from __future__ import annotations

import json
import math
import re
from fractions import Fraction
from pathlib import Path

import compose
from ruamel.yaml import YAML

from aligner.keywords.groups import hits
from aligner.keywords.text import prepare
from aligner.scoring.concepts import Catalogue

DATA = Path(__file__).resolve().parents[2] / "data"
BANK = [entry for path in sorted((DATA / "bank").glob("*.yaml")) for entry in YAML(typ="safe").load(path)]
BY_ID = {entry["id"]: entry for entry in BANK}


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / "raw" / name).read_text(encoding="utf-8").splitlines()]


def plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


SFT, PAIRS = rows("sft_examples.jsonl"), rows("dpo_pairs.jsonl")
TEST, DEV = rows("eval_prompts.jsonl"), rows("eval_prompts_dev.jsonl")
CONCEPTS = rows("concepts.jsonl")
ARITHMETIC = {name: getattr(math, name) for name in dir(math) if not name.startswith("_")} | {
    "Fraction": Fraction, "abs": abs, "all": all, "len": len, "math": math, "max": max, "min": min, "pow": pow,
    "range": range, "round": round, "sum": sum,
}  # fmt: skip


def test_bank_worked_examples_are_true(subtests) -> None:
    for concept in BANK:
        for check in concept["example"]["checks"]:
            with subtests.test(concept=concept["id"], check=check):
                assert eval(check, {"__builtins__": {}}, dict(ARITHMETIC)) is True


def test_bank_every_wording_names_its_idea(subtests) -> None:
    for concept in BANK:
        for fact in concept["facts"]:
            group = {"any": [str(keyword) for keyword in fact["keywords"]], "match": "inflect"}
            with subtests.test(concept=concept["id"], keywords=fact["keywords"]):
                assert len(set(fact["forms"])) == 4
                assert [form for form in fact["forms"] if not hits(form, group)] == []


def test_bank_sentences_are_plain_and_complete(subtests) -> None:
    for concept in BANK:
        texts = [*concept["definition"], *concept["why"], *concept["mistake"], concept["example"]["text"]]
        for text in texts + [form for fact in concept["facts"] for form in fact["forms"]]:
            with subtests.test(concept=concept["id"], text=text):
                assert text.isascii() and text == text.strip() and "  " not in text
                assert text[0].isupper() or text[0].isdigit()
                assert text[-1] in ".?!"


def test_bank_related_concepts_exist(subtests) -> None:
    for concept in BANK:
        with subtests.test(concept=concept["id"]):
            assert set(concept["related"]) <= set(BY_ID)


def test_sizes() -> None:
    assert len(BANK) >= 150 and len(SFT) >= 600 and len(PAIRS) >= 500 and len(TEST) >= 150 and len(DEV) >= 150


def test_raw_data_is_what_compose_writes(tmp_path, monkeypatch) -> None:
    for folder in ("bank", "written"):
        (tmp_path / folder).symlink_to(DATA / folder)
    (tmp_path / "raw").mkdir()
    monkeypatch.setattr(compose, "DATA", tmp_path)
    compose.main()
    for name in ("sft_examples.jsonl", "dpo_pairs.jsonl", "concepts.jsonl"):
        assert (tmp_path / "raw" / name).read_bytes() == (DATA / "raw" / name).read_bytes()


def test_post_training_sees_only_its_concepts() -> None:
    for row in SFT + PAIRS:
        assert BY_ID[row["concept"]]["role"] == "train", row["id"]


def test_kind_of_an_eval_prompt_follows_its_concept() -> None:
    for row in TEST + DEV:
        assert row["kind"] == {"train": "new_wording", "held_out": "new_concept"}[BY_ID[row["concept"]]["role"]], row["id"]


def test_no_eval_prompt_is_trained_on_and_no_two_are_alike() -> None:
    trained = {plain(row["prompt"]) for row in SFT + PAIRS}
    evaluated = [plain(row["prompt"]) for row in TEST + DEV]
    assert len(set(evaluated)) == len(evaluated)
    assert trained.isdisjoint(evaluated)


def test_no_eval_prompt_gives_its_keywords_away() -> None:
    for row in TEST + DEV:
        assert not any(hits(row["prompt"], group) for group in row["keywords"]), row["id"]


def test_keywords_of_eval_prompts_are_those_of_the_bank() -> None:
    for row in TEST + DEV:
        known = [[str(keyword) for keyword in fact["keywords"]] for fact in BY_ID[row["concept"]]["facts"]]
        assert all(group["any"] in known for group in row["keywords"]), row["id"]


def test_the_catalogue_holds_every_concept_with_its_key_ideas() -> None:
    """Every eval prompt's concept is in the catalogue, and a key idea that a prompt asks for is one of its concept's own."""
    groups = {row["concept"]: row["keywords"] for row in CONCEPTS}
    assert sorted(groups) == sorted(BY_ID) and len(CONCEPTS) == len(BANK)
    for row in TEST + DEV:
        assert all(group in groups[row["concept"]] for group in row["keywords"]), row["id"]


def test_every_sentence_of_the_bank_is_precise_about_its_own_concept() -> None:
    """No sentence names a foreign idea, and the whole text of a concept names all its key ideas."""
    catalogue = Catalogue(CONCEPTS)
    for row in CONCEPTS:
        for sentence in row["text"].splitlines():
            assert catalogue.ideas(row["concept"], prepare(sentence)).foreign == (), sentence
        assert catalogue.ideas(row["concept"], prepare(row["text"])) == (len(row["keywords"]), ())


def test_a_complete_answer_to_another_question_is_hardly_precise() -> None:
    """If the training answers about one concept count as answers about another, nearly all their ideas are foreign."""
    catalogue, others = Catalogue(CONCEPTS), [row["concept"] for row in SFT]
    named = [
        catalogue.ideas(other, prepare(row["response"]))
        for row, other in zip(SFT, others[len(others) // 2 :] + others[: len(others) // 2], strict=True)
        if row["concept"] != other
    ]
    own, foreign = sum(ideas.own for ideas in named), sum(len(ideas.foreign) for ideas in named)
    assert own / (own + foreign) < 0.1


def test_composed_answers_are_clean() -> None:
    """A chosen or SFT answer never repeats a sentence; a looping rejected answer does so on purpose."""
    for text in [row["response"] for row in SFT] + [row["chosen"] for row in PAIRS]:
        sentences = re.split(r"(?<=[.?!]) ", text)
        assert len(set(sentences)) == len(sentences), text


def test_the_longer_answer_is_chosen_about_as_often_as_the_shorter() -> None:
    """The longer answer is the chosen one in 40 to 60 % of the pairs (ties as one half)."""
    gaps = [len(row["chosen"]) - len(row["rejected"]) for row in PAIRS]
    accuracy = sum(1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps) / len(gaps)
    assert abs(accuracy - 0.5) < 0.1, accuracy
