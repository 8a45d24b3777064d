"""A method's line with other settings: `learning_rate=1e-5,1e-4` makes two lines of one. Nothing is imported.

    --over learning_rate=1e-5,1e-4 --over "adapter=Bounded(rank=4),Bounded(rank=8)" --over omega=50.0,100.0

A setting is the method's own, or else that of the one part of the line which has it; `Bounded.rank=4,8` says which.
"""

from __future__ import annotations

import ast
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from expunge.errors import UsageRefused
from expunge.notation.parse import plugins, squash, syntax
from expunge.notation.settings import setting_names

MOST = 1000
"""Runs at most."""
NAME = re.compile(r"([A-Za-z_]\w*\.)?[A-Za-z_]\w*")


@dataclass(frozen=True)
class Variant:
    """One line, and what it has in place of the original's settings."""

    line: str
    settings: Mapping[str, str]
    """In the notation, by the name that was given."""

    @property
    def name(self) -> str:
        """A name for the folder of its run."""
        said = "_".join(f"{name}={value}" for name, value in self.settings.items())
        return re.sub(r"[^\w.=+-]+", "-", said).strip("-") or "as-given"


def read_over(text: str) -> tuple[str, tuple[str, ...]]:
    """The setting of `NAME=VALUE,VALUE`, and its values in the notation. Raises `UsageRefused`."""
    name, sign, values = text.partition("=")
    name = name.strip()
    if sign and NAME.fullmatch(name):
        tree, references = syntax(f"[{values}]")
        if isinstance(tree.body, ast.List) and tree.body.elts:
            made = tuple(_write(each, references) for each in tree.body.elts)
            if len(set(made)) < len(made):
                raise UsageRefused(f"--over {name} names a value twice. Give each once.")
            return name, made
    raise UsageRefused(f"--over '{text[:100]}' could not be read. Write SETTING=VALUE,VALUE: learning_rate=1e-5,1e-4.")


def variants(line: str, over: Mapping[str, Sequence[str]]) -> list[Variant]:
    """Every combination of the settings' values, the last setting's changing fastest. Raises `UsageRefused`."""
    if math.prod(map(len, over.values())) > MOST:
        raise UsageRefused(f"--over: more than {MOST} combinations. Give fewer values.")
    made = []
    for values in itertools.product(*over.values()):
        settings = dict(zip(over, values, strict=True))
        changed = line
        for name, value in settings.items():
            changed = with_setting(changed, name, value)
        made.append(Variant(changed, settings))
    names = [each.name for each in made]
    if len(set(names)) < len(names):
        raise UsageRefused("--over: two combinations cannot be told apart by the names of their folders.")
    return made


def with_setting(line: str, setting: str, value: str) -> str:
    """The line with another value of a setting. Raises `UsageRefused` where no part of it, or more than one, has it."""
    tree, references = syntax(line)
    tree = ast.fix_missing_locations(_Called().visit(tree))
    of, _, own = setting.rpartition(".")
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]  # from the outermost inwards
    named = [call for call in calls if not of or squash(_name(call, references)) == squash(of)]
    having = [call for call in named if own in _settings(call)]
    outermost = [call for call in having if call is tree.body]
    at = outermost or having
    if len(at) != 1:
        parts = ", ".join(dict.fromkeys(f"{_name(call, references)}.{own}" for call in at))
        known = ", ".join(dict.fromkeys(name for call in named for name in _settings(call)))
        why = (
            f"more than one part has it: {parts}" if at else f"no part of the method has it. It has: {known or 'none'}"
        )
        raise UsageRefused(f"--over {setting}: {why}. The method is {line[:300]}.")
    new, more = syntax(value)
    if set(more) & set(references):  # both call their first stranger the same
        raise UsageRefused(f"--over {setting}: plug-ins of other packages cannot be swept in a line that has others.")
    at[0].keywords = [*(k for k in at[0].keywords if k.arg != own), ast.keyword(own, new.body)]
    return _write(tree.body, {**references, **more})


class _Called(ast.NodeTransformer):
    """Makes `NPO` of a line `NPO()`, so that it can have settings."""

    def visit_Call(self, node: ast.Call) -> ast.Call:
        node.keywords = [ast.keyword(each.arg, self.visit(each.value)) for each in node.keywords]
        return node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Call(node, [], [])


def _name(call: ast.Call, references: Mapping[str, str]) -> str:
    name = ast.unparse(call.func)
    return references.get(name, name)


def _settings(call: ast.Call) -> tuple[str, ...]:
    name = squash(ast.unparse(call.func))
    plugin = next((plugin for plugin in plugins() if squash(plugin.name) == name), None)
    return setting_names(plugin) if plugin else ()


def _write(node: ast.expr, references: Mapping[str, str]) -> str:
    return re.sub(r"\b_foreign_\d+\b", lambda match: references.get(match[0], match[0]), ast.unparse(node))
