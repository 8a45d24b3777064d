"""Plans for image classifiers in a folder, for GGUF files, and for a method that nobody has heard of."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from expunge.core.method import WeightMethod
from expunge.core.model import Model, Network
from expunge.core.question import Scores
from expunge.core.request import Request
from expunge.errors import EnvironmentRefused, ModelRefused
from expunge.events import OnEvent
from expunge.models.gguf import read_packed
from expunge.plan.machine import Machine
from expunge.plan.plan import plan
from expunge.primitives.rehearsal import Rehearsal
from expunge.run.job import Job
from expunge.run.prepare import Inputs
from tests.families import text_request
from tests.plan.test_counts import count, llama, plan_of

SLOW = pytest.mark.skipif(os.environ.get("EXPUNGE_LAWS") != "whole", reason="slow: asked where EXPUNGE_LAWS is whole")


@SLOW
def test_a_whole_plan_of_a_run_on_images(expunge, tmp_path):
    from PIL import Image
    from sklearn.datasets import load_digits
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    digits = load_digits()
    for k in range(40):
        place = tmp_path / "digits" / str(digits.target[k])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[k] * 255 / 16).astype(np.uint8)).save(place / f"{k}.png")
    shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, num_labels=10)
    ViTForImageClassification(ViTConfig(**shape, image_size=8, patch_size=4)).save_pretrained(tmp_path / "model")
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "model")
    asked = [tmp_path / "model", "--forget", tmp_path / "digits", "--forget-class", "3", "--out", tmp_path / "out"]
    for method in ("Finetune(objective=RetainNLL() + Ascent(), steps=4, batch=2, retain_batch=6)", "SSD()"):
        said = expunge("plan", *asked, "--method", method, "--json")
        assert said.code == 0, said.err
        made = json.loads(said.out)
        assert all(value > 0 for value in made["seconds"].values())
        assert made["fits"]
        steps = {"Finetune": 4 * (2 + 6), "SSD()": 0}
        assert made["tokens"]["of the examples"] == next(n for name, n in steps.items() if method.startswith(name))
        assert made["tokens"]["audits"] == 2 * 40
    assert "images" in expunge("plan", *asked, "--method", "SSD()").out


# GGUF


def as_gguf(folder: Path, path: Path, kind: gguf.GGMLQuantizationType) -> Path:
    """The tiny Llama of `folder` in one file, its matrices in blocks of `kind`."""
    module = AutoModelForCausalLM.from_pretrained(folder)
    config = module.config
    backend = json.loads((folder / "tokenizer.json").read_text())["model"]
    out = gguf.GGUFWriter(path, "llama")
    out.add_name("tiny")
    out.add_block_count(config.num_hidden_layers)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_vocab_size(config.vocab_size)
    out.add_tokenizer_model("gpt2")
    out.add_token_list(sorted(backend["vocab"], key=backend["vocab"].get))
    out.add_token_types([1] * len(backend["vocab"]))
    out.add_token_merges([" ".join(pair) for pair in backend["merges"]])
    out.add_eos_token_id(config.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in module.state_dict().items():
        data = value.float().numpy()
        made = gguf.quantize(data, kind) if data.ndim == 2 else data
        out.add_tensor(names.get_name(name, (".weight", ".bias")), made, raw_dtype=kind if data.ndim == 2 else None)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


@pytest.fixture(scope="module")
def file(model, tmp_path_factory) -> Path:
    return as_gguf(model, tmp_path_factory.mktemp("gguf") / "tiny.gguf", gguf.GGMLQuantizationType.Q8_0)


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Inputs:
    root, made = tmp_path_factory.mktemp("records"), {}
    for kind in ("forget", "retain", "holdout"):
        said = [(f"Which {kind} {k}?", f"The {kind} {k * k}.") for k in range(6)]
        rows = [{"id": f"{kind}{k}", "question": q, "answer": a} for k, (q, a) in enumerate(said)]
        made[kind] = root / f"{kind}.jsonl"
        made[kind].write_text("\n".join(map(json.dumps, rows)))
    return Inputs(**made)


def planned_for(model: Path, records: Inputs, machine: Machine, method: str = "Finetune(steps=3)"):
    return plan(Job(str(model), records, model.parent / "never-written", method, "Loss"), machine)


@SLOW
def test_an_edit_that_does_not_fit_is_told_of_what_an_edit_can_change(model, records):
    machine = Machine("cuda", memory=80e9, dtype="float32")
    peaks = [planned_for(model, records, replace(machine, dtype=d), "SSD()").peak for d in ("float32", "bfloat16")]
    assert peaks[1] < peaks[0]
    with pytest.raises(EnvironmentRefused, match=r"It would fit with --dtype bfloat16\.$"):
        planned_for(model, records, replace(machine, memory=sum(peaks) / 2), "SSD()")
    with pytest.raises(EnvironmentRefused, match="No setting of the run would make it fit"):
        planned_for(model, records, replace(machine, memory=peaks[1] / 2), "SSD()")


def test_a_gguf_file_is_planned_as_the_folder_it_was_made_from(model, file, records):
    machine = Machine("cuda", memory=80e9)
    folder, single = (planned_for(place, records, machine) for place in (model, file))
    assert single.paper.parameters == folder.paper.parameters
    assert single.flops == folder.flops
    assert single.tokens == folder.tokens
    assert single.paper.dtype == torch.float32  # transformers widens blocks to float32, whatever the device


def test_loading_a_gguf_file_holds_the_file_and_one_tensor_twice(model, file, records):
    header = read_packed(file)
    table = max(p.numel() for p in AutoModelForCausalLM.from_pretrained(model).parameters())
    assert sum(header.kinds.values()) == sum(
        p.numel() for p in AutoModelForCausalLM.from_pretrained(model).parameters()
    )
    assert header.beside == file.stat().st_size + 2 * 4 * table
    made = planned_for(file, records, Machine(memory=80e9, rate=1e12))
    assert sum(made.phases["load"].values()) == made.base + 4 * made.paper.parameters + header.beside
    there = planned_for(file, records, Machine("cuda", memory=80e9))
    assert "load" not in there.phases  # it is widened on the host
    assert there.host == 4 * made.paper.parameters + header.beside


def test_a_file_with_fewer_numbers_than_it_describes_is_refused(model, file):
    header = read_packed(file)
    header.check("x", sum(header.kinds.values()))
    with pytest.raises(ModelRefused, match="hold .* numbers, and the network that it describes has"):
        header.check("x", sum(header.kinds.values()) + 1)


def test_a_torn_gguf_file_is_refused(file, tmp_path):
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ModelRefused, match="its header is not that of a GGUF file"):
        read_packed(torn)


# A method of somebody else's


@dataclass(frozen=True)
class Shake(WeightMethod):
    """Steps of plain gradient descent on the output matrix alone, each after a look at what the original says."""

    steps: int = 40

    def change(self, network: Network, request: Request, on_event: OnEvent) -> Model:
        fork = network.fork()
        matrix = fork.module.get_output_embeddings().weight
        matrix.requires_grad_(True)
        for _ in range(self.steps):
            with torch.no_grad():
                network.ask(Scores(), request.retain)
            fork.ask(Scores(), request.forget).nll().backward()
            matrix.grad = None
        return fork

    def rehearse(self, model: Model, request: Request, rehearsal: Rehearsal) -> Model:
        few = min(self.steps, rehearsal.most)
        rehearsal.times = rehearsal.before = self.steps / few
        return replace(self, steps=few)(model, request)


@pytest.mark.parametrize("steps", [3, 40])
def test_a_method_from_outside_is_planned_without_an_edit_here(steps: int):
    request_ = text_request()
    made = plan_of(llama(), Shake(steps), request_)
    real, positions = count(llama(), Shake(steps), request_)
    assert made.tokens["training"] == positions
    assert made.flops["total"] - made.flops["audits"] == pytest.approx(real, rel=0.001)
    assert made.costs[1] == 400 * 32
    # the gradient is the matrix's; nothing is copied
    assert made.phases["forget"]["state"] < 4 * 4 * 400 * 32
