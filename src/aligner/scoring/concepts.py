"""Which concepts' key ideas an answer names: those of the concept that its prompt asks about, or those of others.

A catalogue holds concepts, each with its key ideas (keyword groups) and a text that says what is true of it. The hit rate alone
does not reveal an answer that also says things that belong to another concept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from aligner.keywords.groups import KeywordGroup, keywords_of, option
from aligner.keywords.scorer import Index
from aligner.keywords.text import Text, prepare


class Foreign(NamedTuple):
    """A key idea of another concept; of several concepts that share its words, one is named."""

    concept: str
    group: KeywordGroup


class Ideas(NamedTuple):
    """The number of key ideas of its own concept that an answer names, and the ideas of others, in the answer's order."""

    own: int
    foreign: tuple[Foreign, ...]


class Catalogue:
    """All concepts. Each is a mapping with `concept` (its name), `keywords` (its key ideas) and `text` (what is true of it)."""

    def __init__(self, concepts: Sequence[Mapping[str, Any]]):
        self._concepts = {row["concept"]: row for row in concepts}
        self._groups = [Foreign(row["concept"], group) for row in concepts for group in row["keywords"]]
        self._names = [json.dumps(each, sort_keys=True) for each in self._groups]
        self._index = Index([group for _, group in self._groups])
        self._native: dict[str, frozenset[int]] = {}

    def __contains__(self, concept: str) -> bool:
        return concept in self._concepts

    def ideas(self, concept: str, text: Text) -> Ideas:
        """The ideas that an answer about `concept` names. A group counts once, however often the text repeats it.

        An idea of another concept is foreign unless the concept's own text or keywords name it too. Ideas named by the same words
        count as one: groups whose tokens overlap, directly or through other groups.
        """
        found = self._index.found(text)
        own = sum(self._groups[number].concept == concept for number in found)
        native = self._native_to(concept)
        foreign = {number: tokens for number, tokens in found.items() if number not in native}
        return Ideas(own, tuple(self._longest(part, foreign) for part in joined(foreign)))

    def _native_to(self, concept: str) -> frozenset[int]:
        """The groups of all concepts that this concept's text or one of its keywords names; computed once."""
        if concept not in self._native:
            row = self._concepts[concept]
            literals = (literal for group in row["keywords"] for literal in _literals(group))
            named = (self._index.found(prepare(text)) for text in (row["text"], *literals))
            own = (number for number, group in enumerate(self._groups) if group.concept == concept)
            self._native[concept] = frozenset(own).union(*named)
        return self._native[concept]

    def _longest(self, part: Iterable[int], found: Mapping[int, frozenset[int]]) -> Foreign:
        """The group with the most words represents all that overlap with it; ties go to the first by name."""
        return self._groups[min(part, key=lambda number: (-len(found[number]), self._names[number]))]


def joined(found: Mapping[int, frozenset[int]]) -> list[list[int]]:
    """Splits groups into parts that share no token, in the order of the parts' first tokens."""
    parts: list[tuple[frozenset[int], list[int]]] = []
    for number, tokens in found.items():
        near = [part for part in parts if not part[0].isdisjoint(tokens)]
        parts = [part for part in parts if part[0].isdisjoint(tokens)]
        parts.append((tokens.union(*(each for each, _ in near)), [number, *(one for _, numbers in near for one in numbers)]))
    return [numbers for _, numbers in sorted(parts, key=lambda part: min(part[0], default=-1))]


def _literals(group: KeywordGroup) -> Sequence[str]:
    """The keywords of a group; none for a group of patterns."""
    return () if option(group, "match", None) == "regex" else keywords_of(group)
