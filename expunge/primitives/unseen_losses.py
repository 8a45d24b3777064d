"""What a token would cost a model that never saw its text: estimated from tokens that no model saw.

A token's loss under a model that does not know the text depends mostly on what such a model can go by: how common the
token is, what it usually follows in texts of the kind, whether its beginning repeats what was said before. These are
counted (n-grams of the texts that are kept, repetitions within the text itself), so that nothing of them comes from the
model's memory, and a regression of the losses of unseen tokens on them is read at the tokens that were seen.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

ORDERS = 4
"""Longest n-gram that is counted."""
BACKED = 3.0
"""How many times the shorter n-gram's share counts beside what was counted of the longer."""
TAILS = (1, 2, 3, 5)
"""Lengths of an ending that is looked for earlier in the same text."""
FOLDS = 5
NEAR, FEWEST = 80, 10
"""Most and fewest unseen tokens, the nearest by estimate, whose losses are drawn from; between them a sixteenth."""
TINY = 1e-12
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Text:
    """Tokens, of which those from `first` on are estimated."""

    tokens: tuple[int, ...]
    first: int

    @property
    def rows(self) -> int:
        return len(self.tokens) - self.first


class Counts:
    """n-grams of some texts, each order backed by the one below."""

    def __init__(self, texts: Sequence[Text]) -> None:
        self.counts: list[dict[tuple[int, ...], Counter[int]]] = [defaultdict(Counter) for _ in range(ORDERS)]
        self.words = 1 + max((max(text.tokens) for text in texts), default=0)
        for text in texts:
            for place, token in enumerate(text.tokens):
                for order in range(min(ORDERS, place + 1)):
                    self.counts[order][text.tokens[place - order : place]][token] += 1
        self.totals = [{before: sum(after.values()) for before, after in each.items()} for each in self.counts]

    def surprise(self, before: tuple[int, ...], token: int) -> list[float]:
        """-log of the token's share after its last 0, 1, 2, ... tokens."""
        share, made = 1 / self.words, []
        for order in range(ORDERS):
            known = before[len(before) - order :] if order <= len(before) else None
            total = self.totals[order].get(known, 0) if known is not None else 0
            if total and known is not None:
                share = (self.counts[order][known][token] + BACKED * share) / (total + BACKED)
            made.append(-math.log(share))
        return made


def describe(texts: Sequence[Text], counts: Counts) -> Numbers:
    """A line for each estimated token: n-grams, what followed the same endings earlier, its place."""
    lines = []
    for text in texts:
        tokens = text.tokens
        for place in range(text.first, len(tokens)):
            token = tokens[place]
            line = counts.surprise(tokens[:place], token)
            for length in TAILS:
                tail = tokens[max(0, place - length) : place]
                after = {tokens[k + len(tail)] for k in range(place - len(tail)) if tokens[k : k + len(tail)] == tail}
                line.append(1.0 if token in after else -1.0 if after else 0.0)
            lines.append([*line, place - text.first, token in tokens[:place], place == len(tokens) - 1])
    return np.array(lines, dtype=np.float64).reshape(-1, ORDERS + len(TAILS) + 3)


@dataclass(frozen=True)
class Estimate:
    """Draws for each seen token an unseen one, whose loss it would have if it were unseen."""

    unseen: Numbers
    """Lines of tokens that no model saw [tokens, features]; without columns all are alike."""
    owner: NDArray[np.int64]
    """Which text each belongs to."""
    seen: Numbers
    """Lines of the tokens to be estimated."""
    whose: NDArray[np.int64]
    """Which text each of these belongs to."""
    draws: Numbers
    """A number from 0 to 1 for each of these, its place among the losses of the like."""

    @staticmethod
    def of(seen: Sequence[Text], unseen: Sequence[Text], kept: Sequence[Text]) -> Estimate:
        counts = Counts(kept)
        own, others = describe(seen, counts), describe(unseen, counts)
        owner, whose = (np.repeat(np.arange(len(each)), [text.rows for text in each]) for each in (unseen, seen))
        names = [(text.tokens[text.first :], place) for text in seen for place in range(text.rows)]
        return Estimate(others, owner, own, whose, spread(names, own[:, ORDERS - 1]))

    @staticmethod
    def by_rank(seen: Sequence[str], losses: Numbers, unseen: int) -> Estimate:
        """For rows of which only the names are known and the losses of a model that has seen them: the order of these
        is kept."""
        nothing = (np.empty((count, 0)) for count in (unseen, len(seen)))
        return Estimate(next(nothing), np.arange(unseen), next(nothing), np.arange(len(seen)), evenly(seen, losses))

    def alike(self, losses: Numbers) -> NDArray[np.int64]:
        """For each seen token an unseen one, drawn from those whose estimates are nearest to its own.

        The unseen tokens' own estimates are made without their text, so that both are as uncertain. That the seen
        texts are harder than the unseen ones, or easier, is believed as far as such estimates held for the unseen.
        """
        there, here = self._estimates(losses)
        held = self._slope_of_texts(there, losses)
        here = held * here + (1 - held) * _ranked_as(there, here)
        order = np.argsort(there, kind="stable")
        near = min(max(FEWEST, min(NEAR, len(order) // 16)), len(order)) if self.unseen.shape[1] else len(order)
        first = np.clip(np.searchsorted(there[order], here) - near // 2, 0, len(order) - near)
        around = order[first[:, None] + np.arange(near)]
        rank = np.argsort(losses[around], axis=1, kind="stable")
        drawn = rank[np.arange(len(here)), np.minimum((self.draws * near).astype(int), near - 1)]
        picked: NDArray[np.int64] = around[np.arange(len(here)), drawn]
        return picked

    def r_squared(self, losses: Numbers) -> float:
        """Share of the variance of the unseen tokens' losses that is foretold for a text that was left out."""
        there, _ = self._estimates(losses)
        return float(1 - np.square(there - losses).mean() / losses.var())

    def _estimates(self, losses: Numbers) -> tuple[Numbers, Numbers]:
        """Of the unseen tokens, each from the other texts; and of the seen ones. Means where nothing is foretold."""
        mean = float(losses.mean())
        nothing = (np.full(len(losses), mean), np.full(len(self.seen), mean))
        texts = len(np.unique(self.owner))
        if not self.unseen.shape[1] or texts < FOLDS:
            return nothing
        fold = self._fold
        there = np.empty(len(losses))
        for k in range(FOLDS):
            there[fold == k] = _fit(self.unseen[fold != k], losses[fold != k], self.unseen[fold == k])
        if np.square(there - losses).mean() >= losses.var():
            return nothing
        return there, _fit(self.unseen, losses, self.seen)

    def _slope_of_texts(self, there: Numbers, losses: Numbers) -> float:
        """By how much the mean loss of an unseen text rises for each nat that it was foretold higher, from 0 to 1."""
        counts = np.bincount(self.owner)
        foretold, real = (np.bincount(self.owner, values) / counts for values in (there, losses))
        apart = foretold - foretold.mean()
        return float(np.clip(apart @ real / max(apart @ apart, TINY), 0, 1))

    @cached_property
    def _fold(self) -> NDArray[np.int64]:
        return self.owner % FOLDS


def _ranked_as(values: Numbers, others: Numbers) -> Numbers:
    """For each of the others the quantile of `values` at its rank."""
    ranks = (rankdata(others) - 0.5) / len(others)
    made: Numbers = np.quantile(values, ranks)
    return made


def spread(names: Sequence[object], value: Numbers) -> Numbers:
    """A number from 0 to 1 for each, spread evenly along `value` by the golden ratio, and the same in every order."""
    digests = _digests(names)
    made = np.empty(len(names))
    made[sorted(range(len(names)), key=lambda k: (value[k], digests[k]))] = (0.5 + GOLDEN * np.arange(len(names))) % 1
    return made


def evenly(names: Sequence[object], value: Numbers) -> Numbers:
    """The middles of as many equal parts of the way from 0 to 1, in the order of `value`."""
    digests = _digests(names)
    made = np.empty(len(names))
    made[sorted(range(len(names)), key=lambda k: (value[k], digests[k]))] = (np.arange(len(names)) + 0.5) / len(names)
    return made


def _digests(names: Sequence[object]) -> list[str]:
    return [hashlib.sha256(repr(name).encode()).hexdigest() for name in names]


def _fit(lines: Numbers, losses: Numbers, asked: Numbers) -> Numbers:
    """A regression by shallow boosted trees, with leaves that fit the number of lines."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    leaf = min(60, max(5, len(lines) // 40))
    model = HistGradientBoostingRegressor(
        max_iter=60, max_leaf_nodes=8, min_samples_leaf=leaf, learning_rate=0.08, early_stopping=False
    )
    found: Numbers = model.fit(lines, losses).predict(asked)
    return found
