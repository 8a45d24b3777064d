"""A method's line with other settings."""

import pytest

from expunge.errors import UsageRefused
from expunge.notation.parse import parse
from expunge.notation.variants import read_over, variants, with_setting

LINE = "Finetune(objective=NPO() + RetainKL(), adapter=Bounded(rank=4), steps=3)"


def test_every_combination_is_made_the_last_changing_fastest():
    over = dict(map(read_over, ["learning_rate=1e-5,0.1", "Bounded.rank=2, 8", "NPO.beta=0.5"]))
    made = variants(LINE, over)
    found = [parse(each.line) for each in made]
    assert [(one.learning_rate, one.adapter.rank) for one in found] == [(1e-5, 2), (1e-5, 8), (0.1, 2), (0.1, 8)]
    assert {one.objective.parts[0].beta for one in found} == {0.5}
    assert {one.steps for one in found} == {3}
    assert made[0].name == "learning_rate=1e-05_Bounded.rank=2_NPO.beta=0.5"
    assert len({each.name for each in made}) == 4


def test_values_may_be_parts_with_commas_and_a_setting_may_be_one_of_an_inner_part():
    name, values = read_over("adapter=Bounded(rank=2, alpha=4.0),LoRA(rank=8),None")
    assert (name, values) == ("adapter", ("Bounded(rank=2, alpha=4.0)", "LoRA(rank=8)", "None"))
    assert parse(with_setting(LINE, "adapter", values[1])).adapter == parse("LoRA(rank=8)")
    assert parse(with_setting(LINE, "rank", "16")).adapter.rank == 16  # no other part of the line has one
    assert with_setting("SSD", "alpha", "3.0") == "SSD(alpha=3.0)"
    assert parse(with_setting("Finetune(objective=NPO)", "seed", "4")).seed == 4


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ("rnak=4", "no part of the method has it"),
        ("NPO.rank=4", "no part of the method has it. It has: beta"),
        ("learning_rate", "could not be read"),
        ("learning_rate=", "could not be read"),
        ("learning_rate=1e-5,1e-5", "names a value twice"),
        ("seed=__import__('os')", "cannot be|not allowed|No plug-in"),
    ],
)
def test_what_cannot_be_swept_is_refused(over: str, said: str):
    with pytest.raises(UsageRefused, match=said):
        parse(variants(LINE, dict([read_over(over)]))[0].line)


def test_a_setting_of_two_parts_must_say_whose_it_is():
    line = "Finetune(objective=NPO() + DPO())"
    with pytest.raises(UsageRefused, match=r"more than one part has it: NPO.beta, DPO.beta"):
        with_setting(line, "beta", "0.3")
    assert with_setting(line, "DPO.beta", "0.3") == "Finetune(objective=NPO() + DPO(beta=0.3))"


def test_more_runs_than_anybody_means_are_refused():
    with pytest.raises(UsageRefused, match="more than 1000"):
        variants(LINE, {"seed": list(map(str, range(40))), "batch": list(map(str, range(1, 41)))})
