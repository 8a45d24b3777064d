"""Records of two sets that nearly say the same: found without reading every pair.

Letters are evened (NFKC, casefold, punctuation out), words taken in twos, and two records compared by how many of their
pairs of words they share (Jaccard). A record's rarest pairs are enough to find its like: if two sets share a part
t of what they hold together, one of the first |x| - ceil(t |x|) + 1 of each, in any order fixed for all, is common to
both. So no like is missed, and what is common everywhere is never looked up. Images are not compared.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from expunge.data.records import Record

ALIKE = 0.8
"""Jaccard from which on two records nearly say the same."""
UNSPACED = "\u3040-\u30ff\u3400-\u9fff"
"""Letters of scripts without spaces (kana and Han), each a word of its own."""
WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")

Pairs = frozenset[tuple[str, ...]]


@dataclass(frozen=True)
class Like:
    """Two records that say the same, or nearly, by their lines. Never holds their text."""

    line: int
    other: int
    alike: float
    """Jaccard; 1 where they are equal but for case, spaces and punctuation."""
    equal: bool
    """Whether every word is the same, in the same order."""


def likes(records: Sequence[Record], others: Sequence[Record], alike: float = ALIKE) -> list[Like]:
    """For each of `records` the nearest of `others`, where it says nearly the same."""
    said = [tuple(words(record)) for record in records]
    lines: dict[tuple[str, ...], int] = {}
    for record in others:
        lines.setdefault(tuple(words(record)), record.line)  # each wording once, under its first line
    told = list(lines)
    mine, theirs = {own: pairs(own) for own in said}, [pairs(own) for own in told]
    seen = Counter(pair for each in (*mine.values(), *theirs) for pair in each)
    # The rarest first; those that one record alone has cannot be shared, but count.
    order = {pair: place for place, pair in enumerate(sorted(seen, key=lambda pair: (seen[pair], pair)))}
    where: dict[tuple[str, ...], list[int]] = {}
    for k, each in enumerate(theirs):
        for pair in _first(each, order, alike):
            where.setdefault(pair, []).append(k)

    def nearest(own: tuple[str, ...]) -> tuple[float, bool, int]:
        each = mine[own]
        near = {k for pair in _first(each, order, alike) for k in where.get(pair, ())}
        alikes = ((_jaccard(each, theirs[k], alike), own == told[k], -lines[told[k]]) for k in near)
        return max(alikes, default=(0.0, False, 0))

    best = {own: nearest(own) for own in mine}
    found = ((record, *best[own]) for record, own in zip(records, said, strict=True))
    return [Like(record.line, -line, size, equal) for record, size, equal, line in found if size >= alike]


def words(record: Record) -> list[str]:
    """The words of a record's question and answer, or of its text, evened."""
    said = " ".join(str(record.columns.get(name, "")) for name in ("question", "answer", "text"))
    return WORD.findall(unicodedata.normalize("NFKC", said).casefold())


def pairs(said: Sequence[str]) -> Pairs:
    """Neighbouring words in twos; one word alone, where there is no other."""
    return frozenset(zip(said, said[1:], strict=False)) or frozenset({tuple(said)})


def _first(each: Pairs, order: dict[tuple[str, ...], int], alike: float) -> Iterator[tuple[str, ...]]:
    """The rarest pairs, as many as one must be shared of."""
    count = len(each) - math.ceil(alike * len(each) - 1e-9) + 1
    yield from sorted(each, key=order.__getitem__)[:count]


def _jaccard(one: Pairs, other: Pairs, alike: float) -> float:
    small, large = sorted((len(one), len(other)))
    if small < alike * large - 1e-9:  # it cannot be reached
        return 0.0
    shared = len(one & other)
    return shared / (small + large - shared)
