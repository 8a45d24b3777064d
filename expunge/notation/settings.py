"""The settings of a plug-in, read from its file and not imported: what can be written, told before torch is loaded."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from expunge.errors import UsageRefused
from expunge.notation.parse import ROOT, Plugin, check_names, plugins, squash, syntax


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
    tree = ast.parse(_file(plugin.module, root).read_text(encoding="utf-8"))
    return tree, _find_named(tree, plugin.name)


def _file(module: str, root: Path) -> Path:
    return root.parent.joinpath(*module.split(".")).with_suffix(".py")


def _find_named(tree: ast.Module, name: str) -> ast.ClassDef | ast.FunctionDef:
    return next(n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name)


@cache
def setting_names(plugin: Plugin, root: Path = ROOT) -> tuple[str, ...]:
    """The names of a plug-in's settings, those of the classes that it is derived from first."""
    return tuple(dict.fromkeys(_with_inherited(*made_by(plugin, root), root)))


def _with_inherited(tree: ast.Module, made: ast.ClassDef | ast.FunctionDef, root: Path) -> Iterator[str]:
    for base in made.bases if isinstance(made, ast.ClassDef) else ():
        name = ast.unparse(base).partition("[")[0]
        home = next((n for n in tree.body if isinstance(n, ast.ImportFrom) and name in {a.name for a in n.names}), None)
        if home and str(home.module).startswith("expunge."):
            there = ast.parse(_file(str(home.module), root).read_text(encoding="utf-8"))
            yield from _with_inherited(there, _find_named(there, name), root)
        elif name in {n.name for n in tree.body if isinstance(n, ast.ClassDef)}:
            yield from _with_inherited(tree, _find_named(tree, name), root)
    yield from (setting.name for setting in settings(made))


def check_settings(text: str) -> None:
    """Refuse what cannot be read, and a setting that its plug-in does not have. Imports none of them."""
    tree, references = syntax(text)
    known = {squash(plugin.name): plugin for plugin in plugins()}
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)) or node.func.id in references:
            continue
        plugin = known.get(squash(node.func.id))
        for keyword in node.keywords if plugin else ():
            refuse_unknown(node.func.id, keyword.arg or "**", setting_names(plugin))


def check_audits(text: str) -> None:
    """Refuse a list of audits that names a plug-in of another kind. Imports none of them."""
    _check_kind(text, "audits", "--audits: {} is not an audit.", "them")


def check_selector(text: str) -> None:
    """Refuse a selector that cannot be read, or that is a plug-in of another kind. Imports none of them."""
    check_names(text)
    check_settings(text)
    _check_kind(text, "select", "--method: {} chooses no records.", "what does")


def _check_kind(text: str, folder: str, said: str, shown: str) -> None:
    tree, references = syntax(text)
    known = {squash(plugin.name): plugin for plugin in plugins()}
    for node in tree.body.elts if isinstance(tree.body, ast.Tuple | ast.List) else [tree.body]:
        named = node.func if isinstance(node, ast.Call) else node
        other = isinstance(named, ast.Name) and named.id not in references and known.get(squash(named.id))
        if other and other.folder != folder:
            raise UsageRefused(f"{said.format(other.name)} `expunge list {folder}` shows {shown}.")


def refuse_unknown(plugin: str, setting: str, known: tuple[str, ...]) -> None:
    """Refuse a setting that is not among `known`, with the nearest that is."""
    if setting not in known:
        near = difflib.get_close_matches(setting[:100], known, n=1)
        hint = f"Did you mean '{near[0]}'?" if near else f"It has: {', '.join(known) or 'none'}."
        raise UsageRefused(f"{plugin} has no setting '{setting[:100]}'. {hint}")
