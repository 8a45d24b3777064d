"""What a report holds, put together from findings, a run's events and the environment."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from expunge import __version__
from expunge.core.audit import Finding
from expunge.core.request import should_be_gone
from expunge.report.verdict import Outcome, Rule

if TYPE_CHECKING:
    from expunge.core.model import Network
    from expunge.core.request import Request
    from expunge.runtime.cached_model import CachedModel

SAMPLES = 12
"""Forget prompts whose continuations a report shows; of other sets a third as many."""


def head(
    line: str, model: str, family: str, network: Network, request: Request, sources: Mapping[str, str], seed: int
) -> dict[str, Any]:
    """What was asked, of which model, with which data (`sources`: the file of each set), where."""
    sets = {
        name: {
            "examples": len(examples),
            "rows": sum(e.rows for e in examples),
            "source": sources.get(name, sources["forget"]),
        }
        for name, examples in request.sets().items()
    }
    return {
        "schema": 1,
        "expunge": __version__,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": line,
        "model": {
            "name": Path(model).name if Path(model).exists() else model,
            "family": family,
            "architecture": type(network.module).__name__,
            "parameters": sum(p.numel() for p in network.module.parameters()),
            "fingerprint": network.fingerprint(),
        },
        "request": {
            "fingerprint": request.fingerprint(),
            "sets": sets,
            "duplicates": request.duplicates(),
            "repeats": [asdict(repeat) for repeat in request.repeats],
        },
        "environment": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "peft")},
            "device": str(network.device),
            "threads": torch.get_num_threads(),
            "seed": seed,
        },
    }


def with_ideals(findings: list[Finding]) -> list[Finding]:
    """Findings with what a model that never saw the forget set would get, as far as that is known.

    Of what should be gone: the reference model's value; else what guessing gets; else the value of the model before on
    the holdout set, which it never saw. On any other set the ideal is no change: the value before.
    """
    at = {(f.audit, f.set, f.model): f.value for f in findings}

    def ideal(f: Finding) -> float | None:
        if f.set == "forget vs holdout":
            return at.get((f.audit, f.set, "reference"), f.ideal)
        if not should_be_gone(f.set):
            return at.get((f.audit, f.set, "before"))
        referred = at.get((f.audit, f.set, "reference"), f.ideal)
        return at.get((f.audit, "holdout", "before")) if referred is None else referred

    return [replace(f, ideal=ideal(f)) for f in findings]


def row(finding: Finding) -> dict[str, Any]:
    """A finding as the report has it. Beyond the ideal is no better than short of it: over-forgetting is a trace."""
    kept = "lower" if finding.audit in ("Loss", "Perplexity") else "higher"
    lost = {"lower": "higher", "higher": "lower"}[kept]
    known = finding.ideal is not None
    better = (
        ("ideal" if known else lost) if should_be_gone(finding.set) else "ideal" if "holdout" in finding.set else kept
    )
    return {**asdict(finding), "scores": [round(score, 6) for score in finding.scores], "better": better}


def verdict(rules: list[Rule], findings: list[Finding], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The run's own criterion, that it changed something, and the rules asked for."""
    outcomes = [*criterion(facts), *(rule.read(findings) for rule in rules)]
    return {"met": all(o.met for o in outcomes), "rules": [asdict(o) for o in outcomes]}


def criterion(facts: Mapping[str, Any]) -> list[Outcome]:
    """What the run aimed at, as outcomes."""
    if "kept_step" not in facts:  # a method without steps
        changed = facts["edit"]["changed"] if "edit" in facts else None
        told = "numbers of the model changed >= 1 (something changed)"
        return [] if changed is None else [Outcome(told, changed, 1, changed >= 1)]
    step, short, rise = facts["kept_step"], facts["kept_short"], facts["kept_rise"]
    made = [Outcome("kept step >= 1 (something changed)", step, 1, step >= 1)]
    if facts["level"] is not None:
        of = "that of the holdout set" if facts["level_source"] == "holdout" else "as given"
        rule = f"forget examples short of {facts['level']:.2f} nats ({of}), on average <= slack"
        made.append(Outcome(rule, short, facts["slack"], short <= facts["slack"]))
    if facts["budget"] is not None and rise is not None:
        made.append(Outcome("rise of the retain loss <= budget (nats)", rise, facts["budget"], rise <= facts["budget"]))
    return made


def cost(parts: Mapping[str, float], size: int) -> dict[str, Any]:
    """Seconds by part, tokens (or images) trained on, and the largest memory that the process held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    seconds = {name: round(value, 2) for name, value in parts.items()}
    return {
        "seconds": {**seconds, "total": round(sum(parts.values()), 2)},
        "tokens": size,
        "peak_memory_bytes": peak,
    }


def samples(before: CachedModel, after: CachedModel | None, request: Request, shown: bool) -> dict[str, Any]:
    """What the models wrote for some prompts; ids alone unless the text was asked for."""
    items = []
    for name, examples in request.sets().items():
        for example in examples[: SAMPLES if name == "forget" else SAMPLES // 3]:
            said = [m.said.get(k) for m in (before, after) if m for k in m.said if k[0] == id(example)]
            if not said or not said[0]:
                continue
            texts = [entry[1] if entry and shown else None for entry in said]
            items.append(
                {
                    "set": name,
                    "id": example.id,
                    "prompt": getattr(example, "question", "") if shown else None,
                    "answer": getattr(example, "answer", "") if shown else None,
                    "before": texts[0],
                    "after": texts[1] if len(texts) > 1 else None,
                    "reference": None,
                }
            )
    return {"shown": shown, "items": items}
