"""Mixtures of experts are found in every architecture that keeps them, and their routers are read as they route."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    GraniteMoeConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    OlmoeConfig,
    PhimoeConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from expunge.core.predictions import RouterScores
from expunge.core.question import Routes, Scores
from expunge.data.text import Passage
from expunge.errors import ModelRefused, UsageRefused
from expunge.internals.mixtures import affinity, first_tokens, mixtures, read_routes
from expunge.models.language import LanguageModel
from expunge.models.source import locate

torch.set_num_threads(1)

V, EXPERTS, TOP = 40, 4, 2
SHAPE = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32,
    "eos_token_id": 0,
    "bos_token_id": None,
    "pad_token_id": None,
    "num_experts_per_tok": TOP,
}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": None, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4}
CONFIGS = {
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=EXPERTS),
    "olmoe": OlmoeConfig(**SHAPE, num_experts=EXPERTS),
    "qwen2_moe": Qwen2MoeConfig(
        **SHAPE, num_experts=EXPERTS, moe_intermediate_size=12, shared_expert_intermediate_size=8
    ),
    "qwen3_moe": Qwen3MoeConfig(**SHAPE, num_experts=EXPERTS, moe_intermediate_size=12, head_dim=4),
    "granitemoe": GraniteMoeConfig(**SHAPE, num_local_experts=EXPERTS),
    "phimoe": PhimoeConfig(**SHAPE, num_local_experts=EXPERTS),
    "deepseek_v2": DeepseekV2Config(
        **SHAPE,
        **LATENT,
        n_routed_experts=EXPERTS,
        n_shared_experts=1,
        first_k_dense_replace=1,
        moe_intermediate_size=12,
    ),
}
KIND = pytest.mark.parametrize("kind", CONFIGS)
STORIES = Path(__file__).parents[3] / "shared/data/stories260k"


def mixture(kind: str) -> LanguageModel:
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(CONFIGS[kind]).eval()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return LanguageModel.of(module, None)


def texts(seed: int = 0) -> list[Passage]:
    draw = torch.Generator().manual_seed(seed)
    return [
        Passage(f"{k}", tuple(torch.randint(1, V, (4 + 3 * k,), generator=draw).tolist()), 2, "", "") for k in (0, 1, 2)
    ]


@KIND
def test_every_block_with_experts_is_found_with_its_router(kind: str):
    module = mixture(kind).module
    found = mixtures(module)
    assert list(found) == ([1] if kind == "deepseek_v2" else [0, 1])  # DeepSeek's first block is dense
    for one in found.values():
        assert one.count == EXPERTS
        assert one.gate.weight.shape == (EXPERTS, 16)
        assert "shared" not in f"{one.name}.{one.router}"
        assert one.moving == ()


def test_a_dense_model_has_no_mixture_and_is_refused_in_one_line():
    dense = LanguageModel.of(
        LlamaForCausalLM(LlamaConfig(**{k: v for k, v in SHAPE.items() if "experts" not in k})), None
    )
    assert mixtures(dense.module) == {}
    with pytest.raises(
        ModelRefused, match="LlamaForCausalLM has no experts with a router.*Use adapter=Bounded"
    ) as said:
        dense.ask(Routes(), texts())
    assert "\n" not in str(said.value)


@KIND
def test_routes_are_the_softmax_and_the_top_of_the_librarys_own_router_scores(kind: str):
    network = mixture(kind)
    scores: list[torch.Tensor] = []
    hooks = [
        one.gate.register_forward_hook(lambda gate, given, made: scores.append(made[0]))
        for one in mixtures(network.module).values()
    ]
    for text in texts():
        scores.clear()
        with torch.no_grad():
            network.module(input_ids=torch.tensor([text.tokens]))
        routes = network.ask(Routes(), [text])
        assert routes.labels.tolist() == list(text.tokens[1:])
        for place, said in enumerate(scores[: len(routes.layers)]):
            right = said.softmax(-1)[:-1]  # the last token predicts nothing
            assert torch.allclose(routes.states[:, place], right, atol=1e-6)
            assert torch.equal(
                routes.taken[:, place].nonzero()[:, 1].view(-1, TOP), right.topk(TOP).indices.sort(-1)[0]
            )
    for hook in hooks:
        hook.remove()


@KIND
def test_one_blocks_routes_are_those_among_all_and_nothing_above_gets_a_gradient(kind: str):
    network = mixture(kind)
    every = network.ask(Routes(), texts())
    for place, layer in enumerate(every.layers):
        one = network.ask(Routes(layer), texts())
        assert one.layers == (layer,)
        assert torch.equal(one.states[:, 0], every.states[:, place])
    network.module.zero_grad()
    last = mixtures(network.module)[every.layers[-1]]
    network.ask(Routes(every.layers[-1]), texts()).states.square().sum().backward()
    assert last.gate.weight.grad is not None
    assert all(p.grad is None for p in last.experts.parameters())
    with pytest.raises(UsageRefused, match="must be a block with experts: .*Got 7"):
        network.ask(Routes(7), texts())


@KIND
def test_a_batch_as_trees_padded_and_alone_is_routed_alike(kind: str):
    network, batch = mixture(kind), texts()
    padded = LanguageModel(network.module, None, trees=0, headed=network.headed)
    assert network.trees > 0
    together = network.ask(Routes(), batch)
    assert torch.allclose(together.states, padded.ask(Routes(), batch).states, atol=1e-6)
    alone = torch.cat([network.ask(Routes(), [text]).states for text in batch])
    assert torch.allclose(together.states, alone, atol=1e-6)


@KIND
def test_the_log_probability_of_a_mixture_is_the_librarys_own_loss(kind: str):
    network = mixture(kind)
    for text in texts():
        tokens = torch.tensor([text.tokens])
        labels = tokens.clone()
        labels[:, : text.first] = -100
        with torch.no_grad():
            ours, theirs = network.ask(Scores(), [text]).nll(), network.module(input_ids=tokens, labels=labels).loss
        assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)


def routes_of(probabilities: list[list[float]], example: list[int]) -> Routes:
    """Routes of one block with the two best experts of four taken."""
    states = torch.tensor(probabilities)[:, None]
    taken = torch.zeros_like(states, dtype=torch.bool).scatter(-1, states.topk(2).indices, True)
    rows = torch.tensor(example)
    return RouterScores(torch.zeros_like(rows), rows, len(set(example)), None, (3,), states, taken)


def test_affinity_is_the_mean_over_examples_of_the_mean_over_tokens_of_the_gates():
    # One token that experts 0 and 1 read, and an example of two that 1 and 2, and 2 and 3 read.
    first = routes_of([[0.5, 0.3, 0.1, 0.1]], [0])
    second = routes_of([[0.1, 0.5, 0.3, 0.1], [0.1, 0.1, 0.2, 0.6]], [0, 0])
    found = affinity([first, second])
    assert found.gates[0].tolist() == pytest.approx([0.5 / 2, (0.3 + 0.5 / 2) / 2, (0.3 + 0.2) / 2 / 2, 0.6 / 2 / 2])
    assert found.shares[0].tolist() == pytest.approx([1 / 2, (1 + 1 / 2) / 2, 1 / 2, 1 / 4])
    assert found.top() == (3, (1,))
    assert found.top(2) == (3, (1, 0))
    both = routes_of([[0.5, 0.3, 0.1, 0.1], [0.1, 0.5, 0.3, 0.1], [0.1, 0.1, 0.2, 0.6]], [0, 1, 1])
    assert torch.allclose(affinity([both]).gates, found.gates)


def test_the_block_of_the_highest_affinity_is_chosen_unless_one_is_asked_for():
    network = mixture("mixtral")
    found = affinity(read_routes(network, texts()))
    layer, (expert,) = found.top()
    assert found.gates.max() == found.gates[found.layers.index(layer), expert]
    other = 1 - layer
    assert found.top(1, other) == (other, (int(found.gates[found.layers.index(other)].argmax()),))
    assert found.shares.sum(-1).tolist() == pytest.approx([TOP, TOP])


def test_affinity_is_read_on_the_first_examples_up_to_so_many_tokens():
    network, batch = mixture("mixtral"), texts()  # of 4, 7 and 10 tokens
    for tokens, kept in ((1, 1), (4, 1), (5, 2), (11, 2), (12, 3), (1000, 3)):
        assert sum(routes.examples for routes in read_routes(network, first_tokens(batch, tokens))) == kept


@pytest.mark.skipif(not STORIES.exists(), reason=f"{STORIES} is not there")
def test_a_real_model_whose_mlps_became_experts_says_what_it_said():
    """stories260K, each MLP copied into four experts: whatever the routers say, the answer is the MLP's."""
    dense = LanguageModel.load(locate(str(STORIES)))
    old = dense.module.config
    config = MixtralConfig(
        **{name: getattr(old, name) for name in SHAPE if hasattr(old, name)},
        num_local_experts=4,
        num_experts_per_tok=2,
        tie_word_embeddings=old.tie_word_embeddings,
        rms_norm_eps=old.rms_norm_eps,
        rope_parameters=old.rope_parameters,
    )
    module = AutoModelForCausalLM.from_config(config).eval()
    weights = dense.module.state_dict()
    for number, block in enumerate(module.model.layers):
        at = f"model.layers.{number}.mlp."
        gate, up, down = (weights.pop(f"{at}{name}_proj.weight") for name in ("gate", "up", "down"))
        weights[f"{at}experts.gate_up_proj"] = torch.cat([gate, up])[None].repeat(4, 1, 1)
        weights[f"{at}experts.down_proj"] = down[None].repeat(4, 1, 1)
        weights[f"{at}gate.weight"] = torch.randn(block.mlp.gate.weight.shape, generator=torch.manual_seed(number))
    module.load_state_dict(weights)
    upcycled = LanguageModel.of(module, dense.tokenizer)
    tokens = tuple(dense.tokenizer("Once upon a time there was a little girl named Lily.")["input_ids"])
    story = [Passage("story", tokens, 1, "", "")]
    with torch.no_grad():
        a, b = (network.ask(Scores(), story).log_probs() for network in (upcycled, dense))
    assert torch.allclose(a, b, atol=1e-4)
    assert (upcycled.ask(Routes(), story).taken.sum(1) > 0).any(0).sum() == 4  # and every expert had a token
