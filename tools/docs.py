"""Writes what is generated in docs/: methods.md from the plug-ins' own files, tree.md, and report.schema.json.

Of each plug-in: what it is, its formula, and what turning each setting does. tree.md has a line for each file of
expunge/, report.schema.json is made of the report's types.

    python tools/docs.py             writes them
    python tools/docs.py --check     writes nothing; ends with 1 where one of them is not what the files say

The plug-ins' files are read, never imported.

What was shown to work is read from the rows of recipes: every line of a `docs/**/*.jsonl` that holds

    "method"   the notation of what was tried; each plug-in that it names gets the evidence. A text that names none,
               such as "original", gets a line of its own, for what is met without doing anything
    "family"   the kind of model, e.g. "language model", "vision transformer", "CNN", "mixture of experts"
    "seed"     a number; rows of the same method and different seeds are summed up by their median
    "met"      {"name of a stated target": whether this run met it}
    "recipe"   optional: the recipe's name, where the file or, for seed-1.jsonl, its folder is not called so

counts as one run. A recipe that writes such lines appears by itself.
"""

from __future__ import annotations

import ast
import json
import re
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.notation.parse import FOLDERS, Plugin, plugins
from expunge.notation.recipes import recipes
from expunge.notation.settings import Setting, made_by, settings
from expunge.notation.typed_json import schema

ROOT = Path(__file__).resolve().parent.parent
TITLES = {folder: folder.capitalize() for folder in ("methods", *FOLDERS)}
"""Heading of each plug-in folder: what a user names first, then in the order of `expunge list`."""
HEAD = """\
# What can be named in a method or an audit

Made by `make docs` from the files of `expunge/`; do not edit it. Every name below is written as in Python, e.g.
`Finetune(objective=NPO(beta=0.1) + 2.0 * RetainKL(), adapter=Bounded(rank=4), steps=40)`: names, values, calls with
keywords, `+` and `*`, and nothing else. [concepts.md](concepts.md) tells what the kinds are.
"""
TREE = """\
# Every file

Made by `make docs` from the first line of each file of `expunge/`; do not edit it. A name that begins with `_` is no
plug-in but stands beside those that it serves. The README's tree tells what each folder is for.
"""


METHODS = ("methods", "edit", "exact", "guard")
"""Folders whose methods forget, beside the objectives that do not mean retention."""
SHOWN = """\
## What was shown to work, and on what

Made from the rows that recipes wrote (`docs/**/*.jsonl`; `tools/docs.py` tells which). A cell says how many of a
recipe's stated targets were met, of how many: the median over the seeds of the best setting that names the plug-in,
then the recipe's name, the seeds, and among how many settings it is the best. An empty cell: nothing was run. Targets
of different recipes are not the same, a model to which nothing was done meets some (first lines), and what is best of
many is flattered by the choice: [results.md](results.md) tells what each recipe asks.
"""


@dataclass(frozen=True)
class Run:
    """A row of a recipe: what was tried on what, and how many of the stated targets it met."""

    recipe: str
    family: str
    method: str
    seed: int
    met: int
    asked: int


def methods_page(root: Path) -> str:
    """All that can be named, for the repository at `root`."""
    found = plugins(root / "expunge")
    kinds = [(title, [p for p in found if p.folder == folder]) for folder, title in TITLES.items()]
    parts = (part for title, members in kinds if members for part in _kind(root, title, members))
    return "\n".join([HEAD, *_shown(root, list(_runs(root)), found), *parts])


def tree_page(root: Path) -> str:
    """Every file below `expunge/` that says something, by folder."""
    folders: dict[str, list[str]] = {}
    for path in sorted((root / "expunge").rglob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if text:
            folder = path.parent.relative_to(root).as_posix()
            folders.setdefault(folder, []).append(f"| `{path.name}` | {_cell(text.partition(chr(10) * 2)[0])} |")
    parts = (f"## {folder}/\n\n| file | what it is |\n|---|---|\n" + "\n".join(f) for folder, f in folders.items())
    return "\n\n".join([TREE.strip(), *parts]) + "\n"


def report_schema(_root: Path) -> str:
    """JSON Schema of `report.json`."""
    from expunge.report.report import Report  # brings torch, which the pages do without

    return json.dumps(schema(Report), indent=1) + "\n"


PAGES = {
    Path("docs/methods.md"): methods_page,
    Path("docs/tree.md"): tree_page,
    Path("docs/report.schema.json"): report_schema,
}


def _runs(root: Path) -> Iterator[Run]:
    """Every row of the recipes that says of a run which targets it met."""
    for path in sorted((root / "docs").rglob("*.jsonl")):
        recipe = (
            path.parent.relative_to(root / "docs").as_posix() if re.fullmatch(r"seed-\d+", path.stem) else path.stem
        )
        for line in path.read_text(encoding="utf-8").splitlines():
            row: dict[str, Any] = json.loads(line) if '"met": {' in line else {}
            if {"method", "family", "seed"} <= set(row):
                met = [bool(value) for value in row["met"].values()]
                yield Run(row.get("recipe", recipe), row["family"], row["method"], row["seed"], sum(met), len(met))


def _shown(root: Path, runs: list[Run], known: Sequence[Plugin]) -> Iterator[str]:
    """The table of evidence: a line for each plug-in that forgets, a column for each family that a recipe has tried."""
    if not runs:
        return
    families = sorted({run.family for run in runs})
    names = {run.method: set(re.findall(r"\w+(?=\()", run.method)) for run in runs}
    tried = {name for named in names.values() for name in named}
    lines = [f"| name | {' | '.join(families)} |", "|---" * (len(families) + 1) + "|"]
    nothing = dict.fromkeys(run.method for run in runs if not names[run.method] & {p.name for p in known})
    for method in nothing:
        cells = (_evidence([r for r in runs if r.method == method and r.family == f]) for f in families)
        lines.append(f"| *{_cell(method)}* | {' | '.join(cells)} |")
    for plugin in known:
        if _forgets(root, plugin) or (plugin.folder == "adapters" and plugin.name in tried):
            of = [run for run in runs if plugin.name in names[run.method]]
            cells = (_evidence([run for run in of if run.family == family]) for family in families)
            lines.append(f"| [{plugin.name}](#{plugin.name.lower()}) | {' | '.join(cells)} |")
    yield "\n".join([SHOWN, *lines, ""])


def _forgets(root: Path, plugin: Plugin) -> bool:
    """Whether it makes a model forget: an objective that does not mean retention, or a method that is no attack."""
    if plugin.folder == "objectives":
        return plugin.intention != "retention"
    begins = rf"^class {plugin.name}\((Weight)?Method\):"
    return plugin.folder in METHODS and bool(re.search(begins, _file(root, plugin).read_text(encoding="utf-8"), re.M))


def _evidence(runs: list[Run]) -> str:
    """A cell: for each recipe the best of its settings."""
    said = []
    for recipe in dict.fromkeys(run.recipe for run in runs):
        settings: dict[str, list[Run]] = {}
        for run in (run for run in runs if run.recipe == recipe):
            settings.setdefault(run.method, []).append(run)
        # One seed of a setting that is still being run says less than all of another's.
        most = max(map(len, settings.values()))
        best = max((s for s in settings.values() if len(s) == most), key=lambda s: statistics.median(r.met for r in s))
        met, seeds = statistics.median(run.met for run in best), len({run.seed for run in best})
        choice = f", best of {len(settings)}" if len(settings) > 1 else ""
        said.append(f"{met:g} of {best[0].asked} ({recipe}, {seeds} seed{'s' * (seeds > 1)}{choice})")
    return "; ".join(said)


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
    tree, made = made_by(plugin, root / "expunge")
    # Not cleaned: cleaning takes the indent of a docstring's only formula away.
    parts = [f"### {plugin.name}", "", (ast.get_docstring(tree, clean=False) or "").strip(), ""]
    definition = _definition(made)
    if definition:
        parts += [f"As reports define it: {definition}", ""]
    rows = [f"| `{s.name}` | {_default(s)} | {_cell(s.doc)} |" for s in settings(made)]
    if rows:
        parts += ["| setting | default | what it does |", "|---|---|---|", *rows, ""]
    for recipe in (each for each in recipes(root / "expunge") if each.home == plugin.name):
        parts += [
            f"Recipe `--method {recipe.name}` ({recipe.family}): `{recipe.method}`. Numbers: {_cell(recipe.source)}",
            "",
        ]
    return "\n".join(parts)


def _file(root: Path, plugin: Plugin) -> Path:
    return root.joinpath(*plugin.module.split(".")).with_suffix(".py")


def _definition(made: ast.ClassDef | ast.FunctionDef) -> str:
    """What an audit's number is, in its own words."""
    for node in made.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "definition":
            return str(ast.literal_eval(node.value))
    return ""


def _default(setting: Setting) -> str:
    return f"`{_cell(setting.default)}`" if setting.default else "must be given"


def _cell(text: str) -> str:
    """Text on one line that cannot end a table's cell."""
    return " ".join(text.split()).replace("|", "\\|")


def main(arguments: list[str]) -> int:
    """0, or 1 where `--check` finds a page that is not what the files say."""
    made = {target: page(ROOT) for target, page in PAGES.items()}
    stale = [t for t, text in made.items() if not (ROOT / t).is_file() or (ROOT / t).read_text("utf-8") != text]
    if "--check" in arguments:
        for target in stale:
            print(f"{target} is not what the files of expunge/ say: run `make docs`.")
        return int(bool(stale))
    for target in stale:
        (ROOT / target).parent.mkdir(exist_ok=True)
        (ROOT / target).write_text(made[target], encoding="utf-8")
        print(f"Wrote {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
