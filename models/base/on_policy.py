"""Collects preference pairs from the model's own answers, in rounds: what it says, against what it should have said.

reads   data/bank/*.yaml, data/written/dpo_pairs.jsonl, models/sft, the base model (of the last dvc repro)
writes  data/written/on_policy_pairs.jsonl: id, topic, concept, fault, prompt, chosen, rejected
command PYTHONPATH=src python models/base/on_policy.py      (some 10 minutes on two cores)
        then python models/base/compose.py, which adds the pairs to data/raw/dpo_pairs.jsonl

The first round asks the SFT model about its training concepts, each later one a DPO model that was trained, from the SFT model,
on all pairs so far. Failures are the model's own: repetitions that a program makes up teach nothing (docs/experiments.md). The
kinds of pairs (`fault`), with lengths on both sides of the failed answer's, since length must not be the lesson:

loop, wrong   the sound beginning of an answer, continued with new ideas, against the answer, which repeats itself or leaves its
              concept. If all has been said, the same answer without its repetitions.
short         an answer that ends early, continued with new ideas, against itself.
sparse        short sentences that name more ideas, against an answer that takes more words for fewer.
"""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import compose

import dpo
import generate
from aligner.data.examples import PreferencePair
from aligner.data.tokenise import pair_row
from aligner.keywords.groups import hits
from aligner.keywords.text import prepare
from aligner.model import runtime
from aligner.model.loading import base_fingerprint, load_adapter, load_base, load_chat, save_adapter
from aligner.run import params as parameters
from corpus import Concept, read_bank

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = ROOT / "data" / "written" / "on_policy_pairs.jsonl"

SEED = 21
ROUNDS = 3
QUESTIONS = (
    *compose.SFT_QUESTIONS,
    *compose.PAIR_QUESTIONS,
    "Write a short paragraph about {name}.",
    "What does a student need to understand about {name}?",
    "Let me hear what you know about {name}.",
    "Give me the essentials of {name}.",
    "What is worth knowing about {name}?",
    "I am curious about {name}. Where does one start?",
)
QUESTIONS_A_ROUND = 6
# A mended answer's length relative to the failed one: one of AIMS, and anything from 0.88 to 1.3 if that cannot be met.
AIMS, MENDED = (0.95, 1.0, 1.05, 1.1, 1.15), (0.88, 1.3)
PROLONGED = (1.0, 1.6)
PROLONGED_SHARE = 0.3
DENSE = (0.85, 1.02)
DRAWS = 40
IDEAS = 5  # an answer that has named so many ideas may end


def main() -> None:
    lab = Lab()
    concepts = [concept for concept in read_bank(ROOT / "data" / "bank") if concept.role == "train"]
    rng = random.Random(SEED)
    composed = [json.loads(line) for line in compose.written("dpo_pairs.jsonl").splitlines()]
    composed += [row for index, concept in enumerate(concepts) for row in compose.pair_rows(concept, concepts, index)]
    rows: list[dict] = []
    model = lab.sft()
    for number in range(ROUNDS):
        asked = [
            (concept, compose.ask(form, concept)) for concept in concepts for form in rng.sample(QUESTIONS, QUESTIONS_A_ROUND)
        ]
        answers = lab.answers(model, [prompt for _, prompt in asked])
        new = list(pairs_of_round(number, asked, answers, rng))
        rows += new
        WRITTEN.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="\n")
        print(f"round {number}: {len(new)} pairs of {len(asked)} answers, {dict(Counter(row['fault'] for row in new))}")
        if number < ROUNDS - 1:
            model = lab.trained(composed + rows)


def pairs_of_round(number: int, asked: list, answers: list[str], rng: random.Random) -> Iterator[dict]:
    """The pairs that one round's answers give; the dense ones come from the first round alone."""
    for place, ((concept, prompt), answer) in enumerate(zip(asked, answers, strict=True)):
        found = [failure_pair(concept, answer, rng), prolonged_pair(concept, answer, rng)]
        if number == 0:
            found.append(dense_pair(concept, answer, rng))
        for fault, chosen in filter(None, found):
            id = f"{concept.id}-own-{number + 1}-{place % QUESTIONS_A_ROUND + 1}-{fault}"
            head = {"id": id, "topic": compose.TOPICS[concept.domain], "concept": concept.id, "fault": fault}
            yield head | {"prompt": prompt, "chosen": chosen, "rejected": answer}


# ---- Pairs: (fault, chosen answer) for an answer, or None --------------------------------------------------------------


def failure_pair(concept: Concept, answer: str, rng: random.Random) -> tuple[str, str] | None:
    """The answer's sound beginning, continued with new ideas; where enough was said, the answer without its repetitions."""
    said, start = sentences(answer), sound_start(concept, answer)
    if len(start) == len(said):
        return None
    repeats = len(set(said)) < len(said)
    mended = None
    if start and len(ideas_in(start)) < IDEAS:
        mended = continued(concept, start, len(answer), rng.choice(AIMS), MENDED, rng)
    if mended is None and repeats:
        mended = " ".join(dict.fromkeys(said))
    return None if mended is None else ("loop" if repeats else "wrong", mended)


def prolonged_pair(concept: Concept, answer: str, rng: random.Random) -> tuple[str, str] | None:
    """For some of the faultless answers that leave ideas unsaid: the answer with more of them."""
    start = sound_start(concept, answer)
    if len(start) < len(sentences(answer)) or len(ideas_in(start)) >= IDEAS or rng.random() >= PROLONGED_SHARE:
        return None
    longer = continued(concept, start, len(answer), 1.3, PROLONGED, rng)
    return None if longer is None else ("short", longer)


def dense_pair(concept: Concept, answer: str, rng: random.Random) -> tuple[str, str] | None:
    """An answer of short sentences that names at least one idea more than the model's, in no more words."""
    drafts = [text for text in (dense_answer(concept, rng) for _ in range(DRAWS)) if fits(text, len(answer), DENSE)]
    best = max(drafts, key=lambda text: ideas_named(concept, text), default=None)
    if best is None or ideas_named(concept, best) <= ideas_named(concept, answer):
        return None
    return "sparse", best


def dense_answer(concept: Concept, rng: random.Random) -> str:
    """Three to five ideas, mostly in their shortest wordings, after a definition in three of five drafts."""
    picked = sorted(rng.sample(range(len(concept.facts)), min(rng.choice((3, 4, 5)), len(concept.facts))))
    said = [rng.choice(concept.definition)] if rng.random() < 0.6 else []
    for fact in picked:
        wordings = concept.facts[fact][1]
        forms = sorted(wordings[2:] if said else wordings[:2], key=len)
        said.append(forms[0] if rng.random() < 0.7 else rng.choice(forms))
    return " ".join(said)


def continued(
    concept: Concept, start: compose.Answer, length: int, aim: float, limits: tuple[float, float], rng: random.Random
) -> str | None:
    """The start and unsaid ideas, later ones of the bank first, with a length nearest to aim times `length` characters."""
    said = ideas_in(start)
    last = max(said, default=-1)
    unsaid = [fact for fact in range(len(concept.facts)) if fact not in said]
    drafts = []
    for _ in range(DRAWS):
        rng.shuffle(unsaid)
        for count in range(1, len(unsaid) + 1):
            order = sorted(unsaid[:count], key=lambda fact: (fact < last, fact))
            drafts.append(compose.text_of(start + [(fact, compose.following(concept, fact, rng)) for fact in order]))
    drafts = [draft for draft in drafts if fits(draft, length, limits)]
    return min(drafts, key=lambda draft: abs(len(draft) / length - aim), default=None)


def fits(text: str, length: int, limits: tuple[float, float]) -> bool:
    return limits[0] * length <= len(text) <= limits[1] * length


def ideas_in(answer: compose.Answer) -> set[int]:
    """The numbers of the key ideas of an answer's sentences."""
    return {fact for fact, _ in answer if fact is not None}


def ideas_named(concept: Concept, text: str) -> int:
    """How many of the concept's key ideas a text names, by the rules of the score."""
    found = prepare(text)
    return sum(hits(found, {"any": list(keywords), "match": "inflect"}) for keywords, _ in concept.facts)


def sound_start(concept: Concept, text: str) -> compose.Answer:
    """The first sentences of an answer that are the bank's about the concept, up to a repeated sentence or idea."""
    known: dict[str, int | None] = dict.fromkeys([*concept.definition, *concept.why, *concept.mistake])
    known |= {form: fact for fact, (_, forms) in enumerate(concept.facts) for form in forms}
    start: compose.Answer = []
    for sentence in sentences(text):
        repeated = any(sentence == said or (fact is not None and fact == known.get(sentence)) for fact, said in start)
        if sentence not in known or repeated:
            break
        start.append((known[sentence], sentence))
    return start


def sentences(text: str) -> list[str]:
    return [sentence for sentence in re.split(r"(?<=[.?!]) ", text) if sentence]


# ---- Models ------------------------------------------------------------------------------------------------------------


class Lab:
    """The stages' own code, with the parameters of params.yaml: greedy answers without a penalty, and DPO on some pairs."""

    def __init__(self) -> None:
        names = [*dpo.PARAMS, "generate", "models.${model}.generate", "models.${model}.max_length"]
        params = parameters.load(list(dict.fromkeys(names)))
        plain = params.generate.model_copy(update={"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "do_sample": False})
        self.params = params.model_copy(update={"generate": plain})
        self.entry = params.model_entry
        self.runtime = runtime.start(self.entry, params.seed, training=True)
        self.chat = load_chat(self.entry)

    def sft(self):
        return generate.load_model(self.entry, self.runtime, self.chat, dpo.SFT_ADAPTER)

    def answers(self, model, prompts: list[str]) -> list[str]:
        rows = [{"id": str(place), "prompt_ids": self.chat.prompt((("user", prompt),))} for place, prompt in enumerate(prompts)]
        found = dict(generate.answer_all(model, rows, self.chat, self.params, "round"))
        return [found[str(place)]["answer"] for place in range(len(prompts))]

    def trained(self, pairs: list[dict]):
        """The SFT policy after DPO on the pairs, as the dpo stage trains it."""
        from transformers import set_seed

        from aligner.training import padding_free
        from aligner.training.log_probs import log_probabilities

        set_seed(self.params.seed)
        examples = [PreferencePair(row["id"], (("user", row["prompt"]),), row["chosen"], row["rejected"]) for row in pairs]
        rows = [pair_row(example, self.chat) for example in examples]
        policy = load_adapter(load_base(self.entry, self.runtime), dpo.SFT_ADAPTER, trainable=True)
        unpadded = padding_free.fits(policy, self.entry)
        reference = log_probabilities(policy, rows, self.chat.pad_id, unpadded=unpadded)
        trainer = dpo.build_trainer(self.params, self.runtime, self.chat, policy, rows, reference)
        trainer.train()
        with tempfile.TemporaryDirectory() as folder:
            provenance = {"base": base_fingerprint(self.entry), "chat": self.chat.fingerprint}
            save_adapter(trainer.model, Path(folder), self.entry.path, provenance)
            return generate.load_model(self.entry, self.runtime, self.chat, Path(folder))


if __name__ == "__main__":
    main()
