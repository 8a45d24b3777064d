"""From what a user names to what is run: a method, audits, and the summaries that their findings allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from expunge.core.audit import Audit, Summary
from expunge.core.method import Method
from expunge.core.objective import Objective
from expunge.errors import UsageRefused
from expunge.models._family import Family
from expunge.models.open import families
from expunge.notation.parse import find, parse, parse_list, plugins
from expunge.notation.recipes import Recipe, recipe_of, written_with

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Chosen:
    """A method, and the published recipe that it is, if it is one."""

    method: Method
    recipe: Recipe | None = None


def default_method(family: str, unseen: bool) -> str:
    """The recipe where no method is named; `unseen`: whether there is a holdout set, from which levels are taken."""
    with_unseen, alone = next((known.defaults for known in families() if known.name == family), Family.defaults)
    return with_unseen if unseen else alone


def aims_at_levels(method: Method) -> bool:
    """Whether it moves the forget set to losses and holds it there from either side, as the defaults do."""
    terms = method.minimises.terms() if method.minimises is not None else ()
    return any(type(term).__name__ in known.defaults for _, term in terms for known in families())


def choose_method(method: str | Method, family: str, seed: int | None = None) -> Chosen:
    """The method that a text describes or names, for models of a family, with another seed where one is given."""
    recipe = recipe_of(method, family) if isinstance(method, str) else None
    made = parse(recipe.method if recipe else method) if isinstance(method, str) else method
    if not isinstance(made, Method):
        how = written_with(str(method)) if isinstance(made, Objective) else "Give Finetune(...) or a recipe's name."
        raise UsageRefused(
            f"--method '{method}' is not a method. {how} `expunge list` shows all: recipes, methods, edit, attack."
        )
    return Chosen(made if seed is None else made.with_seed(seed), recipe)


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
