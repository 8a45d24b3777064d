"""The one notation for methods: what is typed in a shell, kept in a report and printed by `repr`.

    Finetune(objective=Ascent() + 2.0 * RetainNLL(), adapter=Bounded(map='sine', rank=8), steps=40)

Names, literals, keyword calls, + and * are read; nothing else, and nothing is evaluated. The files of the plug-in
folders are the registry: `objectives/npo.py` defines `NPO`. A plug-in of another package is `package.module:Class`.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import math
import re
import warnings
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from expunge.errors import UsageRefused

LONGEST_QUOTE = 200
"""Most characters of the input that an error repeats."""
LONGEST_TEXT = 20_000
"""Most characters of a text: what is longer is nobody's method, and takes long to read."""
LONGEST_NAME = 100
"""Most characters of a name that is compared with those of plug-ins."""
LARGEST = 2**64
"""Bound of whole numbers: beyond 1e308 they are no floats either."""

FOLDERS = (
    *("adapters", "objectives", "methods", "edit", "exact", "guard", "attack"),
    *("audits", "summaries", "select", "prune", "benchmarks"),
)
ROOT = Path(__file__).parent.parent
NEEDS = ("forget", "retain", "stand_in", "reference", "hidden", "experts")
"""What an objective can need, in the order of listings."""
QUOTED = r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""


@dataclass(frozen=True)
class Plugin:
    """A frozen dataclass (or a function that builds one) that a file of a plug-in folder is named after."""

    name: str
    folder: str
    module: str
    summary: str
    """First line of the file's docstring."""
    needs: tuple[str, ...] = ()
    """What an objective reads beside the weights: sets, the model before (reference), hidden states."""
    families: tuple[str, ...] = ()
    """Families of models that an audit is a default of."""
    intention: str = ""
    """Whether an objective means removal, suppression or retention; empty for other kinds."""


def squash(name: str) -> str:
    """A name with case and underscores dropped: `grad_diff` and `GradDiff` agree."""
    return name.replace("_", "").lower()


@cache
def plugins(root: Path = ROOT) -> tuple[Plugin, ...]:
    """All plug-ins by folder and file, none of them imported."""
    return tuple(plugin for folder in FOLDERS for plugin in plugins_of(folder, root))


def plugins_of(folder: str, root: Path = ROOT) -> list[Plugin]:
    """The plug-ins of one folder."""
    found = []
    for path in sorted((root / folder).glob("[!_]*.py")):
        source = path.read_text(encoding="utf-8")
        names = re.findall(r"^(?:@dataclass\(frozen=True\)\nclass|def) (\w+)", source, re.MULTILINE)
        name = next((n for n in names if squash(n) == squash(path.stem)), None)
        if name:
            tree = ast.parse(source)
            summary = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
            module = f"expunge.{folder}.{path.stem}"
            found.append(Plugin(name, folder, module, summary, **_read_metadata(tree, name, root)))
    return found


def _read_metadata(tree: ast.Module, name: str, root: Path) -> dict[str, Any]:
    """`needs` and `intention` of the class `name`; for a function those of the plug-ins that it combines."""
    made = next(n for n in tree.body if isinstance(n, (ast.ClassDef, ast.FunctionDef)) and n.name == name)
    if isinstance(made, ast.ClassDef):
        lines = {ast.unparse(node.target): node.value for node in made.body if isinstance(node, ast.AnnAssign)}
        said = {key: ast.literal_eval(value) for key in ("needs", "intention") if (value := lines.get(key))}
        plain = {ast.unparse(node.targets[0]): node.value for node in made.body if isinstance(node, ast.Assign)}
        return said | ({"families": ast.literal_eval(plain["families"])} if "families" in plain else {})
    used = {node.id for node in ast.walk(made) if isinstance(node, ast.Name)}
    homes = [
        (alias.name, root.joinpath(*str(node.module).split(".")[1:]).with_suffix(".py"))
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name in used and squash(alias.name) == squash(str(node.module).rpartition(".")[2])
    ]
    parts = [
        _read_metadata(ast.parse(path.read_text(encoding="utf-8")), part, root)
        for part, path in homes
        if path.is_file() and path.parent.name != "core"
    ]
    needs = {need for part in parts for need in part.get("needs", ())}
    means = {part.get("intention", "") for part in parts}
    intention = next((kind for kind in ("removal", "suppression", "retention") if kind in means), "")
    return {"needs": tuple(sorted(needs, key=NEEDS.index)), "intention": intention}


def find(name: str) -> object:
    """The plug-in called `name` (case and underscores do not matter), imported."""
    for plugin in plugins():
        if squash(plugin.name) == squash(name):
            return getattr(importlib.import_module(plugin.module), plugin.name)
    if len(name) > LONGEST_NAME:
        raise UsageRefused(f"No plug-in is called '{name[:40]}...'. `expunge list` shows them all.")
    near = difflib.get_close_matches(squash(name), [squash(p.name) for p in plugins()], n=3, cutoff=0.4)
    names = [next(p.name for p in plugins() if squash(p.name) == n) for n in near]
    hint = f"Nearest: {', '.join(names)}." if names else "`expunge list` shows them all."
    raise UsageRefused(f"No plug-in is called '{name}'. {hint}")


def foreign(reference: str) -> object:
    """The frozen dataclass that `package.module:Class` names; never a function, which a call would run."""
    module, name = reference.split(":")
    try:
        made = getattr(importlib.import_module(module), name)
    except Exception as error:  # a third party's module can fail in any way
        reason = f"{type(error).__name__}: {error}"
        absent = isinstance(error, ModuleNotFoundError)
        advice = " Install it, or set PYTHONPATH to the folder that holds it." if absent else ""
        raise UsageRefused(f"The plug-in '{reference}' could not be loaded: {reason}.{advice}") from error
    if not (isinstance(made, type) and getattr(getattr(made, "__dataclass_params__", None), "frozen", False)):
        raise UsageRefused(f"'{reference}' is not a plug-in: package.module:Class must name a frozen dataclass.")
    return made


def parse(text: str) -> Any:
    """The object that `text` describes. Raises `UsageRefused` where it says anything but names, values, + and *."""
    tree, references = syntax(text)
    try:
        made = _Reader(references).read(tree.body)
        repr(made)  # what has no `repr` cannot be reported, such as too long a sum
        return made
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _unreadable(text) from error


def syntax(text: str) -> tuple[ast.Expression, dict[str, str]]:
    """The text's syntax, and what each name stands for that is in the place of a `package.module:Class`."""
    refuse_long(text)
    pieces = re.split(QUOTED, text)
    references: dict[str, str] = {}

    def stand_for(match: re.Match[str]) -> str:
        name = f"_foreign_{len(references)}"
        references[name] = match[0]
        return name

    pieces[::2] = [re.sub(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", stand_for, piece) for piece in pieces[::2]]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # an odd escape in a quoted text
            warnings.simplefilter("ignore", DeprecationWarning)
            return ast.parse("".join(pieces).strip().replace("\n", " "), mode="eval"), references
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _unreadable(text) from error


def _unreadable(text: str) -> UsageRefused:
    shown = ascii(text)[1:-1] if not text.isprintable() else text
    shown = shown if len(shown) <= LONGEST_QUOTE else f"{shown[:LONGEST_QUOTE]}..."
    return UsageRefused(f"'{shown}' could not be read: write it like NPO(beta=0.1) + 2.0 * RetainKL().")


def refuse_long(text: str) -> None:
    """Refuse a text that is longer than any method."""
    if len(text) > LONGEST_TEXT:
        raise UsageRefused(f"A method or a list of audits may have {LONGEST_TEXT:,} characters. Got {len(text):,}.")


def check_names(text: str) -> None:
    """Refuse a text that names no plug-in, importing none, so that a typo is answered at once."""
    refuse_long(text)
    bare = re.sub(QUOTED, "", text)
    known = {squash(p.name) for p in plugins()}
    for name in re.findall(r"(?<![\w.:])([A-Za-z_]\w*)\s*(?=[(,+*]|$)", bare):
        if squash(name) not in known and name not in ("None", "True", "False"):
            find(name)


@dataclass(frozen=True)
class _Reader:
    references: dict[str, str]
    """What `package.module:Class` each stand-in name stands for."""

    def read(self, node: ast.expr) -> object:
        match node:
            case ast.Constant(value=int() | float() | str() | None as value) if _finite(value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)) if _finite(value):
                return -value
            case ast.Tuple(elts=items) | ast.List(elts=items):
                return tuple(self.read(item) for item in items)
            case ast.Name():
                return self.call(node, [])
            case ast.Call(func=ast.Name() as name, args=[], keywords=keywords) if all(k.arg for k in keywords):
                return self.call(name, keywords)
            case ast.BinOp(left=left, op=ast.Add() | ast.Mult() as op, right=right):
                return self.combine(node, op, self.read(left), self.read(right))
        raise UsageRefused(
            f"'{self.as_typed(node)}' is not allowed in a method. Allowed: names, numbers, quoted text, "
            f"calls with keywords such as NPO(beta=0.1), + and *."
        )

    def combine(self, node: ast.expr, op: ast.operator, one: Any, other: Any) -> object:
        """A sum of numbers or of objectives, or a multiple of either."""
        numbers = [isinstance(side, (int, float)) for side in (one, other)]
        added = isinstance(op, ast.Add)
        fit = numbers[0] == numbers[1] if added else any(numbers)
        if fit and not any(isinstance(side, (str, tuple)) for side in (one, other)):
            try:
                made = one * other if not added else one + other if hasattr(other, "__add__") else None
                if made is not None and _finite(made):
                    return made
            except (TypeError, ValueError, OverflowError):
                pass
        raise UsageRefused(f"'{self.as_typed(node)}' cannot be added or multiplied.")

    def call(self, name: ast.Name, keywords: list[ast.keyword]) -> object:
        typed = self.as_typed(name)
        made = foreign(typed) if name.id in self.references else find(name.id)
        assert callable(made)  # a file's own class or function, or a dataclass of another package
        known, hints = list(inspect.signature(made).parameters), _hints(made)
        values: dict[str, object] = {}
        for keyword in keywords:
            setting = str(keyword.arg)
            if setting not in known:
                near = difflib.get_close_matches(setting[:100], known, n=1)
                hint = f"Did you mean '{near[0]}'?" if near else f"It has: {', '.join(known) or 'none'}."
                raise UsageRefused(f"{typed} has no setting '{setting[:100]}'. {hint}")
            if setting in values:
                raise UsageRefused(f"The `{setting}` of {typed} is given twice. Give it once.")
            values[setting] = self.read(keyword.value)
            if setting in hints and not _fits(values[setting], hints[setting]):
                said = _spell_type(hints[setting])
                raise UsageRefused(f"The `{setting}` of {typed} must be {said}. Got {values[setting]!r}.")
        try:
            return made(**values)
        except (TypeError, ValueError) as error:
            raise UsageRefused(f"{typed}: {error}.") from error

    def as_typed(self, node: ast.expr) -> str:
        """A part of the text, as the user typed it."""
        text = re.sub(r"\b_foreign_\d+\b", lambda match: self.references.get(match[0], match[0]), ast.unparse(node))
        return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}..."


def _finite(value: object) -> bool:
    """Whether a literal is a value that `repr` writes back as a literal: 1e999 is read as inf. Other values are."""
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or -LARGEST < value < LARGEST


def _hints(made: Any) -> dict[str, Any]:
    """The types of the settings, where they can be had at run time."""
    try:
        return get_type_hints(made)
    except Exception:  # names that only a type checker imports
        return {}


def _fits(value: object, hint: Any) -> bool:
    """Whether a setting has the type that its field declares; true where that cannot be told."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    try:
        return not isinstance(hint, type) or hint is Any or isinstance(value, hint)
    except TypeError:  # a protocol
        return True


def _spell_type(hint: Any) -> str:
    """A type in a user's words."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_spell_type(one) for one in get_args(hint))
    words = {int: "a whole number", float: "a number", str: "quoted text", type(None): "None"}
    if hint in words:
        return words[hint]
    name = hint.__name__ if isinstance(hint, type) else str(hint)
    return f"an {name}" if name[0] in "AEIO" else f"a {name}"


def write(made: object) -> str:
    """The text that `parse` reads back: `repr`, except that a plug-in of another package is named with its module."""
    from expunge.core.objective import Multiple, Sum  # imports torch, which listing plug-ins must not

    if isinstance(made, Sum):
        return " + ".join(map(write, made.parts))
    if isinstance(made, Multiple):
        inner = write(made.part)
        return f"{made.weight!r} * ({inner})" if isinstance(made.part, Sum) else f"{made.weight!r} * {inner}"
    if not is_dataclass(made) or isinstance(made, type):
        return repr(made)
    kind = type(made)
    name = kind.__name__ if kind.__module__.startswith("expunge.") else f"{kind.__module__}:{kind.__name__}"
    return f"{name}({', '.join(f'{f.name}={write(getattr(made, f.name))}' for f in fields(made) if f.init)})"


def parse_list(text: str) -> list[object]:
    """Several objects separated by commas, such as `Loss, MinK(fraction=0.4)`."""
    read = parse(text)
    return list(read) if isinstance(read, tuple) else [read]
