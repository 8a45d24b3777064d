"""Measures of a benchmark's texts that need passes of their own: gradients, a continuation of every prefix, tasks of
lm-eval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import cast

from torch import Tensor

from expunge.benchmarks._reading import Item, ends
from expunge.benchmarks._tasks import TASK, task_accuracies
from expunge.benchmarks._values import Column, Values
from expunge.core.model import Model, network_of
from expunge.core.predictions import Predictions
from expunge.events import Note, OnEvent
from expunge.internals.gradients import Slopes
from expunge.models.decoding import side_by_side
from expunge.models.language import LanguageModel
from expunge.models.writing import write as write_tokens
from expunge.primitives.memorisation import norm_of_gradient
from expunge.primitives.overlap import share_of_ngrams

GRADIENT = "gradient_norm"
"""It needs a pass backward too."""


def gradient_norms(model: Model, items: Sequence[Item]) -> Values:
    """Of each item the mean over the weight tensors of their gradients' norms, dropout off, of the
    mean loss without the end token."""
    network = network_of(model, GRADIENT)
    slopes, tokenizer = Slopes(network), cast(LanguageModel, network).tokenizer
    rows = []
    for item in items:
        slopes.add([item.passage], partial(_inner_loss, ends(item.passage, tokenizer)))
        norm = norm_of_gradient(slope for _, slope in slopes.take())
        rows.append((Column(item.set, GRADIENT, item.answer), item.record, norm))
    return Values.collect(rows)


def _inner_loss(ends: bool, said: Predictions) -> Tensor:
    inner = said.log_prob()[: len(said.labels) - ends]
    return -inner.mean() if len(inner) else 0 * said.log_prob().sum()


NGRAM = 10
"""Tokens that must be equal in a row for `extraction_likelihood`."""


def extraction_likelihoods(model: Model, items: Sequence[Item]) -> Values:
    """EL_10 of each text (Jang et al., 2022): the mean, over its prefixes, of the share of the n-grams of what follows
    that are in the greedy continuation of the prefix, which is as long as what follows."""
    network = cast(LanguageModel, network_of(model, "extraction_likelihood"))
    rows = []
    for item in items:
        tokens = item.passage.tokens
        places = range(1, max(2, len(tokens) - NGRAM + 1))
        side = side_by_side(network.module, len(tokens))
        shares: list[float] = []
        for start in range(0, len(places), side):
            own = places[start : start + side]
            written = write_tokens(network, [tokens[:t] for t in own], [len(tokens) - t for t in own])
            shares += [share_of_ngrams(new, tokens[t:], NGRAM) for t, new in zip(own, written, strict=True)]
        rows.append((Column(item.set, "extraction_likelihood", item.answer), item.record, sum(shares) / len(shares)))
    return Values.collect(rows)


DEEP: Mapping[str, Callable[[Model, Sequence[Item]], Values]] = {
    GRADIENT: gradient_norms,
    "extraction_likelihood": extraction_likelihoods,
    TASK: task_accuracies,
}
"""Measures that need passes of their own."""


def measure_deeply(model: Model, items: Sequence[Item], on_event: OnEvent) -> Values:
    """What the items ask for that needs passes of its own."""
    values = Values({})
    for name, measure in DEEP.items():
        asked = [item for item in items if name in item.measures]
        if asked:
            on_event(Note(f"Measuring {name} of {len(asked)} texts"))
            values = values.join(measure(model, asked))
    return values
