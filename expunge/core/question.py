"""Questions that a model can be asked about a batch of examples.

A question is a frozen dataclass, and its `repr` is its key in caches. A new capability is one class here, or in a
package of yours, and one method, marked `@answers(Kind)`, of each model that can answer it; see `Model.ask`.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar, cast

import torch
from torch import Tensor

from expunge.core.predictions import Hidden, Predictions, RouterScores, RowMoments, Rows, RowScores, weights_of
from expunge.core.request import Example
from expunge.errors import UsageRefused

Reply = TypeVar("Reply")
RowsReply = TypeVar("RowsReply", bound=Rows)


class Question(ABC, Generic[Reply]):
    """What a model is asked; how its reply about several examples is split, joined and stored."""

    cached: ClassVar[bool] = True
    """Whether a reply without gradients is small enough for the cache."""

    def split(self, reply: Reply) -> list[Reply]:
        """The reply about each example, one by one."""
        raise NotImplementedError

    def join(self, parts: Sequence[Reply]) -> Reply:
        """The replies about several batches as one about all."""
        raise NotImplementedError

    def pack(self, reply: Reply) -> dict[str, Tensor]:
        """The reply about one example as tensors, for a safetensors file."""
        raise NotImplementedError

    def unpack(self, entry: Mapping[str, Tensor], example: Example) -> Reply:
        """The reply about `example` that `pack` turned into `entry`."""
        raise NotImplementedError


class RowQuestion(Question[RowsReply]):
    """A question that is answered row by row."""

    reply: ClassVar[type[Rows]]
    """Class of its replies."""

    def split(self, reply: RowsReply) -> list[RowsReply]:
        return reply.cut([1] * reply.examples)

    def join(self, parts: Sequence[RowsReply]) -> RowsReply:
        return type(parts[0]).join(parts)

    def pack(self, reply: RowsReply) -> dict[str, Tensor]:
        return reply.tensors()

    def unpack(self, entry: Mapping[str, Tensor], example: Example) -> RowsReply:
        owner = torch.zeros_like(entry["labels"])
        reply = self.reply(example=owner, examples=1, share=None, weights=weights_of([example]), **entry)
        return cast(RowsReply, reply)


@dataclass(frozen=True)
class Scores(RowQuestion[Predictions]):
    """Scores of every class for each row, by one forward pass; with gradients where torch has them enabled."""

    reply: ClassVar[type[Rows]] = Predictions


class DerivedQuestion(RowQuestion[RowsReply]):
    """A question whose reply is worked out from class scores alone: every model that answers `Scores` answers it.

    It may be asked about any number of examples: they are read in batches, without gradients.
    """

    def derive(self, scores: Predictions) -> RowsReply:
        """The reply about a batch from its class scores."""
        raise NotImplementedError


@dataclass(frozen=True)
class LogProbabilities(DerivedQuestion[RowScores]):
    """Log-probability of each row's right class, and whether it has the highest score: what most audits read."""

    reply: ClassVar[type[Rows]] = RowScores

    def derive(self, scores: Predictions) -> RowScores:
        return scores.row_scores()


@dataclass(frozen=True)
class RowStatistics(DerivedQuestion[RowMoments]):
    """What attacks read of each row beyond its log-probability, such as Min-K++."""

    reply: ClassVar[type[Rows]] = RowMoments

    def derive(self, scores: Predictions) -> RowMoments:
        return scores.row_moments()


@dataclass(frozen=True)
class HiddenStates(RowQuestion[Hidden]):
    """Hidden states after one block, at the position that each row is predicted from; no later block runs."""

    reply: ClassVar[type[Rows]] = Hidden
    cached: ClassVar[bool] = False
    layer: int | float
    """Number of the block, from 0; or, below 1.0, a share of the depth: 0.75 is three quarters of the way to the
    last."""

    def block(self, depth: int) -> int:
        """Number of the block in a model of `depth` blocks. Raises `UsageRefused` where there is no such block."""
        number = math.floor(self.layer * depth) if isinstance(self.layer, float) else self.layer
        if not 0 <= number < depth:
            raise UsageRefused(
                f"The `layer` must be a block number from 0 to {depth - 1}, or a share of the depth below 1.0. "
                f"Got {self.layer!r}."
            )
        return number


@dataclass(frozen=True)
class Routes(RowQuestion[RouterScores]):
    """Router probabilities of a mixture of experts, for each token but the last of each example."""

    reply: ClassVar[type[Rows]] = RouterScores
    cached: ClassVar[bool] = False
    layer: int | None = None
    """Number of a block with experts, from 0; None: all of them."""


@dataclass(frozen=True)
class Text(Question[list[str]]):
    """The greedy continuation of each example's prompt, without special tokens, for any number of examples."""

    max_new_tokens: int
    """Tokens after which a continuation without an end token is cut."""
    begun: tuple[int, ...] = field(default=(), repr=False, compare=False)
    """How many first tokens of each example's answer the model is known to generate: they are prefilled with the prompt
    instead of generated one by one. Changes the time, not the reply."""

    def pack(self, reply: list[str]) -> dict[str, Tensor]:
        return {"text": torch.tensor(list(reply[0].encode("utf-8", "surrogatepass")), dtype=torch.uint8)}

    def unpack(self, entry: Mapping[str, Tensor], example: Example) -> list[str]:
        return [bytes(entry["text"].tolist()).decode("utf-8", "surrogatepass")]

    def split(self, reply: list[str]) -> list[list[str]]:
        return [[text] for text in reply]

    def join(self, parts: Sequence[list[str]]) -> list[str]:
        return [text for part in parts for text in part]
