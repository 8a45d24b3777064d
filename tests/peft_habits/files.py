"""How users of peft save and load adapters."""

from __future__ import annotations

import json
import tempfile

import peft
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from peft.utils.hotswap import hotswap_adapter
from transformers import AutoModelForCausalLM

from tests.peft_habits.kinds import WORKS, Habit, Kind, answer, expect, folder, llama, near, put, shake


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


HABITS: list[tuple[str, Habit]] = [
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
]
