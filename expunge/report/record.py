"""What a report says of model, request, cost and environment, read off them."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import cast

import torch

from expunge import __version__
from expunge.core.audit import Finding
from expunge.core.model import Model, Network
from expunge.core.question import Text
from expunge.core.request import Example, Request
from expunge.internals.examples import Tokenized
from expunge.primitives.composed_files import parts_of
from expunge.primitives.meanings import meaning_of
from expunge.report.report import Cost, Environment, Original, RequestFacts, Sample, Samples, SetFacts
from expunge.runtime.cached_model import CachedModel

VERSION = __version__
ADDED = "added by expunge"
"""Where a set comes from that nobody gave."""
SAMPLES = 12
"""Forget prompts whose continuations a report shows; of other sets a third as many."""


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def networks(model: Model) -> Iterator[Network]:
    """The networks that a model is made of; itself, if it is one."""
    if isinstance(model, Network):
        yield model
    else:
        for _, part in parts_of(model, Model):
            yield from networks(part)


def describe_model(model: Model, name: str, family: str) -> Original:
    """The model that was given; `name` is what the user called it."""
    modules = [network.module for network in networks(model)]
    architecture = type(modules[0] if isinstance(model, Network) else model).__name__
    return Original(
        name=(Path(name).name if Path(name).exists() else name) or architecture,
        family=family,
        architecture=architecture,
        parameters=sum(p.numel() for module in modules for p in module.parameters()) if modules else None,
        fingerprint=model.fingerprint(),
        adapter=model.adapter if isinstance(model, Network) else None,
    )


def describe_request(
    request: Request, unit: str, sources: Mapping[str, str], added: Collection[str] = ()
) -> RequestFacts:
    """What was asked; `unit` is what a row is, `sources` where each set comes from.

    The fingerprint is that of the request as it was given, without the sets that were `added` to it.
    """
    other = sources.get("forget", "records")  # a set that was chosen from the forget file
    sets = {
        name: SetFacts(
            len(examples),
            sum(e.rows for e in examples),
            ADDED if name in added else sources.get(name, other),
            request.intakes.get(name),
            meaning_of(name),
        )
        for name, examples in request.sets().items()
    }
    duplicates = {name: count_repeats(examples) for name, examples in request.sets().items()}
    probes = {name: e for name, e in request.probes.items() if name not in added}
    given = replace(request, probes=probes, retain=() if "retain" in added else request.retain)
    return RequestFacts(given.fingerprint(), unit, sets, duplicates, request.repeats)


def count_repeats(examples: Sequence[Example]) -> int:
    """How many examples equal an earlier one, case and spaces normalised."""
    return len(examples) - len({example.record_digest() for example in examples})


def describe_environment(model: Model) -> Environment:
    """Versions, and where the model lies."""
    device = next((str(network.device) for network in networks(model)), "cpu")
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    return Environment(platform.python_version(), **versions, device=device, threads=torch.get_num_threads())


def round_scores(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Findings whose scores have as many digits as a report keeps."""
    return tuple(replace(f, scores=tuple(round(score, 6) for score in f.scores)) for f in findings)


def cost(seconds: Mapping[str, float], size: int) -> Cost:
    """Seconds by part, tokens (or images) trained on, and the largest memory that the process held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    parts = {name: round(value, 2) for name, value in seconds.items()}
    return Cost(parts, round(sum(seconds.values()), 2), size, peak)


def samples(before: CachedModel, after: CachedModel | None, request: Request) -> Samples:
    """What the models wrote for some prompts, with all texts."""
    items = []
    for name, examples in request.sets().items():
        for example in cast(Sequence[Tokenized], examples[: SAMPLES if name == "forget" else SAMPLES // 3]):
            first, last = _text_about(before, example), _text_about(after, example) if after else None
            if first is not None:
                items.append(Sample(name, example.id, example.question, example.answer, first, last))
    return Samples(True, tuple(items))


def _text_about(model: CachedModel, example: Example) -> str | None:
    """What the model wrote after an example's prompt, if an audit asked."""
    for question, replies in model.replies.items():
        if question.startswith(f"{Text.__name__}(") and id(example) in replies:
            return str(replies[id(example)][1][0])
    return None
