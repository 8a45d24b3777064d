"""What can be named in a method or an audit, told from the plug-ins' own files; none of them is imported."""

from __future__ import annotations

import ast
import difflib
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from expunge.errors import UsageRefused
from expunge.notation.parse import FOLDERS, ROOT, Plugin, plugins, squash

TITLES = {folder: folder for folder in FOLDERS}
"""What each plug-in folder is called, in the order of the list."""
WIDTH = 100


@dataclass(frozen=True)
class Setting:
    """A field of a plug-in."""

    name: str
    default: str
    """As its file has it; empty where it must be given."""
    doc: str


def settings(made: ast.ClassDef | ast.FunctionDef) -> list[Setting]:
    """The fields of a dataclass with the string under each, or the arguments of a function."""
    if isinstance(made, ast.FunctionDef):
        names = [*made.args.posonlyargs, *made.args.args]
        given = [None] * (len(names) - len(made.args.defaults)) + made.args.defaults
        pairs = [*zip(names, given, strict=True), *zip(made.args.kwonlyargs, made.args.kw_defaults, strict=True)]
        return [Setting(name.arg, ast.unparse(value) if value else "", "") for name, value in pairs]
    found = []
    for node, after in pairwise([*made.body, ast.Pass()]):
        if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
            default = ast.unparse(node.value) if node.value else ""
            found.append(Setting(ast.unparse(node.target), default, _text(after)))
    return found


def _text(node: ast.stmt) -> str:
    """The string that a statement is; empty where it is none."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return node.value.value
    return ""


def made_by(plugin: Plugin, root: Path = ROOT) -> tuple[ast.Module, ast.ClassDef | ast.FunctionDef]:
    """A plug-in's file, and in it the class or function that bears its name."""
    path = root.parent.joinpath(*plugin.module.split(".")).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = (n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == plugin.name)
    return tree, next(named)


def nameable() -> list[str]:
    """What `describe` can be asked of: the kinds, and every plug-in."""
    found = plugins()
    filled = {plugin.folder for plugin in found}
    return [*(title for folder, title in TITLES.items() if folder in filled), *(plugin.name for plugin in found)]


def describe(asked: str | None) -> Iterator[str]:
    """The lines that tell of all plug-ins, of one kind, or of one plug-in with its settings."""
    found = plugins()
    kinds = {title: [p for p in found if p.folder == folder] for folder, title in TITLES.items()}
    kinds = {title: members for title, members in kinds.items() if members}
    wanted = [title for title in kinds if asked is None or asked in (title, kinds[title][0].folder)]
    if wanted:
        for title in wanted:
            yield title
            for plugin in kinds[title]:
                yield f"  {plugin.name:<16} {plugin.summary}"
                if plugin.intention:
                    yield f"  {'':<16} {_intention(plugin)}"
        return
    name = squash(asked or "")
    one = next((plugin for plugin in found if squash(plugin.name) == name), None)
    if one is None:
        near = difflib.get_close_matches(name, [squash(p.name) for p in found], n=3, cutoff=0.5)
        hint = [p.name for n in near for p in found if squash(p.name) == n]
        nearest = f" Nearest: {', '.join(hint)}." if hint else ""
        raise UsageRefused(f"There is no kind and no plug-in '{asked}'.{nearest} Kinds: {', '.join(kinds)}.")
    yield from _entry(one)


def _intention(plugin: Plugin) -> str:
    return f"{plugin.intention}; needs {', '.join(plugin.needs) or 'nothing but the weights'}"


def _entry(plugin: Plugin) -> Iterator[str]:
    """What a plug-in's file says of it, and what turning each of its settings does."""
    tree, made = made_by(plugin)
    said = inspect.cleandoc(ast.get_docstring(tree, clean=False) or "")
    yield f"{plugin.name} ({TITLES[plugin.folder]})"
    yield from ("", *said.splitlines())
    if plugin.intention:
        yield from ("", f"Intention: {_intention(plugin)}.")
    known = settings(made)
    if known:
        yield from ("", "Settings")
    for setting in known:
        yield f"  {setting.name} = {setting.default}" if setting.default else f"  {setting.name}, which must be given"
        yield from textwrap.wrap(
            " ".join(setting.doc.split()), WIDTH, initial_indent="      ", subsequent_indent=6 * " "
        )
