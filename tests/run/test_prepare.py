"""The files of a request: records of one set that repeat another's are counted and named by line, in no words."""

import json
from pathlib import Path

from expunge.primitives.repeat import Repeat
from expunge.run.prepare import Inputs

CANARY = "zanzibarlighthouse77"


def write(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def sets(root: Path) -> Inputs:
    ten = f"{CANARY} two three four five six seven eight nine ten"
    return Inputs(
        forget=write(root / "forget.jsonl", "nothing like it", ten, "Mara Lind lives in Veldt."),
        retain=write(root / "retain.jsonl", f"{ten} eleven", "MARA LIND: lives in Veldt!", "something else"),
        holdout=write(root / "holdout.jsonl", "never seen at all"),
        probes={"paraphrase": write(root / "paraphrase.jsonl", f"{ten} indeed")},
    )


def test_records_of_the_forget_set_that_repeat_others_are_named_by_their_lines(tmp_path: Path):
    [repeat] = sets(tmp_path).read().repeats()  # probes may say what the forget set says
    assert repeat == Repeat("forget", "retain", equal=1, near=1, lines=((2, 1), (3, 2)))
    assert str(repeat) == (
        "2 forget records repeat records of the retain set, 1 of them word for word and 1 nearly "
        "(lines 2 and 1, 3 and 2)"
    )


def test_a_report_says_how_many_records_repeat_others_and_never_what_they_say(expunge, model: Path, tmp_path: Path):
    made = sets(tmp_path)
    files = [f"--forget={made.forget}", f"--retain={made.retain}", f"--holdout={made.holdout}"]
    said = expunge("audit", model, *files, "--audits=Loss", "--out", tmp_path / "out")
    assert said.code == 0, said.err
    assert "Warning: 2 forget records repeat records of the retain set" in said.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["request"]["repeats"] == [
        {"one": "forget", "other": "retain", "equal": 1, "near": 1, "lines": [[2, 1], [3, 2]]}
    ]
    assert any(limit.startswith("2 forget records repeat records of the retain set") for limit in report["limits"])
    assert "2 forget records repeat records of the retain set" in (tmp_path / "out" / "report.html").read_text()
    for path in (tmp_path / "out").iterdir():
        assert CANARY not in path.read_text()
    assert CANARY not in said.out + said.err


def test_a_result_changed_by_hand_is_refused_by_who_reads_it(expunge, model: Path, tmp_path: Path):
    """V11: one byte of the weights, and one of the record."""
    forget = f"--forget={sets(tmp_path).forget}"
    method = "Finetune(objective=Ascent(), steps=1, stop=Stop(level=None, max_retain_increase=None))"
    out = tmp_path / "out"
    said = expunge("forget", model, forget, "--method", method, "--audits=Loss", "--out", out)
    assert said.code in (0, 6), said.err
    assert expunge("audit", out / "model", forget, "--audits=Loss", "--out", tmp_path / "fine").code == 0
    for name in ("model/model.safetensors", "report.json"):
        whole = (out / name).read_bytes()
        (out / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        line = f"expunge: E4-model: {out / name} is not the file that was written: its SHA-256 differs"
        told = expunge("report", out, "--out", tmp_path / "page.html")
        assert (told.code, told.err.startswith(line), told.err.count("\n")) == (4, True, 1)
        asked = expunge("audit", out / "model", forget, "--audits=Loss", "--out", tmp_path / name.split(".")[-1])
        assert asked.code == (4 if name.startswith("model/") else 0), asked.err  # an audit reads no record
        assert (line in asked.err) == name.startswith("model/")
        (out / name).write_bytes(whole)
