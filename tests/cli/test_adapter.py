"""`--adapter FOLDER`: an adapter of peft beside its base, in an audit, in a run and in one that goes on."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.cli.commands import Files, refused
from tests.conftest import save_model

METHOD = "Finetune(adapter=Bounded(rank=2), learning_rate=0.001, steps=6, batch=2, stop=Stop(level=None, every=3))"


def lora(model: Path, folder: Path, seed: int) -> Path:
    draw = torch.Generator().manual_seed(seed)
    config = LoraConfig(r=2, target_modules=["up_proj", "v_proj"])
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=draw) * 0.2
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory) -> Path:
    return lora(model, tmp_path_factory.mktemp("adapters") / "mine", seed=1)


@pytest.fixture(scope="module")
def merged(model: Path, adapter: Path, tmp_path_factory) -> Path:
    """What peft itself makes of the two."""
    folder = tmp_path_factory.mktemp("merged") / "model"
    base = AutoModelForCausalLM.from_pretrained(model)
    PeftModel.from_pretrained(base, str(adapter)).merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def test_an_audit_finds_what_it_finds_in_the_merged_model_and_names_the_adapter(
    expunge, model: Path, adapter: Path, merged: Path, files: Files, tmp_path: Path
):
    reports = []
    for name, asked in (("beside", [model, "--adapter", adapter]), ("merged", [merged])):
        said = expunge("audit", *asked, *files.options, "--audits", "Loss, Choice", "--out", tmp_path / name)
        assert said.code == 0, said.err
        reports.append(json.loads((tmp_path / name / "report.json").read_text()))
    beside, whole = reports
    for one, other in zip(beside["findings"], whole["findings"], strict=True):
        assert one["value"] == pytest.approx(other["value"], abs=1e-6)
    told = beside["original"]["adapter"]
    assert (told["name"], told["kind"], len(told["digest"])) == ("mine", "LORA", 64)
    assert whole["original"]["adapter"] is None
    page = (tmp_path / "beside" / "report.html").read_text()
    assert "Adapter merged into it" in page
    assert told["digest"] in page
    assert "Adapter merged into it" not in (tmp_path / "merged" / "report.html").read_text()


def test_a_run_goes_on_with_its_adapter_and_with_no_other(
    start, expunge, model: Path, adapter: Path, files: Files, tmp_path: Path
):
    other = lora(model, tmp_path / "other", seed=2)
    asked = ["forget", model, *files.options, "--audits", "Loss", "--method", METHOD, "--checkpoint-every", 2]
    assert expunge(*asked, "--adapter", adapter, "--out", tmp_path / "straight").code in (0, 6)
    run = start(*asked, "--adapter", adapter, "--out", tmp_path / "out")
    run.wait_for("step 3:")
    os.kill(run.children[0], signal.SIGKILL)
    assert [said.code for said in run.end()] == [-signal.SIGKILL]
    for given in (["--adapter", other], []):
        said = expunge(*asked, *given, "--out", tmp_path / "out", "--resume")
        assert "is of another run: its model and its adapter differ." in refused(said, 4, "model")
    assert expunge(*asked, "--adapter", adapter, "--out", tmp_path / "out", "--resume").code in (0, 6)
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("straight", "out"))
    assert all(torch.equal(two[name], weight) for name, weight in one.items())


def test_what_is_not_there_or_was_made_for_another_base_is_refused_in_a_line(
    expunge, model: Path, adapter: Path, files: Files, tmp_path: Path
):
    asked = [*files.options, "--audits", "Loss", "--out", tmp_path / "out"]
    assert "--adapter nowhere: no such file" in refused(
        expunge("audit", model, *asked, "--adapter", "nowhere"), 3, "data"
    )
    other = AutoModelForCausalLM.from_pretrained(save_model(tmp_path / "other"))
    other.config.num_hidden_layers = 1
    type(other)(other.config).save_pretrained(tmp_path / "other")
    line = refused(expunge("audit", tmp_path / "other", *asked, "--adapter", adapter), 4, "model")
    assert "without a place in LlamaForCausalLM" in line
    assert "made for another model" in line
    line = refused(expunge("audit", adapter, *asked), 4, "model")
    assert f"Give the model that it was made for, and --adapter {adapter}" in line
    inside = ["--adapter", adapter, "--out", adapter / "out"]
    assert "lies in the adapter's folder" in refused(expunge("audit", model, *files.options, *inside), 2, "usage")
    assert not (tmp_path / "out").exists()


def test_a_plan_takes_the_options_of_the_run(expunge, model: Path, adapter: Path, files: Files, tmp_path: Path):
    asked = ["plan", model, *files.options, "--method", METHOD, "--out", tmp_path / "out", "--json"]
    plain, beside = (json.loads(expunge(*asked, *more).out) for more in ([], ["--adapter", adapter]))
    assert beside["flops"] == plain["flops"]
