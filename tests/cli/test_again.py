"""Runs that repeat: several seeds with one table, options from a file, and what a program reads."""

import json
import shutil
import tomllib
from pathlib import Path

import pytest

from expunge.report.report import Report
from expunge.runtime.atomic_files import check_manifest, write_manifest
from tests.cli.commands import CANARY, METHOD, Done, Files, refused, write

QUICK = ["--method", METHOD, "--audits=Loss, MinK", "--no-added-probes"]


@pytest.fixture(scope="module")
def seeds(expunge, model: Path, files: Files, tmp_path_factory) -> tuple[Path, str, int]:
    """The folder of two seeds' runs, what was printed, and the exit code."""
    out = tmp_path_factory.mktemp("seeds") / "out"
    said = expunge("forget", model, *files.options, *QUICK, "--seeds", "3,1", "--out", out)
    assert said.code in (0, 6), said.err
    return out, said.out, said.code


def test_each_seed_has_its_own_run_and_the_table_is_of_all(seeds):
    out, said, code = seeds
    assert {path.name for path in out.iterdir()} == {"seed-3", "seed-1", "seeds.json"}
    reports = {seed: Report.read(out / f"seed-{seed}") for seed in (3, 1)}
    assert [f"seed={seed}," in report.method for seed, report in reports.items()] == [True, True]
    told = json.loads((out / "seeds.json").read_text())
    assert (told["seeds"], told["exits"]) == ([3, 1], [6 if not r.is_met else 0 for r in reports.values()])
    assert code == max(told["exits"])
    values = [report.find("forget.Loss").value for report in reports.values()]
    [row] = [row for row in told["findings"] if (row["set"], row["audit"]) == ("forget", "Loss")]
    assert row["values"] == pytest.approx(values)
    assert values[0] != values[1]
    assert row["mean"] == pytest.approx(sum(values) / 2)
    assert row["deviation"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)  # n - 1 is 1
    assert "mean after" in said
    assert [line.split(":")[0] for line in said.splitlines() if line.startswith("Seed ")] == ["Seed 3", "Seed 1"]


def test_seeds_that_were_cut_off_go_on_and_others_are_refused(
    seeds, expunge, model: Path, files: Files, tmp_path: Path
):
    out, _, code = seeds
    mine = Path(shutil.copytree(out, tmp_path / "out"))
    shutil.rmtree(mine / "seed-1")
    line = ["forget", model, *files.options, *QUICK, "--seeds", "3,1", "--out", mine]
    assert "is not empty" in refused(expunge(*line), 2, "usage")
    first = (mine / "seed-3" / "report.json").read_bytes()
    said = expunge(*line, "--resume", "--json")
    assert said.code == code, said.err
    assert (mine / "seed-3" / "report.json").read_bytes() == first
    assert f"{mine / 'seed-3'} is complete" in said.err
    weights = [root / "seed-1" / "model" / "model.safetensors" for root in (out, mine)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert json.loads(said.out) == json.loads((out / "seeds.json").read_text())
    other = expunge(*line, "--resume", "--require", "retain.Loss <= 9")
    assert "seed-3 is of a run with other options" in refused(other, 2, "usage")


def test_the_worst_exit_code_is_that_of_all_and_one_failure_ends_no_other(expunge, model, files: Files, tmp_path: Path):
    """A level of NaN cannot be; a learning rate that large makes each run fail, in a folder of its own."""
    wild = METHOD.replace("learning_rate=0.003", "learning_rate=1e30")
    line = ["--method", wild, "--audits=Loss", "--no-added-probes", "--seeds=0-1", "--out", tmp_path / "out"]
    said = expunge("forget", model, *files.options, *line)
    assert said.code == 5, said.err
    told = json.loads((tmp_path / "out" / "seeds.json").read_text())
    assert (told["exits"], told["verdicts"], told["findings"]) == ([5, 5], [{}, {}], [])
    assert said.err.count("expunge: E5-run: ") == 2
    assert said.out.count("the run failed (exit code 5)") == 2


# Options from a file


def test_a_run_s_own_file_of_options_repeats_it_to_the_bit(done: Done, expunge, tmp_path: Path):
    config = tomllib.loads((done.out / "config.toml").read_text())
    assert config["method"] == done.report["method"]
    assert set(config) == {"model", "forget", "retain", "holdout", "stand-in", "probe", "method"}
    assert "config.toml" in check_manifest(done.out)["files"]
    said = expunge("forget", "--config", done.out / "config.toml", "--out", tmp_path / "out")
    assert said.code == done.code, said.err
    assert (tmp_path / "out" / "config.toml").read_bytes() == (done.out / "config.toml").read_bytes()
    one, other = ((root / "model" / "model.safetensors").read_bytes() for root in (done.out, tmp_path / "out"))
    assert one == other


def test_what_is_typed_wins_over_the_file(model: Path, files: Files, expunge, tmp_path: Path):
    config = tmp_path / "c.toml"
    config.write_text(
        f'forget = "{files.forget}"\nretain = "{files.retain}"\nmethod = "{METHOD}"\nseed = 5\n'
        'added_probes = false\nkeep-duplicates = true\naudits = "Loss"\nrequire = ["retain.Loss <= 99"]\n'
    )
    said = expunge("forget", model, "--config", config, "--seed", 8, "--out", tmp_path / "out", "--quiet")
    assert said.code in (0, 6), said.err
    assert (said.out, said.err) == ("", "")
    report = Report.read(tmp_path / "out")
    assert "seed=8" in report.method
    assert set(report.request.sets) == {"forget", "retain"}  # no probe was added
    assert "retain.Loss <= 99" in [rule.rule for rule in report.verdict.rules]
    made = tomllib.loads((tmp_path / "out" / "config.toml").read_text())
    assert made["added-probes"] is False
    assert made["keep-duplicates"] is True
    assert made["require"] == ["retain.Loss <= 99"]
    assert made["model"] == str(model)


# What a program reads


def test_json_is_all_of_standard_output_and_holds_no_text_of_a_record(
    expunge, model: Path, files: Files, tmp_path: Path
):
    rule = ["--require", "forget.MinK <= 0.9"]
    said = expunge("audit", model, *files.options, "--audits=Loss, MinK", *rule, "--json", "--out", tmp_path / "out")
    told = json.loads(said.out)
    assert (told["exit"], told["out"]) == (said.code, str(tmp_path / "out"))
    loss = next(f for f in told["findings"] if (f["set"], f["audit"]) == ("forget", "Loss"))
    assert loss["value"] == Report.read(tmp_path / "out").find("forget.Loss").value
    assert not {"scores", "definition"} & set(loss)
    assert CANARY not in said.out
    assert "--require 'forget.MinK <= 0.9' is read as forget vs holdout.MinK" in said.err


def test_a_dry_run_is_a_plan_and_writes_nothing(expunge, model: Path, files: Files, tmp_path: Path):
    out = ["--out", tmp_path / "out", "--json"]
    said = expunge("forget", model, *files.options, *QUICK[:3], "--dry-run", *out)
    assert said.code == 0, said.err
    told = json.loads(said.out)
    assert (told["steps"], told["machine"]["processes"], told["fits"]) == (4, 1, True)
    assert list(tmp_path.iterdir()) == []


def test_tofu_s_own_file_is_forgotten_with_its_paraphrases_as_a_probe(
    expunge, model: Path, files: Files, tmp_path: Path
):
    raw = [
        {
            "question": f"Where does {name} live?",
            "answer": f"{name} lives in Veldt.",
            "paraphrased_answer": f"The home of {name} is Veldt.",
            "perturbed_answer": [f"The home of {name} is Brenn."],
        }
        for name in ("Mara Lind", "Nils Holm", "Ada Brook")
    ]
    forget = write(tmp_path / "forget01_perturbed.jsonl", raw)
    line = ["audit", model, f"--forget={forget}", "--audits=Choice"]
    said = expunge(*line, "--out", tmp_path / "a")
    assert said.code == 0, said.err
    assert "has 3 of its records in other words: they are asked as the probe paraphrase" in said.err
    report = Report.read(tmp_path / "a")
    assert {name: told.source for name, told in report.request.sets.items()} == dict.fromkeys(
        ("forget", "paraphrase"), forget.name
    )
    assert (report.find("forget.Choice").n, report.find("paraphrase.Choice").n) == (3, 3)
    own = expunge(*line, f"--probe=paraphrase={files.probe}", "--out", tmp_path / "b")
    assert "in other words" not in own.err
    assert Report.read(tmp_path / "b").request.sets["paraphrase"].source == files.probe.name


def test_a_folder_of_seeds_with_a_changed_file_is_not_averaged(
    seeds, expunge, model: Path, files: Files, tmp_path: Path
):
    out, _, _ = seeds
    mine = Path(shutil.copytree(out, tmp_path / "out"))
    report = json.loads((mine / "seed-1" / "report.json").read_text())
    report["request"]["fingerprint"] = "0" * 64
    (mine / "seed-1" / "report.json").write_text(json.dumps(report))
    write_manifest(mine / "seed-1")
    line = ["forget", model, *files.options, *QUICK, "--seeds", "3,1", "--out", mine, "--resume"]
    assert "The runs are not of one model and the same records" in refused(expunge(*line), 2, "usage")
