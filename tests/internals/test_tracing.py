"""Causal tracing: everything put back gives the total effect, nothing put back gives none, and roles of tokens."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from expunge import open_model
from expunge.adapters.lora import LoRA
from expunge.errors import DataRefused, ModelRefused, UsageRefused
from expunge.internals.tracing import ROLES, Fact, Trace, Tracer, by_role, strongest
from expunge.models.language import LanguageModel

V = 40
SHAPE = dict(vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4)
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "gpt2": GPT2Config(vocab_size=V, n_embd=16, n_layer=3, n_head=4, n_positions=64, eos_token_id=0, bos_token_id=0),
    "gpt_neox": GPTNeoXConfig(**SHAPE),  # attention and MLP side by side
}
FAMILY = pytest.mark.parametrize("family", CONFIGS)
FACT = Fact((5, 9, 11, 3, 7, 2), range(1, 3), 4)
DATA = Path(__file__).parents[3] / "shared" / "data" / "stories260k"


def tiny(family: str = "llama") -> LanguageModel:
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(CONFIGS[family]).eval().requires_grad_(False)
    for parameter in module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return LanguageModel.of(module, None)


def ways(tracer: Tracer, *chosen: tuple[object, object]) -> torch.Tensor:
    made = torch.zeros(len(chosen), len(tracer.parts()), len(FACT.tokens), dtype=torch.bool)
    for way, (layers, places) in enumerate(chosen):
        made[way, layers, places] = True
    return made


ALL = slice(None)
NONE = slice(0, 0)


@FAMILY
@pytest.mark.parametrize("noise", [0.5, 3.0])
def test_everything_put_back_gives_the_total_effect_and_nothing_gives_none(family: str, noise: float):
    network = tiny(family)
    block = Tracer(network, part="block", noise=noise)
    # The states after the last block, or after the first one, screen all that lies below off.
    none, everything, first, last = block.restore(
        FACT, ways(block, (NONE, NONE), (ALL, ALL), (0, ALL), (-1, ALL))
    ).tolist()
    clean, trace = block.clean(FACT)[0], block.trace(FACT)
    assert abs(clean - none) > 1e-4  # the noise does something, ten times what is compared
    for restored in (everything, first, last):
        assert restored - none == pytest.approx(trace.total, abs=1e-5)
    assert trace.corrupted == pytest.approx(none, abs=1e-9)
    assert trace.clean == clean


@FAMILY
@pytest.mark.parametrize("part", ["block", "mlp", "attention"])
def test_nothing_put_back_is_the_corrupted_run_whatever_the_part(family: str, part: str):
    network = tiny(family)
    tracer = Tracer(network, part=part)
    (corrupted,) = tracer.restore(FACT, ways(tracer, (NONE, NONE))).tolist()
    weight = network.module.get_input_embeddings().weight
    noise = torch.randn(10, 2, 16, generator=torch.Generator().manual_seed(0)) * 3 * weight.std()
    states = weight[torch.tensor([FACT.tokens])].repeat(10, 1, 1)
    states[:, 1:3] += noise
    scores = network.module(inputs_embeds=states).logits[:, -1]
    assert corrupted == pytest.approx(float(scores.softmax(-1)[:, 4].mean()), abs=1e-6)


@FAMILY
def test_the_last_state_at_the_last_token_is_all_that_the_answer_reads(family: str):
    tracer = Tracer(tiny(family), part="block")
    trace = tracer.trace(FACT)
    assert float(trace.effect[-1, -1]) == pytest.approx(trace.total, abs=1e-5)
    # After the last block nothing looks at other tokens any more, and before the subject nothing was corrupted.
    assert trace.effect[-1, :-1].abs().max() <= 1e-6
    assert not trace.effect[:, 0].any()
    (before,) = tracer.restore(FACT, ways(tracer, (ALL, 0))).tolist()
    assert before == pytest.approx(trace.corrupted, abs=1e-6)


def test_a_window_puts_neighbouring_layers_back_together():
    network = tiny()
    tracer = Tracer(network, part="mlp", window=2)
    # Around layer 1 a window of 2 is layers 0 and 1; around layer 0 it is cut to layer 0.
    none, both, one = tracer.restore(FACT, ways(tracer, (NONE, NONE), (slice(0, 2), 2), (0, 2))).tolist()
    effect = tracer.trace(FACT).effect
    assert float(effect[1, 2]) == pytest.approx(both - none, abs=1e-7)
    assert float(effect[0, 2]) == pytest.approx(one - none, abs=1e-7)
    assert both != one


def test_the_network_is_left_as_it_was():
    network = tiny()
    was = network.fingerprint()
    Tracer(network, part="attention").trace(FACT)
    assert network.fingerprint() == was
    assert not any(part._forward_hooks for part in network.module.modules())


# Facts, roles and layers


def test_a_fact_is_read_by_the_letters_of_its_subject():
    words = ["[unk]", "The", "Eiffel", "Tower", "stands", "in", "Paris"]
    made = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="[unk]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[unk]")
    fact = Fact.read(tokenizer, "The Eiffel Tower stands in", "Eiffel Tower", " Paris")
    assert fact == Fact((1, 2, 3, 4, 5), range(1, 3), 6)
    assert fact.roles() == ["", "first subject", "last subject", "next", "last"]
    with pytest.raises(DataRefused, match="is not in the prompt") as refused:
        Fact.read(tokenizer, "The Eiffel Tower stands in", "Louvre", " Paris")
    assert "Louvre" not in str(refused.value)


def test_roles_of_a_long_subject_and_of_one_token():
    assert Fact(tuple(range(8)), range(1, 5), 0).roles() == [
        "",
        "first subject",
        "middle subject",
        "middle subject",
        "last subject",
        "next",
        "further",
        "last",
    ]
    assert Fact((0, 1, 2), range(1, 2), 0).roles() == ["", "last subject", "last"]
    assert set(Fact(tuple(range(8)), range(1, 5), 0).roles()) == {"", *ROLES}


def test_the_strongest_layers_are_those_of_the_mean_over_facts():
    one = Trace(Fact((0, 1, 2), range(1, 2), 0), 0.9, 0.1, torch.tensor([[0, 0.4, 0], [0, 0.1, 0], [0, 0.0, 0.5]]))
    two = Trace(Fact((0, 1, 2), range(0, 2), 0), 0.9, 0.1, torch.tensor([[0.3, 0.0, 0], [0, 0.1, 0], [0, 0.4, 0.7]]))
    table = by_role([one, two])
    assert table[ROLES.index("last subject")].tolist() == pytest.approx([0.2, 0.1, 0.2])  # 0.4 / 2, 0.1, 0.4 / 2
    assert table[ROLES.index("first subject")].tolist() == pytest.approx([0.3, 0.0, 0.0])  # of the second alone
    assert table[ROLES.index("last")].tolist() == pytest.approx([0.0, 0.0, 0.6])
    assert table[ROLES.index("further")].isnan().all()
    assert strongest([one, two], 2) == (0, 2)
    assert strongest([one, two], 1, "last") == (2,)
    with pytest.raises(UsageRefused, match="from 1 to 3"):
        strongest([one, two], 4)


def test_the_layers_found_are_those_that_an_adapter_moves():
    network = tiny()
    found = strongest([Tracer(network).trace(FACT)], 2)
    adapter = LoRA(rank=2, layers=found)
    moved = {name.split("layers.")[1][0] for name, _ in adapter.deltas(adapter.insert(network, None), network)}
    assert moved == {str(layer) for layer in found}


@pytest.mark.parametrize("layers", [(), (3,), (-1,)])
def test_layers_that_are_not_there_are_refused(layers: tuple[int, ...]):
    with pytest.raises(UsageRefused, match="from 0 to 2, or None for all"):
        LoRA(layers=layers).insert(tiny(), None)


def test_what_cannot_be_traced_is_refused():
    with pytest.raises(UsageRefused, match="block, mlp or attention"):
        Tracer(tiny(), part="head")
    with pytest.raises(UsageRefused, match="at least 1"):
        Tracer(tiny(), draws=0)
    with pytest.raises(DataRefused, match="3 tokens"):
        Fact((0, 1, 2), range(2, 4), 0)
    opt = OPTConfig(
        vocab_size=V, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=16
    )
    network = LanguageModel.of(AutoModelForCausalLM.from_config(opt).eval(), None)
    with pytest.raises(ModelRefused, match="could be its mlp"):  # its two MLP layers stand in the block, one by one
        Tracer(network).trace(FACT)


@pytest.mark.skipif(not DATA.is_dir(), reason="no shared data here: stories260k")
def test_a_trained_model_is_traced_to_where_its_answer_comes_from():
    network = open_model(str(DATA))
    fact = Fact.read(
        network.tokenizer, "Once upon a time, there was a little girl named Lily. She loved to", "Lily", " play"
    )
    trace = Tracer(network, part="block").trace(fact)
    assert float(trace.effect[-1, -1]) == pytest.approx(trace.total, abs=1e-5)
    assert trace.effect.shape == (5, len(fact.tokens))
