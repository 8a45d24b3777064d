"""Language models are read, trained and written as their own library does it: an architecture for each kind of trouble.

`python -m tests.architecture_table` asks the same of every architecture of transformers.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from expunge.core.question import LogProbabilities
from expunge.errors import ModelRefused
from expunge.models import writing
from expunge.models.configuration import largest, lengths
from expunge.models.decoding import cache_bytes, greedy, spell
from expunge.models.language import LanguageModel
from expunge.models.probe import ANY_LENGTH, Texts
from expunge.models.writing import _tried, generate_each, write
from tests.architecture_table import Words, check, make, records
from tests.architectures import build, tiny

READ = {
    "llama": "trees, padded rows",
    "phi3:long": "trees to 8, padded rows to 40, one by one",  # rotary factors by the longest text of the batch
    "deepseek_v32:far": "padded rows to 40, one by one",  # an indexer that selects keys
    "llama4_text:far": "trees to 40, padded rows to 40, one by one",  # chunks, and scales by the place in the row
    "doge:far": "padded rows to 40, one by one",
    "moshi:far": "trees to 40, padded rows to 40, one by one",  # its cache has a window that it does not have
    "gemma3_text:far": "trees to 40, padded rows to 40, one by one",
    "minimax": "padded rows",  # padding on the left is not neutral
    "deepseek_v4": "padded rows to 8, one by one",
    "falcon": "padded rows",  # written by transformers' own loop
    "gpt_neo": "padded rows",
    "gemma4_text": "trees to 8, padded rows",  # heads of another width in some layers
    "mamba": "padded rows",  # no heads
    "rwkv": "padded rows",
    "phimoe": "trees to 8, padded rows",  # its router is a linear layer
    "dory": "trees to 8, padded rows",  # layers that are run twice
    "blt": "padded rows to 512, one by one",  # several towers
    "bert:decoder": "trees, padded rows",
}
REFUSED = {
    "bert:encoder": "by what comes after it",
    "xlnet": "by what comes after it",
    "emu3": "could not be loaded",
}


@pytest.mark.parametrize("name", READ)
def test_it_is_read_trained_and_written_as_by_its_own_library(name):
    assert check(name).read == READ[name]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_causal_language_model_is_refused_when_it_is_loaded(name):
    assert REFUSED[name] in check(name).note


def test_a_model_that_draws_its_answers_is_refused():
    module = make("llama")
    module.model.norm.register_forward_hook(lambda _part, _given, made: made + torch.randn_like(made))
    with pytest.raises(ModelRefused, match="at random"):
        LanguageModel.of(module, Words())


@pytest.mark.parametrize("beside", ["row", "tree"])
@pytest.mark.parametrize("change", [1.5, 1.01])
def test_a_model_whose_answers_depend_on_what_is_read_beside_is_read_otherwise(beside, change):
    module = make("llama")

    def mix(_part, _given, made):
        crowd = made.shape[0] > 1 if beside == "row" else made.shape[1] > 18  # only a tree is as long
        return made * change if crowd else made

    module.model.norm.register_forward_hook(mix)
    network = LanguageModel.of(module, Words())
    assert (network.rows, network.trees) == ((0, 4096) if beside == "row" else (ANY_LENGTH, 0))


def test_a_text_that_has_ended_is_not_gone_on_with_in_another_way():
    network = LanguageModel.of(make("mistral:far"), Words())
    text = records(network.vocabulary)[5].tokens[:38]
    first = spell(network, [text], [1])[0]
    network.module.generation_config.eos_token_id = first[0]
    assert write(network, [text], [9]) == [first]  # a tree would have room for two more


def test_attention_is_what_it_was_where_no_trees_are_read():
    config = LlamaConfig(**tiny("llama").to_dict())
    module = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    module.model.norm.register_forward_hook(lambda _part, _given, made: made * (1.5 if made.shape[1] > 18 else 1.0))
    assert LanguageModel.of(module, Words()).trees == 0
    assert module.config._attn_implementation == "eager"


def test_texts_of_the_probe_are_within_learnt_positions_and_the_keys_that_are_selected():
    assert len(Texts.of(make("opt")).long) == 18
    assert len(Texts.of(build("opt", max_position_embeddings=10)).long) == 10
    for most in (8, 16):
        texts = Texts.of(build("deepseek_v32", index_topk=most))
        assert (texts.near, texts.far, len(texts.long)) == ((), (most,), most)


def test_of_several_that_are_tried_memory_that_is_full_is_no_answer():
    module = make("llama")

    def fill(_part, _given, made):
        if made.shape[0] > 1:
            raise torch.OutOfMemoryError
        return made

    module.model.norm.register_forward_hook(fill)
    with pytest.raises(torch.OutOfMemoryError):
        LanguageModel.of(module, Words())


def test_what_is_read_one_by_one_is_asked_in_batches_of_one_and_answers_in_the_order_of_the_batch():
    network = LanguageModel(make("llama"), Words(), rows=20)
    read = records(network.vocabulary)
    assert [[read[k].size for k in group] for group in network.batches(read)] == [[3, 5, 9, 12, 17], [31], [45], [58]]
    together = network.ask(LogProbabilities(), read).log_probs
    alone = torch.cat([network.ask(LogProbabilities(), [one]).log_probs for one in read])
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_way_of_writing_is_tried_on_the_first_text_beyond_what_the_probe_reads_and_on_one_half_as_long_again():
    network = LanguageModel.of(make("moshi:far"), Words())
    read = records(network.vocabulary)
    short, beyond = [read[k].tokens for k in (2, 3)], [read[k].tokens for k in (5, 7)]
    assert [*map(len, short), *map(len, beyond)] == [9, 17, 45, 58]
    assert write(network, short, [3, 3]) == spell(network, short, [3, 3])
    assert [way.__name__ for way, _ in _tried[network.module]] == ["greedy"]
    assert write(network, beyond, [4, 4]) == spell(network, beyond, [4, 4])
    assert {(way.__name__, most): size for (way, most), size in _tried[network.module].items()} == {
        ("greedy", 40): 18,
        ("generate_each", ANY_LENGTH): 0,
    }
    _tried[network.module][generate_each, ANY_LENGTH] = 30  # as if it had been right on a text of 30
    assert write(network, [beyond[0]], [4]) != spell(network, [beyond[0]], [4])
    _tried[network.module][generate_each, ANY_LENGTH] = 29
    assert write(network, [beyond[0]], [4]) == spell(network, [beyond[0]], [4])


def test_a_way_writes_up_to_the_length_that_it_is_right_for_and_one_token_that_it_does_not_read(monkeypatch):
    network = LanguageModel.of(make("mistral:far"), Words())
    text = records(network.vocabulary)[5].tokens[:38]
    asked = []

    def watch(reader, begun, most, seen=None):
        asked.extend(len(own) + many for own, many in zip(begun, most, strict=True) if seen is None)
        return greedy(reader, begun, most, seen)

    monkeypatch.setattr(writing, "greedy", watch)
    assert network.trees == 40
    assert len(write(network, [text], [9])[0]) == 9
    assert asked == [41]


def test_plain_attention_is_what_it_was_before_trees_were_registered():
    eager = AutoModelForCausalLM.from_config(LlamaConfig(**tiny("llama").to_dict()), attn_implementation="eager").eval()
    network = LanguageModel.of(make("llama"), Words())
    eager.load_state_dict(network.module.state_dict())
    tokens = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.inference_mode():
        ours, theirs = network.module(input_ids=tokens).logits, eager(input_ids=tokens).logits
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_lengths_that_a_configuration_names():
    assert lengths(tiny("llama")) == []
    assert lengths(tiny("mistral", sliding_window=40)) == [40]
    assert lengths(tiny("gpt_neo", window_size=16)) == [16]
    assert lengths(tiny("phi3", original_max_position_embeddings=40, sliding_window=None)) == [40]
    assert 128 in lengths(tiny("minimax_m3_vl_text", index_block_size=128))


def test_what_differs_from_layer_to_layer_counts_with_its_largest_value():
    config = tiny("gemma4_text")
    assert config.to_dict()["per_layer_config"] == {"1": {"head_dim": 512}, "3": {"head_dim": 512}}
    assert largest(config, "head_dim") == 512
    assert largest(tiny("gpt2", n_positions=48), "max_position_embeddings") == 48  # which has another name for it
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    assert cache_bytes(module) == 2 * 4 * 2 * 512 * 4  # keys and values, 4 layers, 2 heads, 512 numbers of 4 bytes


def test_a_model_without_heads_has_a_state_of_its_width():
    assert cache_bytes(make("mamba")) == 2 * 4 * 32 * 4  # two states, 4 layers, 32 numbers of 4 bytes
