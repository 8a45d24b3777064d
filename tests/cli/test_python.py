"""The same from Python, as docs/concepts.md shows it."""

import re
from pathlib import Path

from expunge import Report, open_model
from tests.cli.commands import rows, write


def test_the_page_s_lines_of_python_run_on_one_s_own_files(model: Path, tmp_path: Path, script):
    page = (Path(__file__).parents[2] / "docs" / "concepts.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "my-model").symlink_to(model)
    for kind in ("forget", "retain", "holdout"):
        write(tmp_path / f"{kind}.jsonl", rows(kind))
    said = script(lines, folder=tmp_path)
    assert said.code == 0, said.err
    assert [line.split()[:2] for line in said.out.splitlines()] == [
        [f"{name}:", kind]
        for name in ("before", "after")
        # general and neutral come with expunge; the last is "forget vs holdout"
        for kind in ("forget", "retain", "holdout", "general", "neutral", "forget")
    ]
    report = Report.read(tmp_path / "forgotten")
    assert open_model(tmp_path / "forgotten" / "model").fingerprint() == report.result
    assert open_model(model).fingerprint() == report.original.fingerprint != report.result
