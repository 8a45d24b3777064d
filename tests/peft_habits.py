"""What users of peft do with an adapter, tried on `Bounded` and on peft's own LoRA side by side.

python -m tests.peft_habits            the table, printed
python -m tests.peft_habits --write    and written into docs/peft.md
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import peft
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.helpers import rescale_adapter_scale
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Olmo3Config,
)

from expunge.adapters._bounded_peft import BoundedConfig
from expunge.errors import Refusal

PAGE = Path(__file__).parents[1] / "docs" / "peft.md"
MARKS = ("<!-- habits -->\n", "<!-- end of habits -->\n")
SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4}
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 7, 1, 8, 2, 8]])
MLP = ["gate_proj", "up_proj", "down_proj"]
WORKS = "works"


@dataclass(frozen=True)
class Kind:
    """One of the two adapters that are compared."""

    name: str
    config: type[PeftConfig]
    alpha: str
    init: str
    extra: tuple[tuple[str, Any], ...] = ()

    def __call__(self, **settings: Any) -> PeftConfig:
        """Its configuration, by LoRA's names of the settings that both have."""
        named = {"alpha": self.alpha, "init": self.init}
        chosen = {"target_modules": MLP, "r": 4, "alpha": 8.0} | settings
        return self.config(**{named.get(key, key): value for key, value in chosen.items()}, **dict(self.extra))


BOUNDED = Kind("Bounded", BoundedConfig, "alpha", "init_weights", (("omega", 10.0),))
LORA = Kind("LoRA", LoraConfig, "lora_alpha", "init_lora_weights")
Habit = Callable[[Kind], str]


@cache
def _built(config: type, seed: int, settings: tuple[tuple[str, Any], ...]) -> nn.Module:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config(**dict(settings))).eval()


def llama(layers: int = 2, seed: int = 0) -> Any:
    return copy.deepcopy(_built(LlamaConfig, seed, tuple({**SIZES, "num_hidden_layers": layers}.items())))


def mixtral() -> Any:
    sizes = {**SIZES, "num_hidden_layers": 2, "num_key_value_heads": 4, "num_local_experts": 3}
    return copy.deepcopy(_built(MixtralConfig, 0, tuple(sizes.items())))


def put(kind: Kind, model: Any = None, **settings: Any) -> Any:
    """A model with a new adapter in it."""
    return get_peft_model(llama() if model is None else model, kind(**settings)).eval()


def shake(model: nn.Module, seed: int = 1) -> Any:
    """Move the adapter far from its start."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if any(word in name for word in ("lora_A", "lora_B", "bounded_A", "bounded_B")):
            parameter.data = torch.randn(parameter.shape, generator=draw).to(parameter) * 0.1
    return model


def answer(model: Any, **settings: Any) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(input_ids=TOKENS, **settings).logits
    return logits


def near(one: Tensor, other: Tensor, within: float = 1e-5) -> bool:
    return bool((one - other).abs().max() <= within)


def targets(model: nn.Module) -> set[str]:
    """The adapted layers, by their names in the model."""
    found = {name for name, part in model.named_modules() if isinstance(part, BaseTunerLayer)}
    return {name.removeprefix("base_model.model.") for name in found if not name.endswith("base_layer")}


def named(layers: tuple[int, ...] = (0, 1), endings: tuple[str, ...] = tuple(MLP)) -> set[str]:
    return {f"model.layers.{layer}.mlp.{ending}" for layer in layers for ending in endings}


def expect(right: bool, otherwise: str = "wrong") -> str:
    return WORKS if right else otherwise


@contextmanager
def folder(model: Any) -> Iterator[Path]:
    """Where the adapter is saved."""
    with tempfile.TemporaryDirectory() as path:
        model.save_pretrained(path)
        yield Path(path)


# Which layers


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


# Using it


def switching_it_off(kind: Kind) -> str:
    model = shake(put(kind))
    before = answer(model)
    with model.disable_adapter():
        silent = answer(model)
    return expect(torch.equal(silent, answer(llama())) and torch.equal(answer(model), before))


def two_adapters(kind: Kind) -> str:
    model = shake(put(kind))
    first = answer(model)
    model.add_adapter("second", kind(r=2, target_modules=["q_proj"]))
    shake(model, 2)
    model.set_adapter("second")
    moving = {
        name.split(".")[-2 if name.endswith("weight") else -1]
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    second = answer(model)
    model.delete_adapter("second")
    return expect(moving == {"second"} and not near(first, second, 1e-4) and "second" not in model.peft_config)


def two_at_once(kind: Kind) -> str:
    model = put(kind)
    model.add_adapter("second", kind(r=2))
    shake(model)
    model.base_model.set_adapter(["default", "second"])
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    moving = [p for name, p in model.named_parameters() if p.requires_grad]
    sums = [
        sum(part.get_delta_weight(name) for name in ("default", "second"))
        for part in model.modules()
        if isinstance(part, BaseTunerLayer)
    ]
    plain = llama()
    for name, delta in zip(
        sorted(named(), key=lambda n: list(dict(plain.named_modules())).index(n)), sums, strict=True
    ):
        plain.get_submodule(name).weight.data += delta
    grown = all(p.grad is not None and p.grad.any() for p in moving)
    return expect(len(moving) == 2 * 2 * 6 and grown and near(answer(model), answer(plain)))


def _mixed(kind: Kind) -> tuple[Any, dict[str, Tensor]]:
    model = put(kind)
    model.add_adapter("second", kind(r=2, target_modules=["q_proj"]))
    shake(model)
    right = {"default": answer(model)}
    model.set_adapter("second")
    right["second"] = answer(model)
    with model.disable_adapter():
        right["__base__"] = answer(model)
    model.set_adapter("default")
    return model, right


def a_mixed_batch(kind: Kind) -> str:
    model, right = _mixed(kind)
    for names in (["second", "default"], ["__base__", "second"]):
        mixed = answer(model, adapter_names=names)
        if not all(near(mixed[row], right[name][row]) for row, name in enumerate(names)):
            return "wrong"
    return expect(near(answer(model), right["default"]))


def a_mixed_batch_written_with_beams(kind: Kind) -> str:
    model, _ = _mixed(kind)
    settings = {"max_new_tokens": 4, "num_beams": 2, "do_sample": False, "pad_token_id": 0}
    mixed = model.generate(input_ids=TOKENS, adapter_names=["second", "default"], **settings)
    alone = model.generate(input_ids=TOKENS[1:], **settings)
    return expect(mixed[1].tolist() == alone[0].tolist())


def a_mixed_batch_with_an_adapter_that_is_not_there(kind: Kind) -> str:
    model, _ = _mixed(kind)
    answer(model, adapter_names=["third", "default"])
    return "ignored in silence"


def a_mixed_batch_of_fused_experts(kind: Kind) -> str:
    model = shake(put(kind, mixtral(), target_modules=[], target_parameters=["mlp.experts.down_proj"]))
    answer(model, adapter_names=["__base__", "default"])
    return "ignored in silence"


def a_weighted_sum(kind: Kind) -> str:
    model = put(kind)
    model.add_adapter("second", kind())
    shake(model)
    model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "both", combination_type="cat")
    model.set_adapter("both")
    return expect(answer(model).isfinite().all())


def merging_and_unmerging(kind: Kind) -> str:
    model = shake(put(kind))
    apart = answer(model)
    model.merge_adapter()
    merged = answer(model)
    model.unmerge_adapter()
    if not near(merged, apart) or not near(answer(model), apart):
        return "wrong"
    weights = dict(model.get_base_model().named_parameters())
    original = dict(llama().named_parameters())
    back = all(torch.equal(p, original[n.replace(".base_layer", "")]) for n, p in weights.items() if "base_layer" in n)
    return f"{WORKS}, {'to the bit' if back else 'up to rounding'}"


def merging_for_good(kind: Kind) -> str:
    model = shake(put(kind))
    apart = answer(model)
    merged = model.merge_and_unload(safe_merge=True)
    return expect(near(answer(merged), apart) and not targets(merged))


def merging_a_broken_adapter(kind: Kind) -> str:
    model = shake(put(kind))
    next(p for p in model.parameters() if p.requires_grad).data.fill_(float("nan"))
    merged = model.merge_and_unload()
    return expect(bool(answer(merged).isfinite().all()), "merged: the model answers NaN")


def unloading(kind: Kind) -> str:
    plain = shake(put(kind)).unload()
    return expect(torch.equal(answer(plain), answer(llama())) and not targets(plain))


def status(kind: Kind) -> str:
    model = put(kind)
    whole, layers = model.get_model_status(), model.get_layer_status()
    moving, total = model.get_nb_trainable_parameters()
    right = whole.enabled is True and whole.active_adapters == ["default"] and whole.trainable_params == moving
    return expect(right and moving == 2 * 3 * 4 * (16 + 24) and total > moving and len(layers) == 6)


def scaling(kind: Kind) -> str:
    model = shake(put(kind))
    before = answer(model)
    with rescale_adapter_scale(model, 0.0):
        silent = answer(model)
    return expect(near(silent, answer(llama())) and near(answer(model), before))


def two_kinds_in_one_model(kind: Kind) -> str:
    model: Any = get_peft_model(llama(), kind(), mixed=True)
    model.add_adapter("other", peft.LoHaConfig(target_modules=["q_proj"], r=2))
    return WORKS


def becoming_a_lora(kind: Kind) -> str:
    model = shake(put(kind))
    peft.convert_to_lora(model, rank=4)
    return WORKS


# Training


def _gradients(model: Any, **context: Any) -> dict[str, Tensor]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, **context):
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def autocast(kind: Kind) -> str:
    model = shake(put(kind))
    right, rounded = _gradients(model, enabled=False), _gradients(model, enabled=True)
    close = all((rounded[n] - g).norm() < 0.1 * g.norm() for n, g in right.items())
    return expect(len(right) == 12 and close and all(g.dtype == torch.float32 for g in rounded.values()))


def checkpointing(kind: Kind) -> str:
    model = shake(put(kind)).train()
    right = _gradients(model, enabled=False)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = _gradients(model, enabled=False)
    return expect(right.keys() == again.keys() and all(near(again[n], g, 1e-6) for n, g in right.items()))


def a_base_in_bfloat16(kind: Kind) -> str:
    model = shake(put(kind, llama().bfloat16()))
    factors = {p.dtype for p in model.parameters() if p.requires_grad}
    right = all(gradient.isfinite().all() for gradient in _gradients(model, enabled=False).values())
    return expect(factors == {torch.float32} and right and answer(model).dtype == torch.bfloat16)


def freezing_one_adapter(kind: Kind) -> str:
    model = put(kind)
    model.set_requires_grad("default", requires_grad=False)
    still = not any(p.requires_grad for p in model.parameters())
    model.set_requires_grad("default")
    return expect(still and sum(p.requires_grad for p in model.parameters()) == 12)


def copying(kind: Kind) -> str:
    model = shake(put(kind))
    other = copy.deepcopy(model)
    before = answer(model)
    shake(other, 5)
    return expect(torch.equal(answer(model), before) and not near(answer(other), before, 1e-4))


# Files


def saving_and_loading(kind: Kind) -> str:
    model = shake(put(kind))
    with folder(model) as path:
        again = PeftModel.from_pretrained(llama(), path).eval()
    return expect(torch.equal(answer(again), answer(model)) and not any(p.requires_grad for p in again.parameters()))


def training_on(kind: Kind) -> str:
    model = shake(put(kind))
    with folder(model) as path:
        again = PeftModel.from_pretrained(llama(), path, is_trainable=True)
    return expect(sum(p.requires_grad for p in again.parameters()) == 12 and near(answer(again.eval()), answer(model)))


def loading_a_second(kind: Kind) -> str:
    model, other = shake(put(kind)), shake(put(kind, r=2), 2)
    with folder(other) as path:
        model.load_adapter(path, "second")
    first = answer(model)
    model.set_adapter("second")
    return expect(near(answer(model), answer(other)) and not near(first, answer(other), 1e-4))


def loading_without_a_copy(kind: Kind) -> str:
    model = shake(put(kind))
    with folder(model) as path:
        again = PeftModel.from_pretrained(llama(), path, low_cpu_mem_usage=True).eval()
    return expect(torch.equal(answer(again), answer(model)))


def loading_without_a_copy_into_bfloat16(kind: Kind) -> str:
    model = shake(put(kind))
    with folder(model) as path:
        again = PeftModel.from_pretrained(llama().bfloat16(), path, low_cpu_mem_usage=True)
    state, right = (peft.get_peft_model_state_dict(each) for each in (again, model))
    return expect(all(torch.equal(state[name], right[name]) for name in right), "factors rounded to bfloat16")


def loading_with_its_base(kind: Kind) -> str:
    with tempfile.TemporaryDirectory() as base:
        llama().save_pretrained(base)
        model = shake(put(kind, AutoModelForCausalLM.from_pretrained(base).eval()))
        with folder(model) as path:
            again = AutoPeftModelForCausalLM.from_pretrained(path).eval()
    return expect(near(answer(again), answer(model)))


def adapters_of_transformers(kind: Kind) -> str:
    model, plain = shake(put(kind)), llama()
    with folder(model) as path:
        plain.load_adapter(str(path))
    return expect(near(answer(plain), answer(model)))


def injecting(kind: Kind) -> str:
    model = shake(peft.inject_adapter_in_model(kind(), llama()))
    state = peft.get_peft_model_state_dict(model)
    other = peft.inject_adapter_in_model(kind(), llama())
    peft.set_peft_model_state_dict(other, state)
    return expect(torch.equal(answer(other), answer(model)) and len(state) == 12)


def a_base_in_another_precision(kind: Kind) -> str:
    model = shake(put(kind))
    with folder(model) as path:
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            again = PeftModel.from_pretrained(llama().to(dtype), path).eval()
            if not near(answer(again).float(), answer(model), 0.05):
                return "wrong"
    return WORKS


def the_same_files_twice(kind: Kind) -> str:
    model = shake(put(kind, target_modules="all-linear"))
    texts = []
    for _ in range(2):
        with folder(model) as path:
            texts.append((path / "adapter_config.json").read_text())
    names = json.loads(texts[0])["target_modules"]
    return expect(texts[0] == texts[1] and names == sorted(names), "their lists in any order")


def exchanging_while_it_runs(kind: Kind) -> str:
    model, other = shake(put(kind)), shake(put(kind), 2)
    with folder(other) as path:
        hotswap_adapter(model, path, "default")
    return expect(near(answer(model), answer(other)))


# What should not be loaded


def _load(kind: Kind, base: nn.Module, change: Callable[[Path], None] = lambda _: None, **settings: Any) -> str:
    """Load an adapter of a Llama of two layers into another model, or from changed files."""
    model = shake(put(kind, **settings))
    with folder(model) as path, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        change(path)
        PeftModel.from_pretrained(base, path)
    return (
        "accepted, with a warning"
        if any("adapter keys" in str(each.message) for each in said)
        else "accepted in silence"
    )


def _change_tensors(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        file = path / "adapter_model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    return apply


def _change_settings(**settings: Any) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        file = path / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))

    return apply


def _swap(tensors: dict[str, Tensor]) -> None:
    first, second = [name for name in tensors if "up_proj" in name and "_A" in name]
    tensors[first], tensors[second] = tensors[second], tensors[first]


def a_deeper_base(kind: Kind) -> str:
    return _load(kind, llama(layers=3))


def a_shallower_base(kind: Kind) -> str:
    return _load(kind, llama(layers=1))


def a_base_with_other_weights(kind: Kind) -> str:
    return _load(kind, llama(seed=7))


def a_base_with_other_weights_by_transformers(kind: Kind) -> str:
    with folder(shake(put(kind))) as path:
        llama(seed=7).load_adapter(str(path))
    return "accepted in silence"


def a_file_without_some_tensors(kind: Kind) -> str:
    return _load(kind, llama(), _change_tensors(lambda tensors: tensors.pop(next(iter(tensors)))))


def a_file_with_tensors_too_many(kind: Kind) -> str:
    return _load(kind, llama(), _change_tensors(lambda tensors: tensors.update(strange=torch.ones(2))))


def a_file_whose_layers_were_exchanged(kind: Kind) -> str:
    return _load(kind, llama(), _change_tensors(_swap))


def a_file_with_nan(kind: Kind) -> str:
    return _load(kind, llama(), _change_tensors(lambda tensors: next(iter(tensors.values())).fill_(float("nan"))))


def another_rank_in_the_settings(kind: Kind) -> str:
    return _load(kind, llama(), _change_settings(r=2))


def another_alpha_in_the_settings(kind: Kind) -> str:
    return _load(kind, llama(), _change_settings(**{kind.alpha: 64.0}))


def a_setting_of_a_later_version(kind: Kind) -> str:
    return _load(kind, llama(), _change_settings(later=1))


def a_whole_module_that_is_missing(kind: Kind) -> str:
    def drop(tensors: dict[str, Tensor]) -> None:
        del tensors["base_model.model.lm_head.weight"]

    return _load(kind, llama(), _change_tensors(drop), modules_to_save=["lm_head"])


HABITS: dict[str, list[tuple[str, Habit]]] = {
    "Which layers": [
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
    ],
    "Using it": [
        ("`disable_adapter()`", switching_it_off),
        ("`add_adapter`, `set_adapter`, `delete_adapter`", two_adapters),
        ("two active at once: the sum, and gradients for both", two_at_once),
        ("`adapter_names=[...]`, a mixed batch", a_mixed_batch),
        ("the same in `generate` with beams", a_mixed_batch_written_with_beams),
        ("`adapter_names` with an adapter that is not there", a_mixed_batch_with_an_adapter_that_is_not_there),
        ("`adapter_names` with fused experts", a_mixed_batch_of_fused_experts),
        ("`add_weighted_adapter`", a_weighted_sum),
        ("`merge_adapter()`, `unmerge_adapter()`", merging_and_unmerging),
        ("`merge_and_unload()`", merging_for_good),
        ("`merge_and_unload()` of an adapter with NaN", merging_a_broken_adapter),
        ("`unload()`", unloading),
        ("`get_model_status()`, numbers of parameters", status),
        ("`rescale_adapter_scale`", scaling),
        ("`get_peft_model(..., mixed=True)`", two_kinds_in_one_model),
        ("`convert_to_lora`", becoming_a_lora),
    ],
    "Training": [
        ("`torch.autocast`, `backward` inside", autocast),
        ("gradient checkpointing", checkpointing),
        ("a base in bfloat16; factors in float32", a_base_in_bfloat16),
        ("`set_requires_grad`", freezing_one_adapter),
        ("`copy.deepcopy`", copying),
    ],
    "Files": [
        ("`save_pretrained`, `PeftModel.from_pretrained`", saving_and_loading),
        ("`is_trainable=True`", training_on),
        ("`load_adapter` of a second", loading_a_second),
        ("`low_cpu_mem_usage=True`", loading_without_a_copy),
        ("the same into a base in bfloat16: factors as they were saved", loading_without_a_copy_into_bfloat16),
        ("`AutoPeftModelForCausalLM`", loading_with_its_base),
        ("`load_adapter` of a model of transformers", adapters_of_transformers),
        ("`inject_adapter_in_model`, state dictionaries", injecting),
        ("a base in bfloat16, float16, float64", a_base_in_another_precision),
        ("equal settings, equal files", the_same_files_twice),
        ("`hotswap_adapter`", exchanging_while_it_runs),
    ],
    "What should not be loaded": [
        ("a deeper base", a_deeper_base),
        ("a shallower base", a_shallower_base),
        ("a base with other weights", a_base_with_other_weights),
        ("the same by `load_adapter` of transformers", a_base_with_other_weights_by_transformers),
        ("tensors missing in the file", a_file_without_some_tensors),
        ("tensors too many", a_file_with_tensors_too_many),
        ("two layers' tensors exchanged", a_file_whose_layers_were_exchanged),
        ("NaN in the file", a_file_with_nan),
        ("another rank in the settings", another_rank_in_the_settings),
        ("another alpha in the settings", another_alpha_in_the_settings),
        ("a setting of a later version", a_setting_of_a_later_version),
        ("no weights for `modules_to_save`", a_whole_module_that_is_missing),
    ],
}


def attempt(habit: Habit, kind: Kind) -> str:
    """What comes of a habit: that it works, or how it is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return habit(kind)
        except Refusal:
            return "refused, with the reason"
        except Exception as error:  # what peft raises is what the table tells
            return f"{type(error).__name__}"


def table() -> str:
    """The rows of all habits, for docs/peft.md."""
    lines = []
    for title, habits in HABITS.items():
        lines += [f"| **{title}** | | |"]
        lines += [f"| {text} | {attempt(habit, BOUNDED)} | {attempt(habit, LORA)} |" for text, habit in habits]
    return "\n".join(["| | `Bounded` | peft's LoRA |", "|---|---|---|", *lines]) + "\n"


def insert(page: str, rows: str, marks: tuple[str, str] = MARKS) -> str:
    """The page with these rows between the marks."""
    before, _, rest = page.partition(marks[0])
    _, _, after = rest.partition(marks[1])
    return f"{before}{marks[0]}{rows}{marks[1]}{after}"


if __name__ == "__main__":
    rows = table()
    print(rows)
    if "--write" in sys.argv:
        PAGE.write_text(insert(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")
