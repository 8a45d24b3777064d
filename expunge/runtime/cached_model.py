"""A cache around a model: each question about an example is answered once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, cast

import torch

from expunge.core.model import Batch, Model, Network, Wrapper
from expunge.core.predictions import Predictions, RowScores
from expunge.core.question import LogProbabilities, Question, Reply, Scores, Text
from expunge.core.request import Example
from expunge.runtime.answer_store import Entry, Recall

MOST = 1 << 30
"""Largest size in bytes of the last hidden states in memory; beyond it the model runs again."""

WIDEST = 1 << 14
"""Widest rows that are cached: the class scores of a large vocabulary are not."""

Replies = dict[int, tuple[Example, Any]]
"""The reply about each example, by the example's id(). The example is stored with it, so that its id stays in use."""


@dataclass
class CachedModel(Wrapper):
    """A cache around a model that does not change. All audits of an example share one forward pass, and all epochs that
    compare with the original model do. With a `store`, later runs find the replies on disk.
    """

    inner: Model
    store: Recall | None = None
    replies: dict[str, Replies] = field(default_factory=dict)
    """Replies so far, by the question's `repr`."""
    recalled: int = 0
    """How many replies were found in the store."""
    wide: bool | None = None
    """Whether rows are too wide to be cached; None until it is known."""
    transparent: ClassVar[bool] = True

    def ask(self, question: Question[Reply], batch: Batch) -> Reply:
        """The inner model's reply; from the cache where no gradients are needed."""
        if not question.cached or (isinstance(question, Scores) and (torch.is_grad_enabled() or self.is_wide(batch))):
            return self.inner.ask(question, batch)
        known = self.replies.setdefault(repr(question), {})
        new = list({id(e): e for e in batch if id(e) not in known}.values())
        if new:
            known |= {id(e): (e, part) for e, part in zip(new, self._look_up(question, new), strict=True)}
        reply = question.join([known[id(e)][1] for e in batch])
        if isinstance(question, Scores):
            self._limit_memory(known)
        return reply

    def reply_about(self, question: Question[Reply], example: Example) -> Reply | None:
        """The cached reply about an example; None where there is none."""
        entry = self.replies.get(repr(question), {}).get(id(example))
        return None if entry is None else entry[1]

    def learn(self, question: Question[Reply], batch: Batch, parts: Sequence[Reply]) -> None:
        """Remember replies that are known from elsewhere, one for each example."""
        known = self.replies.setdefault(repr(question), {})
        known |= {id(e): (e, part) for e, part in zip(batch, parts, strict=True)}

    def is_wide(self, batch: Batch) -> bool:
        """Whether rows are too wide to be cached, which the first example of a batch shows."""
        if self.wide is None and not isinstance(self.inner, Network):
            self.wide = True
        if self.wide is None and isinstance(self.inner, Network):
            scores = self.inner.head() is None  # class scores are cached where they are few, as a classifier's are
            self.wide = scores and self.inner.ask(Scores(), batch[:1]).states.shape[-1] > WIDEST
        return bool(self.wide)

    @cached_property
    def identity(self) -> bytes:
        """SHA-256 of everything that replies depend on beside question and example: weights, settings, device, code."""
        device = self.inner.device.type if isinstance(self.inner, Network) else ""
        parts = (self.inner.fingerprint(), self.inner.settings(), device, code())
        return hashlib.sha256("\n".join(parts).encode()).digest()

    def _look_up(self, question: Question[Reply], new: list[Example]) -> Sequence[Reply]:
        """Replies from the store; the others are computed and stored."""
        if self.store is None:
            return self._ask_anew(question, new)
        keys = [b"|".join((self.identity, repr(question).encode(), example.input_digest())) for example in new]
        stored = self.store.get(keys)
        self.recalled += len(stored)
        absent = {key: example for key, example in zip(keys, new, strict=True) if key not in stored}
        new_replies = dict(zip(absent, self._ask_anew(question, list(absent.values())), strict=True)) if absent else {}
        self.store.put({key: question.pack(reply) for key, reply in new_replies.items()})
        return [
            self._unpack(question, stored[key], example) if key in stored else new_replies[key]
            for key, example in zip(keys, new, strict=True)
        ]

    def _ask_anew(self, question: Question[Reply], new: list[Example]) -> Sequence[Reply]:
        if isinstance(question, Text):
            question = replace(question, begun=tuple(map(self._rows_generated_anyway, new)))  # type: ignore[assignment]
        if not isinstance(question, Scores):
            return question.split(self.inner.ask(question, new))
        return cast(Sequence[Reply], question.split(self.inner.ask(question, new).detach()))

    def _rows_generated_anyway(self, example: Example) -> int:
        """How many first tokens of the example's answer greedy decoding is known to generate."""
        row_scores: RowScores | None = self.reply_about(LogProbabilities(), example)
        return 0 if row_scores is None else int(row_scores.right.int().cumprod(0).sum())

    def _limit_memory(self, known: Replies) -> None:
        """Drop the states once they take too much memory."""
        if sum(part.states.numel() * part.states.element_size() for _, part in known.values()) > MOST:
            known.clear()

    def _unpack(self, question: Question[Reply], entry: Entry, example: Example) -> Reply:
        part = question.unpack(entry, example)
        if isinstance(part, Predictions) and isinstance(self.inner, Network):
            return replace(part.to(self.inner.device), head=self.inner.head())
        return part


@cache
def code() -> str:
    """SHA-256 of the code that turns weights and examples into answers, and of the versions of torch and
    transformers."""
    package = Path(__file__).parent.parent
    folders = ("primitives", "core", "internals", "runtime", "models", "adapters")
    files = sorted(path for folder in folders for path in (package / folder).glob("*.py"))
    digest = hashlib.sha256(f"{torch.__version__} {version('transformers')}".encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()
