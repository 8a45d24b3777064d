"""What of a difference of weights a LoRA can hold: orientation, tied weights, and what is left out."""

import copy
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from expunge.errors import ModelRefused
from expunge.export.lora import targets, write_lora
from expunge.export.updates import cut_difference
from tests.families import gpt2, llama

BLOCK = "transformer.h.0."


def test_weights_that_are_in_by_out_come_back_through_peft():
    before, after = gpt2(), gpt2()
    draw = torch.Generator().manual_seed(1)
    weight = after.module.get_submodule(f"{BLOCK}mlp.c_fc").weight  # [in, out]: not square, so a slip would show
    first, second = (torch.randn(size, generator=draw) for size in weight.shape)
    assert weight.shape[0] != weight.shape[1]
    weight.data = weight + torch.outer(first, second)
    cut = cut_difference(before, after, rank=1)
    assert set(cut.layers) == {f"{BLOCK}mlp.c_fc"}
    assert cut.error < 1e-5


def test_what_peft_merges_is_the_changed_network(tmp_path: Path):
    before, after = gpt2(), gpt2()
    for name in ("mlp.c_fc", "mlp.c_proj"):
        weight = after.module.get_submodule(f"{BLOCK}{name}").weight
        weight.data = weight + 0.1
    cut = cut_difference(before, after, rank=2)
    write_lora(cut, before, "org/name@main", tmp_path)
    adapted = PeftModel.from_pretrained(copy.deepcopy(before.module), str(tmp_path))
    assert (adapted.peft_config["default"].base_model_name_or_path, cut.rank) == ("org/name", 2)
    merged = adapted.merge_and_unload().state_dict()
    for name, weight in after.module.state_dict().items():
        assert torch.allclose(merged[name], weight, atol=1e-5), name


def test_what_no_lora_holds_is_left_out_and_counts_as_lost():
    before, after = gpt2(), gpt2()
    after.module.transformer.h[0].mlp.c_fc.weight.data += torch.eye(
        *after.module.transformer.h[0].mlp.c_fc.weight.shape
    )
    after.module.transformer.ln_f.bias.data[0] += 3.0
    after.module.transformer.wte.weight.data[0, 0] += 4.0  # the output matrix too, which is a linear layer
    cut = cut_difference(before, after, rank=64)
    assert sorted(cut.left_out) == ["transformer.ln_f.bias", "transformer.wte.weight"]
    moved = min(after.module.transformer.h[0].mlp.c_fc.weight.shape)  # ones on the diagonal
    assert cut.error == pytest.approx(math.sqrt((3**2 + 4**2) / (moved + 3**2 + 4**2)), rel=1e-4)
    assert cut.worst[1] < 1e-5


def test_a_weight_that_two_layers_share_is_left_out_as_a_merge_would_change_both():
    before, after = llama(), llama()
    for network in (before, after):
        first, second = (block.mlp.up_proj for block in network.module.model.layers)
        second.weight = first.weight
        network.module.model.layers[0].mlp.down_proj.weight.data += float(network is after)
    after.module.model.layers[0].mlp.up_proj.weight.data += 1.0
    cut = cut_difference(before, after, rank=1)
    assert (set(cut.layers), set(cut.left_out)) == (
        {"model.layers.0.mlp.down_proj"},
        {"model.layers.0.mlp.up_proj.weight"},
    )


def test_networks_that_differ_in_no_linear_layer_or_in_shape_are_refused():
    before, after = gpt2(), gpt2()
    with pytest.raises(ModelRefused, match="changed nothing"):
        cut_difference(before, after, rank=2)
    after.module.transformer.ln_f.bias.data[0] += 3.0
    with pytest.raises(ModelRefused, match=r"changed only transformer\.ln_f\.bias"):
        cut_difference(before, after, rank=2)
    with pytest.raises(ModelRefused, match="other tensors"):
        cut_difference(before, llama(), rank=2)


def test_layers_are_named_by_their_endings_only_where_no_other_layer_has_one():
    module = llama().module
    every = {name for name, _ in module.named_modules() if name.endswith(("up_proj", "down_proj"))}
    assert targets(module, every) == ["down_proj", "up_proj"]
    some = every - {max(every)}
    assert targets(module, some) == sorted(some)
