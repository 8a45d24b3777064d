"""Selectors: what is like the forget set comes first, by worked numbers and on tiny models; nothing else changes."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from expunge.core.question import HiddenStates, Scores
from expunge.core.request import Request
from expunge.errors import DataRefused, UsageRefused
from expunge.events import Note
from expunge.internals.gradients import Slopes, gradient, loss
from expunge.internals.states import log_odds
from expunge.notation.parse import parse, plugins
from expunge.select._kinds import flatten, losses_by_record, mean_by_record, take_turns
from expunge.select.auto_coreset import AutoCoreset
from expunge.select.hardest import Hardest, _project
from expunge.select.influential import Influential
from expunge.select.nearest import Nearest
from tests.families import EVERY_STEP, PLACES, llama, passages, picture_request, resnet, text_request, vit

SELECTORS = [plugin.name for plugin in plugins() if plugin.folder == "select"]
SIX = {
    "Nearest": "Nearest(count=6)",
    "Influential": "Influential(count=6)",
    "AutoCoreset": "AutoCoreset(size=6, models=1, patience=1, steps=1)",
    "Hardest": "Hardest(count=6, rounds=1, epochs=1)",
    "Subset": "Subset(count=6, teacher=Hardest(count=1, rounds=1, epochs=1), pools=2, size=2, epochs=1)",
}


def pool(size: int = 10) -> list:
    return [[e] for e in passages(PLACES[-size:], 4)]


def test_the_first_of_each_comes_first_then_the_second_of_each():
    alike = torch.tensor([[0.9, 0.8, 0.1, 0.2], [0.3, 0.0, 0.5, 0.4]])
    # Of the first record: 0, 1, 3, 2. Of the second: 2, 3, 0, 1.
    assert take_turns(iter([alike]), 4) == (0, 2, 1, 3)
    assert take_turns(iter(alike.split(1)), 2) == (0, 2)  # in parts, the same


@pytest.mark.parametrize("name", SELECTORS)
def test_a_selector_chooses_as_many_as_asked_each_once_and_changes_nothing(name):
    network, records, forget = llama(), pool(), text_request().forget
    before = network.fingerprint()
    made = parse(SIX[name])
    chosen = made(network, forget, records)
    assert len(chosen.indices) == len(set(chosen.indices)) == 6 == made.quota
    assert set(chosen.indices) < set(range(len(records)))
    assert len(chosen.weights) in (0, 6)
    assert all(weight > 0 for weight in chosen.weights)
    assert made(network, forget, records) == chosen
    assert network.fingerprint() == before
    assert parse(repr(made)) == made
    with pytest.raises(DataRefused, match=f"{name} is to choose 6 records, and the pool has 5"):
        made(network, forget, records[:5])


@pytest.mark.parametrize("text", ["Nearest(count=1)", "Influential(count=1)", "Influential(count=1, score='trak')"])
def test_the_same_record_is_the_nearest_wherever_it_stands_in_the_pool(text):
    network, forget = llama(), text_request().forget[:1]
    for place in (0, 4, 9):
        records = pool()
        records[place] = list(forget)
        assert parse(text)(network, forget, records).indices == (place,)


@pytest.mark.parametrize(("make", "choose"), [(vit, "Nearest(count=2)"), (resnet, "Influential(count=2)")])
def test_images_are_chosen_among_as_texts_are(make, choose):
    request = picture_request()
    records = [[e] for e in request.retain]
    assert parse(choose)(make(), request.retain[3:4], records).indices[0] == 3


def test_a_record_read_as_several_examples_counts_by_their_mean():
    records = [pool()[0], [*flatten(pool()[1:3])]]
    assert mean_by_record(torch.tensor([1.0, 2.0, 5.0]), records).tolist() == [1.0, 3.5]
    both = Nearest(count=2)(llama(), text_request().forget, records)
    assert sorted(both.indices) == [0, 1]


def test_states_are_means_over_rows_standardised_over_the_pool():
    network, forget, records = llama(), text_request().forget, pool()
    states = [network.ask(HiddenStates(1), [e]).states.mean(0) for e in (*forget, *flatten(records))]
    stacked = torch.stack(states).detach()
    ours, theirs = stacked[: len(forget)], stacked[len(forget) :]
    middle, spread = theirs.mean(0), theirs.std(0, correction=0)
    wanted = torch.nn.functional.cosine_similarity(
        ((ours - middle) / spread)[:, None], ((theirs - middle) / spread)[None], dim=-1
    )
    made = torch.cat(list(Nearest(layer=1).likeness(network, forget, records)))
    assert torch.allclose(made, wanted, atol=1e-4)


def test_trak_is_the_gradient_seen_through_the_pools_second_moments_and_the_doubt():
    """Moments diag(1, 4) / 2, and 0.2 of their mean 1.25 on the diagonal: diag(0.75, 2.25)."""
    made = Influential(damping=0.2)._trak(
        torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0.5, 1.0])
    )
    assert torch.cat(list(made))[0].tolist() == pytest.approx([1 / 0.75 * 0.5, 2 / 2.25])


def test_cosines_of_sketches_are_those_of_the_gradients_inside_blocks():
    network, records = llama(), pool(4)

    def slope(example) -> torch.Tensor:
        made = gradient(network, lambda p: p.over_rows(p.each_row(log_odds)), (1.0, [example]))
        return torch.cat([g.flatten() for name, g in made.items() if ".layers." in name and g.dim() > 1])

    exact = torch.stack([slope(e) for e in flatten(records)])
    wanted = torch.nn.functional.cosine_similarity(exact[:, None], exact[None], dim=-1)
    asked = Influential(score="cosine", side=40)
    sketched = torch.cat(list(asked.likeness(network, flatten(records), records)))
    assert torch.allclose(sketched.float(), wanted, atol=0.12)
    assert (wanted - torch.eye(4)).abs().max() > 0.2  # it is no comparison of zeros


def test_a_fit_of_the_coreset_raises_the_loss_of_the_forget_set_and_moves_as_far_as_it_says():
    network, request, records = llama(), text_request(), pool()
    made = AutoCoreset(size=4, steps=1, reach=0.03)
    after = made._forget(network, request.forget, [(record, 1.0) for record in records[:4]])
    was, now = network.module.state_dict(), after.module.state_dict()
    length = math.hypot(*(float(p.detach().norm()) for p in network.module.parameters()))
    moved = math.hypot(*(float((now[name] - was[name]).norm()) for name in was if "rotary" not in name))
    assert moved / length == pytest.approx(0.03, rel=1e-3)
    losses = [float(loss(each.ask(Scores(), request.forget).detach())) for each in (network, after)]
    assert losses[1] > losses[0]


def test_a_step_of_a_fit_reads_as_many_records_as_it_says_and_all_of_them_in_turn(monkeypatch):
    network, request, records = llama(), text_request(), pool(5)
    read = []
    add = Slopes.add
    monkeypatch.setattr(
        Slopes, "add", lambda self, examples, *rest: read.append(examples) or add(self, examples, *rest)
    )
    made = AutoCoreset(size=5, steps=5, batch=2)
    made._forget(network, request.forget, [(record, 1.0) for record in records])
    forget, held = read[::2], read[1::2]
    assert [len(each) for each in (*forget, *held)] == [2] * 10
    assert Counter(e.id for step in held for e in step) == Counter(dict.fromkeys([r[0].id for r in records], 2))
    assert {e.id for step in forget for e in step} == {e.id for e in request.forget}


def test_training_reads_the_chosen_records_alone_by_their_weights_and_says_so():
    network, request, told = llama(), text_request(), []
    made = AutoCoreset(size=3, models=1, patience=1, steps=1, seed=1)
    narrow = made.narrow(network, request, told.append)
    assert len(narrow.retain) == 3
    assert {e.id for e in narrow.retain} < {e.id for e in request.retain}
    chosen = made(network, request.forget, [[e] for e in request.retain])
    assert [e.weight for e in narrow.retain] == pytest.approx([w * 3 / 6 for w in chosen.weights])
    assert [type(each) for each in told] == [Note]
    assert "Training reads 3 of 6 retain records, counted by their weights: AutoCoreset(size=3" in told[0].what


def test_a_method_trains_on_what_its_selector_chooses_as_if_nothing_else_had_been_given():
    network, request = llama(), text_request()
    method = parse("Finetune(retain=Nearest(count=2), steps=2, batch=2, retain_batch=2)")
    method = replace(method, stop=EVERY_STEP)
    own = Request(request.forget, Nearest(count=2).narrow(network, request).retain, request.holdout)
    weights = [
        each(network, given).plain().fingerprint()
        for each, given in (
            (method, request),
            (replace(method, retain=None), own),
            (replace(method, retain=None), request),
        )
    ]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Nearest(count=0)", "The `count` of Nearest must be at least 1. Got 0."),
        ("Nearest(layer=1.5)", "The `layer` of Nearest must be a block number, or a share of the depth below 1.0."),
        ("Influential(score='dot')", "The `score` of Influential must be one of trak, cosine."),
        (
            "AutoCoreset(summary='median')",
            "The `summary` of AutoCoreset must be one of importance, caratheodory, uniform",
        ),
        ("AutoCoreset(patience=0)", "The `patience` of AutoCoreset must be at least 1."),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(text, said):
    with pytest.raises(UsageRefused) as refused:
        parse(text)
    assert said in str(refused.value)


# Hardest


def test_the_projection_has_the_sum_and_is_the_nearest_such_point():
    values = torch.tensor([2.0, 0.9, 0.5, -1.0], dtype=torch.float64)
    # Less 0.3: 1 (cut off at 1.7), 0.6, 0.2, 0.
    assert _project(values, 1.8).tolist() == pytest.approx([1.0, 0.6, 0.2, 0.0])
    assert _project(torch.zeros(4, dtype=torch.float64), 2.0).tolist() == pytest.approx([0.5] * 4)


@pytest.mark.parametrize("start", ["uniform", "random"])
def test_what_is_answered_whether_it_was_trained_on_or_not_is_hardest_to_forget(start):
    """Of ten images six are one, with one label: the others speak for each. For the four labels nothing speaks."""
    network, request = resnet(), picture_request()
    pool = [[replace(request.retain[0], id=f"same-{k}", label=1)] for k in range(6)]
    pool += [[replace(e, id=f"own-{k}", label=k % 4)] for k, e in enumerate(request.forget[:4])]
    made = Hardest(count=4, rounds=3, epochs=4, learning_rate=3e-3, batch=5, start=start)
    assert set(made(network, (), pool).indices) <= set(range(6))


def test_both_trains_what_is_chosen_away_and_retain_leaves_it_alone():
    """Shares of 1: the rest alone moves the network, or the chosen are driven up as well."""
    network, records = llama(), pool(4)
    shares = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    after = {}
    for way in ("retain", "both"):
        made = Hardest(count=2, epochs=3, batch=4, learning_rate=3e-3, forget=way)
        now = made._forget(network, records, shares, torch.Generator().manual_seed(0))
        after[way] = losses_by_record(now, records)
    was = losses_by_record(network, records)
    assert (after["retain"][2:] < was[2:]).all()
    assert (after["both"][:2] > after["retain"][:2]).all()
    assert (after["both"][:2] > was[:2]).all()
