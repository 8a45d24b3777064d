"""An adapter given beside its base: merged as peft merges it, or refused in a line."""

import copy
import json
import math
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from expunge import open_model
from expunge.adapters._bounded_config import BoundedConfig
from expunge.core.model import Network
from expunge.core.request import Request
from expunge.data.text import Passage
from expunge.errors import ModelRefused, UsageRefused
from expunge.notation.parse import parse
from expunge.runtime.atomic_files import write_manifest
from expunge.train.checkpoint import Checkpoints, facts
from tests.conftest import save_model

TARGETS = ["q_proj", "down_proj"]
LORA, BOUNDED = LoraConfig(r=2, target_modules=TARGETS), BoundedConfig(r=2, target_modules=TARGETS)
KIND = pytest.mark.parametrize("config", [LORA, BOUNDED], ids=["LoRA", "Bounded"])
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def put(config: PeftConfig, base: Any, folder: Path, seed: int = 1) -> Path:
    """An adapter far from its start, saved."""
    draw = torch.Generator().manual_seed(seed)
    adapted = get_peft_model(base, copy.deepcopy(config))  # peft writes the base's name into it
    for name, parameter in adapted.named_parameters():
        if "_A" in name or "_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=draw) * 0.2
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


def read(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def saved(base: Path, tmp_path_factory) -> dict[str, Path]:
    """An adapter of each kind, for this base."""
    place = tmp_path_factory.mktemp("adapters")
    return {config.peft_type.value: put(config, read(base), place / config.peft_type) for config in (LORA, BOUNDED)}


@pytest.fixture
def adapter(config: PeftConfig, saved: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of one, to be damaged."""
    return shutil.copytree(saved[config.peft_type.value], tmp_path / "adapter")


def said(network: Network) -> torch.Tensor:
    with torch.inference_mode():
        return network.module(input_ids=TOKENS).logits


@KIND
def test_the_network_is_the_one_that_peft_merges(base: Path, config: PeftConfig, adapter: Path):
    theirs = PeftModel.from_pretrained(read(base), str(adapter)).merge_and_unload().state_dict()
    network = open_model(base, adapter=adapter)
    ours = network.module.state_dict()
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) <= 1e-6
    assert not torch.allclose(said(network), said(open_model(base)), atol=1e-2)
    assert not any(parameter.requires_grad for parameter in network.module.parameters())
    assert network.adapter.kind == config.peft_type
    assert network.adapter.name == "adapter"


@KIND
def test_it_is_saved_as_a_plain_model_and_read_back_the_same(base: Path, config, adapter: Path, tmp_path: Path):
    network = open_model(base, adapter=adapter)
    network.save(tmp_path / "merged")
    again = open_model(tmp_path / "merged")
    assert again.fingerprint() == network.fingerprint()
    assert again.adapter is None


@KIND
def test_weights_are_merged_in_float32_and_rounded_to_the_precision_of_the_file(base, config, tmp_path: Path):
    half = shutil.copytree(base, tmp_path / "half")
    read(base).bfloat16().save_pretrained(half)
    adapter = put(config, read(half), tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(read(half), str(adapter)).merge_and_unload().bfloat16().float().state_dict()
    network = open_model(half, adapter=adapter)
    for name, weight in network.module.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, theirs[name])
    written = open_model(half, adapter=adapter, dtype="float32")  # the precision that is written has no say in it
    assert written.fingerprint() == network.fingerprint()


def test_an_image_classifier_takes_one_too(tmp_path: Path):
    torch.manual_seed(0)
    shape = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, num_labels=3)
    module = ViTForImageClassification(ViTConfig(**shape, image_size=8, patch_size=4)).eval()
    module.save_pretrained(tmp_path / "model")
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "model")
    put(LoraConfig(r=2, target_modules=["fc1"], modules_to_save=["classifier"]), module, tmp_path / "adapter")
    again = ViTForImageClassification.from_pretrained(tmp_path / "model")
    theirs = PeftModel.from_pretrained(again, str(tmp_path / "adapter")).merge_and_unload().state_dict()
    ours = open_model(tmp_path / "model", adapter=tmp_path / "adapter").module.state_dict()
    assert max(float((ours[name] - weight).abs().max()) for name, weight in theirs.items()) <= 1e-6


# Another base


@pytest.mark.parametrize(("layers", "width"), [(1, 64), (3, 64), (2, 48)], ids=["shallower", "deeper", "narrower"])
@KIND
def test_a_base_of_another_form_is_refused_in_a_line(config, saved, layers: int, width: int, tmp_path: Path):
    module = read(save_model(tmp_path / "other"))
    module.config.num_hidden_layers, module.config.intermediate_size = layers, width
    type(module)(module.config).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelRefused, match=r"made for (another|this) model|no layer|for another model") as refused:
        open_model(tmp_path / "other", adapter=saved[config.peft_type.value])
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(str(saved[config.peft_type.value]))


def test_a_bounded_adapter_knows_its_base_by_its_weights(saved: dict[str, Path], tmp_path: Path):
    other = save_model(tmp_path / "other", seed=7)
    with pytest.raises(ModelRefused, match="its weights are others"):
        open_model(other, adapter=saved["BOUNDED"])


def test_a_manifest_tells_the_base_of_a_lora(base: Path, saved: dict[str, Path], tmp_path: Path):
    adapter = shutil.copytree(saved["LORA"], tmp_path / "adapter")
    (adapter / "README.md").unlink()
    write_manifest(adapter, base=open_model(base).fingerprint())
    assert open_model(base, adapter=adapter).adapter.kind == "LORA"
    with pytest.raises(ModelRefused, match=r"made for another model: MANIFEST\.json names another SHA-256"):
        open_model(save_model(tmp_path / "other", seed=7), adapter=adapter)


@pytest.mark.parametrize("held", [torch.bfloat16, torch.float32])
def test_a_base_in_half_precision_is_known_in_whichever_it_was_held(held: torch.dtype, base, tmp_path: Path):
    """On a GPU a run holds the precision of the file, on a CPU float32."""
    half = shutil.copytree(base, tmp_path / "half")
    read(base).bfloat16().save_pretrained(half)
    adapter = put(LORA, read(half), tmp_path / "adapter")
    (adapter / "README.md").unlink()
    network = open_model(half)
    write_manifest(adapter, base=replace(network, module=network.module.to(held)).fingerprint())
    assert open_model(half, adapter=adapter).adapter is not None


# Damage


def settings(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        held = load_file(file)
        change(held)
        save_file(held, file, metadata={"format": "pt"})

    return apply


def manifest_then(change: Callable[[Path], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        write_manifest(folder, base=None)
        change(folder)

    return apply


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (tensors(lambda held: held.pop(sorted(held)[0])), r"lacks 1 of LlamaForCausalLM|no weights for 1|SHA-256"),
        (
            tensors(lambda held: held.update(strange=torch.ones(2))),
            r"1 tensors without a place|unknown|no layer|SHA-256",
        ),
        (tensors(lambda held: held[sorted(held)[0]].fill_(math.nan)), "cannot be loaded|NaN|SHA-256"),
        (settings(r=4), "cannot be loaded|SHA-256"),
        (settings(peft_type="IA3"), r"`peft_type` must be one of LORA, BOUNDED\. Got 'IA3'"),
        (settings(megatron_config={"a": 1}), "has `megatron_config`, which is not read"),
        (settings(layer_replication=[[0, 2], [0, 2]]), "has `layer_replication`, which is not read"),
        (lambda folder: (folder / "adapter_config.json").unlink(), r"adapter_config\.json is not there"),
        (lambda folder: (folder / "adapter_config.json").write_text("["), r"is not JSON"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), r"safetensors is not there.*pickled"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"\xff" * 9), "cannot be loaded|damaged"),
        (manifest_then(settings(r=4)), r"adapter_config\.json is not the file that was written"),
    ],
)
@KIND
def test_a_damaged_adapter_is_refused_in_a_line(base: Path, config, adapter: Path, change, words: str):
    change(adapter)
    with pytest.raises(ModelRefused, match=words) as refused:
        open_model(base, adapter=adapter)
    assert "\n" not in str(refused.value)


def test_a_weight_that_two_layers_share_is_not_changed_for_one_of_them(base: Path, tmp_path: Path):
    module = read(base)
    module.config.tie_word_embeddings = True
    tied = shutil.copytree(base, tmp_path / "tied")
    type(module)(module.config).save_pretrained(tied)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of it
        adapter = put(LoraConfig(r=2, target_modules=["lm_head"]), read(tied), tmp_path / "adapter")
    with pytest.raises(ModelRefused, match="changes lm_head, whose weight another layer has too.*Untie"):
        open_model(tied, adapter=adapter)


def test_what_is_no_folder_and_what_is_no_transformers_model_are_refused(base: Path, saved, tmp_path: Path):
    with pytest.raises(UsageRefused, match="no such folder"):
        open_model(base, adapter=tmp_path / "none")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "model.json").write_text("{}")
    with pytest.raises(UsageRefused, match="made of other models"):
        open_model(tmp_path / "made", adapter=saved["LORA"])


def test_other_kinds_of_peft_are_merged_by_peft(base: Path, tmp_path: Path):
    config = IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    get_peft_model(read(base), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelRefused, match=r"Got 'IA3'.*merge_and_unload"):
        open_model(base, adapter=tmp_path / "adapter")


# A run that goes on


def test_a_run_with_another_adapter_or_with_none_is_another_run(base: Path, saved: dict[str, Path], tmp_path: Path):
    texts = (Passage("a", (3, 1, 4, 1), 2, "", "a"),)
    request, method = Request(forget=texts), parse("Finetune()")
    lora, bounded = (open_model(base, adapter=saved[kind]) for kind in ("LORA", "BOUNDED"))
    assert facts(method, lora, request)["adapter"] == lora.adapter.digest
    folder = tmp_path / "run" / "step-000001"
    folder.mkdir(parents=True)
    write_manifest(folder, step=1, processes=1, run=facts(method, lora, request))
    kept = Checkpoints(tmp_path / "run", resume=True)
    kept.compare(method, lora, request)
    for other in (bounded, open_model(base)):
        with pytest.raises(ModelRefused, match="its model and its adapter differ"):
            kept.compare(method, other, request)
    same_weights = replace(lora, adapter=replace(lora.adapter, digest="0" * 64))
    with pytest.raises(ModelRefused, match="its adapter differs"):
        kept.compare(method, same_weights, request)
