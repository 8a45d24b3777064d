"""Runs of other kinds than a Llama's: GPT-2's weights are [in, out], a picture is no text, experts are fused."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from expunge import open_model, unlearn
from expunge.core.question import Scores
from expunge.errors import ModelRefused, UsageRefused
from expunge.export.lora import LoraJob, export_lora
from expunge.models.vision import ImageClassifier
from tests.data.pictures import reads
from tests.families import family_of

STEPS = "learning_rate=0.01, steps=2, batch=4, stop=Stop(level=None, max_retain_increase=None, every=2)"


def run_of(family: str, adapter: str, folder: Path) -> Path:
    """The folder of a run, beside that of its base, both made in Python."""
    network, request = family_of(family)
    if isinstance(network, ImageClassifier):
        network = replace(network, processor=reads())
    network.save(folder / "base")
    method = f"Finetune(objective=Ascent(), adapter={adapter}, {STEPS})"
    report = unlearn(open_model(folder / "base"), request, method, "Loss()", added_probes=False)
    return report.save(folder / "run")


@pytest.mark.parametrize(
    ("family", "adapter"),
    [("gpt2", "LoRA(rank=2)"), ("gpt2", "Bounded(rank=2)"), ("vit", "Bounded(rank=2)")],
)
def test_a_whole_update_comes_back_through_peft(family: str, adapter: str, tmp_path: Path):
    run = run_of(family, adapter, tmp_path)
    made = export_lora(LoraJob(run, 64, tmp_path / "lora", base=str(tmp_path / "base")))
    assert made.cut.error < 1e-5
    base, forgotten = (open_model(folder) for folder in (tmp_path / "base", run / "model"))
    adapted = PeftModel.from_pretrained(copy.deepcopy(base.module), str(tmp_path / "lora"))
    _, request = family_of(family)
    before, after, served = (
        each.ask(Scores(), request.forget).logits for each in (base, forgotten, base.fork(adapted.merge_and_unload()))
    )
    assert float((before - after).abs().max()) > 1e-3
    assert torch.allclose(after, served, atol=1e-4)


def test_of_an_image_classifier_the_card_says_that_no_scores_were_compared(tmp_path: Path):
    run = run_of("vit", "Bounded(rank=2)", tmp_path)
    job = LoraJob(run, 1, tmp_path / "lora", base=str(tmp_path / "base"))
    assert export_lora(job).logits is None
    card = (tmp_path / "lora" / "README.md").read_text()
    assert "not measured, as an image classifier reads no texts" in card
    assert "pipeline_tag: image-classification" in card
    texts = LoraJob(run, 1, tmp_path / "other", base=str(tmp_path / "base"), texts=Path(__file__))
    with pytest.raises(UsageRefused, match="reads no texts"):
        export_lora(texts)
    assert not (tmp_path / "other").exists()


def test_an_update_of_fused_experts_is_refused(tmp_path: Path):
    run = run_of("mixtral", "Bounded(rank=2)", tmp_path)
    with pytest.raises(ModelRefused, match="is no linear layer of its own"):
        export_lora(LoraJob(run, 2, tmp_path / "lora", base=str(tmp_path / "base")))
    assert not (tmp_path / "lora").exists()
