"""Rounding the weights: by hand, its error, and how it brings back what a small step had hidden."""

import math

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from expunge.attack.quantize import Quantize
from expunge.core.model import Network
from expunge.core.question import Scores
from expunge.core.request import Request
from expunge.data.text import Passage
from expunge.errors import ModelRefused, UsageRefused
from expunge.models.language import LanguageModel
from expunge.notation.parse import parse

torch.set_num_threads(1)


def llama(**options: int) -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        eos_token_id=0,
        **options,
    )
    return LanguageModel.of(LlamaForCausalLM(config).eval(), None)


REQUEST = Request((Passage("one", (1, 2, 3), 1, "", "one"),))


def rewritten(network: Network, change) -> Network:
    """A copy of which each matrix was put through `change`."""
    made = parse("Quantize(bits=16)")(network, REQUEST)
    with torch.no_grad():
        for mine, theirs in zip(made.module.parameters(), network.module.parameters(), strict=True):
            mine.copy_(change(theirs) if theirs.dim() > 1 else theirs)
    return made


def rounded(values: list[list[float]], bits: int) -> list[list[float]]:
    """What `Quantize` makes of a matrix."""
    codes, step = Quantize(bits=bits)._codes(torch.tensor(values, dtype=torch.float64))
    return (codes * step).tolist()


def test_a_row_is_rounded_to_multiples_of_its_largest_over_the_largest_code():
    # 4 bits: codes from -7 to 7, so a row whose largest entry is 7 has steps of 1, and one of 14 has steps of 2
    assert rounded([[7.0, 0.4, -0.6, 2.5, 3.5], [14.0, 0.9, -1.1, 3.1, -13.0]], 4) == [
        [7.0, 0.0, -1.0, 2.0, 4.0],  # a half goes to the even neighbour
        [14.0, 0.0, -2.0, 4.0, -12.0],
    ]
    assert rounded([[127.0, 0.4, -0.6]], 8) == [[127.0, 0.0, -1.0]]  # 8 bits: up to 127
    assert rounded([[1.0, 0.4, -0.6]], 2) == [[1.0, 0.0, -1.0]]  # 2 bits: -1, 0, 1


def test_a_row_of_zeros_stays_one():
    assert rounded([[0.0, 0.0], [7.0, 1.0]], 4) == [[0.0, 0.0], [7.0, 1.0]]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_no_weight_moves_by_more_than_half_a_step_and_vectors_not_at_all(bits: int):
    network = llama()
    result = Quantize(bits=bits)(network, REQUEST)
    for (name, was), now in zip(network.module.named_parameters(), result.module.parameters(), strict=True):
        if was.dim() < 2:
            assert torch.equal(was, now), name
        else:
            step = was.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
            assert bool(((now - was).abs() <= step / 2 * (1 + 1e-5)).all()), name
            assert len(now[0].unique()) <= 2**bits - 1


def test_rounding_twice_is_rounding_once():
    once = Quantize(bits=4)(llama(), REQUEST)
    twice = Quantize(bits=4)(once, REQUEST)
    assert Quantize(bits=4).equal_codes(twice, once) == 1.0
    for a, b in zip(once.module.parameters(), twice.module.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=0)


def test_a_matrix_that_stands_twice_stays_one():
    network = llama(tie_word_embeddings=True)
    result = Quantize()(network, REQUEST)
    assert result.module.lm_head.weight is result.module.model.embed_tokens.weight
    assert network.module.lm_head.weight is network.module.model.embed_tokens.weight


def test_the_share_of_equal_codes_counts_weights_by_hand():
    one, other = (nn.Linear(4, 1, bias=False) for _ in range(2))
    one.weight.data = torch.tensor([[7.0, 1.0, 2.0, 3.0]])
    other.weight.data = torch.tensor([[7.0, 1.4, 2.6, 3.0]])  # 1.4 is still 1, but 2.6 is 3
    base = llama()
    networks = [base.fork(module) for module in (one, other)]
    assert Quantize(bits=4).equal_codes(*networks) == 3 / 4
    assert Quantize(bits=8).equal_codes(*networks) == 2 / 4  # steps of 7/127: 1.4 is no longer 1
    assert Quantize(bits=4).equal_codes(networks[0], networks[0]) == 1.0


def test_networks_of_unlike_shape_have_no_codes_in_common():
    with pytest.raises(ModelRefused, match="is not in both networks"):
        Quantize().equal_codes(llama(), llama(num_key_value_heads=2))


def test_what_moved_by_less_than_half_a_step_comes_back_at_4_bits_and_not_at_8():
    grid = Quantize(bits=4)(llama(), REQUEST)  # as models shipped in 4 bits are
    draw = torch.Generator().manual_seed(1)

    def nudge(weight: torch.Tensor) -> torch.Tensor:
        """A third of a 4-bit step to either side; the largest of each row stays, and so does the step."""
        step = weight.abs().amax(1, keepdim=True) / 7
        side = torch.randint(0, 2, weight.shape, generator=draw) * 2 - 1
        largest = weight.abs() >= weight.abs().amax(1, keepdim=True) * (1 - 1e-6)
        return torch.where(largest, weight, weight + side * step / 3)

    moved = rewritten(grid, nudge)
    networks = (grid, moved, Quantize(bits=4)(moved, REQUEST), Quantize(bits=8)(moved, REQUEST))
    with torch.inference_mode():
        said = [network.ask(Scores(), REQUEST.forget).logits for network in networks]
    assert Quantize(bits=4).equal_codes(moved, grid) == 1.0
    assert Quantize(bits=8).equal_codes(moved, grid) < 0.3  # all but the largest of a row: 127 / 7 / 3 = 6 steps away
    assert torch.allclose(said[2], said[0], atol=1e-5)
    away = float((said[1] - said[0]).abs().max())
    assert away > 1e-3
    assert float((said[3] - said[1]).abs().max()) < 0.2 * away


def test_bits_that_are_none_are_refused():
    for bits in (1, 17):
        with pytest.raises(UsageRefused, match=f"must lie between 2 and 16. Got {bits}."):
            Quantize(bits=bits)
    assert math.isclose(Quantize(bits=4).bits, 4)


def test_a_bfloat16_network_stays_one():
    network = llama()
    network.module.to(torch.bfloat16)
    result = Quantize()(network, REQUEST)
    assert {p.dtype for p in result.module.parameters()} == {torch.bfloat16}
    assert Quantize().equal_codes(result, network) > 0.95  # bfloat16 cannot hold every multiple of a step
