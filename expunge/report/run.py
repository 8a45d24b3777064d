"""How a run went, in words, and which blocks of the model it changed."""

from dataclasses import dataclass

from expunge.report.plots import finite
from expunge.report.words import number, short

SHOWN = 60
"""Blocks of a model that the page names at most."""

Fact = tuple[str, str]


def about_run(run: dict) -> list[Fact]:
    """How the run went, as far as it was recorded."""
    adapter = run.get("adapter") or {}
    source = f", from {run['level_source']}" if run.get("level_source") else ""
    layers = f" in {adapter['layers']} layers" if finite(adapter.get("layers")) else ""
    share = f", {adapter['share']:.2%} of the model" if finite(adapter.get("share")) else ""
    facts = {
        "Why it stopped": run.get("stopped"),
        "Kept": _told(run.get("kept_step"), "step ", f" of {number(run.get('steps'))}"),
        "Forget loss to reach": _told(run.get("level"), after=source),
        "Budget for the retain loss": _told(run.get("budget")),
        "Numbers that could move": _told(adapter.get("trainable"), after=layers + share),
        "Read in parts": _told(run.get("parts"), after=" a step, since memory ran out"),
        **_left(run),
        **_merged(run.get("merge") or {}, "edit" not in run),
        **_edited(run.get("edit") or {}),
    }
    return [(name, said) for name, said in facts.items() if said]


def _left(run: dict) -> dict[str, str]:
    """Which blocks still change, of an adapter that switches some off when a run ends."""
    groups = (run.get("groups") or {}).get("norms")
    left = (run.get("groups") or {}).get("left")
    if not isinstance(left, list):
        return {}
    many = f"{len(left)} of {len(groups)}" if isinstance(groups, list) else str(len(left))
    which = f" (from 0: {', '.join(map(str, left))})" if left else ""
    return {"Blocks that still change": many + which}


def _merged(merge: dict, usual: bool) -> dict[str, str]:
    """How far the model that was written is from the one that was trained; where both are one, nothing. Whether there
    was an adapter is taken as `usual` where it is not told."""
    gap = merge.get("max_logit_difference")
    if merge.get("adapter", usual):
        return {"Merged model against adapter": _told(gap, "logits within ")}
    return {"Saved model against the trained one": _told(gap, "logits within ")} if gap else {}


def _edited(edit: dict) -> dict[str, str]:
    """How much of the model a method without steps changed."""
    changed, count = edit.get("changed"), edit.get("parameters")
    share = f" of {short(count)} ({changed / count:.2%})" if finite(changed) and finite(count) and count else ""
    alpha = _told(edit.get("alpha"), ", each more than ", " times as important to the forget set as to all data")
    return {
        "Numbers changed": f"{short(changed)}{share}" if finite(changed) else "",
        "Numbers dampened": f"{short(edit['selected'])}{alpha}" if finite(edit.get("selected")) else "",
        "Length of the change": _told(edit.get("distance")),
    }


@dataclass(frozen=True)
class Block:
    """A part of the model, and how much of it was changed."""

    name: str
    changed: int
    parameters: int
    share: float
    distance: float | None
    width: float
    """Of its bar, in per cent of the block of which the largest share was changed."""


def blocks_of(run: dict) -> list[Block]:
    """The blocks that a method without steps changed, as far as that was recorded; at most 60, the most changed."""
    told = {
        name: of
        for name, of in ((run.get("edit") or {}).get("blocks") or {}).items()
        if finite(of.get("changed")) and finite(of.get("parameters")) and of["parameters"] > 0
    }
    shares = {name: of["changed"] / of["parameters"] for name, of in told.items()}
    shown = set(sorted(shares, key=lambda name: -shares[name])[:SHOWN])
    most = max(shares.values(), default=0) or 1
    return [
        Block(name, of["changed"], of["parameters"], shares[name], of.get("distance"), 100 * shares[name] / most)
        for name, of in told.items()
        if name in shown
    ]


def _told(value: object, before: str = "", after: str = "") -> str:
    return f"{before}{number(value)}{after}" if finite(value) else ""
