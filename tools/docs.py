"""Writes docs/methods.md from the plug-ins' own files: what each is, its formula, and what turning each setting does.

    python tools/docs.py             writes the page
    python tools/docs.py --check     writes nothing; ends with 1 where the page is not what the files say

The files are read, never imported, so the page is made in a second and without torch.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from expunge.core.notation import FOLDERS, Plugin, plugins

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path("docs/methods.md")
TITLES = {"train": "Methods", **{folder: folder.capitalize() for folder in FOLDERS if folder != "train"}}
"""Heading of each plug-in folder, in the order of `expunge list`."""
HEAD = """\
# What can be named in a method or an audit

Made by `make docs` from the files of `expunge/`; do not edit it. Every name below is written as in Python, e.g.
`Finetune(objective=NPO(beta=0.1) + 2.0 * RetainKL(), adapter=Bounded(rank=4), steps=40)`: names, values, calls with
keywords, `+` and `*`, and nothing else. [concepts.md](concepts.md) tells what the kinds are.
"""


@dataclass(frozen=True)
class Setting:
    """A field of a plug-in."""

    name: str
    default: str
    """As its file has it; empty where it must be given."""
    doc: str


def page(root: Path) -> str:
    """The whole page for the repository at `root`."""
    found = plugins(root / "expunge")
    kinds = [(title, [p for p in found if p.folder == folder]) for folder, title in TITLES.items()]
    return "\n".join([HEAD, *(part for title, members in kinds if members for part in _kind(root, title, members))])


def _kind(root: Path, title: str, members: list[Plugin]) -> Iterator[str]:
    means = any(p.intention for p in members)
    head = ["| name | what it is | intention | needs |", "|---|---|---|---|"]
    rows = [
        f"| [{p.name}](#{p.name.lower()}) | {_cell(p.summary)} |"
        + (f" {p.intention} | {', '.join(p.needs) or 'the weights alone'} |" if means else "")
        for p in members
    ]
    yield "\n".join([f"## {title}", "", *(head if means else ["| name | what it is |", "|---|---|"]), *rows, ""])
    yield from (_entry(root, plugin) for plugin in members)


def _entry(root: Path, plugin: Plugin) -> str:
    path = root.joinpath(*plugin.module.split(".")).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    made = next(n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == plugin.name)
    # Not cleaned: cleaning takes the indent of a docstring's only formula away.
    parts = [f"### {plugin.name}", "", (ast.get_docstring(tree, clean=False) or "").strip(), ""]
    definition = _definition(made)
    if definition:
        parts += [f"As reports define it: {definition}", ""]
    rows = [f"| `{s.name}` | {_default(s)} | {_cell(s.doc)} |" for s in settings(made)]
    if rows:
        parts += ["| setting | default | what it does |", "|---|---|---|", *rows, ""]
    return "\n".join(parts)


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


def _definition(made: ast.ClassDef | ast.FunctionDef) -> str:
    """What an audit's number is, in its own words."""
    for node in made.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "definition":
            return str(ast.literal_eval(node.value))
    return ""


def _text(node: ast.stmt) -> str:
    """The string that a statement is; empty where it is none."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return node.value.value
    return ""


def _default(setting: Setting) -> str:
    return f"`{_cell(setting.default)}`" if setting.default else "must be given"


def _cell(text: str) -> str:
    """Text on one line that cannot end a table's cell."""
    return " ".join(text.split()).replace("|", "\\|")


def main(arguments: list[str]) -> int:
    """0, or 1 where `--check` finds a page that is not what the files say."""
    made, target = page(ROOT), ROOT / PAGE
    if target.is_file() and target.read_text(encoding="utf-8") == made:
        return 0
    if "--check" in arguments:
        print(f"{PAGE} is not what the files of expunge/ say: run `make docs`.")
        return 1
    target.parent.mkdir(exist_ok=True)
    target.write_text(made, encoding="utf-8")
    print(f"Wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
