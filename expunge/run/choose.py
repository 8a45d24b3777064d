"""From what a user names to what is run: a method, audits, and the summaries that their findings allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from expunge.core.audit import Audit, Summary
from expunge.core.method import Method
from expunge.errors import UsageRefused
from expunge.notation.parse import find, parse, parse_list, plugins

Kind = TypeVar("Kind")

BY_LEVELS = (
    "Finetune(objective=TokenLevels() + RetainNLL() + 3.0 * RetainKL(), learning_rate=0.002, steps=100, "
    "schedule='linear', stop=Stop(level=None, max_retain_increase=None, every=20))"
)
"""Every forget token to the loss of unseen tokens like it. Its steps are all taken: what it aims at is a distribution,
which no mean says is reached. docs/log.md tells how its settings were chosen."""
BY_CLASS = (
    "Finetune(objective=AbsentClass() + RetainNLL() + 3.0 * RetainKL(), learning_rate=0.001, steps=100, "
    "schedule='linear', stop=Stop(level=None, max_retain_increase=None, every=20))"
)
"""Images of a class that is deleted to what an unlearnt class gets, others to the losses of unseen images."""
BY_MEANS = "Finetune()"


def default_method(texts: bool, unseen: bool) -> str:
    """What forgets where no method is named; `unseen`: whether there is a holdout set, from which levels are taken."""
    return BY_CLASS if not texts else BY_LEVELS if unseen else BY_MEANS


def method_of(method: str | Method, seed: int | None = None) -> Method:
    """The method that a text describes, with another seed where one is given."""
    made = parse(method) if isinstance(method, str) else method
    if not isinstance(made, Method):
        known = "`expunge list` shows others: methods, edit, attack"
        raise UsageRefused(f"--method '{method}' is not a method. Give Finetune(...); {known}.")
    return made if seed is None else made.with_seed(seed)


def audits_of(audits: str | Sequence[Audit] | None, family: str) -> tuple[Audit, ...]:
    """The audits that are listed, or those that name the family; audits that name none stand for all others."""
    if audits is None:
        return default_audits(family) or default_audits("any")
    made = parse_list(audits) if isinstance(audits, str) else list(audits)
    wrong = [repr(thing) for thing in made if not isinstance(thing, Audit)]
    if wrong:
        raise UsageRefused(f"--audits: {', '.join(wrong)} is not an audit. `expunge list audits` shows them.")
    return tuple(audit for audit in made if isinstance(audit, Audit))


def default_audits(family: str) -> tuple[Audit, ...]:
    """The audits that a family is asked where none are named, by their own word."""
    return tuple(_make(plugin.name, Audit) for plugin in plugins() if family in plugin.families)


def summaries_of(audits: Sequence[Audit], referenced: bool) -> tuple[Summary, ...]:
    """The summaries that the findings of these audits allow."""
    names = [audit.name for audit in audits]
    known = [_make(plugin.name, Summary) for plugin in plugins() if plugin.folder == "summaries"]
    return tuple(summary for summary in known if summary.can_read(names, referenced))


def _make(name: str, kind: type[Kind]) -> Kind:
    """A plug-in with its default settings."""
    plugin = find(name)
    made = plugin() if callable(plugin) else None
    assert isinstance(made, kind)
    return made
