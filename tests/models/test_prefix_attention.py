"""Prefix linear attention: its two forms, its map, its masks, and what it is without an encoder."""

import math

import pytest
import torch
from torch import Tensor

from expunge.models.prefix_attention import PrefixAttention, PrefixTransformer, taylor, weigh

torch.set_num_threads(1)
BATCH, LENGTH, PREFIX = 3, 11, 7


def ones(length: int = LENGTH) -> Tensor:
    return torch.ones(BATCH, length)


def prefix_of(many: int, length: int = LENGTH) -> Tensor:
    """The first `many` places, of each row."""
    return (torch.arange(length) < many).float().expand(BATCH, length)


def attention() -> PrefixAttention:
    torch.manual_seed(0)
    layer = PrefixAttention(width=12, heads=2, features=4)
    with torch.no_grad():
        for weight in layer.parameters():
            torch.nn.init.normal_(weight, std=0.5)
    return layer


def network() -> PrefixTransformer:
    torch.manual_seed(0)
    made = PrefixTransformer(20, width=12, layers=2, heads=2, features=4).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return made


def words(length: int = LENGTH) -> Tensor:
    return torch.randint(1, 20, (BATCH, length), generator=torch.Generator().manual_seed(1))


def test_the_map_is_exp_to_the_second_order():
    assert taylor(torch.tensor([2.0])).tolist() == pytest.approx([1, 2, 4 / math.sqrt(2)])
    q, k = torch.randn(2, 5, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    s = (q * k).sum(-1) / 2  # divided by the root of 4
    assert torch.allclose((taylor(q) * taylor(k)).sum(-1), 1 + s + s * s / 2, atol=1e-5)
    products = weigh(q, k, torch.ones(3, 3))
    assert torch.allclose(products, taylor(q) @ taylor(k).mT, atol=1e-5)


@pytest.mark.parametrize("prefix", [0, PREFIX])
@torch.no_grad()
def test_the_parallel_form_and_the_recurrent_one_agree(prefix: int):
    made, tokens = network(), words()
    whole = made(tokens, ones(), prefix_of(prefix))
    scores, states = made.prefill(tokens[:, :PREFIX], ones(PREFIX), prefix_of(prefix, PREFIX))
    assert torch.allclose(scores, whole[:, PREFIX - 1], atol=1e-4)
    for place in range(PREFIX, LENGTH):
        scores, states = made.step(tokens[:, place], states)
        assert torch.allclose(scores, whole[:, place], atol=1e-4)


@torch.no_grad()
def test_without_its_encoder_it_is_causal_linear_attention():
    layer, x = attention(), torch.randn(BATCH, LENGTH, 12, generator=torch.Generator().manual_seed(2))
    plain = layer(x, ones(), None)
    assert torch.allclose(layer(x, ones(), prefix_of(0)), plain, atol=1e-6)
    read = layer(x, ones(), prefix_of(PREFIX))
    assert not torch.allclose(read, plain, atol=1e-3)
    later = x.clone()
    later[:, 5:] += 1
    assert torch.allclose(layer(later, ones(), None)[:, :5], plain[:, :5], atol=1e-6)  # nothing is seen ahead


@torch.no_grad()
def test_the_prefix_is_read_knowing_what_comes_later_in_it_and_nothing_after_it():
    made, tokens = network(), words()
    was = made(tokens, ones(), prefix_of(PREFIX))
    for place, first in ((PREFIX - 1, 0), (LENGTH - 1, LENGTH - 1)):
        other = tokens.clone()
        other[:, place] = (other[:, place] % 19) + 1
        now = made(other, ones(), prefix_of(PREFIX))
        assert torch.allclose(now[:, :first], was[:, :first], atol=1e-6)
        assert not torch.allclose(now[:, first], was[:, first], atol=1e-4)


@pytest.mark.parametrize("more", [1, 2, 5])
@torch.no_grad()
def test_padding_on_the_left_changes_nothing(more: int):
    made, tokens = network(), words()
    was = made(tokens, ones(), prefix_of(PREFIX))
    padded = torch.cat([torch.randint(20, (BATCH, more)), tokens], 1)
    mask = torch.cat([torch.zeros(BATCH, more), ones()], 1)
    prefix = torch.cat([torch.ones(BATCH, more), prefix_of(PREFIX)], 1)  # as where short prompts are filled up
    assert torch.allclose(made(padded, mask, prefix)[:, more:], was, atol=1e-5)
    scores, _ = made.prefill(padded[:, : more + PREFIX], mask[:, : more + PREFIX], prefix[:, : more + PREFIX])
    assert torch.allclose(scores, was[:, PREFIX - 1], atol=1e-4)


def test_a_key_that_is_zeroed_before_the_map_would_still_be_read():
    """Why masks come after it: a worked number."""
    q, k = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    assert weigh(q, k, torch.ones(1, 1)).item() == 1
    assert weigh(q, k, torch.zeros(1, 1)).item() == 0
