"""The pages say what is there: the generated one is fresh, tree and links are real, commands and methods are read."""

import contextlib
import dataclasses
import io
import itertools
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from expunge import errors
from expunge.cli.main import app
from expunge.notation.parse import parse, parse_list, plugins
from expunge.report.required import Rule

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
HELD = ("README.md", "CONTRIBUTING.md", "concepts.md", "files.md", "serving.md")
"""Pages whose commands must be ones that the command takes."""


def blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


# The generated page


def docs(root: Path, *options: str) -> tuple[int, str]:
    """The exit code of the program, read anew, and what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = runpy.run_path(str(root / "tools" / "docs.py"), run_name="docs")["main"](options)
    return code, said.getvalue()


def test_the_pages_are_what_the_files_say():
    assert docs(ROOT, "--check") == (0, "")


def test_a_page_is_stale_as_soon_as_a_file_says_something_else(tmp_path: Path):
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "docs.py", tmp_path / "tools")
    shutil.copytree(ROOT / "expunge" / "objectives", tmp_path / "expunge" / "objectives")
    page = tmp_path / "docs" / "methods.md"
    assert docs(tmp_path, "--check")[0] == 1
    assert not page.exists()
    assert docs(tmp_path)[0] == 0
    first = page.read_bytes()
    assert docs(tmp_path) == docs(tmp_path, "--check") == (0, "")
    assert page.read_bytes() == first
    file = tmp_path / "expunge" / "objectives" / "npo.py"
    text = file.read_text()
    assert "How fast" in text
    file.write_text(text.replace("How fast", "How slowly"))
    code, said = docs(tmp_path, "--check")
    assert (code, "make docs" in said) == (1, True)
    assert page.read_bytes() == first


def test_what_was_shown_to_work_is_read_from_the_rows_of_recipes(tmp_path: Path):
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "docs.py", tmp_path / "tools")
    shutil.copytree(ROOT / "expunge" / "objectives", tmp_path / "expunge" / "objectives")
    assert docs(tmp_path)[0] == 0
    page = tmp_path / "docs" / "methods.md"
    assert "What was shown to work" not in page.read_text()

    def row(method: str, seed: int, *met: bool, family: str = "language model") -> str:
        kept = {"method": method, "family": family, "seed": seed, "met": dict(enumerate(met)), "acc": 0.5}
        return json.dumps(kept) + "\n"

    (tmp_path / "docs" / "study").mkdir()
    for seed, met in ((1, (True, True, True)), (2, (True, True, False)), (3, (True, False, False))):
        good, bad = row("NPO(beta=0.1) + RetainNLL()", seed, *met), row("NPO()", seed, False, False, False)
        (tmp_path / "docs" / "study" / f"seed-{seed}.jsonl").write_text(
            good + bad + row("original", seed, *met[1:], True)
        )
    with (tmp_path / "docs" / "study" / "seed-1.jsonl").open("a") as file:
        file.write(row("NPO(beta=9.0)", 1, True, True, True))
    further = row("NPO()", 7, True, False, family="CNN") + row("WGA()", 7, True, True, family="CNN")
    (tmp_path / "docs" / "proofs.jsonl").write_text(further + '{"name": "a row that judges nothing"}\n')
    assert docs(tmp_path)[0] == 0
    lines = page.read_text().splitlines()
    assert "| name | CNN | language model |" in lines
    # Of 3, 2 and 1 targets met the median is 2; another setting met none, and a third was run for one seed only.
    assert "| [NPO](#npo) | 1 of 2 (proofs, 1 seed) | 2 of 3 (study, 3 seeds, best of 3) |" in lines
    assert "| [WGA](#wga) | 2 of 2 (proofs, 1 seed) |  |" in lines
    assert "| [UNDIAL](#undial) |  |  |" in lines
    # 3, 2 and 1 of three once more: the first is left out and a met one put last
    assert "| *original* |  | 2 of 3 (study, 3 seeds) |" in lines
    assert not [line for line in lines if line.startswith("| [RetainNLL](#retainnll) |") and "study" in line]
    assert docs(tmp_path, "--check") == (0, "")


def test_making_the_page_needs_no_torch():
    code = "import runpy, sys; runpy.run_path('tools/docs.py'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_page_has_every_plugin_with_each_of_its_settings():
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    entries = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))
    assert set(entries) == {plugin.name for plugin in plugins()}
    for plugin in plugins():
        made = parse(plugin.name)
        for field in dataclasses.fields(made) if type(made).__name__ == plugin.name else ():
            assert f"\n| `{field.name}` |" in entries[plugin.name], f"{plugin.name} has a setting {field.name}"


# The README


def test_the_tree_has_a_line_for_each_folder():
    (tree,) = [block for block in blocks(README, "text") if block.startswith("expunge/\n")]
    drawn = re.findall(r"^  (\w+)/ +\S", tree, re.MULTILINE)
    assert len(drawn) == len(tree.splitlines()) - 1, "a line of the tree is not a folder and what it is for"
    # A folder that holds nothing but an empty __init__.py is not drawn.
    files = [path for path in (ROOT / "expunge").glob("*/*.py") if path.name != "__init__.py"]
    assert sorted(drawn) == sorted({path.parent.name for path in files})


def test_every_file_has_its_line_on_the_page_of_files():
    text = (ROOT / "docs" / "tree.md").read_text(encoding="utf-8")
    found = {
        f"{folder}/{name}"
        for folder, lines in re.findall(r"^## (\S+)/\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        for name in re.findall(r"^\| `(\w+\.py)` \| \S", lines, re.MULTILINE)
    }
    files = (path for path in (ROOT / "expunge").rglob("*.py") if path.read_text(encoding="utf-8"))
    assert found == {path.relative_to(ROOT).as_posix() for path in files}


def test_the_readme_has_less_than_200_lines_and_one_place_for_results():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 200
    start, end = "<!-- results:start -->\n", "<!-- results:end -->\n"
    assert text.count(start) == text.count(end) == 1
    assert text.index(start) < text.index(end)


def test_the_readme_has_blocks_to_run_that_python_reads():
    assert blocks(README, "bash")
    assert [compile(block, "README.md", "exec") for block in blocks(README, "python")]


# All pages


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@PAGE
def test_links_lead_to_what_is_there(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}"


@PAGE
def test_files_that_a_page_names_are_there(page: Path):
    folders = "expunge|docs|tests|tools|recipes"
    for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", prose(page)):
        if name.endswith(("/NAME.py", "first_token.py", "noise.py")):  # what CONTRIBUTING.md lets its reader write
            continue
        assert (ROOT / name).exists(), f"{page.name} names {name}"


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every `expunge` command that the page shows."""
    for block in [text for kind in ("console", "bash") for text in blocks(page, kind)]:
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True) if "expunge" in line else []
            if words[:1] == ["expunge"]:
                yield words[1:]


@pytest.mark.parametrize("name", HELD)
def test_commands_that_a_page_shows_have_options_and_values_that_are_read(name: str):
    (page,) = [page for page in PAGES if page.name == name]
    known = typer.main.get_command(app).commands
    for verb, *rest in commands(page):
        options = {option for parameter in known[verb].params for option in parameter.opts}
        for word, value in itertools.pairwise([*rest, ""]):
            assert not word.startswith("--") or word in options, f"{verb} has no option {word}"
            if word == "--require":
                Rule.parse(value)
            elif word == "--audits":
                parse_list(value)
            elif word == "--method" and ":" not in value and "bta" not in value:  # shown for its refusal
                parse(value)


def test_every_exit_code_is_in_the_table_of_them():
    table = (ROOT / "docs" / "files.md").read_text(encoding="utf-8").partition("## Exit codes")[2]
    told = dict(re.findall(r"^\| (\d+) \| *(\w*) *\|", table, re.MULTILINE))
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.Refusal)]
    real = {str(kind.code): kind.slug for kind in kinds if kind is not errors.Refusal}
    assert real.items() <= told.items()
    assert {"0", "1", str(errors.THRESHOLDS_MISSED), "130"} == set(told) - set(real)
