"""A model that is asked each question once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch

from expunge.core.model import Batch, Model, Network, Wrapper
from expunge.core.predictions import Predictions, RowScores
from expunge.core.question import LogProbabilities, Question, Reply, Scores, Text
from expunge.core.request import Example
from expunge.runtime.answer_store import Entry, Recall

MOST = 1 << 30
"""Bytes of last hidden states that are kept in memory at most; beyond that the model is asked again."""

WIDEST = 1 << 14
"""Numbers of a row's states that are kept at most: class scores of a large vocabulary are not."""

Replies = dict[int, tuple[Example, Any]]
"""The reply about each example alone, by the example's id(); the example is kept so that no other can get its id."""


@dataclass
class CachedModel(Wrapper):
    """A model that is asked each question about an example once: every audit of a text reads the same pass, and so does
    every epoch. Only for a model that does not change meanwhile. With a `store`, a later run finds the replies again.
    """

    inner: Model
    store: Recall | None = None
    replies: dict[str, Replies] = field(default_factory=dict)
    """What was answered so far, by the question's `repr`."""
    recalled: int = 0
    """How many replies the store had."""
    wide: bool | None = None
    """Whether a row's states are too many to be kept; None until it was looked at."""
    transparent: ClassVar[bool] = True

    def ask(self, question: Question[Reply], batch: Batch) -> Reply:
        """As the model does; of what is asked without gradients, from memory."""
        if not question.cached or (isinstance(question, Scores) and (torch.is_grad_enabled() or self.is_wide(batch))):
            return self.inner.ask(question, batch)
        known = self.replies.setdefault(repr(question), {})
        new = list({id(e): e for e in batch if id(e) not in known}.values())
        if new:
            known |= {id(e): (e, part) for e, part in zip(new, self._look_up(question, new), strict=True)}
        reply = question.join([known[id(e)][1] for e in batch])
        if isinstance(question, Scores):
            self._give_back(known)
        return reply

    def reply_about(self, question: Question[Reply], example: Example) -> Reply | None:
        """What was answered about an example; None where it was not asked."""
        entry = self.replies.get(repr(question), {}).get(id(example))
        return None if entry is None else entry[1]

    def is_wide(self, batch: Batch) -> bool:
        """Whether a row's states are too many to be kept; one example of the batch shows it."""
        if self.wide is None and not isinstance(self.inner, Network):
            self.wide = True
        if self.wide is None and isinstance(self.inner, Network):
            scores = self.inner.head() is None  # class scores: kept where they are few, as a classifier's are
            self.wide = scores and self.inner.ask(Scores(), batch[:1]).states.shape[-1] > WIDEST
        return bool(self.wide)

    @cached_property
    def identity(self) -> bytes:
        """SHA-256 of everything that the replies depend on but the question: weights, settings, device, code."""
        device = self.inner.device.type if isinstance(self.inner, Network) else ""
        parts = (self.inner.fingerprint(), self.inner.settings(), device, code())
        return hashlib.sha256("\n".join(parts).encode()).digest()

    def _look_up(self, question: Question[Reply], new: list[Example]) -> Sequence[Reply]:
        """What the store has about `new`; the rest is asked, and kept there."""
        if self.store is None:
            return self._ask_anew(question, new)
        keys = [b"|".join((self.identity, repr(question).encode(), example.input_digest())) for example in new]
        there = self.store.get(keys)
        self.recalled += len(there)
        absent = {key: example for key, example in zip(keys, new, strict=True) if key not in there}
        made = dict(zip(absent, self._ask_anew(question, list(absent.values())), strict=True)) if absent else {}
        self.store.put({key: question.pack(reply) for key, reply in made.items()})
        return [
            self._unpacked(question, there[key], example) if key in there else made[key]
            for key, example in zip(keys, new, strict=True)
        ]

    def _ask_anew(self, question: Question[Reply], new: list[Example]) -> Sequence[Reply]:
        if isinstance(question, Text):
            question = replace(question, begun=tuple(map(self._rows_written_anyway, new)))  # type: ignore[assignment]
        if not isinstance(question, Scores):
            return question.split(self.inner.ask(question, new))
        return question.split(self.inner.ask(question, new).detach())  # type: ignore[attr-defined, no-any-return]

    def _rows_written_anyway(self, example: Example) -> int:
        """How many rows of the example's own answer come first, one after the other, by greedy choice."""
        said: RowScores | None = self.reply_about(LogProbabilities(), example)
        return 0 if said is None else int(said.right.int().cumprod(0).sum())

    def _give_back(self, known: Replies) -> None:
        """Forget the states where they have become too many."""
        if sum(part.states.numel() * part.states.element_size() for _, part in known.values()) > MOST:
            known.clear()

    def _unpacked(self, question: Question[Reply], entry: Entry, example: Example) -> Reply:
        part = question.unpack(entry, example)
        if isinstance(part, Predictions) and isinstance(self.inner, Network):
            return replace(part.to(self.inner.device), head=self.inner.head())  # type: ignore[return-value]
        return part


@cache
def code() -> str:
    """SHA-256 of the code that turns weights and examples into answers, ours and the libraries' versions."""
    package = Path(__file__).parent.parent
    folders = ("primitives", "core", "internals", "runtime", "models", "adapters")
    files = sorted(path for folder in folders for path in (package / folder).glob("*.py"))
    digest = hashlib.sha256(f"{torch.__version__} {version('transformers')}".encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()
