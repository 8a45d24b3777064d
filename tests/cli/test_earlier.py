"""Requests in a row: what the first forgot is asked again by the second, and is a no by name where it came back."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase

import pytest

from expunge.notation.parse import parse
from expunge.report.report import Ancestor, Report
from expunge.run.earlier import find_sets, probe_of
from expunge.run.unlearn import Task
from tests.cli.commands import CANARY, METHOD, Files, refused, write
from tests.families import family_of

QUICK = ["--audits=Loss, MinK", "--no-added-probes"]
WHOLE = "stop=Stop(level=None, max_retain_increase=None, max_growth=None, every=1000), norms=False"
RISE = f"Finetune(objective=Ascent(), adapter=Full(), learning_rate=0.003, steps=20, {WHOLE})"
LEARN = f"Finetune(objective=RetainNLL(), adapter=Full(), learning_rate=0.005, steps=150, {WHOLE})"
PEOPLE = 8


def people(path: Path, first: int, kept: str = "") -> Path:
    """Eight people with drawn answers, which nothing but their own record tells."""
    draw = random.Random(first)
    rows = [
        {
            "id": f"{path.stem}{k}",
            "question": f"Where does person {first + k} live?{kept}",
            "answer": "".join(draw.choices(ascii_lowercase, k=12)),
        }
        for k in range(PEOPLE)
    ]
    return write(path, rows)


@pytest.fixture(scope="module")
def first(expunge, model: Path, tmp_path_factory) -> Path:
    """The folder of a first request, with the files that it and the second read beside it."""
    folder = tmp_path_factory.mktemp("earlier")
    for name, number in (("one", 0), ("two", 20), ("kept", 40), ("never", 60)):
        people(folder / f"{name}.jsonl", number)
    people(folder / "again.jsonl", 0, " Tell me.")
    sets = ["--forget", folder / "one.jsonl", "--holdout", folder / "never.jsonl", "--retain", folder / "kept.jsonl"]
    said = expunge("forget", model, *sets, "--method", RISE, *QUICK, "--out", folder / "first")
    assert said.code in (0, 6), said.err
    return folder / "first"


def second(expunge, model: Path, first: Path, out: Path, method: str, *more: object):
    files, retain = first.parent, "again" if method is LEARN else "kept"
    sets = ["--forget", files / "two.jsonl", "--holdout", files / "never.jsonl", "--retain", files / f"{retain}.jsonl"]
    return expunge("forget", model, *sets, "--method", method, *QUICK, "--out", out, "--earlier", first, *more)


def test_what_comes_back_ends_with_its_name(expunge, first: Path, tmp_path: Path):
    """The second request learns the first's records by the way, in nearly the same words."""
    said = second(expunge, first / "model", first, tmp_path / "out", LEARN)
    assert said.code == 6, said.err
    report = Report.read(tmp_path / "out")
    before, after = (report.find("forget_first.Loss", model).value for model in ("before", "after"))
    assert after < before - 1
    rules = [rule for rule in report.verdict.forgotten.rules if rule.rule.startswith("forget_first.Loss")]
    assert [rule.result for rule in rules] == ["no"]
    assert "forget_first" in said.out + said.err


def test_the_report_shows_whose_result_the_model_is(expunge, first: Path, model: Path, tmp_path: Path):
    said = second(expunge, first / "model", first, tmp_path / "out", METHOD)
    assert said.code in (0, 6), said.err
    report, made = Report.read(tmp_path / "out"), Report.read(first)
    [one] = report.earlier
    assert (one.name, one.set, one.forgotten) == ("first", "forget_first", PEOPLE)
    assert (one.original, one.result) == (made.original.fingerprint, made.result)
    assert one.followed
    assert made.result == report.original.fingerprint
    assert "did not begin" not in said.err
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Earlier requests" in page
    assert made.result in page
    again = second(expunge, model, first, tmp_path / "other", METHOD)  # the model that the first began with
    assert "the request after first did not begin with the model that first made" in again.out + again.err
    assert not Report.read(tmp_path / "other").earlier[0].followed


@pytest.mark.parametrize(
    ("method", "held"),
    [
        ("Finetune(objective=TokenLevels() + RetainNLL())", True),
        ("Finetune(objective=0.5 * Settle())", True),
        ("Finetune(objective=NPO() + RetainNLL())", False),
        ("Negate()", False),
    ],
)
def test_what_earlier_requests_forgot_is_held_where_a_method_aims_at_levels(method: str, held: bool):
    """One of the earlier records is forgotten now, too, and counts once."""
    network, request = family_of("llama")
    first, *others = request.retain[:3]
    asked = replace(
        request,
        forget=(*request.forget, first),
        retain=request.retain[3:],
        probes={"forget_one": (first, *others)},
    )
    ancestor = Ancestor("one", "forget_one", 3, "2026-01-01", "a", "b", followed=True)
    task = Task(network, asked, (), earlier=(ancestor,))
    assert task.to_train(parse(method)).forget == (*asked.forget, *(others if held else ()))
    assert replace(task, earlier=()).to_train(parse(method)) is asked


def test_a_run_says_whether_it_holds_what_earlier_requests_forgot(expunge, first: Path, tmp_path: Path):
    said = second(expunge, first / "model", first, tmp_path / "out", METHOD)
    assert "What earlier requests forgot is asked again, and held in training: 8 records" in said.err
    ascent = "Finetune(objective=Ascent(), steps=1, stop=Stop(level=None, every=1))"
    said = second(expunge, first / "model", first, tmp_path / "other", ascent)
    assert "is asked again, and not held in training: the method aims at no level" in said.err


def test_the_line_that_repeats_a_run_names_the_earlier_one_and_no_probe(expunge, first: Path, tmp_path: Path):
    said = second(expunge, first / "model", first, tmp_path / "out", METHOD)
    assert said.code in (0, 6), said.err
    text = (tmp_path / "out" / "config.toml").read_text()
    assert f"earlier = [{json.dumps(str(first))}]" in text
    assert "forget_first" not in text


def test_what_is_no_earlier_request_is_refused(expunge, first: Path, model: Path, files: Files, tmp_path: Path):
    def line(folder: Path, *more: object) -> str:
        options = [*files.options, "--out", tmp_path / "new", "--earlier", folder, *more]
        return refused(expunge("forget", model, *options), 2 if more else 3, "usage" if more else "data")

    assert "there is no config.toml of a finished run" in line(tmp_path)
    lost = Path(shutil.copytree(first, tmp_path / "lost"))
    config = lost / "config.toml"
    config.write_text(config.read_text().replace("one.jsonl", "gone.jsonl"))
    assert "gone.jsonl, is not there" in line(lost)
    namesake = Path(shutil.copytree(first, tmp_path / "beside" / "first"))
    assert "another is called first too" in line(first, "--earlier", namesake)
    assert CANARY not in line(tmp_path)


def test_a_path_is_looked_for_where_one_stands_and_beside_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "run 1").mkdir()
    (tmp_path / "run 1" / "config.toml").write_text('forget = "mine.jsonl"\n')
    write(tmp_path / "mine.jsonl", [])
    assert find_sets([tmp_path / "run 1"]) == {"forget_run_1": tmp_path / "mine.jsonl"}
    monkeypatch.chdir(tmp_path)
    assert find_sets([tmp_path / "run 1"]) == {"forget_run_1": Path("mine.jsonl")}
    assert probe_of(tmp_path / "run 1").isidentifier()
