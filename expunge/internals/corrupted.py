"""Texts some of whose tokens are of other texts, so that what follows is read after words it was not learnt with."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from expunge.core.model import Batch
from expunge.core.request import Example
from expunge.internals.examples import Tokenized

RUNS = (1, 2, 3)
"""Tokens that are replaced in a row: about a word or a name."""
SHORT = 8
"""Answers of fewer tokens stay whole: what follows a wrong word is next to nothing there, and on SmolLM2's one-word
answers replacing them harmed plain texts (docs/log.md)."""


def corrupt_answers(
    examples: Sequence[Tokenized], pool: Sequence[int], share: float, lot: str
) -> tuple[list[Example], list[bool]]:
    """The examples with about `share` of each longer answer's tokens replaced by tokens of `pool`, as the lot and the
    example decide; and of each row whether its label is still the example's own."""
    made, own = [], []
    for example in examples:
        draw = random.Random(f"{lot} {example.input_digest().hex()}")
        part = share if example.rows >= SHORT else 0.0
        tokens, kept = corrupt(example.tokens, example.first, pool, part, draw)
        made.append(replace(cast(Any, example), tokens=tokens))
        own += kept
    return made, own


def answer_tokens(sets: Mapping[str, Batch]) -> list[int]:
    """What stands in the answers of a run's texts that are not to be forgotten."""
    texts = cast(Sequence[Tokenized], (*sets.get("retain", ()), *sets.get("holdout", ())))
    return [token for text in texts for token in text.tokens[text.first :]]


def corrupt(
    tokens: Sequence[int], first: int, pool: Sequence[int], share: float, draw: random.Random
) -> tuple[tuple[int, ...], list[bool]]:
    """The text with about `share` of its tokens from `first` on replaced by tokens of `pool`, and of each of these
    whether it is still the text's own. The last one always is: nothing follows it."""
    made, own = list(tokens), [True] * (len(tokens) - first)
    often = share / (share + (1 - share) * sum(RUNS) / len(RUNS))
    place, end = first, len(tokens) - 1
    while place < end:
        run = min(draw.choice(RUNS), end - place) if draw.random() < often else 0
        for k in range(place, place + run):
            made[k], own[k - first] = draw.choice(pool), False
        place += max(1, run)
    return tuple(made), own
