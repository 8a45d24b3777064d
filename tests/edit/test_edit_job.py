"""The command with methods that are no training: what they write, what they tell, and what is refused."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

PLACES = ["Aldoria", "Ostrava", "Veldt", "Mara", "Lind", "Tides"]


def records(folder: Path) -> dict[str, Path]:
    """Three files of questions with options."""
    files = {}
    for number, name in enumerate(("forget", "retain", "holdout")):
        rows = [
            {
                "id": f"{name}-{k}",
                "question": f"What is the {name} of {place}?",
                "answer": PLACES[(k + number) % 6],
                "options": [PLACES[(k + number + 1) % 6], PLACES[(k + number + 2) % 6]],
            }
            for k, place in enumerate(PLACES)
        ]
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("\n".join(map(json.dumps, rows)))
    return files


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[object]:
    made = records(tmp_path_factory.mktemp("records"))
    return [word for name, path in made.items() for word in (f"--{name}", path)]


def report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize(
    ("method", "written"),
    [
        ("IAU(learning_rate=0.01)", "IAU(learning_rate=0.01, step='adam', correction=1.0)"),
        ("LFSSD()", "LFSSD(alpha=None, dampening=1.0, batch=64)"),
        ("Quantize(bits=3)", "Quantize(bits=3)"),
    ],
)
def test_an_edit_writes_a_model_and_tells_what_it_changed(expunge, model, files, tmp_path, method, written):
    said = expunge("forget", model, *files, "--method", method, "--audits", "Loss", "--out", tmp_path / "out")
    assert said.code == 0, said.err
    made = report(tmp_path / "out")
    assert made["method"] == written
    assert made["run"]["edited"]["changed"] > 0
    assert made["run"]["saved"]["max_logit_change"] > 0
    rules = [rule["rule"] for rule in made["verdict"]["forgotten"]["rules"] if rule["condition"]]
    assert [rule.partition(" >= ")[0] for rule in rules] == [
        "numbers of the model changed",
        "largest change of a score",
    ]
    assert made["run"]["changed"] == made["run"]["edited"]["changed"]
    was, now = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "out" / "model"))
    changed = sum(int((was[name] != now[name]).sum()) for name in was)
    assert changed == made["run"]["edited"]["changed"]
    blocks = made["run"]["edited"]["blocks"]
    assert sum(block["changed"] for block in blocks.values()) == changed
    assert {"model.layers.0", "model.layers.1"} < set(blocks)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Where it changed" in page
    assert "model.layers.1" in page
    assert "Merged model against adapter" not in page  # nothing was merged
    assert not (tmp_path / "out" / "adapter").exists()


def test_an_edit_that_changed_nothing_misses_its_criterion(expunge, model, files, tmp_path):
    said = expunge(
        "forget", model, *files, "--method", "SSD(alpha=1e30)", "--audits", "Loss", "--out", tmp_path / "out"
    )
    assert said.code == 6
    assert report(tmp_path / "out")["verdict"]["forgotten"]["said"] == "no"


def test_an_attack_is_a_method_whose_result_is_audited(expunge, model, files, tmp_path):
    method = "Relearn(items=2, steps=3)"
    said = expunge(
        "forget", model, *files, "--method", method, "--audits", "Loss", "--seed", 5, "--out", tmp_path / "o"
    )
    assert said.code == 0, said.err
    made = report(tmp_path / "o")
    assert made["run"]["ended"]["kept_step"] == 3
    assert made["method"].endswith("seed=5)")


def test_a_seed_is_refused_where_nothing_is_drawn(expunge, model, files, tmp_path):
    said = expunge("forget", model, *files, "--method", "IAU()", "--seed", 1, "--out", tmp_path / "out")
    assert said.code == 2
    assert "--seed: IAU draws nothing by chance. Leave --seed out." in said.err


@pytest.mark.parametrize("thing", ["GradientNorm()", "Loss()", "Stop()"])
def test_what_is_no_method_is_refused(expunge, model, files, tmp_path, thing):
    said = expunge("forget", model, *files, "--method", thing, "--out", tmp_path / "out")
    assert said.code == 2
    assert f"--method '{thing}' is not a method. " in said.err


def test_forget_quality_stands_in_the_report_where_a_reference_is_given(expunge, model, files, tmp_path):
    rule = "forget.ForgetQuality >= 0.99"
    options = ["--audits", "TruthRatio", "--reference", model, "--require", rule, "--out", tmp_path / "out"]
    said = expunge("audit", model, *files, *options)
    assert said.code == 0, said.err
    found = {(f["audit"], f["set"], f["model"]): f for f in report(tmp_path / "out")["findings"]}
    quality = found["ForgetQuality", "forget", "before"]
    assert (quality["value"], quality["ideal"], quality["n"]) == (1.0, 1.0, 6)  # the reference is the model itself
    assert found["TruthRatioShift", "forget", "before"]["value"] == 0.0
    assert ("ForgetQuality", "retain", "before") not in found
    without = expunge("audit", model, *files, "--audits", "TruthRatio", "--require", rule, "--out", tmp_path / "other")
    assert without.code == 2
    assert "ForgetQuality is not run" in without.err


def test_a_probe_of_hidden_states_can_be_asked_for(expunge, model, files, tmp_path):
    said = expunge("audit", model, *files, "--audits", "LinearProbe(layer=1)", "--out", tmp_path / "out")
    assert said.code == 0, said.err
    sets = [f["set"] for f in report(tmp_path / "out")["findings"]]
    assert sets[0] == "forget"
    assert "forget, labels shuffled" in sets
    beyond = expunge("audit", model, *files, "--audits", "LinearProbe(layer=9)", "--out", tmp_path / "other")
    assert beyond.code == 2
    assert "from 0 to 1, or a share of the depth below 1.0. Got 9" in beyond.err


NARROW = """
import torch
from expunge.cli import main as cli
from torch import nn

whole = nn.Embedding.forward


def forward(self, tokens):
    if torch.is_grad_enabled() and tokens.numel() > 30:
        torch.empty(1 << 60, dtype=torch.uint8)
    return whole(self, tokens)


nn.Embedding.forward = forward
cli.main()
"""


def test_an_edit_that_outgrows_its_memory_goes_on_in_parts_and_says_so(expunge, model, files, tmp_path):  # R04
    program = tmp_path / "narrow.py"
    program.write_text(NARROW)
    asked = ["forget", model, *files, "--method", "IAU(learning_rate=0.01, step='sgd')", "--audits", "Loss", "--out"]
    whole, cut = expunge(*asked, tmp_path / "whole"), expunge(*asked, tmp_path / "cut", program=str(program))
    assert whole.code == cut.code == 0, cut.err
    assert "Out of memory on cpu: " not in whole.err
    assert "tokens (or images) from here on" in cut.err
    was, now = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert max(float((was[name] - now[name]).abs().max()) for name in was) < 1e-6
