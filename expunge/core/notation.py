"""The one notation for methods: what is typed in a shell, kept in a report and printed by `repr`.

    Finetune(objective=Ascent() + 2.0 * RetainNLL(), adapter=Bounded(map='sine', rank=8), steps=40)

Names, literals, keyword calls, + and * are read; nothing else, and nothing is evaluated. The files of the plug-in
folders are the registry: `objectives/npo.py` defines `NPO`. A plug-in of somebody else's is `package.module:Class`.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from expunge.core.errors import UsageRefused

FOLDERS = ("adapters", "objectives", "train", "edit", "exact", "guard", "attack", "audits", "select", "benchmarks")
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Plugin:
    """A frozen dataclass (or a function that builds one) that a file of a plug-in folder is named after."""

    name: str
    folder: str
    module: str
    summary: str
    """First line of the file's docstring."""


def squashed(name: str) -> str:
    """A name with case and underscores dropped: `grad_diff` and `GradDiff` agree."""
    return name.replace("_", "").lower()


@cache
def plugins(root: Path = ROOT) -> tuple[Plugin, ...]:
    """All plug-ins by folder and file, none of them imported."""
    found = []
    for folder in FOLDERS:
        for path in sorted((root / folder).glob("*.py")):
            source = path.read_text(encoding="utf-8")
            names = re.findall(r"^(?:@dataclass\(frozen=True\)\nclass|def) (\w+)", source, re.MULTILINE)
            name = next((n for n in names if squashed(n) == squashed(path.stem)), None)
            if name:
                summary = (ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0].replace("\n", " ")
                found.append(Plugin(name, folder, f"expunge.{folder}.{path.stem}", summary))
    return tuple(found)


def find(name: str) -> object:
    """The plug-in called `name` (case and underscores do not matter), imported."""
    for plugin in plugins():
        if squashed(plugin.name) == squashed(name):
            return getattr(importlib.import_module(plugin.module), plugin.name)
    near = difflib.get_close_matches(squashed(name), [squashed(p.name) for p in plugins()], n=3, cutoff=0.4)
    names = [next(p.name for p in plugins() if squashed(p.name) == n) for n in near]
    hint = f"Nearest: {', '.join(names)}." if names else "`expunge list` shows them all."
    raise UsageRefused(f"No plug-in is called '{name}'. {hint}")


def foreign(reference: str) -> object:
    """The class that `package.module:Class` names."""
    module, name = reference.split(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageRefused(f"The plug-in '{reference}' could not be loaded: {error}.") from error


def parse(text: str) -> object:
    """The object that `text` describes. Raises `UsageRefused` where it says anything but names, values, + and *."""
    pieces = re.split(r"('[^']*'|\"[^\"]*\")", text)
    references: list[str] = []

    def stand_for(match: re.Match[str]) -> str:
        references.append(match.group(0))
        return f"_foreign_{len(references) - 1}"

    pieces[::2] = [re.sub(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", stand_for, piece) for piece in pieces[::2]]
    try:
        tree = ast.parse("".join(pieces).strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageRefused(f"'{text}' could not be read: write it like NPO(beta=0.1) + 2.0 * RetainKL().") from error
    return _Reader(text, references).read(tree.body)


def check_names(text: str) -> None:
    """Refuse a text that names no plug-in, importing none, so that a slip of the pen is answered at once."""
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", text)
    known = {squashed(p.name) for p in plugins()}
    for name in re.findall(r"(?<![\w.:])([A-Za-z_]\w*)\s*(?=[(,+*]|$)", bare):
        if squashed(name) not in known and name not in ("None", "True", "False"):
            find(name)


@dataclass(frozen=True)
class _Reader:
    text: str
    references: list[str]

    def read(self, node: ast.expr) -> object:
        match node:
            case ast.Constant(value=int() | float() | str() | None as value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return -value
            case ast.Tuple(elts=items) | ast.List(elts=items):
                return tuple(self.read(item) for item in items)
            case ast.Name():
                return self.call(node, [])
            case ast.Call(func=ast.Name() as name, args=[], keywords=keywords) if all(k.arg for k in keywords):
                return self.call(name, keywords)
            case ast.BinOp(left=left, op=ast.Add() | ast.Mult() as op, right=right):
                one, other = self.read(left), self.read(right)
                try:
                    return one + other if isinstance(op, ast.Add) else one * other
                except TypeError as error:
                    raise UsageRefused(f"'{ast.unparse(node)}' cannot be added or multiplied.") from error
        raise UsageRefused(
            f"'{ast.unparse(node)}' is not allowed in a method. Allowed: names, numbers, quoted text, "
            f"calls with keywords such as NPO(beta=0.1), + and *."
        )

    def call(self, name: ast.Name, keywords: list[ast.keyword]) -> object:
        ours = not name.id.startswith("_foreign_")
        made = find(name.id) if ours else foreign(self.references[int(name.id.removeprefix("_foreign_"))])
        if not callable(made):
            raise UsageRefused(f"'{name.id}' is not something to call.")
        known = list(inspect.signature(made).parameters)
        for keyword in keywords:
            if keyword.arg not in known:
                near = difflib.get_close_matches(str(keyword.arg), known, n=1)
                hint = f"Did you mean '{near[0]}'?" if near else f"It has: {', '.join(known) or 'none'}."
                raise UsageRefused(f"{name.id} has no setting '{keyword.arg}'. {hint}")
        values = {str(keyword.arg): self.read(keyword.value) for keyword in keywords}
        try:
            return made(**values)
        except TypeError as error:
            raise UsageRefused(f"{name.id}: {error}.") from error


def parse_list(text: str) -> list[object]:
    """Several objects separated by commas, such as `Loss, MinK(fraction=0.4)`."""
    read = parse(f"({text},)")
    return list(read) if isinstance(read, tuple) else [read]
