"""Logs of others: TOFU's own give the numbers that were published of them; open-unlearning's are read and written."""

import gzip
import json
from pathlib import Path

import pytest

from expunge.benchmarks._logs import read_log, write_log
from expunge.benchmarks._tofu import DEFINITIONS, alone, ratios
from expunge.benchmarks._values import Column, Values
from expunge.benchmarks.tofu import TOFU
from expunge.errors import DataRefused
from expunge.primitives.statistics import ks

DATA = Path(__file__).parents[3] / "shared/data"
LOGS = DATA / "tofu_logs"
PUBLISHED = pytest.mark.skipif(not LOGS.is_dir(), reason=f"TOFU's own logs are not at {LOGS}")
ROUNDED = 5e-5
"""The published numbers have four digits."""


def log(name: str) -> Values:
    return read_log(LOGS / f"{name}.json.gz")


def found(values: Values, definition: str) -> dict[tuple[str, str], float]:
    return {(number.name, number.set): number.value for number in alone(values, DEFINITIONS[definition])}


@PUBLISHED
@pytest.mark.parametrize(
    ("name", "definition", "utility", "of_authors", "forgotten"),
    [
        ("llama2-7b_full", "released", 0.6227, 0.455, 0.5160),
        ("llama2-7b_full", "paper", 0.6587, 0.765, 0.5304),
        ("llama2-7b_retain90", "released", 0.6137, 0.434, 0.6740),
        ("llama2-7b_retain90", "paper", 0.6465, 0.717, 0.6797),
        ("llama2-7b_retain99", "released", 0.6207, 0.459, 0.685),
        ("phi_full", "released", 0.5221, 0.377, 0.4834),
        ("phi_full", "paper", 0.5597, 0.597, 0.5006),
        ("phi_retain90", "released", 0.5320, 0.384, 0.6288),
        ("phi_retain90", "paper", 0.5693, 0.596, 0.6418),
    ],
)
def test_tofus_own_logs_give_the_published_numbers(name, definition, utility, of_authors, forgotten):
    numbers = found(log(name), definition)
    assert numbers["model utility", "all"] == pytest.approx(utility, abs=ROUNDED)
    assert numbers["option probability", "real_authors"] == pytest.approx(of_authors, abs=6e-4)
    assert numbers["truth ratio", "forget"] == pytest.approx(forgotten, abs=ROUNDED if forgotten != 0.685 else 5e-4)


@PUBLISHED
@pytest.mark.parametrize(
    ("model", "definition", "reference", "p"),
    [
        ("llama2-7b", "released", "retain90", 1.834e-21),
        ("llama2-7b", "paper", "retain90", 6.032e-23),
        ("llama2-7b", "released", "retain95", 6.5e-16),
        ("llama2-7b", "released", "retain99", 2.3e-6),
        ("phi", "released", "retain90", 2.194e-16),
        ("phi", "paper", "retain90", 2.431e-17),
        ("phi", "released", "retain95", 6.87e-13),
        ("phi", "released", "retain99", 7.37e-5),
    ],
)
def test_forget_quality_of_the_full_models_is_the_published_one(model, definition, reference, p):
    by = DEFINITIONS[definition]
    ours, theirs = (ratios(log(f"{model}_{name}"), "forget", by) for name in ("full", reference))
    assert ks(ours, theirs).p == pytest.approx(p, rel=2e-2 if p > 1e-7 else 8e-3)
    assert ks(ours, theirs).sign == -1


SCORES = ("retain", 0.926, 0.929, 0.483), ("real_authors", 0.377, 0.416, 0.456), ("world_facts", 0.409, 0.777, 0.492)


@PUBLISHED
@pytest.mark.parametrize(("where", "probability", "overlap", "ratio"), [*SCORES, ("forget", 0.928, 0.925, 0.483)])
def test_the_parts_of_phis_utility_are_the_published_ones(where, probability, overlap, ratio):
    numbers = found(log("phi_full"), "released")
    named = "option probability" if (("option probability", where) in numbers) else "probability"
    assert numbers[named, where] == pytest.approx(probability, abs=5.1e-4)
    assert numbers["ROUGE", where] == pytest.approx(overlap, abs=5.1e-4)
    assert numbers["truth ratio", where] == pytest.approx(ratio, abs=5.1e-4)


@PUBLISHED
def test_two_references_stand_side_by_side_with_what_each_can_show():
    references = {name: log(f"phi_{name}") for name in ("retain90", "retain99")}
    numbers = TOFU(split="forget01", definition="released").numbers(log("phi_full"), references)
    told = {number.against: number.definition for number in numbers if number.name == "KS detectable"}
    assert {name: "300 against 300" in text for name, text in told.items()} == {"retain90": True, "retain99": False}
    assert "300 against 40 questions" in told["retain99"]


def made() -> Values:
    columns: dict[Column, dict[int, float]] = {}
    for where in ("forget", "retain", "real_authors", "world_facts"):
        columns[Column(where, "loss")] = {0: 0.5, 1: 1.5}
        columns[Column(where, "loss", "wrong 1")] = {0: 2.0, 1: 1.0}
        columns[Column(where, "loss", "wrong 2")] = {0: 3.0}
        columns[Column(where, "rouge")] = {0: 0.25, 1: 1.0}
    columns[Column("forget", "extraction_strength")] = {0: 0.5, 1: 0.25}
    for where in ("forget", "holdout"):
        columns[Column(where, "min_k")] = {0: 3.0, 1: 4.0}
    return Values(columns)


def test_a_log_that_we_write_is_read_back_as_it_was(tmp_path: Path):
    (tmp_path / "log.json").write_text(write_log(made(), {"forget_Q_A_Prob": 0.25, "privleak": float("nan")}))
    assert read_log(tmp_path / "log.json") == made()
    written = json.loads((tmp_path / "log.json").read_text())
    assert written["forget_Q_A_PERT_Prob"]["value_by_index"]["1"]["avg_loss"] == [1.0]
    assert written["forget_Q_A_Prob"]["agg_value"] == 0.25
    assert written["privleak"]["agg_value"] is None


def test_records_that_could_not_be_measured_leave_the_others_in_their_place(tmp_path: Path):
    values = {"0": None, "1": {"avg_loss": 1.0}, "10": {"avg_loss": 3.0}, "2": {"avg_loss": 2.0}}
    (tmp_path / "log.json").write_text(json.dumps({"forget_Q_A_Prob": {"value_by_index": values, "agg_value": 1}}))
    assert read_log(tmp_path / "log.json").records("forget", "loss") == {1: 1.0, 2: 2.0, 10: 3.0}


def test_a_log_of_ratios_alone_serves_the_geometric_definition_and_no_other(tmp_path: Path):
    ratio = {"value_by_index": {"0": {"score": 0.5}, "1": {"score": 2.0}}}
    with gzip.open(tmp_path / "log.json.gz", "wt") as file:
        json.dump({"forget_truth_ratio": ratio}, file)
    values = read_log(tmp_path / "log.json.gz")
    assert ratios(values, "forget", DEFINITIONS["released"]) == [0.5, 2.0]
    with pytest.raises(DataRefused, match="losses of the wrong answers of 'forget' are not there"):
        ratios(values, "forget", DEFINITIONS["paper"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no", "not a JSON file"),
        ("[]", "holds no JSON object"),
        ('{"a": 1}', "neither a result of open-unlearning"),
        ('{"forget_Q_A_Prob": {"value_by_index": {"0": {"avg_loss": "x"}}}}', "a value in it is not what"),
        ('{"forget_Q_A_Prob": {"value_by_index": {"0": {}}}}', "a value in it is not what"),
        ('{"eval_log_forget.json": {"avg_gt_loss": {"a": 1}}}', "a value in it is not what"),
    ],
)
def test_another_file_is_refused_in_one_line(text: str, told: str, tmp_path: Path):
    (tmp_path / "log.json").write_text(text)
    with pytest.raises(DataRefused, match=told):
        read_log(tmp_path / "log.json")
