"""Bad teaching: the teacher has the shape of the original and nothing of what it knows; the loss is its distance."""

import math
from dataclasses import replace

import pytest
import torch

from expunge.adapters.full import Full
from expunge.core.model import Batch, Network
from expunge.core.question import Scores
from expunge.core.view import Run, View
from expunge.internals.untrained import draw_weights
from expunge.methods.finetune import Finetune
from expunge.objectives.bad_teacher import BadTeacher
from tests.families import EVERY_STEP, family_of

FAMILIES = ("llama", "gpt2", "vit", "resnet", "mixtral")


def views(family: str) -> tuple[View, View]:
    network, request = family_of(family)
    sets = {"forget": request.forget}
    return View(network, sets), View(network, sets, gradients=False)


def drawn(network: Network, seed: int = 0) -> Network:
    return draw_weights(network, seed, torch.device("cpu"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_teacher_knows_nothing_and_the_original_is_left_as_it_was(family: str):
    network, _ = family_of(family)
    found = {name: tensor.clone() for name, tensor in network.module.named_parameters()}
    first, again, other = drawn(network), drawn(network), drawn(network, 1)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert all(torch.equal(tensor, found[name]) for name, tensor in network.module.named_parameters())
    for name, weight in first.module.named_parameters():
        if weight.dim() > 1:
            like = torch.corrcoef(torch.stack([found[name].flatten(), weight.flatten()]).detach())[0, 1]
            assert abs(like) < 6 / math.sqrt(weight.numel()), name  # as of independent numbers


def test_drawing_a_teacher_draws_nothing_of_the_run():
    network, _ = family_of("vit")
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    drawn(network)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("family", ["llama", "vit"])
def test_the_loss_is_the_mean_distance_from_the_teacher(family: str):
    now, before = views(family)
    log_p, log_q = (
        scores_of(each, now.sets["forget"]).div(2).log_softmax(-1) for each in (drawn(now.model, 3), now.model)
    )
    by_hand = (log_p.exp() * (log_p - log_q)).sum() / len(log_p)
    assert BadTeacher(temperature=2.0, seed=3)(now, before).item() == pytest.approx(by_hand.item(), rel=1e-5)


def scores_of(network: Network, batch: Batch) -> torch.Tensor:
    """Class scores, rows times classes."""
    kept = []
    with torch.no_grad():
        network.ask(Scores(), batch).each_row(lambda labels, scores: kept.append(scores) or scores[:, 0])
    return torch.cat(kept)


def test_a_model_that_is_the_teacher_has_no_loss_and_no_gradient():
    network, request = family_of("vit")
    teacher = drawn(network)
    taught = teacher.fork(teacher.module.requires_grad_(True))
    sets = {"forget": request.forget}
    loss = BadTeacher()(View(taught, sets), View(network, sets, gradients=False))
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert all(p.grad is None or p.grad.abs().max() < 1e-5 for p in taught.module.parameters())


def test_the_teacher_is_drawn_once_for_a_run_and_its_pass_is_noted():
    now, before = views("vit")
    run = Run()
    teachers = []
    for _ in range(2):
        one, other = replace(now, run=run, replies={}), replace(before, run=run, passes=[])
        BadTeacher()(one, other)
        teachers += [value for key, value in run.memory.items() if key.endswith("teacher")]
        assert other.passes == [("forget", Scores())]  # which `expunge plan` counts
        assert other.replies == {}
    assert teachers[0] is teachers[1]


def test_what_was_learnt_by_heart_is_known_as_by_the_teacher():
    network, request = family_of("vit")
    after = Finetune(objective=BadTeacher(), adapter=Full(), steps=60, learning_rate=3e-3, stop=EVERY_STEP)(
        network, request
    )
    taught, said = (scores_of(each.plain(), request.forget).softmax(-1) for each in (drawn(network), after))
    assert (taught - said).abs().max() < 0.05
