"""Models: whatever answers questions about a batch of examples."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, cast

import torch
from torch import nn

from expunge.core.question import DerivedQuestion, Question, Reply, RowsReply, Scores
from expunge.core.request import Example
from expunge.errors import ModelRefused, UsageRefused
from expunge.primitives.composed_files import describe, kind_name, parts_of, save_parts
from expunge.primitives.merged_adapter import MergedAdapter
from expunge.primitives.out_of_memory import in_fitting_batches
from expunge.primitives.tensor_digest import digest_tensors

if TYPE_CHECKING:
    from expunge.primitives.class_scores import Head

Batch = Sequence[Example]
Answer = TypeVar("Answer", bound=Callable[..., Any])


def answers(kind: type[Question[Any]]) -> Callable[[Answer], Answer]:
    """Mark the method `(model, question, batch) -> reply` by which a class of models answers a kind of question."""

    def mark(method: Answer) -> Answer:
        method.answers = kind  # type: ignore[attr-defined]
        return method

    return mark


def _answering_methods(kind: type) -> dict[type[Question[Any]], Callable[..., Any]]:
    """The marked methods of a class and of those above it, by the kind of question."""
    by_kind: dict[type[Question[Any]], Callable[..., Any]] = {}
    for base in reversed(kind.__mro__):
        methods = (method for method in vars(base).values() if isinstance(method, FunctionType))
        by_kind |= {vars(method)["answers"]: method for method in methods if "answers" in vars(method)}
    return by_kind


class Model(ABC):
    """Anything that answers: a network, a guarded network, an ensemble of shards.

    A class answers a kind of question by one method that is marked with `@answers(Kind)`.
    """

    family: ClassVar[str] = ""
    """Name of the family that it is of; empty for what is made of other models."""
    _answers: ClassVar[Mapping[type[Question[Any]], Callable[..., Any]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._answers = _answering_methods(cls)

    def ask(self, question: Question[Reply], batch: Batch) -> Reply:
        """The reply about each example, in the order of the batch. Raises `ModelRefused` where it cannot answer."""
        method = self._answers.get(type(question))
        if method is None and isinstance(question, DerivedQuestion) and self.answers_to(Scores):
            return cast(Reply, self._derive(question, batch))
        if method is None:
            known = ", ".join(sorted(kind.__name__ for kind in self._answers))
            raise ModelRefused(
                f"{type(self).__name__} cannot be asked for {type(question).__name__}. It answers: {known or 'none'}."
            )
        return cast(Reply, method(self, question, batch))

    def answers_to(self, kind: type[Question[Any]]) -> bool:
        """Whether the model can be asked this kind of question."""
        return kind in self._answers or (issubclass(kind, DerivedQuestion) and self.answers_to(Scores))

    @abstractmethod
    def batches(self, examples: Batch) -> Iterator[list[int]]:
        """Indices of `examples`, in groups that are read in one forward pass each."""

    def fingerprint(self) -> str:
        """SHA-256 over all that was learnt: two models with equal weights have equal fingerprints."""
        parts = [part.fingerprint() for _, part in parts_of(self, Model)]
        return hashlib.sha256("\n".join((kind_name(type(self)), *parts)).encode()).hexdigest()

    def settings(self) -> str:
        """All beside what was learnt that its answers depend on."""
        return "\n".join([describe(self, Model), *(part.settings() for _, part in parts_of(self, Model))])

    def save(self, folder: Path) -> None:
        """Write a folder that `open_model` reads back. For any dataclass whose fields are models and plain values."""
        save_parts(self, Model, folder, lambda part, inside: part.save(inside))

    def plain(self) -> Model:
        """The same model with its adapter merged and without caches around it."""
        return self

    def without(self, examples: Batch) -> Self:
        """The same weights without what is held of the examples beside them: nodes of a graph. Most hold nothing."""
        return self

    def _derive(self, question: DerivedQuestion[RowsReply], examples: Batch) -> RowsReply:
        """What is read off the scores of any number of examples, without gradients, in their order, on the CPU."""
        parts: dict[int, RowsReply] = {}
        module = self.module if isinstance(self, Network) else None
        with torch.inference_mode():
            read = in_fitting_batches(
                module,
                examples,
                self.batches(examples),
                lambda part: question.derive(self.ask(Scores(), part)).to("cpu"),
            )
            for group, reply in read:
                parts |= dict(zip(group, question.split(reply), strict=True))
        return question.join([parts[k] for k in range(len(examples))])


class Wrapper(Model):
    """A model around another model.

    A transparent wrapper (a cache, an adapter) gives the inner model's answers, so white-box audits may look through
    it.
    One that is not (a guard) answers only the kinds of question that it has a method for, and hands on those that it
    lists in `passes`; any other question is refused, so none reaches the inner model by oversight.
    """

    inner: Model
    transparent: ClassVar[bool]
    passes: ClassVar[tuple[type[Question[Any]], ...]] = ()
    """Kinds of question that a wrapper which is not transparent hands on to the inner model unchanged."""

    def ask(self, question: Question[Reply], batch: Batch) -> Reply:
        if self._hands_on(type(question)):
            return self.inner.ask(question, batch)
        return super().ask(question, batch)

    def answers_to(self, kind: type[Question[Any]]) -> bool:
        return self.inner.answers_to(kind) if self._hands_on(kind) else super().answers_to(kind)

    def _hands_on(self, kind: type[Question[Any]]) -> bool:
        return kind in self.passes or (self.transparent and kind not in self._answers)

    def batches(self, examples: Batch) -> Iterator[list[int]]:
        return self.inner.batches(examples)

    def fingerprint(self) -> str:
        return self.inner.fingerprint() if self.transparent else super().fingerprint()

    def settings(self) -> str:
        return self.inner.settings() if self.transparent else super().settings()

    def plain(self) -> Model:
        return self.inner.plain() if self.transparent else self


def network_of(model: Model, asks: str) -> Network:
    """The network inside, through transparent wrappers only. Raises `UsageRefused`, naming `asks`, the caller."""
    inside = model
    while isinstance(inside, Wrapper) and inside.transparent:
        inside = inside.inner
    if isinstance(inside, Network):
        return inside
    raise UsageRefused(
        f"{asks} reads weights or hidden states, and {type(inside).__name__} gives answers only. "
        f"Give a network, or leave {asks} out."
    )


@dataclass(frozen=True)
class Network(Model):
    """A model whose weights are in this process: a torch module."""

    module: nn.Module
    adapter: MergedAdapter | None = field(default=None, kw_only=True, repr=False)
    """What was merged into the weights as it was opened."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write a folder that transformers loads without expunge, and `open_model` too."""

    @abstractmethod
    def settings(self) -> str:
        """Everything but the weights that its answers depend on: configuration, tokenizer, how batches are read."""

    def head(self) -> Head | None:
        """The output matrix, where `Scores` replies with hidden states; None where it replies with class scores."""
        return None

    def side_by_side(self) -> Self:
        """The same network, reading every example as a sequence of its own: no two share a hidden state."""
        return self

    def fork(self, module: nn.Module | None = None) -> Self:
        """A second network, new modules over the same storage: what an adapter changes there, this one never sees."""
        if module is None:
            memo: dict[int, object] = {id(b): b for b in self.module.buffers()}
            memo |= {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in self.module.parameters()}
            module = copy.deepcopy(self.module, memo)
        return replace(self, module=module)

    def fingerprint(self) -> str:
        """SHA-256 over names, types, shapes and bytes of all weights."""
        return digest_tensors(self.module.state_dict())

    @property
    def device(self) -> torch.device:
        """The device that holds the weights."""
        return next(self.module.parameters()).device

    def trainable(self) -> dict[str, nn.Parameter]:
        """The trainable parameters, by name."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}
