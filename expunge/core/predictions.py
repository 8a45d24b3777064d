"""What a model said about a batch: one row for each thing that it was asked.

A language model contributes a row for each labelled token, a classifier a row for each image. Losses and audits know
rows and examples only, so they run unchanged on every family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from expunge.core.rows import Head, Read, each_row, judged, right_log_prob, widened

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class Share:
    """How many rows and examples the whole step holds, of which these predictions may be a part."""

    rows: int
    examples: int


@dataclass(frozen=True)
class Rows:
    """Rows of a batch and the example that each belongs to; sums and means over both."""

    labels: Int[Tensor, " rows"]
    """The right class (token, label) of each row."""
    example: Int[Tensor, " rows"]
    """Which example of the batch owns the row, from 0."""
    examples: int
    """How many examples the batch holds."""
    share: Share | None
    """The whole step's counts where the batch is one part of it; None where the batch is the whole."""

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
        return values.sum() / max(1, self.share.rows if self.share else len(values))

    def over_examples(self, values: Float[Tensor, " examples"]) -> Float[Tensor, ""]:
        """Mean over the examples of the whole step."""
        return values.sum() / max(1, self.share.examples if self.share else self.examples)

    def split(self, values: Float[Tensor, " rows"]) -> list[Float[Tensor, " its_rows"]]:
        """`values` cut into one tensor for each example, in the batch's order."""
        order = torch.argsort(self.example, stable=True)
        return list(torch.tensor_split(values[order], self.counts().cumsum(0)[:-1].cpu()))


@dataclass(frozen=True)
class Predictions(Rows):
    """Scores of every class for each row, before the softmax.

    A vocabulary is wide, so the scores need not exist: a language model gives each row's last hidden state, and the
    output matrix (`head`) that would make scores of it. What is asked row by row is then answered in chunks of rows.
    """

    states: Float[Tensor, "rows width"]
    """What the head reads; the scores themselves where there is no head."""
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

        Asked again without gradients (for a log), it is what was worked out before.
        """
        if not torch.is_grad_enabled() and "_log_prob" in self.__dict__:
            known: Tensor = self.__dict__["_log_prob"]
            return known
        value = self.each_row(right_log_prob)
        self.__dict__["_log_prob"] = value.detach()
        return value

    def log_probs(self) -> Float[Tensor, "rows classes"]:
        """Natural log-probabilities of all classes of all rows at once."""
        return widened(self.logits).log_softmax(-1)

    def nll(self) -> Float[Tensor, ""]:
        """Cross-entropy: mean over labelled rows, in nats."""
        return -self.over_rows(self.log_prob())

    def part_of(self, share: Share) -> Predictions:
        """The same rows, counted as a part of a larger step."""
        return replace(self, share=share)

    def detach(self) -> Predictions:
        """The same answers, through which no gradient flows."""
        return replace(self, states=self.states.detach(), head=self.head and self.head.detach())

    def cut(self, sizes: Sequence[int]) -> list[Predictions]:
        """The answers to runs of `sizes` examples each, in the batch's order."""
        ends = list(accumulate(sizes))
        rows = [0, *torch.cumsum(self.counts(), 0)[torch.tensor(ends) - 1].tolist()]
        return [
            replace(
                self,
                labels=self.labels[a:b],
                example=self.example[a:b] - (end - size),
                examples=size,
                states=self.states[a:b],
            )
            for size, end, a, b in zip(sizes, ends, rows, rows[1:], strict=False)
        ]

    @staticmethod
    def join(parts: Sequence[Predictions]) -> Predictions:
        """The answers to several batches as those to one."""
        starts = accumulate([0, *(part.examples for part in parts[:-1])])
        return Predictions(
            labels=torch.cat([part.labels for part in parts]),
            example=torch.cat([part.example + start for part, start in zip(parts, starts, strict=True)]),
            examples=sum(part.examples for part in parts),
            share=None,
            states=torch.cat([part.states for part in parts]),
            head=parts[0].head,
        )

    def answers(self) -> RowScores:
        """What an audit needs, without the class scores, which are large."""
        log_probs, right = judged(self.labels, (self.states, self.head))
        return RowScores(
            labels=self.labels,
            example=self.example,
            examples=self.examples,
            share=self.share,
            log_probs=log_probs,
            right=right,
        )


@dataclass(frozen=True)
class Hidden(Rows):
    """What a block of a transformer hands on, where each row is predicted from."""

    states: Float[Tensor, "rows width"]
    """The hidden state after the block; for an image its class token's."""


@dataclass(frozen=True)
class RowScores(Rows):
    """What an audit sees of each row: how likely the right class was, and whether it came first."""

    log_probs: Float[Tensor, " rows"]
    """Natural log-probability of the right class."""
    right: Bool[Tensor, " rows"]
    """Whether the right class had the highest score."""

    def parts(self) -> list[RowScores]:
        """The answers of each example alone."""
        cut = [self.split(values) for values in (self.labels, self.log_probs, self.right)]
        return [
            RowScores(labels=a, example=torch.zeros_like(a), examples=1, share=None, log_probs=b, right=c)
            for a, b, c in zip(*cut, strict=True)
        ]

    @staticmethod
    def join(parts: list[RowScores], order: list[int]) -> RowScores:
        """One record of several batches; `order[k]` is the place, in the result, of the k-th example read."""
        place = torch.tensor(order, dtype=torch.long)
        starts = accumulate([0] + [part.examples for part in parts[:-1]])
        owner = torch.cat([place[part.example.cpu() + start] for part, start in zip(parts, starts, strict=True)])
        sort = torch.argsort(owner, stable=True)

        def gather(field: str) -> Tensor:
            return torch.cat([getattr(part, field).cpu() for part in parts])[sort]

        return RowScores(
            labels=gather("labels"),
            example=owner[sort],
            examples=len(order),
            share=None,
            log_probs=gather("log_probs"),
            right=gather("right"),
        )
