"""What a plan says a run reads, computes and holds, against what torch counts."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from expunge.core.question import Scores
from expunge.core.request import Request
from expunge.models.language import LanguageModel
from expunge.models.prefix_tree import Layout, Piece
from expunge.models.tree_attention import with_trees
from expunge.notation.parse import parse
from expunge.plan.count import costs, measure_pass
from expunge.plan.machine import Machine
from expunge.plan.paper import on_paper
from expunge.plan.plan import make_plan, plan
from tests.plan.plans import GPT2, LLAMA, NO_STOP, elsewhere, job, on_tiny

# What a pass costs

BLOCK = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64
"""Entries of a block's matrices: q; k and v of two heads; o; gate, up, down."""


def lines(adapter: str, request_: Request):
    return costs(*_of(adapter, request_))


def _of(adapter: str, request_: Request):
    made = on_tiny(f"Finetune(adapter={adapter}, steps=1)", request_)
    return made.paper, made.opener


def test_a_pass_costs_two_for_each_weight_and_token_and_four_for_each_pair(request_):
    """Attention works out scores and sums, 2 for each of its 32 numbers and pair; rotary angles cost 2 x 4 a token."""
    line = lines("Full()", request_)[0]["original"]
    assert line.at(Layout(2, 70)) == 2 * 140 * 3 * BLOCK + 3 * 4 * 2 * 70**2 * 32 + line.base
    assert (line.pair, line.base) == (3 * 4 * 32, 0)


def test_all_weights_that_move_cost_a_pass_three_times(request_):
    found, trainable = lines("Full()", request_)
    assert found["gradients"].pair == 3 * found["original"].pair
    assert found["gradients"].token == 3 * found["original"].token
    assert trainable == 2 * 400 * 32 + 3 * (BLOCK + 2 * 32) + 32  # embeddings, blocks with two norms, the last norm


def test_a_low_rank_update_costs_its_factors_and_gradients_end_at_the_first_adapted_layer(request_):
    """The MLPs of 3 blocks: 2 T r (in + out) forward, twice that back, but for what the first two layers read."""
    found, trainable = lines("LoRA(rank=8)", request_)
    factors = 3 * 3 * 8 * (32 + 64)
    assert trainable == factors
    assert found["adapted"].token - found["original"].token == 2 * factors
    attention, mlp = 4 * 32 * 24, 3 * 32 * 64
    back = 2 * (2 * attention + 3 * mlp - 2 * 32 * 64) + 4 * factors - 2 * 2 * 8 * 32
    assert found["gradients"].token - found["adapted"].token == back
    assert found["gradients"].pair == found["original"].pair + 2 * 8 * 32  # 8 w for each pair in two of three


def test_a_bounded_update_is_folded_once_whatever_is_read(request_):
    found, _ = lines("Bounded(rank=8)", request_)
    assert found["adapted"].base == 3 * 3 * 2 * 8 * 32 * 64
    assert found["adapted"].token == found["original"].token


def test_writing_reads_the_prompt_and_then_a_row_for_each_token(request_):
    made = on_tiny("Quantize()", request_, audits="Rouge(max_new_tokens=2)")
    [(note, layout), *_] = [each for each in made.reads if each[0].new]
    line, many = made.costs[0]["original"], layout.trees
    each = many * (line.token + line.pair * (layout.nodes + 2 / 2)) + 2 * many * 400 * 32
    assert made._reading(note, layout) == line.at(layout) + each + 2 * many * 400 * 32


# What is read


def test_a_model_before_is_read_once_for_each_example(request_):
    made = on_tiny(f"Finetune(objective=RetainKL(), steps=6, batch=4, retain_batch=5, {NO_STOP})", request_)
    asked = [note.examples for note, _ in made.calls if note.kind == "original"]
    assert [len(examples) for examples in asked] == [5, 5]  # 10 examples in fives
    long = on_tiny(f"Finetune(objective=RetainKL(), steps=600, batch=4, retain_batch=5, {NO_STOP})", request_)
    assert long.tokens["reference"] == made.tokens["reference"]
    assert long.tokens["training"] == pytest.approx(100 * made.tokens["training"], rel=0.05)


def test_checks_are_counted_by_how_often_they_come(request_):
    """One before the first step, and one after every fifth and the last: 1 + 13."""
    one = on_tiny(f"Finetune(steps=1, {NO_STOP})", request_).tokens["checks"] / 2
    assert (
        on_tiny(f"Finetune(steps=63, {NO_STOP.replace('every=100', 'every=5')})", request_).tokens["checks"] == 14 * one
    )


def test_several_processes_share_what_a_step_reads(request_):
    one, two = (
        on_tiny(f"Finetune(objective=Ascent(), batch=8, steps=4, {NO_STOP})", request_, processes=n) for n in (1, 2)
    )
    assert 0.4 < two.flops["training"] / one.flops["training"] < 0.8
    assert 0.4 < two.flops["output matrix"] / one.flops["output matrix"] < 0.6
    whole = [on_tiny("SSD()", request_, processes=n).flops["training"] for n in (1, 2)]
    assert whole[0] == whole[1]  # an edit is done by each


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("trees", [True, False])
def test_examples_are_grouped_and_laid_out_as_the_network_does(config, trees: bool, request_, plain):
    module = AutoModelForCausalLM.from_config(config).eval()
    network = LanguageModel(module, plain, 256 if trees and with_trees(module) else 0)
    paper = on_paper("tiny", config, plain, torch.float32, "cpu", None)
    sketched = replace(paper.network, trees=network.trees)
    examples = [*request_.forget, *request_.retain, *request_.holdout] * 4
    assert list(sketched.batches(examples)) == list(network.batches(examples))
    given: list[dict] = []
    hook = module.register_forward_pre_hook(lambda _module, _given, named: given.append(named), with_kwargs=True)
    network.ask(Scores(), examples[:7])
    hook.remove()
    layout = sketched.layout(examples[:7], "cpu")
    assert (layout.trees, layout.nodes) == tuple(given[0]["input_ids"].shape)


# Memory


def test_the_peak_is_the_largest_phase_and_training_holds_five_numbers_for_each_that_moves(planned):
    made = planned
    assert made.peak == max(sum(phase.values()) for phase in made.phases.values())
    assert made.phases["forget"]["weights"] == 4 * made.paper.parameters
    # weight, gradient, two moments, and the best step's weight, and for a moment what AdamW makes of one tensor
    assert 20 <= made.phases["forget"]["state"] / made.costs[1] < 24


@pytest.mark.parametrize(
    ("method", "numbers"),
    [
        # a copy, its gradient, two moments, the best step's state
        (f"Finetune(adapter=Full(), objective=Ascent(), steps=3, {NO_STOP})", 5),
        # importances of all, a gradient, and those of the forget set; later the result beside both
        ("SSD()", 3),
        ("SSD(batch=1)", 3),
        # a gradient, and then the result beside it
        ("IAU(correction=0.0)", 2),
        ("Quantize()", 1),
        # a copy, its gradient, and two moments for each of two optimizers; of the output matrix a copy alone
        ("LAF(steps=2, autoencoder_steps=1)", 6 - 5 * 0.24),
    ],
)
def test_copies_gradients_and_importances_are_seen_in_the_rehearsal(method: str, numbers: int, request_):
    """In units of the model; what is worked out of one tensor at a time comes on top, here up to a model's size."""
    made = on_tiny(method, request_)
    assert numbers <= made.phases["forget"]["state"] / made.paper.weights < numbers + 1.3


def test_a_half_precision_model_is_trained_in_a_copy_of_twice_the_size(request_):
    paper = on_paper("tiny", LLAMA, None, torch.float32, "cpu", None).at(torch.bfloat16)
    for method, size in ((f"Finetune(adapter=Full(), steps=2, {NO_STOP})", 4), ("SSD()", 2)):
        made = make_plan(paper, parse(method), request_, (parse("Loss()"),), Machine("cuda", memory=1e12))
        assert made.trial[1] == size * paper.parameters
        assert made.disk["model"] == 4 * paper.parameters  # as the file has it
        assert replace(made, paper=replace(paper, written=torch.float16)).disk["model"] == 2 * paper.parameters


def test_more_processes_hold_a_part_each_of_what_can_be_cut(model, files, planned):
    one, four = (made.phases["forget"] for made in (planned, plan(job(model, files), elsewhere(processes=4))))
    assert four["state"] == one["state"] / 4
    assert four["activations"] < one["activations"]


def test_audits_of_a_model_that_is_cut_hold_a_part_each_and_what_is_at_work(model, files, planned):
    """Half a model of 2 blocks, and all of it at work; the host has the whole to merge."""
    whole, cut = (plan(job(model, files), elsewhere(processes=2, hold=hold)) for hold in ("whole", "cut"))
    weights = 4 * whole.paper.parameters
    before = [made.phases["audit before"]["weights"] for made in (whole, cut)]
    assert before == [weights, weights / 2 + weights]
    assert cut.phases["forget"] == whole.phases["forget"]
    assert cut.host > weights > planned.host == 0


def test_recomputed_activations_are_an_input_for_each_block(request_):
    kept, again = (on_tiny(f"Finetune(steps=1, activations='{how}')", request_) for how in ("kept", "recomputed"))
    layout = Layout(1, 100, (Piece(0, 100, path=True),))
    more = [measure_pass(made.paper, layout, made.opener)[0] for made in (kept, again)]
    # three inputs, what the last norm reads and makes, and the angles of the positions
    assert more[1] <= 5 * 100 * 32 * 4 + 2 * 100 * 8 * 4 + 2000
    assert more[0] > 4 * more[1]


def test_a_bounded_layer_keeps_nothing_of_its_weights_size(request_):
    """A weight of 64 x 32 is 8 kB; nine layers of one token would show it."""
    made = on_tiny("Finetune(steps=1)", request_)
    assert measure_pass(made.paper, Layout(1, 1), made.opener)[0] < 9 * 64 * 32 * 4
