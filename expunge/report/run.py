"""How a run went: what a report holds of it, the same in words, and which blocks of the model it changed."""

from __future__ import annotations

from dataclasses import dataclass

from expunge.events import BlockGroups, Edited, Ended, Started
from expunge.report.strips import finite
from expunge.report.words import number, short

SHOWN = 60
"""Blocks of a model that the page names at most."""

Fact = tuple[str, str]


@dataclass(frozen=True)
class Saved:
    """How the model that was written differs from the one that was trained."""

    adapter: bool
    """Whether an adapter was written beside it."""
    max_logit_difference: float | None
    """Largest difference of a score between the two; None where the model gives no scores."""
    max_logit_change: float | None
    """Largest difference of a score from the original model's."""
    format: str
    """Of the weights; empty where nothing was written."""
    max_logit_rounding: float | None = None
    """Largest difference of a score that rounding the merged weights to that format made; None where none was
    written."""


@dataclass(frozen=True)
class Run:
    """What the method did, by its own events; `steps.jsonl` has the steps."""

    started: Started | None = None
    edited: Edited | None = None
    ended: Ended | None = None
    parts: int | None = None
    """In how many parts steps were read at last, where memory ran out."""
    saved: Saved | None = None
    changed: int | None = None
    """Numbers of the written model that differ from the original's; None where the two have other shapes or none."""
    retain_rise: float | None = None
    """Nats by which the written model's retain loss exceeds the original's; None without a retain set."""
    degenerate_rise: float | None = None
    """Rise of the share of texts, of those on sets that should stay, that are empty or one phrase over and over."""


def about_run(run: Run) -> list[Fact]:
    """How the run went, as far as its method says."""
    facts = [
        *(_about_end(run.ended) if run.ended else ()),
        *(_about_start(run.started) if run.started else ()),
        ("Read in parts", f"{run.parts} a step, since memory ran out" if run.parts is not None else ""),
        *(_about_groups(run.ended.groups) if run.ended and run.ended.groups else ()),
        *(_about_saving(run.saved) if run.saved else ()),
        *(_about_edit(run.edited) if run.edited else ()),
    ]
    return [(name, said) for name, said in facts if said]


def _about_end(ended: Ended) -> list[Fact]:
    return [("Why it stopped", ended.stopped), ("Kept", f"step {number(ended.kept_step)} of {number(ended.steps)}")]


def _about_start(started: Started) -> list[Fact]:
    share = started.trainable / started.parameters
    moving = f"{number(started.trainable)} in {started.layers} layers, {share:.2%} of the model"
    return [
        ("Forget loss to reach", _finite(started.level, after=f", from {started.level_source}")),
        ("Budget for the retain loss", _finite(started.max_retain_increase)),
        ("Numbers that could move", moving),
    ]


def _about_groups(groups: BlockGroups) -> list[Fact]:
    """Which blocks still change, of an adapter that switches some off when a run ends."""
    which = f" (from 0: {', '.join(map(str, groups.left))})" if groups.left else ""
    return [("Blocks that still change", f"{len(groups.left)} of {len(groups.norms)}{which}")]


def _about_saving(saved: Saved) -> list[Fact]:
    """How far the model that was written is from the one that was trained; where both are one, nothing."""
    gap = saved.max_logit_difference
    if saved.adapter:
        return [("Merged model against adapter", _finite(gap, "logits within "))]
    return [("Saved model against the trained one", _finite(gap, "logits within "))] if gap else []


def _about_edit(edit: Edited) -> list[Fact]:
    """How much of the model a method without steps changed."""
    share = f" of {short(edit.parameters)} ({edit.changed / edit.parameters:.2%})" if edit.parameters else ""
    alpha = _finite(edit.alpha, ", each more than ", " times as important to the forget set as to all data")
    return [
        ("Numbers changed", f"{short(edit.changed)}{share}"),
        ("Numbers dampened", f"{short(edit.selected)}{alpha}" if edit.selected is not None else ""),
        ("Length of the change", _finite(edit.distance)),
    ]


@dataclass(frozen=True)
class Block:
    """A part of the model, and how much of it was changed."""

    name: str
    changed: int
    parameters: int
    share: float
    distance: float
    width: float
    """Of its bar, in per cent of the block of which the largest share was changed."""


def blocks_of(edit: Edited) -> list[Block]:
    """The blocks that a method without steps changed; at most 60, the most changed."""
    shares = {name: of.changed / of.parameters for name, of in edit.blocks.items() if of.parameters}
    shown = set(sorted(shares, key=lambda name: -shares[name])[:SHOWN])
    most = max(shares.values(), default=0) or 1
    return [
        Block(name, of.changed, of.parameters, shares[name], of.distance, 100 * shares[name] / most)
        for name, of in edit.blocks.items()
        if name in shown
    ]


def _finite(value: float | None, before: str = "", after: str = "") -> str:
    return f"{before}{number(value)}{after}" if finite(value) else ""
