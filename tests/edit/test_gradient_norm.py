"""The gradient restriction: the sum of norms by hand, its own gradient, and the training that it is for."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification

from expunge.adapters.full import Full
from expunge.core.model import Network
from expunge.core.question import Scores
from expunge.core.request import Request
from expunge.core.view import View
from expunge.data.images import Picture
from expunge.data.text import Passage
from expunge.edit.gradient_norm import GradientNorm
from expunge.errors import ModelRefused, UsageRefused
from expunge.models.language import LanguageModel
from expunge.models.vision import ImageClassifier
from expunge.notation.parse import parse
from expunge.objectives.retain_nll import RetainNLL

torch.set_num_threads(1)


def llama() -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, eos_token_id=0
    )
    return LanguageModel.of(LlamaForCausalLM(config).eval().double(), None)


def vit() -> ImageClassifier:
    torch.manual_seed(0)
    shape = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, num_labels=3)
    module = ViTForImageClassification(ViTConfig(**shape, image_size=8, patch_size=4)).eval().double()
    return ImageClassifier.of(module, None)


def passages(count: int, seed: int) -> tuple[Passage, ...]:
    draw = torch.Generator().manual_seed(seed)
    lengths = [4 + k % 3 for k in range(count)]
    tokens = [tuple(torch.randint(1, 30, (length,), generator=draw).tolist()) for length in lengths]
    return tuple(Passage(f"{seed}-{k}", read, 2, "", f"{seed}-{k}") for k, read in enumerate(tokens))


def pictures(count: int, seed: int) -> tuple[Picture, ...]:
    draw = torch.Generator().manual_seed(seed)
    return tuple(
        Picture(f"{seed}-{k}", torch.randn(3, 8, 8, generator=draw), k % 3, f"{seed}-{k}") for k in range(count)
    )


FAMILY = pytest.mark.parametrize(("network", "examples"), [(llama, passages), (vit, pictures)], ids=["llama", "vit"])


def view(network: Network, batch: tuple) -> View:
    return View(Full().insert(network, Request(batch)), {"retain": batch})


@FAMILY
def test_it_is_the_sum_of_each_tensors_gradient_norm(network, examples):
    now = view(network(), examples(4, 0))
    said = now.model.ask(Scores(), now.sets["retain"])
    slopes = torch.autograd.grad(said.nll(), list(now.model.trainable().values()), allow_unused=True)
    wanted = sum(float(slope.norm()) for slope in slopes if slope is not None)
    assert GradientNorm()(now, now).item() == pytest.approx(wanted, rel=1e-9)


@FAMILY
def test_its_own_gradient_is_that_of_small_steps(network, examples):
    now = view(network(), examples(3, 0))
    GradientNorm()(now, now).backward()
    name, weight = max(now.model.trainable().items(), key=lambda pair: float(pair[1].grad.norm()))
    place, step = int(weight.grad.abs().argmax()), 1e-4
    values = []
    for move in (step, -2 * step):
        with torch.no_grad():
            weight.view(-1)[place] += move
        fresh = View(now.model, now.sets)
        values.append(GradientNorm()(fresh, fresh).item())
    slope = (values[0] - values[1]) / (2 * step)
    assert float(weight.grad.view(-1)[place]) == pytest.approx(slope, rel=2e-3), name  # RMSNorm is in float32


def test_descent_on_it_makes_gradients_small():
    network, request = llama(), Request(passages(1, 9), retain=passages(6, 0))
    learn = parse(
        "Finetune(objective=GradientNorm(), adapter=Full(), steps=30, learning_rate=1e-2, batch=1, retain_batch=6, "
        "stop=Stop(level=None, max_retain_increase=None))"
    )
    before, after = (view(made, request.retain) for made in (network, learn(network, request).inner))
    assert GradientNorm()(after, after).item() < 0.5 * GradientNorm()(before, before).item()


def test_a_step_read_in_parts_is_refused():
    now = view(llama(), passages(4, 0))
    plan = parse("Finetune(objective=GradientNorm(), adapter=Full(), accumulate=2, steps=1, stop=Stop(level=None))")
    with pytest.raises(UsageRefused, match="accumulate=1"):
        plan(llama(), Request(passages(2, 1), retain=passages(4, 0)))
    assert math.isfinite((RetainNLL() + 0.005 * GradientNorm())(now, now).item())


def test_a_model_without_weights_is_refused():
    class Answers:
        pass

    now = View(Answers(), {"retain": passages(1, 0)})
    with pytest.raises(ModelRefused, match="Answers has no weights"):
        GradientNorm()(now, now)
