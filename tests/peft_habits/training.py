"""What users of peft train adapters with."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from tests.peft_habits.kinds import TOKENS, Habit, Kind, answer, expect, llama, near, put, shake


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


HABITS: list[tuple[str, Habit]] = [
    ("`torch.autocast`, `backward` inside", autocast),
    ("gradient checkpointing", checkpointing),
    ("a base in bfloat16; factors in float32", a_base_in_bfloat16),
    ("`set_requires_grad`", freezing_one_adapter),
    ("`copy.deepcopy`", copying),
]
