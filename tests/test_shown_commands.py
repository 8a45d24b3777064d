"""Every command that the README and the pages of docs/ show runs, in order, on files of the shape that they show."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.shown_files import ROOT, make_files

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SESSION = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)$", re.MULTILINE)


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command of a page's sessions, but for those of make, which are what CI itself does."""
    for session in SESSION.findall(page.read_text(encoding="utf-8")):
        for line in COMMAND.findall(session):
            words = shlex.split(line.replace("\\\n", " "), comments=True)
            if words[0] != "make":
                yield words


SHOWN = [page for page in PAGES if list(commands(page))]


@pytest.mark.timeout(1200)  # a session of many commands
@pytest.mark.parametrize("page", SHOWN, ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page: Path, start, tmp_path: Path):
    make_files(tmp_path)
    for words in commands(page):
        many = words[0] == "torchrun"
        if many:
            words = words[words.index("-m") + 1 :]
        assert words[0] == "expunge", words
        # Of a tiny random model an answer may be no.
        wanted = (0, 6) if words[1] in ("forget", "audit", "sweep") else (0,)
        for said in start(*words[1:], folder=tmp_path, processes=2 if many else 1).end():
            assert said.code in wanted, f"{shlex.join(words)}: {said.err}"
    assert SHOWN[0].name == "README.md"
