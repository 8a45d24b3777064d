"""Pages made again from the folders of finished runs."""

import json
from pathlib import Path

import pytest

from expunge.errors import DataRefused, ModelRefused, UsageRefused
from expunge.report.pages import read_run, write_page
from expunge.runtime.atomic_files import check_manifest, write_manifest

REPORT = {"model": {"name": "tiny"}, "findings": []}


def run(root: Path, name: str = "run", report: object = REPORT, steps: str | None = None) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "report.json").write_text(report if isinstance(report, str) else json.dumps(report))
    if steps is not None:
        (folder / "steps.jsonl").write_text(steps)
    return folder


def test_one_folder_gives_its_own_page_and_several_a_comparison(tmp_path: Path, monkeypatch):
    one, other = run(tmp_path, "one", steps='{"kind": "check"}\n'), run(tmp_path, "other")
    assert read_run(one) == (REPORT, [{"kind": "check"}])
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


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "{}", '{"model": {}}', "[" * 100_000])
def test_a_report_that_is_none_is_refused(text: str, tmp_path: Path):
    with pytest.raises(DataRefused, match=r"report\.json .*Give the folder of a finished run\.$"):
        write_page([run(tmp_path, report=text)], None)


@pytest.mark.parametrize("steps", ["{", "3\n", "[]"])
def test_steps_that_are_none_are_refused_by_their_own_name(steps: str, tmp_path: Path):
    with pytest.raises(DataRefused, match=r"steps\.jsonl "):
        read_run(run(tmp_path, steps=steps))


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
    folder = run(root, steps='{"kind": "check"}\n')
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
