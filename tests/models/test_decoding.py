"""What is written greedily is what transformers' own greedy loop writes, however many are written side by side."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoConfig, LlamaConfig

from expunge.core.question import LogProbabilities, Text
from expunge.data.text import Passage
from expunge.models import decoding, writing
from expunge.models.decoding import generate, greedy, side_by_side
from expunge.models.language import LanguageModel
from expunge.runtime.cached_model import CachedModel

V = 40
SHAPE = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "eos_token_id": 2}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE, intermediate_size=48, num_key_value_heads=2, max_position_embeddings=64),
    "gpt2": GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2),
    "gpt_neo": GPTNeoConfig(
        vocab_size=V, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        window_size=4, max_position_embeddings=64, eos_token_id=2,
    ),
}  # fmt: skip
BEGUN = [(1, 5, 6, 7), (1, 5, 6, 8, 9, 10), (1, 5), (1, 5, 6, 7, 11), (3, 4), (1, 5, 6, 7)]


class Words:
    """A tokenizer that names each token by its number."""

    def decode(self, tokens, skip_special_tokens):
        return " ".join(str(token) for token in tokens if token != 2)


def network(name, seed=0):
    torch.manual_seed(seed)
    module = AutoModelForCausalLM.from_config(CONFIGS[name]).double().eval()
    for p in module.parameters():
        p.data *= 4  # so that scores are far apart, and an end comes now and then
    return LanguageModel.of(module, Words())


def passage(k, asked, answer):
    return Passage(str(k), (*asked, *answer), len(asked), "", "", "", tuple(asked))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("seed", range(4))
def test_greedy_writes_what_transformers_writes(name, seed):
    model = network(name, seed)
    assert model.trees
    most = [12, 12, 3, 12, 0, 1]
    assert greedy(model, BEGUN, most) == generate(model, BEGUN, most)


def test_an_end_ends_one_sequence_and_not_its_neighbours():
    model = network("llama")
    free = greedy(model, BEGUN, [12] * len(BEGUN))
    end = free[1][4]  # from now on the fifth token that the second sequence writes is an end
    model.module.generation_config.eos_token_id = [2, end]
    cut = greedy(model, BEGUN, [12] * len(BEGUN))
    for before, after in zip(free, cut, strict=True):
        place = next((k + 1 for k, token in enumerate(before) if token in (2, end)), 12)
        assert after == before[:place]
    assert len({len(own) for own in cut}) > 1


def test_architectures_without_trees_are_written_by_their_own_library():
    model = network("gpt_neo")
    assert not model.trees
    alone = [generate(model, [one], [8])[0] for one in BEGUN]
    assert generate(model, BEGUN, [8] * len(BEGUN)) == alone
    texts = model.ask(Text(8), [passage(k, one, (7,)) for k, one in enumerate(BEGUN)])
    assert texts == [model.tokenizer.decode(own, True) for own in alone]


@pytest.mark.parametrize("name", ["llama", "gpt_neo"])
def test_what_is_sure_is_not_written_again_and_changes_no_text(name, monkeypatch):
    model = network(name)
    texts = greedy(model, BEGUN, [9] * 6) if model.trees else generate(model, BEGUN, [9] * 6)
    # The first is known whole, of the others two tokens, then something else than what the model writes.
    known = [passage(0, BEGUN[0], texts[0])]
    known += [passage(k, BEGUN[k], (*texts[k][:2], (texts[k][2] + 1) % V, 3)) for k in range(1, 6)]
    plain = model.ask(Text(9), known)
    asked = CachedModel(model)
    asked.ask(LogProbabilities(), known)
    handed = []
    kind = "greedy" if model.trees else "generate"
    real = getattr(decoding, kind)

    def listen(network, begun, most, seen):
        handed.extend(most if seen is None else [])  # the probe hands on more
        return real(network, begun, most, seen)

    monkeypatch.setattr(writing, kind, listen)
    assert asked.ask(Text(9), known) == plain
    assert len(plain[0]) > 0
    assert handed == [7] * 5  # 9 - 2 for each of the five; nothing is asked about the first


def test_a_lead_makes_nothing_sure():
    model = network("llama")
    own = greedy(model, [BEGUN[0]], [4])[0]
    led = replace(passage(0, (*BEGUN[0], 9), own), prompt_tokens=BEGUN[0])  # read after a 9 that the prompt has not
    asked = CachedModel(model)
    asked.ask(LogProbabilities(), [led])
    assert asked.ask(Text(4), [led]) == model.ask(Text(4), [led])


def test_what_is_sure_is_cut_where_it_ends_and_where_it_is_long_enough():
    model = network("llama")
    one = passage(0, (1, 5), (7, 2, 9, 9))
    assert model.ask(Text(8, begun=tuple([4])), [one]) == ["7"]  # 2 is an end
    assert model.ask(Text(1, begun=tuple([4])), [one]) == ["7"]


def test_as_many_are_written_side_by_side_as_the_space_for_keys_and_values_holds(monkeypatch):
    module = network("llama").module
    # A token's keys and values: 2 * 2 layers * 2 heads * 8 numbers of 8 bytes = 512; of 16 tokens 8,192.
    monkeypatch.setitem(decoding.SPACE, "cpu", 3 * 8192 + 1)
    assert side_by_side(module, 16) == 3
    assert side_by_side(module, 1000) == 1
    monkeypatch.setitem(decoding.SPACE, "cpu", 1 << 40)
    assert side_by_side(module, 16) == decoding.WRITES
