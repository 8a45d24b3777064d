"""Pages made again from the folders of finished runs."""

import json
import re
from pathlib import Path

import pytest

from expunge.errors import DataRefused, ModelRefused, UsageRefused
from expunge.notation.typed_json import event_to_json, to_json
from expunge.report.pages import write_page
from expunge.report.report import Report
from expunge.runtime.atomic_files import check_manifest, write_manifest
from tests.report.reports import STEPS, report

REPORT = report()
LINES = "".join(json.dumps(event_to_json(step)) + "\n" for step in STEPS)


def run(root: Path, name: str = "run", text: str | None = None, steps: str | None = None) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(to_json(REPORT)) if text is None else text)
    if steps is not None:
        (folder / "steps.jsonl").write_text(steps)
    return folder


def test_one_folder_gives_its_own_page_and_several_a_comparison(tmp_path: Path, monkeypatch):
    one, other = run(tmp_path, "one", steps=LINES), run(tmp_path, "other")
    assert Report.read(one) == report(steps=STEPS)
    assert Report.read(other) == REPORT
    assert write_page([one], None) == one / "report.html"
    assert "<html" in (one / "report.html").read_text()
    monkeypatch.chdir(tmp_path)
    assert write_page([one, other], None) == Path("comparison.html")
    assert "other" in (tmp_path / "comparison.html").read_text()
    assert write_page([one], tmp_path / "x.html") == tmp_path / "x.html"


def test_a_folder_named_by_a_dot_goes_by_its_own_name(tmp_path: Path, monkeypatch):
    one, other = run(tmp_path, "first-run"), run(tmp_path, "other")
    monkeypatch.chdir(one)
    assert "first-run" in write_page([Path("."), other], tmp_path / "x.html").read_text()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 100_000])
def test_a_report_that_is_none_is_refused(text: str, tmp_path: Path):
    with pytest.raises(DataRefused, match=r"report\.json .*Give the folder of a finished run\.$"):
        write_page([run(tmp_path, text=text)], None)


@pytest.mark.parametrize("steps", ["{", "3\n", "[]"])
def test_steps_that_are_none_are_refused_by_their_own_name(steps: str, tmp_path: Path):
    with pytest.raises(DataRefused, match=r"steps\.jsonl "):
        Report.read(run(tmp_path, steps=steps))


def changed(*path: str | int, to: object) -> str:
    """The report's text with one part in another form; `None` in place of a name takes it out."""
    whole = to_json(REPORT)
    part = whole
    for name in path[:-1]:
        part = part[name]
    if to is None:
        del part[path[-1]]
    else:
        part[path[-1]] = to
    return json.dumps(whole)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (changed("findings", 3, "value", to="0.5"), "findings[3].value must be a number"),
        (changed("findings", 3, "value", to=10**400), "findings[3].value must be a number"),
        (changed("findings", 0, "better", to="up"), "findings[0].better must be one of lower, higher, ideal"),
        (changed("run", "ended", "kept_step", to=1.5), "run.ended.kept_step must be a whole number"),
        (changed("samples", "shown", to="true"), "samples.shown must be true or false"),
        (changed("samples", "shown", to=1), "samples.shown must be true or false"),
        (changed("request", "repeats", 0, "lines", to=[[1]]), "request.repeats[0].lines[0] must be a list of 2"),
        (
            changed("verdict", "forgotten", "rules", 0, "result", to="met"),
            "verdict.forgotten.rules[0].result must be one of yes, no, not measured",
        ),
        (changed("cost", "watts", to=3), "cost.watts is not known"),
        (changed("schema", to=1), "schema must be 3"),
        (changed("result", to=[]), "result must be a text or null"),
        ("{}", "schema is missing"),
        *(
            (changed(name, to=None), f"{name} is missing")
            for name in ("command", "original", "findings", "run", "cost")
        ),
    ],
)
def test_a_report_that_does_not_fit_the_schema_is_refused_by_the_place_in_it(text: str, told: str, tmp_path: Path):
    folder = run(tmp_path, text=text)
    with pytest.raises(ModelRefused) as refused:
        write_page([folder], tmp_path / "x.html")
    assert refused.value.code == 4
    assert str(refused.value).startswith(f"{folder / 'report.json'}: {told}, so it is no report of this version")
    assert not (tmp_path / "x.html").exists()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"kind": "check"}, "line 2: step is missing"),
        ({"kind": "pause"}, "line 2: kind must be one of start, step, check, edit, end, phase"),
        ({**event_to_json(STEPS[0]), "gradient": {"mlp": None}}, "line 2: gradient.mlp must be a number"),
        ({"kind": "phase", "what": "a note"}, "line 2: kind must be step or check"),
    ],
)
def test_a_step_that_does_not_fit_the_schema_is_refused_by_its_line(line: dict, told: str, tmp_path: Path):
    folder = run(tmp_path, steps=f"{json.dumps(event_to_json(STEPS[0]))}\n{json.dumps(line)}\n")
    with pytest.raises(ModelRefused, match=re.escape(f"{folder / 'steps.jsonl'}, {told}")):
        Report.read(folder)


def test_a_report_comes_back_from_the_folder_that_it_was_saved_to(tmp_path: Path):
    made = report(steps=STEPS)
    folder = made.save(tmp_path / "new" / "folder")
    assert {path.name for path in folder.iterdir()} == {"report.json", "report.html", "steps.jsonl", "MANIFEST.json"}
    assert Report.read(folder) == made
    assert check_manifest(folder)["base"] == made.original.fingerprint
    with pytest.raises(UsageRefused, match="is not empty"):
        made.save(folder)
    assert Report.read(folder) == made


def test_a_folder_that_is_none_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with pytest.raises(DataRefused, match=r"report\.json is not there"):
            write_page([place], None)


def test_a_page_that_has_no_place_is_refused_and_nothing_is_written(tmp_path: Path):
    folder = run(tmp_path)
    for out in (tmp_path, tmp_path / "none" / "x.html"):
        with pytest.raises(UsageRefused, match=r"give the name of a file in a folder that is there"):
            write_page([folder], out)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["report.json", "run"]


def finished(root: Path) -> Path:
    """A run's folder with weights and a manifest."""
    folder = run(root, steps=LINES)
    for part in ("model", "adapter"):
        (folder / part).mkdir()
        (folder / part / "model.safetensors").write_bytes(bytes(range(200)))
    (folder / "report.html").write_text("the page of an older version")
    write_manifest(folder)
    return folder


@pytest.mark.parametrize("name", ["report.json", "steps.jsonl", "model/model.safetensors", "adapter/model.safetensors"])
def test_a_byte_changed_by_hand_is_noticed_before_a_page_is_made(name: str, tmp_path: Path):
    folder = finished(tmp_path)
    content = bytearray((folder / name).read_bytes())
    content[7] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ModelRefused, match=f"{name} is not the file that was written"):
        write_page([folder], tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


def test_a_page_written_again_is_entered_in_the_manifest(tmp_path: Path):
    folder = finished(tmp_path)
    write_page([folder], None)
    check_manifest(folder)
    assert "<html" in (folder / "report.html").read_text()
    write_page([folder], folder / "other.html")  # another page beside it is no change of the record
    write_page([folder], None)


def test_what_cannot_be_compared_is_told(tmp_path: Path):
    folder, told = finished(tmp_path), []
    write_page([folder], tmp_path / "x.html", told.append)
    assert told == []
    (folder / "model").rename(tmp_path / "served")
    write_page([folder], tmp_path / "x.html", told.append)
    assert told == [f"{folder}: model/ is not there any more, so it was not checked."]
    (folder / "MANIFEST.json").unlink()
    write_page([folder], tmp_path / "x.html", told.append)
    assert told[1:] == [f"{folder}: there is no MANIFEST.json, so nothing says whether it is as it was written."]
