"""A model's answers about a batch: one row for each labelled position.

A language model gives a row for each labelled token, a classifier a row for each image. Losses and audits know rows
and examples only, so they run unchanged on every family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from expunge.primitives.class_scores import Head, Read, best_class, each_row, moments, right_log_prob, widen

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped

    from expunge.core.request import Example


@dataclass(frozen=True)
class Share:
    """How many rows and examples, by weight, the whole step holds, of which these predictions may be a part."""

    rows: float
    examples: float

    @staticmethod
    def of(batch: Sequence[Example]) -> Share:
        """The weighted counts of a whole batch."""
        return Share(sum(e.weight * e.rows for e in batch), sum(e.weight for e in batch))


@dataclass(frozen=True)
class Rows:
    """Rows of a batch and the example that each belongs to; weighted sums and means over both.

    A subclass adds tensors whose first dimension is the rows; cutting and joining then need no code of their own.
    """

    labels: Int[Tensor, " rows"]
    """The right class (token, label) of each row."""
    example: Int[Tensor, " rows"]
    """Which example of the batch owns the row, from 0; in their order."""
    examples: int
    """How many examples the batch holds."""
    share: Share | None
    """The whole step's counts where the batch is one part of it; None where the batch is the whole."""
    weights: Float[Tensor, " examples"] | None = field(default=None, kw_only=True)
    """How often each example counts; None where each counts once."""

    def sum(self, values: Float[Tensor, " rows"]) -> Float[Tensor, " examples"]:
        """Sum of `values` over the rows of each example."""
        return values.new_zeros(self.examples).index_add(0, self.example, values)

    def mean(self, values: Float[Tensor, " rows"]) -> Float[Tensor, " examples"]:
        """Mean of `values` over the rows of each example."""
        return self.sum(values) / self.counts().clamp(min=1).to(values.dtype)

    def counts(self) -> Int[Tensor, " examples"]:
        """Number of rows of each example."""
        return torch.bincount(self.example, minlength=self.examples)

    def over_rows(self, values: Float[Tensor, " rows"]) -> Float[Tensor, ""]:
        """Mean over the rows of the whole step, so that the parts of an accumulated step add up to it exactly."""
        if self.weights is None:
            return values.sum() / max(1, self.share.rows if self.share else len(values))
        weights = self.weights[self.example].to(values.dtype)
        return (weights * values).sum() / (self.share.rows if self.share else weights.sum())

    def over_examples(self, values: Float[Tensor, " examples"]) -> Float[Tensor, ""]:
        """Mean over the examples of the whole step."""
        if self.weights is None:
            return values.sum() / max(1, self.share.examples if self.share else self.examples)
        weights = self.weights.to(values.dtype)
        return (weights * values).sum() / (self.share.examples if self.share else weights.sum())

    def split(self, values: Shaped[Tensor, " rows *rest"]) -> list[Shaped[Tensor, " _its_rows *rest"]]:
        """`values` cut into one tensor for each example, in the batch's order."""
        order = torch.argsort(self.example, stable=True)
        return list(torch.tensor_split(values[order], self.counts().cumsum(0)[:-1].cpu()))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the reply that have a row dimension, by field."""
        own = {f.name: vars(self)[f.name] for f in fields(self) if f.name not in ("example", "weights")}
        return {name: value for name, value in own.items() if isinstance(value, Tensor)}

    def part_of(self, share: Share | None) -> Self:
        """The same rows, counted as a part of a larger step."""
        return replace(self, share=share)

    def detach(self) -> Self:
        """The same, through which no gradient flows."""
        return self._with(**{name: tensor.detach() for name, tensor in self.tensors().items()})

    def _with(self, **changes: Any) -> Self:
        return replace(self, **changes)

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        weights = None if self.weights is None else self.weights.to(device)
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return self._with(example=self.example.to(device), weights=weights, **moved)

    def none(self) -> Self:
        """The same reply with no rows. Backward reaches its graph, with zeros: processes that share a step need it."""
        cut = {name: tensor[:0] for name, tensor in self.tensors().items()}
        weights = None if self.weights is None else self.weights[:0]
        return self._with(example=self.example[:0], examples=0, weights=weights, **cut)

    def cut(self, sizes: Sequence[int]) -> list[Self]:
        """The reply about runs of `sizes` examples each, in the batch's order."""
        ends = list(accumulate(sizes))
        bounds = [0, *torch.cumsum(self.counts(), 0)[torch.tensor(ends) - 1].tolist()]
        tensors = self.tensors()
        return [
            self._with(
                example=self.example[a:b] - (end - size),
                examples=size,
                weights=None if self.weights is None else self.weights[end - size : end],
                **{name: tensor[a:b] for name, tensor in tensors.items()},
            )
            for size, end, a, b in zip(sizes, ends, bounds, bounds[1:], strict=False)
        ]

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The replies about several batches as one."""
        starts = accumulate([0, *(part.examples for part in parts[:-1])])
        first = parts[0].tensors()
        weighted = any(part.weights is not None for part in parts)
        return parts[0]._with(
            example=torch.cat([part.example + start for part, start in zip(parts, starts, strict=True)]),
            examples=sum(part.examples for part in parts),
            share=None,
            weights=torch.cat([part.each_weight() for part in parts]) if weighted else None,
            **{name: torch.cat([vars(part)[name] for part in parts]) for name in first},
        )

    def each_weight(self) -> Float[Tensor, " examples"]:
        """How often each example counts, in any case as a tensor."""
        return torch.ones(self.examples, device=self.example.device) if self.weights is None else self.weights


def weights_of(batch: Sequence[Example]) -> Float[Tensor, " examples"] | None:
    """The weights of a batch for its reply; None where each is 1: unweighted results stay the same to the bit."""
    weights = [example.weight for example in batch]
    return None if all(weight == 1 for weight in weights) else torch.tensor(weights)


def mean_over(values: Float[Tensor, " examples"], batch: Sequence[Example]) -> Float[Tensor, ""]:
    """Mean of a number for each example, by their weights."""
    weights = weights_of(batch)
    return values.mean() if weights is None else (weights.to(values) * values).sum() / weights.sum()


@dataclass(frozen=True)
class Predictions(Rows):
    """Scores of every class for each row, before the softmax.

    Rows times vocabulary is a large matrix, so it need not exist: a language model gives each row's last hidden state
    and the output matrix (`head`). What depends on one row's scores alone is then computed in chunks of rows.
    """

    states: Float[Tensor, "rows width"]
    """Input of the head; the class scores themselves where there is no head."""
    head: Head | None = None

    @property
    def logits(self) -> Float[Tensor, "rows classes"]:
        """The scores of all rows at once, in the model's own precision."""
        return self.states if self.head is None else self.head(self.states)

    def each_row(self, read: Read, *others: Predictions) -> Float[Tensor, " rows"]:
        """`read(labels, logits, *logits of others)`: a number for each row, from that row's scores alone.

        Scores come in float32 or wider, [rows of a chunk, classes]. `others` have the same rows and carry no gradient.
        """
        return each_row(read, self.labels, (self.states, self.head), [(o.states, o.head) for o in others])

    def log_prob(self) -> Float[Tensor, " rows"]:
        """Natural log-probability of the right class of each row, in float32 or wider.

        A second call without gradients (for a log line) returns the value of the first.
        """
        if not torch.is_grad_enabled() and "_log_prob" in self.__dict__:
            known: Tensor = self.__dict__["_log_prob"]
            return known
        value = self.each_row(right_log_prob)
        self.__dict__["_log_prob"] = value.detach()
        return value

    def log_probs(self) -> Float[Tensor, "rows classes"]:
        """Natural log-probabilities of all classes of all rows at once."""
        return widen(self.logits).log_softmax(-1)

    def nll(self) -> Float[Tensor, ""]:
        """Cross-entropy: mean over labelled rows, in nats."""
        return -self.over_rows(self.log_prob())

    def detach(self) -> Predictions:
        return replace(self, states=self.states.detach(), head=self.head and self.head.detach())

    def row_scores(self) -> RowScores:
        """What most audits need of each row; the class scores, which are large, are dropped."""
        log_probs, right = best_class(self.labels, (self.states, self.head))
        return RowScores(*self._rows(), weights=self.weights, log_probs=log_probs, right=right)

    def row_moments(self) -> RowMoments:
        """Rank of the right class, and mean and variance of each row's log-probabilities."""
        statistics = moments(self.labels, (self.states, self.head))
        return RowMoments(*self._rows(), *statistics, weights=self.weights)

    def _rows(self) -> tuple[Tensor, Tensor, int, Share | None]:
        return self.labels, self.example, self.examples, self.share


@dataclass(frozen=True)
class Hidden(Rows):
    """Hidden states after a transformer block, at the position that each row is predicted from."""

    states: Float[Tensor, "rows width"]
    """The hidden state after the block; for an image that of its class token."""


@dataclass(frozen=True)
class RouterScores(Rows):
    """Router probabilities for each token but the last of each example."""

    layers: tuple[int, ...]
    """Numbers, from 0, of the blocks whose routers were read."""
    states: Float[Tensor, "rows layers experts"]
    """Softmax of the router's scores over all experts of its block."""
    taken: Bool[Tensor, "rows layers experts"]
    """Whether the expert is among the top K, so that the token is routed to it."""


@dataclass(frozen=True)
class RowScores(Rows):
    """Log-probability of each row's right class, and whether it has the highest score."""

    log_probs: Float[Tensor, " rows"]
    """Natural log-probability of the right class."""
    right: Bool[Tensor, " rows"]
    """Whether the right class had the highest score."""


@dataclass(frozen=True)
class RowMoments(Rows):
    """Statistics of each row's distribution over the classes, beside the right class's log-probability."""

    log_probs: Float[Tensor, " rows"]
    """Natural log-probability of the right class."""
    rank: Int[Tensor, " rows"]
    """How many classes score higher than the right one."""
    mean_log_prob: Float[Tensor, " rows"]
    """Mean of log p over the classes, weighted by p, in nats: the entropy with its sign turned (mu of Min-K++)."""
    variance: Float[Tensor, " rows"]
    """Variance of log p over the classes, weighted by p, in nats squared (sigma squared of Min-K++)."""

    @property
    def entropy(self) -> Float[Tensor, " rows"]:
        """Entropy of the row's distribution, in nats."""
        return -self.mean_log_prob
