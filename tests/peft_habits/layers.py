"""What users of peft write to choose layers and their ranks."""

from __future__ import annotations

import copy
import warnings

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForSequenceClassification, GPT2Config, LlamaConfig, Olmo3Config

from tests.peft_habits.kinds import (
    SIZES,
    WORKS,
    Habit,
    Kind,
    _built,
    answer,
    expect,
    folder,
    llama,
    mixtral,
    named,
    near,
    put,
    shake,
    targets,
)


def names_of_layers(kind: Kind) -> str:
    return expect(targets(put(kind, target_modules=["up_proj"])) == named(endings=("up_proj",)))


def a_regular_expression(kind: Kind) -> str:
    return expect(
        targets(put(kind, target_modules=r".*\.1\.mlp\.(up|down)_proj")) == named((1,), ("up_proj", "down_proj"))
    )


def all_linear(kind: Kind) -> str:
    model = put(kind, target_modules="all-linear")
    return expect(len(targets(model)) == 2 * 7 and not any("lm_head" in name for name in targets(model)))


def all_linear_twice(kind: Kind) -> str:
    model = put(kind, target_modules="all-linear")
    model.add_adapter("second", kind(target_modules="all-linear"))
    layers = [part for part in model.modules() if isinstance(part, BaseTunerLayer)]
    return expect(all("second" in layer._get_available_adapters() for layer in layers))


def default_targets(kind: Kind) -> str:
    model = put(kind, target_modules=None)
    return f"{WORKS}: " + ", ".join(sorted({name.rpartition(".")[2] for name in targets(model)}))


def default_targets_of_any_architecture(kind: Kind) -> str:
    sizes = {**SIZES, "num_hidden_layers": 2, "num_key_value_heads": 4, "pad_token_id": 0}
    return expect(len(targets(put(kind, _built(Olmo3Config, 0, tuple(sizes.items())), target_modules=None))) > 0)


def exclusions(kind: Kind) -> str:
    return expect(targets(put(kind, exclude_modules=["gate_proj"])) == named(endings=("up_proj", "down_proj")))


def some_blocks(kind: Kind) -> str:
    return expect(targets(put(kind, layers_to_transform=[1])) == named((1,)))


def some_blocks_of_a_list(kind: Kind) -> str:
    return expect(targets(put(kind, layers_to_transform=1, layers_pattern="layers")) == named((1,)))


def some_blocks_and_default_targets(kind: Kind) -> str:
    model = put(kind, target_modules=None, layers_to_transform=[1])
    found = targets(shake(model))
    with folder(model) as path:
        again = PeftModel.from_pretrained(llama(), path).eval()
    return expect(bool(found) and all(".1." in name for name in found) and near(answer(again), answer(model)))


def blocks_beside_whole_names(kind: Kind) -> str:
    found = targets(put(kind, target_modules=sorted(named()), layers_to_transform=[1]))
    return expect(found == named((1,)), "`layers_to_transform` ignored in silence")


def a_name_that_is_not_there(kind: Kind) -> str:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        put(kind, target_modules=["up_proj", "dwon_proj"])
    return "warned" if any("dwon_proj" in str(each.message) for each in said) else "ignored in silence"


def ranks_of_single_layers(kind: Kind) -> str:
    model = put(kind, rank_pattern={"up_proj": 2})
    shapes = {len(p) for name, p in model.named_parameters() if "up_proj" in name and "_A." in name}
    others = {len(p) for name, p in model.named_parameters() if "down_proj" in name and "_A." in name}
    return expect((shapes, others) == ({2}, {4}))


def alphas_of_single_layers(kind: Kind) -> str:
    plain, other = shake(put(kind)), shake(put(kind, alpha_pattern={r"layers\.0\.mlp\.up_proj": 16.0}))
    ratios = []
    for layer in (0, 1):
        name = f"base_model.model.model.layers.{layer}.mlp.up_proj"
        deltas = [model.get_submodule(name).get_delta_weight("default") for model in (plain, other)]
        ratios.append(round(float((deltas[1] / deltas[0]).mean()), 4))
    return expect(ratios == [2.0, 1.0])


def a_random_start(kind: Kind) -> str:
    base = answer(llama())
    return expect(
        not near(answer(put(kind, init=False)), base, 1e-4) and near(answer(put(kind, init="gaussian")), base)
    )


def gpt2(kind: Kind) -> str:
    base = _built(GPT2Config, 0, tuple({"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4}.items()))
    plain = answer(base)
    model = shake(put(kind, copy.deepcopy(base), target_modules=["c_fc"]))
    apart = answer(model)
    return expect(not near(apart, plain, 1e-3) and near(answer(model.merge_and_unload()), apart))


def fused_experts(kind: Kind) -> str:
    model = put(kind, mixtral(), target_modules=[], target_parameters=["mlp.experts.down_proj"])
    apart = answer(shake(model))
    with folder(model) as path:
        again = PeftModel.from_pretrained(mixtral(), path).eval()
    merged = answer(model.merge_and_unload())
    return expect(near(answer(again), apart) and near(merged, apart) and not near(apart, answer(mixtral()), 1e-3))


def both_tensors_of_experts_by_two_adapters(kind: Kind) -> str:
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    model = put(kind, mixtral(), target_modules=[], target_parameters=names)
    model.add_adapter("second", kind(target_modules=[], target_parameters=names))
    first = answer(shake(model))
    model.set_adapter("second")
    second = answer(model)
    model.set_adapter("default")
    return expect(near(answer(model), first) and not near(first, second, 1e-4))


def whole_modules(kind: Kind) -> str:
    model = put(kind, modules_to_save=["lm_head"])
    moving = {name for name, p in model.named_parameters() if p.requires_grad and "lm_head" in name}
    shake(model)
    for name, parameter in model.named_parameters():
        if name in moving:
            parameter.data += 0.1
    right = answer(model)
    with folder(model) as path:
        again = PeftModel.from_pretrained(llama(), path).eval()
    with model.disable_adapter():
        silent = answer(model)
    return expect(
        len(moving) == 1
        and near(answer(again), right)
        and near(silent, answer(llama()))
        and near(answer(model.merge_and_unload()), right)
    )


def a_classifiers_head(kind: Kind) -> str:
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, num_hidden_layers=2, num_labels=3, pad_token_id=0)
    base = AutoModelForSequenceClassification.from_config(config).eval()
    model = shake(put(kind, copy.deepcopy(base), task_type="SEQ_CLS"))
    moving = [p for name, p in model.named_parameters() if p.requires_grad and "score" in name]
    moving[0].data += 0.1
    with folder(model) as path:
        again = PeftModel.from_pretrained(base, path).eval()
    return expect(len(moving) == 1 and near(answer(again), answer(model)))


HABITS: list[tuple[str, Habit]] = [
    ('`target_modules=["up_proj"]`', names_of_layers),
    ("`target_modules` as a regular expression", a_regular_expression),
    ('`target_modules="all-linear"`', all_linear),
    ("`all-linear` for a second adapter too", all_linear_twice),
    ("no `target_modules`: defaults for a Llama", default_targets),
    ("the same for OLMo 3", default_targets_of_any_architecture),
    ("`exclude_modules`", exclusions),
    ("`layers_to_transform=[1]`", some_blocks),
    ("`layers_to_transform`, `layers_pattern`", some_blocks_of_a_list),
    ("`layers_to_transform` and default targets", some_blocks_and_default_targets),
    ("`layers_to_transform` beside whole names of layers", blocks_beside_whole_names),
    ("a mistyped name beside right ones", a_name_that_is_not_there),
    ("`rank_pattern`", ranks_of_single_layers),
    ("`alpha_pattern`", alphas_of_single_layers),
    ('`init_weights=False`, `"gaussian"` (`init_lora_weights`)', a_random_start),
    ("GPT-2, whose weights are [in, out]", gpt2),
    ("`target_parameters`: one tensor of fused experts", fused_experts),
    ("both tensors, two adapters", both_tensors_of_experts_by_two_adapters),
    ('`modules_to_save=["lm_head"]`', whole_modules),
    ('`task_type="SEQ_CLS"` saves the head', a_classifiers_head),
]
