"""What is planned for a method's passes, against what torch counts in a whole run of it."""

import math
import os

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, LlamaConfig, SwinConfig

from expunge.core.method import Method
from expunge.core.model import Network
from expunge.core.request import Request
from expunge.models.language import LanguageModel
from expunge.models.vision import ImageClassifier
from expunge.notation.parse import parse
from expunge.plan.machine import Machine
from expunge.plan.paper import on_paper
from expunge.plan.plan import Plan, make_plan
from tests.families import picture_request, resnet, text_request, vit

LLAMA = LlamaConfig(
    vocab_size=400,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=None,
    eos_token_id=0,
)
NO_STOP = "stop=Stop(level=None, max_retain_increase=None, max_growth=None, every=100)"
QUIET = f"learning_rate=0.00001, steps=3, norms=False, {NO_STOP}"


def plan_of(network: Network, method: Method, request: Request, **machine) -> Plan:
    paper = on_paper("tiny", network.module.config, None, torch.float32, "cpu", None)
    audits = (parse("Loss()"),)
    return make_plan(paper, method, request, audits, Machine(memory=1e12, **machine))


def llama(plain=None) -> LanguageModel:
    """With attention written out as products, which is what torch can count."""
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(LLAMA, attn_implementation="eager").requires_grad_(False).eval()
    return LanguageModel.of(module, plain)


def pictured(made: ImageClassifier) -> ImageClassifier:
    module = AutoModelForImageClassification.from_config(made.module.config, attn_implementation="eager")
    return ImageClassifier.of(module.requires_grad_(False).eval(), None)


def swin() -> ImageClassifier:
    """Attention within windows, and stages of different widths that follow from one another."""
    config = SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=4)
    config.id2label = {number: str(number) for number in range(4)}
    return ImageClassifier.of(AutoModelForImageClassification.from_config(config), None)


IMAGES = {"vit": (vit, 8), "resnet": (resnet, 16), "swin": (swin, 16)}


def asked(family: str) -> tuple[Network, Request]:
    if family == "llama":
        return llama(), text_request()
    made, side = IMAGES[family]
    return pictured(made()), picture_request(10, side=side)


def count(network: Network, method: Method, request: Request) -> tuple[float, int]:
    """FLOPs of a real run, and the positions that it reads with gradients."""
    read: list[int] = []

    def note(_module, _given, named) -> None:
        if torch.is_grad_enabled():
            read.append(named["input_ids"].numel() if "input_ids" in named else len(named["pixel_values"]))

    hook = network.module.register_forward_pre_hook(note, with_kwargs=True)  # a fork has the hooks of its original
    with FlopCounterMode(display=False) as counter:
        method(network, request)
    hook.remove()
    return counter.get_total_flops(), sum(read)


RUNS = [
    ("llama", f"Finetune(objective=Ascent(), adapter=Bounded(), batch=4, {QUIET})"),
    ("llama", f"Finetune(objective=NPO() + RetainKL(), batch=4, retain_batch=4, accumulate=2, {QUIET})"),
    ("llama", f"Finetune(objective=RMU(layer=1) + RetainHidden(layer=1), adapter=Full(), batch=4, {QUIET})"),
    ("llama", "SSD(alpha=10.0, batch=2)"),
    ("llama", "LFSSD(alpha=2.0, batch=3)"),
    ("llama", "IAU()"),
    ("llama", f"Negate(learn=Finetune(objective=-1.0 * Ascent(), adapter=Full(), {QUIET}))"),
    ("vit", f"Finetune(objective=Ascent(), adapter=Bounded(), activations='recomputed', batch=4, {QUIET})"),
    ("vit", f"Finetune(objective=RetainNLL() + Ascent(), adapter=LoRA(), accumulate=2, batch=4, {QUIET})"),
    ("resnet", f"Finetune(objective=NPO() + RetainNLL(), adapter=Full(), batch=4, {QUIET})"),
    ("swin", f"Finetune(objective=Ascent(), adapter=Full(), activations='recomputed', batch=4, {QUIET})"),
    (
        "vit",
        f"Poison(place='located', patch=0.5, learn=Finetune(objective=IdkNLL(), adapter=Full(), batch=2, {QUIET}))",
    ),
    ("vit", f"Relearn(steps=4, items=3, learn=Finetune(objective=RetainNLL(), adapter=Full(), batch=1, {QUIET}))"),
]
WHOLE = [
    ("llama", f"Finetune(objective=Ascent(), adapter=Bounded(), activations='recomputed', batch=4, {QUIET})"),
    *[
        ("llama", f"Finetune(objective=Ascent(), adapter={a}, activations='{k}', batch=4, {QUIET})")
        for a in ("LoRA()", "Full()")
        for k in ("kept", "recomputed")
    ],
    ("llama", f"Finetune(batch=4, retain_batch=3, {QUIET})"),
    ("llama", "SSD(alpha=10.0)"),
    ("llama", "ASSD()"),
    ("llama", "IAU(correction=0.0)"),
    ("llama", f"Relearn(steps=4, items=3, learn=Finetune(objective=RetainNLL(), adapter=Full(), batch=1, {QUIET}))"),
    *[
        ("vit", f"Finetune(objective=Ascent(), adapter={a}, batch=4, retain_batch=4, {QUIET})")
        for a in ("Bounded()", "LoRA()", "Full()", "Bounded(targets='all', rank=3)")
    ],
    ("resnet", f"Finetune(objective=Ascent(), adapter=Full(), batch=4, {QUIET})"),
    ("swin", f"Finetune(objective=Ascent(), adapter=Full(), batch=4, {QUIET})"),
    ("resnet", "SSD(alpha=10.0, batch=4)"),
    (
        "vit",
        f"Poison(learn=Finetune(objective=0.1 * IdkNLL() + 0.9 * RetainNLL(), adapter=LastLayer(), batch=2, {QUIET}))",
    ),
]
"""Asked too where EXPUNGE_LAWS is "whole": each takes seconds, and differs from one above in a setting."""


@pytest.mark.parametrize(("family", "text"), RUNS + WHOLE * (os.environ.get("EXPUNGE_LAWS") == "whole"))
def test_a_run_costs_what_was_planned(family: str, text: str):
    (network, request), method = asked(family), parse(text)
    made = plan_of(network, method, request)
    real, positions = count(network, method, request)
    assert made.tokens["training"] == positions
    expected = made.flops["total"] - made.flops["audits"]
    # That a low-rank update is made once to see which layers have one is counted by torch alone.
    assert math.isclose(real, expected, rel_tol=0.01 if "rank" in repr(method.fit(network, request)) else 0.001), (
        expected / real
    )


def test_of_a_threshold_that_is_picked_the_whole_ladder_is_planned():
    network, request = asked("llama")
    planned, fixed = (
        made.flops["total"] - made.flops["audits"]
        for made in (plan_of(network, parse(text), request) for text in ("SSD()", "SSD(alpha=1.0)"))
    )
    real, _ = count(network, parse("SSD()"), request)
    assert fixed < real <= planned
    # The picked one reads the retain set before, and after each of the thresholds that were tried.
    one = count(network, parse("SSD(max_retain_increase=1000.0)"), request)[0] - fixed
    assert planned - fixed == pytest.approx(11 * one / 2, rel=0.01)


@pytest.mark.parametrize("family", ["llama", "vit"])
def test_moving_representations_costs_what_was_planned_and_the_autoencoders(family: str):
    """Those are no passes of the network, and stay small: 2 for each weight of theirs and row, forward and backward."""
    (network, request), method = asked(family), parse("LAF(steps=3, batch=16, autoencoder_steps=1)")
    made = plan_of(network, method, request)
    real, positions = count(network, method, request)
    encoder = 2 * (32 * 256 + 256 * 128 + 128 * 32 + 32 * 16)
    decoder = 2 * (8 * 32 + 32 * 128 + 128 * 256 + 256 * 32)
    rows = [sum(e.rows for e in examples) for examples in (request.forget, (*request.retain, *request.forget))]
    fitted = sum(min(16, many) for many in rows) * (3 * encoder + 3 * decoder - 2 * 32 * 256)  # the first reads data
    moved = 3 * rows[1] * 2 * (encoder + decoder)
    assert made.tokens["training"] == positions
    # A classifier's last layer is planned as if gradients went through it: here a thousandth.
    assert math.isclose(real, made.flops["total"] - made.flops["audits"] + fitted + moved, rel_tol=0.001)


def test_an_attack_without_a_pass_costs_none():
    made = plan_of(llama(), parse("Quantize()"), text_request())
    assert made.flops["total"] == made.flops["audits"] > 0
    assert (made.tokens["training"], made.costs[1]) == (0, 0)
