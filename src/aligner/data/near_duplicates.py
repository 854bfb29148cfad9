"""Near duplicates among very many rows: MinHash proposes pairs, the true Jaccard similarity decides.

A row is the set of its shingles (three words in a row of any of its texts). Its signature (datasketch, 64 permutations, a
fixed seed) agrees with another row's in about as many places as the sets are similar. Rows that agree in all five places of
one of twelve bands are candidates: a pair of similarity 0.8 is one with a chance of 0.99, a pair of 0.5 with 0.32. The
candidates whose signatures are alike are read again and compared for good.

Everything happens in the order of the rows' digests, so that the order of the file plays no part.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from aligner.data.leakage import grams

THRESHOLD = 0.8
SHINGLE_WORDS = 3
PERMUTATIONS = 64
SEED = 1
BANDS = 12
BAND_PLACES = 5
# Three standard errors of the similarity that 64 places estimate, sqrt(0.8 * 0.2 / 64) = 0.05, below the threshold.
FEWEST_ALIKE = THRESHOLD - 0.15
# In a band that very many rows share, each is compared with this many that follow it; and so many pairs are read at most.
NEIGHBOURS = 16
MOST_COMPARED = 1_000_000
CHUNK = 65_536

Shingles = set[str]


class Found(NamedTuple):
    """Numbers of rows that have a near duplicate, pairs that show it, how many pairs were read, and whether all were."""

    rows: list[int]
    pairs: list[tuple[int, int, float]]
    compared: int
    complete: bool


def shingles(texts: Iterable[list[str]]) -> Shingles:
    """Every three words in a row of each text; a shorter text as a whole."""
    found: Shingles = set()
    for text in texts:
        found.update(grams(text, SHINGLE_WORDS) or [" ".join(text)])
    return found


def jaccard(first: Shingles, second: Shingles) -> float:
    """Shared shingles / all shingles of both."""
    return len(first & second) / len(first | second)


class Signer:
    """Makes signatures; the permutations are drawn once."""

    def __init__(self) -> None:
        from datasketch import MinHash

        self._signature = MinHash(num_perm=PERMUTATIONS, seed=SEED, hashfunc=zlib.crc32, scheme="affine32")

    def sign(self, row: Shingles) -> bytes:
        """The 64 unsigned 32-bit numbers of a row, as bytes."""
        self._signature.clear()
        self._signature.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in row])
        return self._signature.hashvalues.tobytes()


def near_duplicates(signatures: bytes | bytearray, digests: Iterable[int], shingles_of: Callable[[int], Shingles]) -> Found:
    """The rows that are at least THRESHOLD similar to another; `shingles_of` reads a row again by its number."""
    import numpy as np

    table = np.frombuffer(signatures, dtype=np.uint32).reshape(-1, PERMUTATIONS)
    order = np.argsort(np.asarray(digests, dtype=np.uint64), kind="stable")
    marked = np.zeros(len(table), dtype=bool)
    pairs: list[tuple[int, int, float]] = []
    compared = 0
    for first, second in _candidates(table, order, marked):
        if marked[first] and marked[second]:
            continue
        if compared == MOST_COMPARED:
            return Found(np.flatnonzero(marked).tolist(), pairs, compared, complete=False)
        compared += 1
        similarity = jaccard(shingles_of(first), shingles_of(second))
        if similarity >= THRESHOLD:
            marked[[first, second]] = True
            pairs.append((first, second, similarity))
    return Found(np.flatnonzero(marked).tolist(), pairs, compared, complete=True)


def _candidates(table: Any, order: Any, marked: Any) -> Iterator[tuple[int, int]]:
    """Pairs that share a band and look alike, leaving out those of which both rows are marked already."""
    import numpy as np

    for band in range(BANDS):
        keys = _band_keys(table[:, band * BAND_PLACES : (band + 1) * BAND_PLACES])[order]
        by_key = np.argsort(keys, kind="stable")
        rows, keys = order[by_key], keys[by_key]
        for step in range(1, NEIGHBOURS + 1):
            places = np.flatnonzero(keys[:-step] == keys[step:])
            for start in range(0, len(places), CHUNK):
                part = places[start : start + CHUNK]
                first, second = rows[part], rows[part + step]
                fresh = ~(marked[first] & marked[second])
                first, second = first[fresh], second[fresh]
                alike = (table[first] == table[second]).mean(axis=1) >= FEWEST_ALIKE
                yield from zip(first[alike].tolist(), second[alike].tolist(), strict=True)


def _band_keys(places: Any) -> Any:
    """One 64-bit number for the places of a band; a chance collision only makes one candidate more."""
    import numpy as np

    keys = np.zeros(len(places), dtype=np.uint64)
    for column in places.T:
        keys = (keys ^ column) * np.uint64(0x9E3779B97F4A7C15)
    return keys
