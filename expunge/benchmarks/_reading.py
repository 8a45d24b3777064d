"""Texts of a benchmark through a model: each once, whatever is measured of it, and all continuations together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from expunge.benchmarks._values import RIGHT, Column, Values
from expunge.core.predictions import RowMoments, RowScores
from expunge.core.question import LogProbabilities, Question, Reply, RowStatistics, Text
from expunge.data.text import Passage
from expunge.events import Note, OnEvent
from expunge.primitives.memorisation import (
    exact_memorisation,
    extraction_strength,
    loss_by_packed_size,
    lowest_mean,
    standardise,
)
from expunge.primitives.overlap import Words, rouge
from expunge.runtime.cached_model import CachedModel

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


@dataclass(frozen=True)
class Item:
    """A text of a benchmark and what is measured of it."""

    set: str
    record: int
    """Place in its file, from 0."""
    passage: Passage = field(repr=False)
    answer: str = RIGHT
    measures: tuple[str, ...] = ("loss", "tokens")
    """Names of formulas."""
    write: int = 0
    """Tokens of its prompt's continuation; 0: none is asked for."""


@dataclass(frozen=True)
class Rows:
    """What a model says of the labelled tokens of one text."""

    log_probs: Float[Tensor, " rows"]
    """Natural log-probability of each token, in float64."""
    right: Bool[Tensor, " rows"]
    """Whether it has the highest score."""
    scaled: Float[Tensor, " rows"] | None
    """Its log-probability centred and scaled by its own distribution, where that was asked for."""
    inner: slice
    """Which rows are not the end token."""
    spell: Callable[[], str]
    """What is labelled, as text."""


Formula = Callable[[Rows], float]


def mean_loss(rows: Rows) -> float:
    """Mean negative log-probability of a token, in nats."""
    return -float(rows.log_probs.mean())


def extraction(rows: Rows) -> float:
    """Extraction strength without the end token; a text that ends wrong counts 1 / n, as open-unlearning has it."""
    return extraction_strength(rows.right[rows.inner], "last row")


def min_k(rows: Rows, fraction: float = 0.4) -> float:
    """Minus the mean of the lowest 40 % of log-probabilities, without the end token."""
    inner = rows.log_probs[rows.inner]
    return -float(lowest_mean(inner, fraction)) if len(inner) else 0.0


def min_k_plus(rows: Rows, fraction: float = 0.4) -> float:
    """The same of log-probabilities that are centred and scaled by each token's own distribution."""
    inner = rows.log_probs[:0] if rows.scaled is None else rows.scaled[rows.inner]
    return -float(lowest_mean(inner, fraction)) if len(inner) else 0.0


def min_k_20(rows: Rows) -> float:
    """Min-K of the lowest 20 %."""
    return min_k(rows, 0.2)


def min_k_plus_20(rows: Rows) -> float:
    """Min-K++ of the lowest 20 %."""
    return min_k_plus(rows, 0.2)


FORMULAS: Mapping[str, Formula] = {
    "loss": mean_loss,
    "tokens": lambda rows: len(rows.log_probs),
    "extraction_strength": extraction,
    "exact_memorisation": lambda rows: exact_memorisation(rows.right[rows.inner]),
    "memorisation_accuracy": lambda rows: exact_memorisation(rows.right),
    "min_k": min_k,
    "min_k_plus": min_k_plus,
    "min_k_20": min_k_20,
    "min_k_plus_20": min_k_plus_20,
    "zlib": lambda rows: loss_by_packed_size(mean_loss(rows), rows.spell()),
}
"""What is worked out from one pass over a text, by the name of the measure."""
STATISTICS = {"min_k_plus", "min_k_plus_20"}
"""Those that need each token's whole distribution, which costs as much again as its log-probability."""
Written = Callable[[Sequence["Item"], Sequence[str]], Sequence[Mapping[str, float]]]
"""From texts and the continuations of their prompts to measures of each."""


def read(known: CachedModel, items: Sequence[Item], tokenizer: Any, on_event: OnEvent) -> Values:
    """Every formula of every item, by one pass over each text."""
    read_at_all = [item for item in items if FORMULAS.keys() & {*item.measures}]
    on_event(Note(f"Reading {len(read_at_all)} texts"))
    deep = [item for item in read_at_all if STATISTICS & {*item.measures}]
    rest = [item for item in read_at_all if not STATISTICS & {*item.measures}]
    whole = _ask(known, RowStatistics(), deep)
    scores = [*map(_scores, whole), *_ask(known, LogProbabilities(), rest)]
    known.learn(LogProbabilities(), [item.passage for item in (*deep, *rest)], scores)
    rows: list[tuple[Column, int, float]] = []
    for item, own, moments in zip((*deep, *rest), scores, (*whole, *[None] * len(rest)), strict=True):
        formed = _rows(own, moments, item.passage, tokenizer)
        rows += [
            (Column(item.set, name, item.answer), item.record, FORMULAS[name](formed))
            for name in item.measures
            if name in FORMULAS
        ]
    return Values.collect(rows)


def _ask(known: CachedModel, question: Question[Reply], items: Sequence[Item]) -> list[Reply]:
    """The reply about each item."""
    return question.split(known.ask(question, [item.passage for item in items])) if items else []


def _scores(part: RowMoments) -> RowScores:
    """The log-probabilities among statistics: what is known of a token then need not be generated anew."""
    return RowScores(part.labels, part.example, 1, None, part.log_probs, part.rank == 0, weights=part.weights)


def _rows(scores: RowScores, moments: RowMoments | None, passage: Passage, tokenizer: Any) -> Rows:
    log_probs = scores.log_probs.double()
    scaled = (
        None if moments is None else standardise(log_probs, moments.mean_log_prob.double(), moments.variance.double())
    )
    inner = slice(0, len(log_probs) - ends(passage, tokenizer))
    spell = partial(tokenizer.decode, passage.tokens[passage.first :], skip_special_tokens=True)
    return Rows(log_probs, scores.right, scaled, inner, spell)


def ends(passage: Passage, tokenizer: Any) -> bool:
    """Whether its last token is an end token."""
    return bool(passage.tokens[-1] == tokenizer.eos_token_id)


def write(known: CachedModel, items: Sequence[Item], score: Written, on_event: OnEvent) -> Values:
    """What is measured of the continuations of those items that have one, generated together."""
    rows: list[tuple[Column, int, float]] = []
    asked = [item for item in items if item.write]
    if asked:
        on_event(Note(f"Continuing {len(asked)} prompts"))
    for most in sorted({item.write for item in asked}):
        group = [item for item in asked if item.write == most]
        texts = known.ask(Text(most), [item.passage for item in group])
        scores = score(group, texts)
        rows += [
            (Column(item.set, name, item.answer), item.record, value)
            for item, each in zip(group, scores, strict=True)
            for name, value in each.items()
        ]
    return Values.collect(rows)


def score_overlap(right: Sequence[str], written: Sequence[str], words: Words = "stemmed") -> list[Mapping[str, float]]:
    """ROUGE of each continuation against the right answer."""
    return [
        {"rouge": each.recall, "rouge_f1": each.f1, "rouge_words": each.words} for each in rouge(right, written, words)
    ]
