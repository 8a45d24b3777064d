"""What every verdict looks at, asked for or not: that something changed, and that something stayed."""

from dataclasses import replace
from functools import partial

import pytest
import torch

import expunge
from expunge.adapters.full import Full
from expunge.audits.loss import Loss
from expunge.methods.finetune import Finetune
from expunge.methods.stop import Stop
from expunge.objectives.ascent import Ascent
from expunge.run.utility import count_differences, is_degenerate
from tests.families import llama, text_request

unlearn = partial(expunge.unlearn, added_probes=False)  # they have tests of their own
FREE = Stop(level=None, max_retain_increase=None, max_forget_loss=None, max_growth=None, every=2)
UNFORGOTTEN = Finetune(objective=Ascent(), steps=2, batch=2, learning_rate=1e-30, stop=FREE)


def test_a_run_that_moves_no_weight_does_not_pass():  # V06
    made = unlearn(llama(), text_request(), UNFORGOTTEN, [Loss()])
    assert made.run.ended.kept_step == 2  # steps were taken, and kept
    assert (made.run.changed, made.run.saved.max_logit_change) == (0, 0.0)
    assert not made.verdict.is_met
    missed = {rule.rule for rule in made.verdict.rules if rule.result == "no"}
    assert missed == {
        "numbers of the model changed >= 1 (something changed)",
        "largest change of a score >= 0.0001 (its answers changed)",
    }


def test_a_model_that_lost_everything_does_not_pass_for_one_that_forgot():
    ruin = Finetune(objective=Ascent(), adapter=Full(), steps=4, batch=6, learning_rate=0.05, stop=FREE)
    rule = ["forget.Rouge <= 0.1"]
    made = unlearn(llama(), text_request(), ruin, "Rouge(max_new_tokens=4)", require=rule)
    assert made.run.retain_rise > 1
    outcomes = {outcome.rule: outcome.result for outcome in made.verdict.rules}
    assert outcomes["forget.Rouge <= 0.1"] == "not measured"  # it wrote no right answers to begin with
    assert made.verdict.unharmed.said == "no"
    alone = replace(text_request(), retain=(), holdout=(), stand_in=(), probes={})
    blind = unlearn(llama(), alone, ruin, "Rouge(max_new_tokens=4)", require=rule)
    assert blind.verdict.unharmed.said == "not measured"
    assert blind.verdict.unharmed.reason == "What should stay: give --retain, or a --probe."


def test_one_record_is_too_few():  # V05
    one = replace(text_request(), forget=text_request().forget[:1])
    made = unlearn(llama(), one, replace(UNFORGOTTEN, learning_rate=1e-3), [Loss()])
    assert made.verdict.forgotten.said == "not measured"
    assert "Asked of one record alone, which shows too little." in made.verdict.forgotten.reason


def test_numbers_are_compared_as_numbers():
    one, other = llama(), llama()
    assert count_differences(one, other) == 0
    with torch.no_grad():
        next(other.module.parameters()).view(-1)[:3] += 1
    assert count_differences(one, other) == 3
    half = llama()
    half.module.bfloat16().float()
    rounded = sum(int((a != b).sum()) for a, b in zip(one.module.parameters(), half.module.parameters(), strict=True))
    assert count_differences(one, half) == rounded
    half.module.bfloat16()
    assert count_differences(one, half) == rounded  # another type, the same numbers


@pytest.mark.parametrize(
    ("text", "degenerate"),
    [
        ("", True),
        (" \n", True),
        ("the " * 12, True),
        ("I do not know. " * 9, True),
        ("a" * 24, True),
        ("ha" * 30, True),
        ("no", False),
        ("the the the", False),
        ("Mara Lind wrote the Book of Tides in the spring of that year, and nobody read it.", False),
        ("東京は日本の首都であり、世界でも最も人口の多い都市の一つです。", False),
    ],
)
def test_a_text_is_degenerate_where_it_is_empty_or_one_phrase_over_and_over(text: str, degenerate: bool):  # V04
    assert is_degenerate(text) is degenerate
