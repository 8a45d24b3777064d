"""Near-duplicates between two sets of records, without comparing every pair.

Text is normalised (NFKC, casefold, punctuation removed) and split into word bigrams; two records are compared by the
Jaccard similarity of their bigrams. Rare bigrams are enough to find candidates (prefix filtering): if two sets of
bigrams have a similarity of at least t, then one of the first |x| - ceil(t |x|) + 1 of each, in any fixed order, is
common to both. So no duplicate is missed, and frequent bigrams are never looked up. Images are not compared.
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
"""Jaccard similarity from which two records are near-duplicates."""
UNSPACED = "\u3040-\u30ff\u3400-\u9fff"
"""Letters of scripts without spaces (kana and Han), each a word of its own."""
WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")

Pairs = frozenset[tuple[str, ...]]


@dataclass(frozen=True)
class Like:
    """A pair of near-duplicates, by their lines. Never holds their text."""

    line: int
    other: int
    alike: float
    """Jaccard similarity; 1 where they are equal but for case, spaces and punctuation."""
    equal: bool
    """Whether every word is the same, in the same order."""


def likes(records: Sequence[Record], others: Sequence[Record], alike: float = ALIKE) -> list[Like]:
    """For each of `records` its nearest of `others`, where the two are near-duplicates."""
    texts = [tuple(words(record)) for record in records]
    lines: dict[tuple[str, ...], int] = {}
    for record in others:
        lines.setdefault(tuple(words(record)), record.line)  # each wording once, under its first line
    wordings = list(lines)
    mine, theirs = {own: pairs(own) for own in texts}, [pairs(own) for own in wordings]
    seen = Counter(pair for each in (*mine.values(), *theirs) for pair in each)
    # The rarest first. A bigram of one record alone cannot be shared, but it counts.
    order = {pair: place for place, pair in enumerate(sorted(seen, key=lambda pair: (seen[pair], pair)))}
    where: dict[tuple[str, ...], list[int]] = {}
    for k, each in enumerate(theirs):
        for pair in _first(each, order, alike):
            where.setdefault(pair, []).append(k)

    def nearest(own: tuple[str, ...]) -> tuple[float, bool, int]:
        each = mine[own]
        near = {k for pair in _first(each, order, alike) for k in where.get(pair, ())}
        alikes = ((_jaccard(each, theirs[k], alike), own == wordings[k], -lines[wordings[k]]) for k in near)
        return max(alikes, default=(0.0, False, 0))

    best = {own: nearest(own) for own in mine}
    found = ((record, *best[own]) for record, own in zip(records, texts, strict=True))
    return [Like(record.line, -line, size, equal) for record, size, equal, line in found if size >= alike]


def words(record: Record) -> list[str]:
    """The normalised words of a record's question and answer, of its messages, or of its text."""
    said = [record.columns.get(name, "") for name in ("question", "answer", "text")]
    text = " ".join(map(str, [*said, *(turn["content"] for turn in record.columns.get("messages", ()))]))
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def pairs(text: Sequence[str]) -> Pairs:
    """Word bigrams; a single word alone, where there is no other."""
    return frozenset(zip(text, text[1:], strict=False)) or frozenset({tuple(text)})


def _first(each: Pairs, order: dict[tuple[str, ...], int], alike: float) -> Iterator[tuple[str, ...]]:
    """The rarest bigrams, of which a near-duplicate must share one."""
    count = len(each) - math.ceil(alike * len(each) - 1e-9) + 1
    yield from sorted(each, key=order.__getitem__)[:count]


def _jaccard(one: Pairs, other: Pairs, alike: float) -> float:
    small, large = sorted((len(one), len(other)))
    if small < alike * large - 1e-9:  # the similarity cannot be reached
        return 0.0
    shared = len(one & other)
    return shared / (small + large - shared)
