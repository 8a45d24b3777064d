"""What only a GPU can show. Skipped where there is none: continuous integration has none."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification

from expunge.adapters import _fold as fold
from expunge.adapters._maps import MAPS, Form
from expunge.adapters.bounded import Bounded
from expunge.core.question import LogProbabilities, Scores, Text
from expunge.core.request import Request
from expunge.data.images import Picture
from expunge.models.language import LanguageModel
from expunge.models.vision import ImageClassifier
from expunge.notation.parse import parse
from expunge.train.checkpoint import Checkpoints, keep_checkpoints
from tests.cli.commands import rows, write
from tests.train.cut_runs import CutOffError, Watcher, passages

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

VOCABULARY = 640
SETTINGS = "steps=8, batch=4, retain_batch=4, learning_rate=0.001, stop=Stop(level=None, every=4)"


def request(repeat: int = 1) -> Request:
    sets = {name: passages(name[0], 6 * repeat, seed) for seed, name in enumerate(("forget", "retain", "holdout"))}
    return Request(**sets)


def network(device: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        eos_token_id=0,
    )
    return LanguageModel.of(LlamaForCausalLM(config).eval().to(device, dtype), None)


@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("rank", [1, 8, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_kernels_agree_with_the_formula_in_float64(map, rank, dtype):
    from expunge.adapters._kernels import disagreement  # imports Triton

    # A phase next to a kink may fall on either side of it, and one slope is 0 where the other is 1.
    allowed = 0.02 if map in ("hardtanh", "clip") else 1e-5 if dtype == torch.float32 else 0.006
    assert disagreement(torch.device("cuda"), dtype, map, rank) < allowed


@pytest.mark.parametrize("shape", [(1, 16, 16), (80, 208, 176), (515, 1536, 576), (2048, 576, 1536)], ids=str)
def test_the_kernels_agree_with_torch_on_layers_of_several_shapes(shape):
    tokens, out, width = shape
    draw = torch.Generator("cuda").manual_seed(1)
    x, weight, dy = (
        torch.randn(s, generator=draw, device="cuda") for s in ((tokens, width), (out, width), (tokens, out))
    )
    a, b = (0.1 * torch.randn(s, generator=draw, device="cuda") for s in ((8, width), (out, 8)))
    form = Form.of("sine", 8, 16.0, 100.0, None, width)

    def step(kernels: bool) -> list[torch.Tensor]:
        moving = [t.clone().requires_grad_() for t in (x, a, b)]
        before, fold.KERNELS = fold.KERNELS, kernels
        try:
            y = fold.bounded_linear(moving[0], weight, None, moving[1], moving[2], form)
            return [y.detach(), *torch.autograd.grad(y, moving, dy)]
        finally:
            fold.KERNELS = before

    assert fold.kernels(x, weight, a, b, form) is not None
    for one, other in zip(step(True), step(False), strict=True):
        assert (one - other).norm() <= 2e-5 * other.norm()
    for one, other in zip(step(True), step(True), strict=True):
        assert torch.equal(one, other)


def test_answers_are_those_of_a_cpu(plain):
    examples = [replace(passage, prompt_tokens=passage.tokens[:2]) for passage in passages("x", 30, 7)]
    there, here = (replace(network(device), tokenizer=plain) for device in ("cuda", "cpu"))
    scores = [model.ask(LogProbabilities(), examples).log_probs.cpu() for model in (there, here)]
    torch.testing.assert_close(*scores, atol=1e-4, rtol=0)
    assert there.ask(Text(12), examples) == here.ask(Text(12), examples)


def test_gradients_are_those_of_a_cpu():
    examples = [*passages("x", 12, 7)]

    def gradients(device: str) -> dict[str, torch.Tensor]:
        adapted = Bounded(omega=10.0).insert(network(device), None)
        draw = torch.Generator().manual_seed(1)
        for parameter in adapted.trainable().values():
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=draw).to(device)
        adapted.ask(Scores(), examples).nll().backward()
        return {name: p.grad.cpu() for name, p in adapted.trainable().items()}

    there, here = gradients("cuda"), gradients("cpu")
    for name, right in here.items():
        assert (there[name] - right).norm() <= 1e-4 * right.norm(), name


@pytest.mark.parametrize("adapter", ["Bounded()", "LoRA()", "Full()"])
def test_a_run_ends_where_it_does_on_a_cpu_and_twice_at_the_same_bits(adapter):
    method = parse(f"Finetune(adapter={adapter}, {SETTINGS})")

    def end(device: str) -> torch.Tensor:
        return method(network(device), request()).ask(LogProbabilities(), request().forget).log_probs.cpu()

    first = end("cuda")
    assert torch.equal(first, end("cuda"))
    torch.testing.assert_close(first, end("cpu"), atol=5e-3, rtol=0)


def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(tmp_path):
    method = parse(f"Finetune({SETTINGS})")
    whole = method(network("cuda"), request()).plain()
    with pytest.raises(CutOffError), keep_checkpoints(Checkpoints(tmp_path, 2)):
        method(network("cuda"), request(), Watcher(last=5))
    with keep_checkpoints(Checkpoints(tmp_path, 2, resume=True)):
        again = method(network("cuda"), request()).plain()
    for (name, one), other in zip(whole.module.named_parameters(), again.module.parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_step_under_autocast_is_that_of_full_precision_but_for_rounding(dtype):
    tokens = torch.arange(40, device="cuda")[None]

    def gradients(enabled: bool) -> dict[str, torch.Tensor]:
        adapted = Bounded(omega=10.0).insert(network("cuda"), None)
        draw = torch.Generator("cuda").manual_seed(1)
        for parameter in adapted.trainable().values():
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=draw, device="cuda")
        with torch.autocast("cuda", dtype, enabled=enabled):
            adapted.module(input_ids=tokens, labels=tokens).loss.backward()
        return {name: p.grad for name, p in adapted.trainable().items()}

    rounded, right = gradients(True), gradients(False)
    for name, gradient in right.items():
        assert rounded[name].dtype == torch.float32
        assert (rounded[name] - gradient).norm() < 0.05 * gradient.norm(), name


def test_an_image_classifier_forgets_as_on_a_cpu():
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=8, patch_size=4
    )
    config.num_labels = 4
    plain = ViTForImageClassification(config).eval()
    pictures = [Picture(f"p{k}", torch.randn(3, 8, 8), k % 4, f"p{k}") for k in range(16)]
    method = parse(f"Finetune({SETTINGS})")
    asked = Request(forget=pictures[:6], retain=pictures[6:])
    ends = []
    for device in ("cuda", "cpu"):
        after = method(ImageClassifier.of(copy.deepcopy(plain).to(device), None), asked)
        ends.append(after.ask(LogProbabilities(), pictures).log_probs.cpu())
    torch.testing.assert_close(ends[0], ends[1], atol=5e-3, rtol=0)


def test_the_command_forgets_audits_and_writes(model, expunge, tmp_path):
    files = {kind: write(tmp_path / f"{kind}.jsonl", rows(kind)) for kind in ("forget", "retain", "holdout")}
    options = [f"--{kind}={file}" for kind, file in files.items()]
    method = replace(parse(f"Finetune({SETTINGS})"), steps=4)
    ask = ["forget", model, *options, "--device=cuda", f"--method={method!r}", "--out", tmp_path / "out"]
    said = expunge(*ask)
    assert said.code in (0, 6), said.err
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
