"""SEUF: one expert and its router move, whichever the forget set calls for, and nothing else does."""

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig, OlmoeConfig, Qwen2MoeConfig

from expunge.adapters._layers import choose_layers
from expunge.adapters.full import Full
from expunge.adapters.lora import LoRA
from expunge.adapters.seuf import SEUF
from expunge.core.model import Network
from expunge.core.question import Routes, Scores
from expunge.core.request import Request
from expunge.data.text import Passage
from expunge.errors import UsageRefused
from expunge.internals.mixtures import affinity, mixtures, read_routes
from expunge.methods.finetune import Finetune
from expunge.methods.stop import Stop
from expunge.models.language import LanguageModel
from expunge.objectives.anchor import Anchor
from expunge.objectives.ascent import Ascent
from expunge.objectives.npo import NPO
from expunge.objectives.retain_nll import RetainNLL

torch.set_num_threads(1)

V, EXPERTS, TOP, WIDTH, INNER = 40, 4, 2, 16, 12
SHAPE = {
    "vocab_size": V,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32,
    "eos_token_id": 0,
    "bos_token_id": None,
    "pad_token_id": None,
    "num_experts_per_tok": TOP,
}
CONFIGS = {
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=EXPERTS),
    "olmoe": OlmoeConfig(**SHAPE, num_experts=EXPERTS),
    "qwen2_moe": Qwen2MoeConfig(
        **SHAPE, num_experts=EXPERTS, moe_intermediate_size=INNER, shared_expert_intermediate_size=8
    ),
}
KIND = pytest.mark.parametrize("kind", CONFIGS)


def mixture(kind: str = "mixtral") -> LanguageModel:
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(CONFIGS[kind]).eval()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return LanguageModel.of(module.requires_grad_(False), None)


def texts(seed: int) -> tuple[Passage, ...]:
    draw = torch.Generator().manual_seed(seed)
    tokens = [tuple(torch.randint(1, V, (5 + k,), generator=draw).tolist()) for k in range(4)]
    return tuple(Passage(f"{seed}-{k}", each, 2, "", f"{seed} {k}") for k, each in enumerate(tokens))


REQUEST = Request(forget=texts(0), retain=texts(1))


def trained(adapter: SEUF | Full, objective=None, **options) -> Network:
    method = Finetune(
        objective=objective or Ascent() + RetainNLL() + Anchor(),
        adapter=adapter,
        learning_rate=1e-2,
        steps=3,
        batch=4,
        retain_batch=4,
        stop=Stop(level=None, max_retain_increase=None),
        **options,
    )
    return method(mixture(), REQUEST).inner


def changed(one: Network, other: Network) -> set[str]:
    """What of the weights differs, the rows of stacked tensors counted alone."""
    found = set()
    for name, now in one.module.state_dict().items():
        was = other.module.state_dict()[name]
        if now.dim() == 3:
            found |= {f"{name}[{k}]" for k in range(len(now)) if not torch.equal(now[k], was[k])}
        elif not torch.equal(now, was):
            found.add(name)
    return found


@KIND
def test_what_may_move_is_one_expert_and_its_router_to_the_number(kind: str):
    network = mixture(kind)
    adapted = SEUF().insert(network, REQUEST)
    expert = 3 * INNER * WIDTH  # gate, up and down
    router = EXPERTS * WIDTH
    assert sum(p.numel() for p in adapted.trainable().values()) == expert + router
    layer, moving = affinity(read_routes(network, REQUEST.forget)).top()
    assert {n: mixture.moving for n, mixture in mixtures(adapted.module).items()} == {layer: moving, 1 - layer: ()}


def test_training_changes_that_expert_and_that_router_and_nothing_else():
    network = mixture()
    layer, (expert,) = affinity(read_routes(network, REQUEST.forget)).top()
    merged = SEUF().merge(trained(SEUF()))
    at = f"model.layers.{layer}.mlp"
    assert changed(merged, network) == {
        f"{at}.experts.gate_up_proj[{expert}]",
        f"{at}.experts.down_proj[{expert}]",
        f"{at}.gate.weight",
    }


@KIND
def test_the_expert_that_is_asked_for_moves_and_answers_change_where_it_is_called(kind: str):
    network = mixture(kind)
    adapted = SEUF(layer=1, expert=2).insert(network, REQUEST)
    assert mixtures(adapted.module)[1].moving == (2,)
    for name, parameter in adapted.trainable().items():
        if "gate.weight" not in name:
            parameter.data.zero_()
    called = network.ask(Routes(1), REQUEST.forget).taken[:, 0, 2]
    with torch.no_grad():
        now, was = (
            n.ask(Scores(), [Passage("", t.tokens, 1, "", "") for t in REQUEST.forget]).logits
            for n in (adapted, network)
        )
    assert 0 < called.sum() < len(called)
    assert torch.equal((now - was).abs().amax(-1) > 1e-6, called)  # the last block: other tokens do not feel it


def test_several_experts_are_the_best_of_one_block():
    network = mixture()
    found = affinity(read_routes(network, REQUEST.forget))
    layer, moving = found.top(3)
    adapted = SEUF(experts=3).insert(network, REQUEST)
    assert mixtures(adapted.module)[layer].moving == moving
    merged = SEUF().merge(trained(SEUF(experts=3)))
    assert {name for name in changed(merged, network) if "gate_up" in name} == {
        f"model.layers.{layer}.mlp.experts.gate_up_proj[{expert}]" for expert in moving
    }


def test_an_expert_that_no_token_calls_has_a_gradient_of_zeros():
    """Processes that share a step add gradients up together, so none may lack one."""
    network = mixture()
    adapted = SEUF(layer=0, expert=1).insert(network, REQUEST)
    gate = mixtures(adapted.module)[0].gate
    gate.weight.data[:] = 0  # all experts are alike, so the first two of the list, or others, are taken of four
    (routes,) = read_routes(adapted, REQUEST.forget)
    never = int((~routes.taken[:, 0].any(0)).nonzero()[0])
    adapted = SEUF(layer=0, expert=never).insert(network, REQUEST)
    mixtures(adapted.module)[0].gate.weight.data[:] = 0
    adapted.ask(Scores(), REQUEST.forget).nll().backward()
    grads = [p.grad for name, p in adapted.trainable().items() if "own" in name]
    assert len(grads) == 2
    assert all(grad is not None and not grad.any() for grad in grads)


def test_only_the_experts_own_slices_get_gradients():
    adapted = SEUF().insert(mixture(), REQUEST)
    adapted.ask(Scores(), REQUEST.forget).nll().backward()
    stacked = [p for name, p in adapted.module.named_parameters() if p.dim() == 3 and ".own." not in name]
    assert len(stacked) == 4
    assert all(p.grad is None for p in stacked)


@pytest.mark.parametrize("objective", [Ascent(), NPO(beta=0.001) + Anchor(), 2.0 * Anchor() + RetainNLL()], ids=repr)
def test_any_objective_trains_one_expert_and_accumulated_steps_end_in_the_same_place(objective):
    whole, parts = (SEUF().merge(trained(SEUF(), objective, accumulate=n)).module.state_dict() for n in (1, 2))
    assert all(torch.allclose(whole[name], parts[name], atol=1e-4) for name in whole)
    assert any(not torch.equal(whole[name], weight) for name, weight in mixture().module.state_dict().items())


def test_recomputed_activations_end_in_the_same_place():
    kept, again = (
        SEUF().merge(trained(SEUF(), activations=kind)).module.state_dict() for kind in ("kept", "recomputed")
    )
    assert all(torch.allclose(kept[name], again[name], atol=1e-5) for name in kept)


def test_a_merged_mixture_is_saved_and_loaded_by_transformers_alone(tmp_path):
    merged = SEUF().merge(trained(SEUF()))
    merged.module.save_pretrained(tmp_path)
    loaded = LanguageModel.of(AutoModelForCausalLM.from_pretrained(tmp_path), None)
    with torch.no_grad():
        a, b = (network.ask(Scores(), REQUEST.forget).log_prob() for network in (merged, loaded))
    assert torch.allclose(a, b, atol=1e-5)


def test_what_is_no_mixture_or_no_expert_of_it_is_refused_in_one_line():
    wrong = [
        (SEUF(layer=5), "must be a block with experts: 0, 1. Got 5"),
        (SEUF(experts=5), "there are 4 experts a block"),
        (SEUF(layer=0, expert=4), "there are 4 experts a block"),
    ]
    for adapter, says in wrong:
        with pytest.raises(UsageRefused, match=says):
            adapter(mixture(), REQUEST)
    with pytest.raises(UsageRefused, match="`expert` is one of a `layer`"):
        SEUF(expert=1)
    with pytest.raises(UsageRefused, match="at least 1. Got 0"):
        SEUF(experts=0)


@KIND
def test_a_low_rank_adapter_of_attention_takes_a_mixture(kind: str):
    network = mixture(kind)
    adapted = LoRA(targets="attention").insert(network, REQUEST)
    assert len(choose_layers(network.module, "attention")) == 2 * 4
    with torch.no_grad():
        assert torch.allclose(
            adapted.ask(Scores(), REQUEST.forget).logits, network.ask(Scores(), REQUEST.forget).logits, atol=1e-6
        )


def test_every_weight_of_a_mixture_may_move():
    adapted = trained(Full(), Ascent())
    names = changed(adapted, mixture())
    assert {f"model.layers.{n}.mlp.gate.weight" for n in (0, 1)} <= names
    assert any("experts.down_proj" in name for name in names)


def test_where_there_are_shapes_and_no_weights_it_says_that_it_cannot_choose():
    network = mixture()
    network.module.to("meta")
    with pytest.raises(UsageRefused, match="SEUF cannot be planned"):
        SEUF().insert(network, REQUEST)
