"""Whether a method changed anything, and whether what should stay did: what every verdict needs, asked for or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from expunge.core.model import Model, Network
from expunge.core.question import LogProbabilities, Text
from expunge.core.request import Request
from expunge.internals.changes import count_changed
from expunge.models.language import LanguageModel
from expunge.models.vision import ImageClassifier
from expunge.report.answers import should_stay
from expunge.report.record import networks
from expunge.report.run import Run
from expunge.runtime.cached_model import CachedModel
from expunge.train.best_step import loss, sample

WORDS = 12
"""From how many words on a text can be one phrase over and over."""
DISTINCT = 0.25
"""Share of a text's words that are distinct, at most, where it is one phrase over and over."""


@dataclass(frozen=True)
class Utility:
    """What a model is still good for, on sets that should stay."""

    retain_loss: float | None
    """Mean over at most 64 retain examples, in nats; None without a retain set."""
    degenerate: float | None
    """Share of its continuations that are empty or one phrase over and over; None where none were written."""


def utility(model: CachedModel, request: Request) -> Utility:
    """The model's loss on the retain set, and its degenerate texts among those that audits made it write."""
    known = request.retain and model.answers_to(LogProbabilities)
    texts = _texts(model, request)
    return Utility(
        retain_loss=loss(model, sample(request.retain)) if known else None,
        degenerate=sum(map(is_degenerate, texts)) / len(texts) if texts else None,
    )


def with_utility(run: Run, models: tuple[Model, Model], before: Utility, after: Utility) -> Run:
    """The run, with what changed between the model that was given and the one that was written."""
    return replace(
        run,
        changed=count_differences(*models),
        retain_rise=_rise(before.retain_loss, after.retain_loss),
        degenerate_rise=_rise(before.degenerate, after.degenerate),
    )


def count_differences(one: Model, other: Model) -> int | None:
    """How many numbers of two models' weights differ; None where the two are not of one shape."""
    pairs = list(zip(networks(one), networks(other), strict=False))
    if not (isinstance(one, Network) and isinstance(other, Network)):
        return 0 if one.fingerprint() == other.fingerprint() else None
    counts = [count_changed(a, b, _written_in(b)) for a, b in pairs]
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def _written_in(network: Network) -> Callable[[str], torch.dtype] | None:
    """The precision that the network's file has for each parameter."""
    stored = network.stored if isinstance(network, LanguageModel | ImageClassifier) else None
    return None if stored is None else stored.dtype_of


def is_degenerate(text: str) -> bool:
    """Whether a text is empty, or one phrase over and over."""
    words = text.split()
    if len(words) < WORDS:  # letters, where there are few words: "aaaa", or a script without spaces
        letters = text.strip()
        return not letters or (len(letters) >= 2 * WORDS and len(set(letters)) <= 2)
    return len(Counter(words)) <= DISTINCT * len(words)


def _texts(model: CachedModel, request: Request) -> list[str]:
    """What the model wrote for examples of sets that should stay."""
    stay = {id(e) for name, examples in request.sets().items() if should_stay(name) for e in examples}
    return [
        str(reply[0])
        for question, replies in model.replies.items()
        if question.startswith(f"{Text.__name__}(")
        for key, (_, reply) in replies.items()
        if key in stay
    ]


def _rise(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
