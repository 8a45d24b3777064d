"""Gradients of whole sets where memory runs out, going up or coming back: they go on in parts and are the same."""

import gc
import weakref

import pytest
import torch
from torch import nn

from expunge.adapters.fila import Fila
from expunge.adapters.lora import LoRA
from expunge.adapters.salient import Salient
from expunge.core.model import Network
from expunge.core.request import Request
from expunge.errors import EnvironmentRefused
from expunge.internals.gradients import Gradient, Slopes, gradient, loss
from expunge.notation.parse import parse
from expunge.primitives.out_of_memory import report_smaller_batches
from tests.methods.runs import REQUEST, passages, tiny

torch.set_num_threads(1)

TOKENS = 24
"""What fits at once: the records have 4 to 10 tokens each, 9 of them 62."""
CLOSE = 1e-7
"""transformers' norms and positions are in float32 in any model; slopes are of about 0.1."""


def fill() -> None:
    """Ask torch's allocator for more than there is."""
    torch.empty(1 << 60, dtype=torch.uint8)


def narrow(dtype: torch.dtype = torch.float64) -> Network:
    """A network that reads so many tokens at once and no more."""

    def check(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].numel() > TOKENS:
            fill()

    network = tiny(dtype)
    network.module.get_input_embeddings().register_forward_pre_hook(check)
    return network


def half_way(dtype: torch.dtype = torch.float64, calls: list[int] | None = None) -> Network:
    """A network that reads any number, but has no room for the way back through its first block beyond so many."""

    def check(slope: torch.Tensor) -> None:
        nodes = slope.shape[0] * slope.shape[1]
        if calls is not None:
            calls.append(nodes)
        if nodes > TOKENS:
            fill()

    def watch(_: nn.Module, inputs: object, states: torch.Tensor) -> None:
        if states.requires_grad:
            states.register_hook(check)

    network = tiny(dtype)
    network.module.model.layers[0].register_forward_hook(watch)
    return network


def apart(one: Gradient, other: Gradient) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def test_the_injected_error_is_that_of_torchs_allocator():
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        fill()


@pytest.mark.parametrize("made", [narrow, half_way])
def test_a_gradient_that_outgrows_its_memory_is_that_of_one_that_does_not(made):
    sets = (0.7, REQUEST.retain), (-1.0, REQUEST.forget)
    said: list[str] = []
    with report_smaller_batches(said.append):
        found = gradient(made(), loss, *sets)
    assert apart(found, gradient(tiny(torch.float64), loss, *sets)) < CLOSE
    # 62 tokens fail, then at most 31 are read at once, in runs that are still more than 24, then at most half of those
    assert len(said) == 2
    assert all(line.startswith("Out of memory on cpu: ") for line in said)


def test_parameters_that_had_their_slope_before_memory_ended_are_not_given_it_twice():
    calls: list[int] = []
    network = half_way(calls=calls)
    slopes = Slopes(network)
    with report_smaller_batches(lambda _: None):
        slopes.add(REQUEST.retain, loss)
    assert len([nodes for nodes in calls if nodes > TOKENS]) == 2  # the head's and the second block's slopes were there
    assert slopes.begun == []
    assert apart(dict(slopes.take()), gradient(tiny(torch.float64), loss, (1.0, REQUEST.retain))) < CLOSE


@pytest.mark.parametrize("made", [narrow, half_way])
def test_a_bfloat16_network_adds_its_parts_up_in_float32_all_the_same(made):
    with report_smaller_batches(lambda _: None):
        found = gradient(made(torch.bfloat16), loss, (1.0, REQUEST.retain))
    # read one by one from the beginning: no sum is longer
    alone = tiny(torch.bfloat16)
    slopes = Slopes(alone)
    for example in REQUEST.retain:
        slopes.add([example], loss, example.rows / sum(e.rows for e in REQUEST.retain))
    assert {slope.dtype for slope in found.values()} == {torch.float32}
    largest = max(float(slope.abs().max()) for slope in found.values())
    assert apart(found, dict(slopes.take())) < 0.05 * largest  # a bfloat16 number has 8 bits


@pytest.mark.parametrize("made", [narrow, half_way])
@pytest.mark.parametrize(
    "method",
    [
        "SSD(alpha=1.0, batch=4)",
        "ASSD(batch=7)",
        "LFSSD(alpha=1.0, batch=64)",
        "IAU(step='sgd', learning_rate=0.1)",
        "IAU(learning_rate=0.001)",
    ],
)
def test_an_edit_goes_on_in_smaller_parts_and_changes_the_same(made, method: str):
    said: list[str] = []
    with report_smaller_batches(said.append):
        found = parse(method)(made(), REQUEST)
    wanted = parse(method)(tiny(torch.float64), REQUEST)
    assert said
    weights, was = found.module.state_dict(), tiny(torch.float64).module.state_dict()
    for name, weight in wanted.module.state_dict().items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-6, atol=CLOSE)
    assert any(not torch.equal(weight, was[name]) for name, weight in weights.items())


@pytest.mark.parametrize("made", [narrow, half_way])
def test_adapters_that_begin_from_a_gradient_begin_where_they_would_have(made):
    with report_smaller_batches(lambda _: None):
        masks = Salient().masks(made(), REQUEST)
        torch.manual_seed(0)
        moving = Fila(LoRA(rank=2), batch=9).insert(made(), REQUEST).trainable()
    for name, mask in Salient().masks(tiny(torch.float64), REQUEST).items():
        assert torch.equal(masks[name], mask)
    torch.manual_seed(0)
    for name, factor in Fila(LoRA(rank=2), batch=9).insert(tiny(torch.float64), REQUEST).trainable().items():
        torch.testing.assert_close(moving[name], factor, rtol=1e-5, atol=1e-6)


def test_a_record_that_does_not_fit_alone_is_named_with_its_size():
    request = Request(passages("long", 3, 5))  # of 4, 7 and 10 tokens
    network = tiny(torch.float64)

    def check(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].numel() > 9:
            fill()

    network.module.get_input_embeddings().register_forward_pre_hook(check)
    with (
        report_smaller_batches(lambda _: None),
        pytest.raises(EnvironmentRefused, match=r"record long-2 alone \(10 tokens") as refused,
    ):
        parse("IAU(correction=0.0)")(network, request)
    assert refused.value.code == 7


def test_the_network_is_let_go_with_its_last_holder():
    slopes = Slopes(tiny())
    slopes.add(REQUEST.forget, loss)
    fork = weakref.ref(slopes.fork.module)
    gc.disable()
    try:
        del slopes
        left = fork()
    finally:
        gc.enable()
    assert left is None
