"""The router's anchor, worked by hand and on a small mixture."""

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig

from expunge.adapters.full import Full
from expunge.adapters.seuf import SEUF
from expunge.core.model import Model, answers
from expunge.core.predictions import RouterScores, Share
from expunge.core.question import Routes
from expunge.core.request import Request
from expunge.core.view import Run, View
from expunge.data.text import Passage
from expunge.internals.mixtures import affinity, mixtures, read_routes
from expunge.models.language import LanguageModel
from expunge.objectives.anchor import Anchor

torch.set_num_threads(1)

V = 40
CONFIG = MixtralConfig(
    vocab_size=V,
    hidden_size=16,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    num_local_experts=4,
    num_experts_per_tok=2,
    max_position_embeddings=32,
    eos_token_id=0,
    bos_token_id=None,
    pad_token_id=None,
)


def mixture() -> LanguageModel:
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(CONFIG).eval()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return LanguageModel.of(module, None)


def texts() -> tuple[Passage, ...]:
    draw = torch.Generator().manual_seed(0)
    tokens = [tuple(torch.randint(1, V, (4 + 3 * k,), generator=draw).tolist()) for k in range(3)]
    return tuple(Passage(f"{k}", each, 2, "", f"{k}") for k, each in enumerate(tokens))


REQUEST = Request(forget=texts())


class Says(Model):
    """A model of one block whose routers' answers are known beforehand."""

    def __init__(self, routes: RouterScores) -> None:
        self.said = routes

    @answers(Routes)
    def routes(self, question: Routes, batch) -> RouterScores:
        return self.said

    def batches(self, examples):
        yield list(range(len(examples)))


def known(probabilities: list[list[float]], example: list[int]) -> View:
    states = torch.tensor(probabilities, dtype=torch.float64)[:, None].requires_grad_()
    taken = torch.zeros_like(states, dtype=torch.bool).scatter(-1, states.topk(1).indices, True)
    rows = torch.tensor(example)
    routes = RouterScores(torch.zeros_like(rows), rows, len(set(example)), None, (0,), states, taken)
    return View(Says(routes), {"forget": texts()[: routes.examples]})


def test_it_is_the_squared_distance_to_one_expert_averaged_over_tokens_and_then_examples():
    # An example of one token, and one of two; the first of three experts is called for most.
    now = known([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0], [0.4, 0.6, 0.0]], [0, 1, 1])
    first = 0.3**2 + 0.2**2 + 0.1**2
    second = (0.0 + 0.6**2 + 0.6**2) / 2
    assert Anchor()(now, now).item() == pytest.approx((first + second) / 2)


def test_routers_that_are_at_the_expert_cost_nothing_and_far_from_it_two():
    there = known([[1.0, 0.0, 0.0]], [0])
    assert Anchor()(there, there).item() == 0
    away = known([[0.0, 1.0, 0.0]], [0])
    assert Anchor()(away, there).item() == 2.0  # the expert is that of the model before


def test_the_expert_is_the_one_that_the_adapter_lets_move_or_that_of_the_highest_affinity():
    network = mixture()
    layer, experts = affinity(read_routes(network, REQUEST.forget)).top()
    other = SEUF(layer=1 - layer, expert=3)
    two = SEUF(experts=2)
    for adapter, at, moving in (
        (Full(), layer, experts),
        (SEUF(), layer, experts),
        (other, 1 - layer, (3,)),
        (two, None, None),
    ):
        adapted = adapter.insert(network, REQUEST)
        if moving is None:
            [(at, moving)] = [(n, m.moving) for n, m in mixtures(adapted.module).items() if m.moving]
            assert len(moving) == 2
        now, before = (
            View(adapted, {"forget": REQUEST.forget}),
            View(network, {"forget": REQUEST.forget}, gradients=False),
        )
        value = Anchor()(now, before)
        with torch.no_grad():
            routes = network.ask(Routes(at), REQUEST.forget)
        aim = torch.zeros(4)
        aim[list(moving)] = 1 / len(moving)
        assert value.item() == pytest.approx(
            float(routes.mean((routes.states[:, 0] - aim).square().sum(-1)).mean()), abs=1e-6
        )


def test_a_step_down_sends_more_of_the_forget_set_to_the_expert():
    network = mixture()
    adapted = SEUF().insert(network, REQUEST)
    [(layer, (expert,))] = [(n, m.moving) for n, m in mixtures(adapted.module).items() if m.moving]
    before = View(network, {"forget": REQUEST.forget}, gradients=False)
    was = affinity(read_routes(adapted, REQUEST.forget)).gates[layer, expert]
    router = mixtures(adapted.module)[layer].gate.weight
    loss = Anchor()(View(adapted, {"forget": REQUEST.forget}), before)
    loss.backward()
    assert {n for n, p in adapted.trainable().items() if p.grad is not None} == {
        f"model.layers.{layer}.mlp.gate.weight"
    }
    with torch.no_grad():
        router -= 0.05 * router.grad / router.grad.norm()
    assert affinity(read_routes(adapted, REQUEST.forget)).gates[layer, expert] > was


def test_it_is_found_once_for_all_steps_and_kept_where_checkpoints_keep_numbers():
    network = mixture()
    memory: dict[str, object] = {}
    for step in (1, 2):
        now = View(Full().insert(network, REQUEST), {"forget": REQUEST.forget}, run=Run(step=step, memory=memory))
        before = View(network, {"forget": REQUEST.forget}, gradients=False)
        Anchor()(now, before)
        assert before.passes == ([("forget", Routes())] if step == 1 else [])
    [kept] = memory.values()
    layer, (expert,) = affinity(read_routes(network, REQUEST.forget)).top()
    assert kept == {"layer": layer, "expert 0": expert}


def test_a_process_without_an_example_of_its_own_adds_nothing_but_zeros():
    network = mixture()
    adapted = SEUF().insert(network, REQUEST)
    shares = {"forget": Share(9, 3)}
    now = View(adapted, {"forget": REQUEST.forget[:1]}, shares, absent=frozenset({"forget"}))
    loss = Anchor()(now, View(network, {"forget": REQUEST.forget}, gradients=False))
    loss.backward()
    assert loss.item() == 0
    grads = [p.grad for name, p in adapted.trainable().items() if "gate.weight" in name]
    assert all(grad is not None and not grad.any() for grad in grads)
