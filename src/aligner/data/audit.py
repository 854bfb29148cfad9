"""The quality of the training files: duplicates, contradictions, lengths, damaged texts, and leakage.

    audit = Audit("sft", scratch, eval_prompts, warnings)
    audit.add(measured)          # once for every kept row (measured.py)
    audit.report()

Counts are complete. Lists hold the LISTED smallest entries, so the order of the file plays no part. An audit keeps less than
a kilobyte per row in memory (digests, lengths, a MinHash signature of 256 bytes); a row store on disk holds the texts.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from typing import Any

from aligner.data.leakage import EvalPrompts
from aligner.data.measured import Measured
from aligner.data.near_duplicates import (
    BANDS,
    MOST_COMPARED,
    NEIGHBOURS,
    PERMUTATIONS,
    SEED,
    SHINGLE_WORDS,
    THRESHOLD,
    near_duplicates,
    shingles,
)
from aligner.data.row_store import Scratch
from aligner.intervals import tango_interval

LISTED = 200
ON_PAGE = 20
DAMAGE = ("mojibake", "replacement_character", "control_character", "mixed_scripts")


class Listed:
    """Counts entries and keeps the LISTED smallest, so their order of arrival plays no part."""

    def __init__(self) -> None:
        self.count = 0
        self._entries: list[Any] = []

    def add(self, entry: Any) -> None:
        self.count += 1
        self._entries.append(entry)
        if len(self._entries) >= 2 * LISTED:
            self._entries = self.entries

    @property
    def entries(self) -> list[Any]:
        return sorted(self._entries)[:LISTED]

    def report(self) -> dict[str, Any]:
        return {"rows": self.count, "listed": self.entries}


class Audit:
    """Collects the figures of one training file, row by row, and reports them at the end."""

    def __init__(self, name: str, scratch: Scratch, prompts: EvalPrompts, warnings: Mapping[str, Listed]) -> None:
        self.name = name
        self.warnings = warnings
        self.too_long = Listed()
        self.lengths = array("L")
        self.trained_tokens = 0
        self.gaps = array("l")
        self.desirable = 0
        self.sides: dict[bool, array] = {False: array("Q"), True: array("Q")}
        self._prompts = prompts
        self._texts = scratch.store(f"{name}_texts")
        self._signatures = bytearray()
        self._digests = array("Q")
        self._seen: dict[bytes, int] = {}
        self._copies: dict[int, list[str]] = {}
        self._chosen, self._rejected = array("Q"), array("Q")
        self._alike = Listed()

    def is_copy(self, id: str, key: bytes) -> bool:
        """Whether an earlier row has this key of its token ids. If it returns False, the next row that is added must have it."""
        if key in self._seen:
            self._copies.setdefault(self._seen[key], []).append(id)
            return True
        self._seen[key] = len(self._texts)
        return False

    def add(self, id: str, row: Measured) -> None:
        """Adds a kept row."""
        self._prompts.note(row.matches)
        self.sides[row.held_out].append(row.prompt)
        self._digests.append(row.digest)
        self._signatures += row.signature
        self._texts.append_line(row.texts)
        self.lengths.append(row.length)
        self.trained_tokens += row.trained_tokens
        self.desirable += row.desirable
        if row.answers is not None:
            chosen, rejected, gap = row.answers
            self.gaps.append(gap)
            self._chosen.append(chosen)
            self._rejected.append(rejected)
            if chosen == rejected:
                self._alike.add(id)

    @property
    def copies(self) -> int:
        """The number of rows left out because an earlier row has the same token ids."""
        return sum(map(len, self._copies.values()))

    # ---- The report ------------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        found = {
            "tokens": self._tokens(),
            "too_long": {"policy": "left out whole, never cut", **self.too_long.report()},
            "warnings": {kind: self.warnings[kind].report() for kind in sorted(self.warnings)},
            "damaged_rows": self.damaged,
            "exact_duplicates": self._exact_duplicates(),
            "near_duplicates": self._near_duplicates(),
        }
        if self.name == "unpaired":
            found["labels"] = {"desirable": self.desirable, "undesirable": len(self.lengths) - self.desirable}
        if self.name == "dpo":
            found |= {
                "contradictions": self._contradictions(),
                "same_answers": {"rule": "differ only in case, spacing or punctuation", **self._alike.report()},
                "length_bias": self._length_bias(),
            }
        return found

    @property
    def damaged(self) -> int:
        """Warnings of damaged encoding; a row with two kinds of damage counts twice."""
        return sum(self.warnings[kind].count for kind in DAMAGE if kind in self.warnings)

    def _tokens(self) -> dict[str, Any]:
        ordered = sorted(self.lengths)
        found: dict[str, Any] = {"median": median(ordered), "p95": ordered[int(0.95 * (len(ordered) - 1))], "max": ordered[-1]}
        if self.name == "sft":
            total = sum(ordered)
            found |= {"all": total, "supervised": self.trained_tokens}
            found["supervised_share"] = round(self.trained_tokens / total, 4)
        return found

    def _id(self, number: int) -> str:
        """The smallest id among a kept row and its copies, since their order in the file decides which of them is kept."""
        return min([self._texts[number][0], *self._copies.get(number, ())])

    def _exact_duplicates(self) -> dict[str, Any]:
        groups = Listed()
        for number, copies in self._copies.items():
            groups.add(sorted([self._texts[number][0], *copies])[:ON_PAGE])
        found = groups.report()
        return {"rows": self.copies, "groups": found["rows"], "listed": found["listed"]}

    def _near_duplicates(self) -> dict[str, Any]:
        found = near_duplicates(self._signatures, self._digests, self._shingles)
        pairs = Listed()
        for first, second, similarity in found.pairs:
            pairs.add((-round(similarity, 4), *sorted([self._id(first), self._id(second)])))
        listed = [{"jaccard": -lower, "rows": [first, second]} for lower, first, second in pairs.entries]
        return {
            "threshold": THRESHOLD,
            "shingle_words": SHINGLE_WORDS,
            "permutations": PERMUTATIONS,
            "bands": BANDS,
            "neighbours": NEIGHBOURS,
            "seed": SEED,
            "compared": found.compared,
            "most_compared": MOST_COMPARED,
            "complete": found.complete,
            "rows": len(found.rows),
            "listed": listed,
        }

    def _shingles(self, number: int) -> set[str]:
        return shingles(text.split() for texts in self._texts[number][1].values() for text in texts)

    def _contradictions(self) -> dict[str, Any]:
        """Pairs with the same prompt that contradict each other: one chooses the answer that another rejects."""
        import numpy as np

        chosen, rejected = (np.frombuffer(keys, dtype=np.uint64) for keys in (self._chosen, self._rejected))
        numbers = np.flatnonzero(chosen != rejected)
        chosen, rejected = chosen[numbers], rejected[numbers]
        both = np.intersect1d(chosen, rejected)
        involved = np.isin(chosen, both) | np.isin(rejected, both)
        factor = np.uint64(0x9E3779B97F4A7C15)
        mirrored = np.isin(chosen * factor ^ rejected, rejected * factor ^ chosen)
        listed = []
        for key in both[:LISTED]:
            choosing, rejecting = (sorted(map(self._id, numbers[keys == key].tolist())) for keys in (chosen, rejected))
            answer = self._texts[int(numbers[chosen == key][0])][2]
            listed.append({"chosen_by": choosing[:ON_PAGE], "rejected_by": rejecting[:ON_PAGE], "answer": answer})
        return {
            "pairs": int(involved.sum()),
            "mirrored_pairs": int(mirrored.sum()),
            "answers": len(both),
            "listed": sorted(listed, key=lambda entry: (entry["chosen_by"], entry["rejected_by"])),
        }

    def _length_bias(self) -> dict[str, Any]:
        """The share of pairs whose chosen answer has more tokens, ties as one half, with Tango's interval."""
        longer, tied = sum(gap > 0 for gap in self.gaps), sum(gap == 0 for gap in self.gaps)
        interval = tango_interval(longer, tied, len(self.gaps) - longer - tied)
        assert interval is not None  # prepare refuses a file without rows
        low, high = interval
        return {
            "longer_is_chosen": round((longer + tied / 2) / len(self.gaps), 4),
            "low": round((1 + low) / 2, 4),
            "high": round((1 + high) / 2, 4),
            "n": len(self.gaps),
            "chosen_longer": longer,
            "same_length": tied,
            "median_gap": median(sorted(self.gaps)),
        }


def median(ordered: list[int]) -> int:
    """The upper median of sorted numbers: always one of them."""
    return ordered[len(ordered) // 2]


def shared_prompts(audits: Iterable[Audit]) -> int:
    """The number of held-out rows whose prompt is also a training prompt, ignoring case, spacing and punctuation."""
    import numpy as np

    audits = list(audits)
    trained, held_out = (
        np.concatenate([np.frombuffer(audit.sides[side], dtype=np.uint64) for audit in audits]) for side in (False, True)
    )
    return int(np.isin(held_out, trained).sum())
