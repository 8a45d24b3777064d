"""Mamba, Mamba 2, RWKV and a hybrid: the laws that every language model keeps, where the memory is a state.

`tests/architecture_table.py` asks the same of every architecture, one after the other; here is what a state adds.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, RwkvConfig

from expunge import Finetune
from expunge.adapters.bounded import Bounded
from expunge.adapters.lora import LoRA
from expunge.core.model import Network
from expunge.core.question import HiddenStates, LogProbabilities, Text
from expunge.core.request import Request
from expunge.internals.blocks import blocks
from expunge.models.decoding import spell
from expunge.models.language import LanguageModel
from expunge.models.writing import _tried, generate, generate_each
from expunge.objectives.ascent import Ascent
from tests.architecture_table import Words, make, records
from tests.families import EVERY_STEP

torch.set_num_threads(1)
RECURRENT = ("mamba", "mamba2", "rwkv", "bamba")


@pytest.fixture(scope="module", params=RECURRENT)
def network(request: pytest.FixtureRequest) -> LanguageModel:
    return LanguageModel.of(make(request.param), Words())


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return torch.allclose(ours, theirs, atol=1e-4)


def test_answers_depend_neither_on_the_padding_nor_on_the_order_of_the_batch(network):
    read = records(network.vocabulary)
    alone = [network.ask(LogProbabilities(), [one]).log_probs for one in read]
    assert close(network.ask(LogProbabilities(), read).log_probs, torch.cat(alone))
    assert close(network.ask(LogProbabilities(), read[::-1]).log_probs, torch.cat(alone[::-1]))


def test_hidden_states_are_those_of_the_record_alone_and_each_block_has_its_own(network):
    read = records(network.vocabulary)[:4]
    first, last = (network.ask(HiddenStates(layer), read).states for layer in (0, 3))
    assert first.shape == last.shape == (sum(one.rows for one in read), network.module.config.hidden_size)
    assert not close(first, last)
    with torch.inference_mode():
        alone = torch.cat([network.ask(HiddenStates(3), [one]).states for one in read])
    assert close(last, alone)


def test_text_is_written_from_the_state_alone_and_is_what_rereading_would_write(network):
    read = records(network.vocabulary)
    prompts, most = [one.prompt_tokens for one in read], [8] * len(read)
    expected = [" ".join(map(str, text)) for text in spell(network, prompts, most)]
    assert network.ask(Text(8), read) == expected
    ways = [way for (way, _), right in _tried[network.module].items() if right]
    # By a cache. transformers' RWKV mixes the rows of a batch from the second token on, so it has one at a time.
    assert ways == [generate_each if network.module.config.model_type == "rwkv" else generate]


@pytest.mark.parametrize("adapter", [Bounded(rank=2), LoRA(rank=2, targets="all")])
def test_the_default_adapter_reaches_each_block_is_silent_at_first_and_merges(network, adapter):
    read = records(network.vocabulary)[:4]
    request = Request(forget=tuple(read[:2]), retain=tuple(read[2:]))
    network.module.requires_grad_(False)
    adapted = adapter.insert(network, request)
    trained = list(adapted.trainable())
    assert all(any(f"{block}." in name for name in trained) for block in blocks(network.module))
    before = network.ask(LogProbabilities(), read).log_probs
    assert close(adapted.ask(LogProbabilities(), read).log_probs, before)
    learn = Finetune(Ascent(), adapter, learning_rate=1e-2, steps=2, batch=2, stop=EVERY_STEP)
    forgetful = learn(network, request)
    now = forgetful.ask(LogProbabilities(), read).log_probs
    assert (now - before).abs().max() > 1e-3
    assert close(forgetful.plain().ask(LogProbabilities(), read).log_probs, now)


def deep_rwkv() -> torch.nn.Module:
    """Seven blocks, of which the seventh's weights RWKV divides by 2 before its first pass."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "context_length": 64, "hidden_size": 16, "num_hidden_layers": 7}
    module = AutoModelForCausalLM.from_config(RwkvConfig(**sizes, rescale_every=6)).eval().requires_grad_(False)
    for name, weight in module.named_parameters():  # so that each block is felt
        weight.copy_(torch.randn_like(weight) * (0.5 if weight.dim() == 2 else 0.1)) if "ln" not in name else None
    return module


@pytest.mark.parametrize("asked_before", [False, True])
def test_an_rwkv_of_many_blocks_is_written_with_the_weights_that_it_was_read_with(asked_before: bool, tmp_path: Path):
    module = deep_rwkv()
    weight = module.rwkv.blocks[6].feed_forward.value.weight
    own = weight.clone()
    read = records(64)[:4]
    if asked_before:
        module(input_ids=torch.tensor([[1, 2]]))
        assert torch.equal(weight, own / 2)
    network = LanguageModel.of(module, Words())
    said = network.ask(LogProbabilities(), read).log_probs
    assert torch.equal(weight, own)
    network.save(tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert theirs.config.rescale_every == 6
    assert theirs.config.use_cache
    assert torch.equal(theirs.rwkv.blocks[6].feed_forward.value.weight, own)
    assert close(LanguageModel.of(theirs, Words()).ask(LogProbabilities(), read).log_probs, said)


def test_what_an_rwkv_of_many_blocks_forgot_it_answers_alike_in_transformers(tmp_path: Path):
    network, read = LanguageModel.of(deep_rwkv(), Words()), records(64)[:4]
    learn = Finetune(Ascent(), Bounded(rank=2), learning_rate=1e-2, steps=2, batch=2, stop=EVERY_STEP)
    forgetful = learn(network, Request(forget=tuple(read[:2]), retain=tuple(read[2:]))).plain()
    assert isinstance(forgetful, Network)
    forgetful.save(tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    for one in read:
        scores = theirs(input_ids=torch.tensor([one.tokens])).logits[0].log_softmax(-1)
        right = scores[one.first - 1 : -1].gather(-1, torch.tensor(one.tokens[one.first :])[:, None])[:, 0]
        assert close(forgetful.ask(LogProbabilities(), [replace(one)]).log_probs, right)
