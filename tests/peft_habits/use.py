"""What users of peft do with adapters that are there: switch, mix, merge, count."""

from __future__ import annotations

from typing import Any

import peft
import torch
from peft import get_peft_model
from peft.helpers import rescale_adapter_scale
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from tests.peft_habits.kinds import (
    TOKENS,
    WORKS,
    Habit,
    Kind,
    answer,
    expect,
    llama,
    mixtral,
    named,
    near,
    put,
    shake,
    targets,
)


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


HABITS: list[tuple[str, Habit]] = [
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
]
