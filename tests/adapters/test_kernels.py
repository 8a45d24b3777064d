"""The folded layer's two paths: who takes which, the kernels against torch, bfloat16, autocast and checkpointing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, LlamaConfig

from expunge.adapters import _fold as fold
from expunge.adapters._bounded_linear import BoundedLinear
from expunge.adapters._fold import bounded_linear
from expunge.adapters._maps import MAPS, Form
from expunge.adapters.bounded import Bounded
from expunge.models.language import LanguageModel

A_STEP = """
import sys, torch
from expunge.adapters._fold import bounded_linear
from expunge.adapters._maps import Form
a, b = torch.ones(2, 3, requires_grad=True), torch.ones(4, 2, requires_grad=True)
bounded_linear(torch.ones(5, 3), torch.ones(4, 3), None, a, b, Form("sine", 1.0, 0.5)).sum().backward()
# 5 rows of ones: dY^T X = 5; D = 0.5 * cos(2) * 5 everywhere; dA = B^T D sums 4 of them
assert torch.allclose(a.grad, torch.full((2, 3), 4 * 0.5 * 5 * torch.tensor(2.0).cos().item()))
"""
"""A forward and a backward pass on a CPU, in a process of its own."""


def process(script: str, **environment: str) -> str:
    """Runs a script with the environment's changes; what it wrote."""
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def layer(out: int, width: int, tokens: int, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
    """A layer, its factors, its input and its output's gradient; the same numbers for every dtype and device."""
    draw = torch.Generator().manual_seed(0)
    x, weight, dy = (torch.randn(s, generator=draw).bfloat16() for s in ((tokens, width), (out, width), (tokens, out)))
    a, b = torch.randn(8, width, generator=draw) * 0.1, torch.randn(out, 8, generator=draw) * 0.05
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    shaped = {"x": x.to(dtype), "weight": (weight / 16).to(dtype), "dy": dy.to(dtype), "a": a.to(wide), "b": b.to(wide)}
    return {name: t.to(device) for name, t in shaped.items()}


def passed(form: Form, x: Tensor, weight: Tensor, dy: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
    """The layer's output and the gradients of x, A and B."""
    x, a, b = (t.detach().clone().requires_grad_() for t in (x, a, b))
    y = bounded_linear(x, weight, None, a, b, form)
    y.backward(dy)
    return [y.detach(), x.grad, a.grad, b.grad]


def off(got: Tensor, right: Tensor) -> float:
    """Relative error, as a whole."""
    return ((got.double().cpu() - right.double().cpu()).norm() / right.double().cpu().norm()).item()


def adapted(dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A tiny Llama in the given precision, whose sine adapter is far from its start."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4
    )
    config.bos_token_id = config.eos_token_id = 0
    model = AutoModelForCausalLM.from_config(config).requires_grad_(False).bfloat16().to(dtype)
    network = Bounded(omega=10.0).insert(LanguageModel.of(model, None), None)
    draw = torch.Generator().manual_seed(1)
    for parameter in network.trainable().values():
        parameter.data = torch.randn(parameter.shape, generator=draw) * 0.1
    return network


def gradients(network: LanguageModel) -> dict[str, Tensor]:
    ids = (torch.arange(24) * 7 % 40).view(2, 12)
    network.module(input_ids=ids, labels=ids).loss.backward()
    return {name: parameter.grad for name, parameter in network.trainable().items()}


BUILDS = [(80, 163, torch.bfloat16), (86, 99, torch.bfloat16), (90, 227, torch.bfloat16), (90, 227, torch.float32)]
"""Compute capability, KiB of shared memory, and a type: A100, RTX A6000 and H100."""


def test_the_kernels_hold_to_the_torch_path_under_tritons_interpreter():
    # Before 3.7 the interpreter cannot loop up to an argument where NumPy is 2.4.
    pytest.importorskip("triton", "3.7", "Triton 3.7 or later is not installed, so the kernels cannot be interpreted")
    command = [sys.executable, "-m", "pytest", "-q", str(Path(__file__).with_name("interpreted_kernels.py"))]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " skipped" not in done.stdout


@pytest.mark.parametrize(("capability", "room", "dtype"), BUILDS)
def test_the_kernels_compile_for_gpus_that_are_not_here_and_fit_into_their_shared_memory(
    capability, room, dtype, tmp_path, monkeypatch
):
    pytest.importorskip("triton", reason="Triton is not installed, so the kernels cannot be compiled")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from expunge.adapters import _kernels as kernels

    if kernels.INTERPRETED:
        pytest.skip("TRITON_INTERPRET is set, and what is interpreted is not compiled")
    precision, small = kernels._precision(dtype)
    tile = kernels._tile(dtype, precision, room << 10)
    settings = {
        **{"rank": 33, "map": "sine", "ranks": kernels.RANKS, "side": kernels.SIDE, "precision": precision},
        **{"small": small, "group": 8, "widen": False},
        **{"tile_out": tile.out, "tile_in": tile.width, "tile_tokens": tile.tokens},
        **{"weight_in": 1, "result_in": 1, "dy_out": 1, "x_in": 1},
    }
    typed = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}[dtype]
    pointers = {"weight": typed, "result": typed, "dy": typed, "x": typed}
    pointers |= dict.fromkeys(("a", "b", "a_parts", "b_parts"), "*fp32")
    numbers = dict.fromkeys(("omega", "scale", "steep"), "fp32")
    for kernel, warps, stages in (
        (kernels._fold_kernel, 4, 3),
        (kernels._gradient_kernel, tile.warps, tile.stages),
    ):
        names = kernel.arg_names
        signature = {n: "constexpr" if n in settings else pointers.get(n, numbers.get(n, "i32")) for n in names}
        # As a model's layers are: addresses, widths and strides are multiples of 16.
        even = {
            (i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n][0] in "*i" and n != "tokens"
        }
        source = ASTSource(kernel, signature, {n: v for n, v in settings.items() if n in names}, even)
        options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
        built = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert built.metadata.shared <= room << 10
        assert "sin.approx" not in built.asm["ptx"]  # a phase may be large, where the quick sine is wrong


def test_a_run_without_a_gpu_never_loads_triton():
    loaded = process(f"{A_STEP}\nprint([m for m in sys.modules if m == 'triton' or m.endswith('adapters.kernels')])")
    assert loaded.strip() == "[]"


def test_a_cpu_does_not_mind_a_triton_that_is_broken_or_set_to_interpret(tmp_path):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("raise OSError('no driver')")
    process(A_STEP, PYTHONPATH=str(tmp_path), TRITON_INTERPRET="1")


def test_where_the_kernels_cannot_be_loaded_torch_does_the_work_and_the_reason_is_said_once(tmp_path):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("raise OSError('no driver')")
    script = (
        "import torch, warnings; from expunge.adapters import _fold as fold\n"
        "with warnings.catch_warnings(record=True) as said:\n"
        "    warnings.simplefilter('always')\n"
        "    tried = [fold._try_kernels(torch.device('cuda', 0), torch.bfloat16, 'sine', 8) for _ in range(2)]\n"
        "print(tried, [str(w.message) for w in said])"
    )
    said = process(script, PYTHONPATH=str(tmp_path))
    assert said.startswith("[None, None]")
    assert said.count("does not use its Triton kernels on cuda:0 and is slower there: OSError: no driver.") == 1


@pytest.mark.parametrize("blocks", [1, 56])
def test_gradients_in_bfloat16_are_those_of_float32_but_for_one_rounding(blocks, monkeypatch):
    out, width = 1792, 64
    monkeypatch.setattr(fold, "BLOCK", out * width // blocks)
    form = Form.of("sine", 8, 16.0, 100.0, None, width)
    right = passed(form, **layer(out, width, 64, torch.float64))
    got = passed(form, **layer(out, width, 64, torch.bfloat16))
    assert [g.dtype for g in got] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    # bfloat16 rounds by up to 2^-9; x's gradient is a sum over the blocks, and must not be rounded at each of them
    assert max(off(g, r) for g, r in zip(got, right, strict=True)) < 2**-8


def test_a_model_in_bfloat16_trains_its_float32_factors_by_nearly_the_gradients_of_float32():
    got, right = gradients(adapted(torch.bfloat16)), gradients(adapted(torch.float32))
    assert {g.dtype for g in got.values()} == {torch.float32}
    assert max(off(got[name], right[name]) for name in right) < 0.06


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_gradients_come_in_the_types_of_what_they_are_gradients_of(weight_dtype):
    form, given = Form.of("sine", 8, 16.0, 10.0, None, 64), layer(48, 64, 32, torch.float32)
    right = passed(form, **given)
    x, a, b = (given[name].clone().requires_grad_() for name in ("x", "a", "b"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = bounded_linear(x, given["weight"].to(weight_dtype), None, a, b, form)
    assert y.dtype == torch.bfloat16
    y.backward(given["dy"].bfloat16())
    assert {t.grad.dtype for t in (x, a, b)} == {torch.float32}
    assert max(off(t.grad, r) for t, r in zip((x, a, b), right[1:], strict=True)) < 2**-6


def test_a_checkpointed_layer_gets_the_same_gradients_to_the_bit():
    form, given = Form.of("sine", 8, 16.0, 100.0, None, 64), layer(48, 64, 32, torch.float32)
    right = passed(form, **given)
    x, a, b = (given[name].clone().requires_grad_() for name in ("x", "a", "b"))
    y = checkpoint(bounded_linear, x, given["weight"], None, a, b, form, use_reentrant=False)
    y.backward(given["dy"])
    assert all(torch.equal(t, r) for t, r in zip((y, x.grad, a.grad, b.grad), right, strict=True))


def test_a_checkpointed_model_gets_the_same_gradients_to_the_bit_and_runs_its_layers_twice():
    plain, saving = adapted(), adapted()
    saving.module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    saving.module.train()
    calls = []
    for part in saving.module.modules():
        if isinstance(part, BoundedLinear):
            part.register_forward_pre_hook(lambda *_: calls.append(1))
    right, got = gradients(plain), gradients(saving)
    assert len(calls) == 2 * 2 * 3  # twice, two blocks, three MLP layers each
    assert right.keys() == got.keys()
    assert all(torch.equal(got[name], right[name]) for name in right)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("out", "width", "tokens"), [(1000, 520, 333), (256, 384, 512)])
def test_on_a_gpu_the_kernels_are_taken_and_give_what_the_formula_gives(dtype, out, width, tokens):
    pytest.importorskip("triton", reason="Triton is not installed")
    given = layer(out, width, tokens, dtype, "cuda")
    turned = given | {"weight": given["weight"].T.contiguous().T}  # as GPT-2's Conv1D has it
    rounding = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    for map in MAPS:
        form = Form.of(map, 8, 16.0, 100.0, None, width)
        # A phase next to a kink may fall on either side of it: one slope among so many is 0 where the other is 1.
        allowed = 0.01 if map in ("hardtanh", "clip") else rounding
        right = passed(form, **layer(out, width, tokens, torch.float64))
        for case in (given, turned):
            assert fold.kernels(case["x"], case["weight"], case["a"], case["b"], form) is not None
            got = passed(form, **case)
            assert max(off(g, r) for g, r in zip(got, right, strict=True)) < allowed, map


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_the_product_is_never_written_out():
    pytest.importorskip("triton", reason="Triton is not installed")
    out, width, tokens = 8192, 4096, 512
    form = Form.of("sine", 8, 16.0, 100.0, None, width)
    given = layer(out, width, tokens, torch.bfloat16, "cuda")
    passed(form, **given)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    passed(form, **given)
    # W + update in bfloat16 is there for one product at a time; D alone, in float32, would be twice that.
    activations, partial = 4 * tokens * (out + width), 64 << 20
    assert torch.cuda.max_memory_allocated() - before < 2 * out * width + activations + partial + (16 << 20)
