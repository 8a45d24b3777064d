"""Questions that a model can be asked about a batch of examples.

A question is frozen, and its `repr` is its name wherever replies are kept. A new capability is one class here (or in a
file of somebody else's) and one method of each model that can answer it; see `Model.ask`.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from expunge.core.predictions import Hidden, Predictions, RouterScores, RowMoments, Rows, RowScores, weights_of
from expunge.core.request import Example
from expunge.errors import UsageRefused

Reply = TypeVar("Reply")
RowsReply = TypeVar("RowsReply", bound=Rows)


class Question(ABC, Generic[Reply]):
    """What a model is asked; how a reply about several examples is taken apart and put together."""

    cached: ClassVar[bool] = True
    """Whether a reply without gradients is small enough to be kept."""

    def split(self, reply: Reply) -> list[Reply]:
        """The reply about each example alone."""
        raise NotImplementedError

    def join(self, parts: Sequence[Reply]) -> Reply:
        """The replies about several batches as one about all."""
        raise NotImplementedError

    def pack(self, reply: Reply) -> dict[str, Tensor]:
        """The reply about one example as tensors that can lie in a file."""
        raise NotImplementedError

    def unpack(self, entry: Mapping[str, Tensor], example: Example) -> Reply:
        """What `pack` made of the reply about `example`."""
        raise NotImplementedError


class RowQuestion(Question[RowsReply]):
    """A question that is answered row by row."""

    reply: ClassVar[type[Rows]]
    """What it is answered with."""

    def split(self, reply: RowsReply) -> list[RowsReply]:
        return reply.cut([1] * reply.examples)

    def join(self, parts: Sequence[RowsReply]) -> RowsReply:
        return type(parts[0]).join(parts)

    def pack(self, reply: RowsReply) -> dict[str, Tensor]:
        return reply.tensors()

    def unpack(self, entry: Mapping[str, Tensor], example: Example) -> RowsReply:
        owner = torch.zeros_like(entry["labels"])
        made: Any = self.reply(example=owner, examples=1, share=None, weights=weights_of([example]), **entry)
        return made


@dataclass(frozen=True)
class Scores(RowQuestion[Predictions]):
    """Scores of every class for each row, by one forward pass, through which gradients flow where they are enabled."""

    reply: ClassVar[type[Rows]] = Predictions


@dataclass(frozen=True)
class LogProbabilities(RowQuestion[RowScores]):
    """Log-probability of each row's right class. Of any number of examples, in batches, without gradients."""

    reply: ClassVar[type[Rows]] = RowScores


@dataclass(frozen=True)
class RowStatistics(RowQuestion[RowMoments]):
    """What attacks read of each row beyond its log-probability, such as Min-K++. Asked as `LogProbabilities` is."""

    reply: ClassVar[type[Rows]] = RowMoments


@dataclass(frozen=True)
class HiddenStates(RowQuestion[Hidden]):
    """The state after one transformer block, where each row is predicted from; nothing above the block is run."""

    reply: ClassVar[type[Rows]] = Hidden

    cached: ClassVar[bool] = False
    layer: int | float
    """Number of the block, from 0; or, below 1.0, a share of the depth: 0.75 is the block three quarters up."""

    def block(self, depth: int) -> int:
        """Number of the block in a model of `depth` blocks. Raises `UsageRefused` where there is no such block."""
        number = int(self.layer * depth) if isinstance(self.layer, float) else self.layer
        if not 0 <= number < depth:
            raise UsageRefused(f"The `layer` must be a block, from 0 to {depth - 1}. Got {self.layer!r}.")
        return number


@dataclass(frozen=True)
class Routes(RowQuestion[RouterScores]):
    """What the routers of a mixture of experts say of each token that predicts another."""

    reply: ClassVar[type[Rows]] = RouterScores

    cached: ClassVar[bool] = False
    layer: int | None = None
    """Number of a block with experts, from 0; None: all of them."""


@dataclass(frozen=True)
class Text(Question[list[str]]):
    """The greedy continuation of each example's prompt, without special tokens. Of any number of examples."""

    max_new_tokens: int
    """Where a continuation that does not end by itself is cut."""
    begun: tuple[int, ...] = field(default=(), repr=False, compare=False)
    """How many of the first rows of each example's own answer the model is known to write anyway; where they are
    known, they are read with the prompt instead of written. Changes the time, not the reply."""

    def pack(self, reply: list[str]) -> dict[str, Tensor]:
        return {"text": torch.tensor(list(reply[0].encode("utf-8", "surrogatepass")), dtype=torch.uint8)}

    def unpack(self, entry: Mapping[str, Tensor], example: Example) -> list[str]:
        return [bytes(entry["text"].tolist()).decode("utf-8", "surrogatepass")]

    def split(self, reply: list[str]) -> list[list[str]]:
        return [[text] for text in reply]

    def join(self, parts: Sequence[list[str]]) -> list[str]:
        return [text for part in parts for text in part]
