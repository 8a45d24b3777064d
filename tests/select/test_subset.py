"""Set functions learnt from choices: what F reads, by hand; and a selector that carries them over to a large pool."""

import pytest
import torch

from expunge.errors import DataRefused, UsageRefused
from expunge.events import Note
from expunge.select._set_function import Choice, Learning, SetFunction, Sets, _Value, chance, draw_from
from expunge.select._small_pools import SmallPools
from expunge.select.hardest import Hardest
from expunge.select.nearest import Nearest
from expunge.select.subset import Subset
from tests.families import PLACES, llama, passages, text_request

BACKGROUNDS = ("complement", "whole", "none")
TINY = Learning(width=6, hidden=5, epochs=2)


def choice(*records: tuple[float, ...], chosen: tuple[int, ...] = ()) -> Choice:
    return Choice(torch.tensor(records), torch.tensor([k in chosen for k in range(len(records))]))


def value(background: str) -> _Value:
    with draw_from(0):
        return _Value(2, Learning(background, width=6, hidden=5))


A, B, C, D = (1.0, 0.0), (0.0, 1.0), (2.0, -1.0), (-1.0, 3.0)


def of(made: _Value, every: Choice, *held: int) -> float:
    drawn = torch.tensor([[[float(k in held) for k in range(len(every.records))]]])
    return made.of_sets(Sets.of([every]), drawn).item()


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_f_is_what_the_formula_says(background):
    """S = {A, C} of V = {A, B, C}."""
    made = value(background)
    a, b, c = (made.embed(torch.tensor(x)) for x in (A, B, C))
    wanted = {
        "complement": lambda: made.inside(a + c) + made.outside(b),
        "whole": lambda: torch.sigmoid(made.inside(a + c) + made.outside(a + b + c)),
        "none": lambda: made.inside(a + c),
    }[background]()
    assert of(made, choice(A, B, C), 0, 2) == pytest.approx(wanted.item(), abs=1e-6)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_f_knows_no_order_and_no_padding_and_sees_what_is_left_out_where_it_has_a_background(background):
    made = value(background)
    alone = of(made, choice(A, B, C), 0, 2)
    assert of(made, choice(C, A, B), 0, 1) == pytest.approx(alone, abs=1e-6)
    padded = made.of_sets(Sets.of([choice(A, B, C), choice(A, B, C, D)]), torch.tensor([[[1.0, 0, 1, 0]]] * 2))
    assert padded[0].item() == pytest.approx(alone, abs=1e-6)
    assert (padded[1].item() == pytest.approx(alone, abs=1e-6)) == (background == "none")


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_records_gain_is_f_with_it_less_f_without_it(background):
    """q of 0 and 1 draws {B, C} whenever it draws."""
    made, every = value(background), choice(A, B, C)
    gains = made.gains(Sets.of([every]), torch.tensor([[0.0, 1.0, 1.0]]))[0].tolist()
    wanted = [
        of(made, every, 0, 1, 2) - of(made, every, 1, 2),
        of(made, every, 1, 2) - of(made, every, 2),
        of(made, every, 1, 2) - of(made, every, 1),
    ]
    assert gains == pytest.approx(wanted, abs=1e-6)


def test_the_cross_entropy_counts_the_chosen_and_as_many_others_that_are_there():
    sets = Sets.of([choice(A, B, C, D, A, chosen=(1, 3)), choice(A, B, C, chosen=(0,)), choice(A, B, chosen=(0, 1))])
    for _ in range(20):
        counted = sets.balance()
        assert counted.sum(1).tolist() == [4, 2, 2]
        assert ((counted >= sets.chosen) & (counted <= sets.there)).all()


def test_each_loss_moves_its_own_half_and_the_entropy_is_that_of_q():
    """F = 0 leaves the entropy: of three records with q = 1/2 it is 3 log 2."""
    with draw_from(0):
        made, sets = SetFunction(2, TINY), Sets.of([choice(A, B, C, chosen=(1,)), choice(A, B, C, D, chosen=(0,))])
    made.mistake(sets).backward()
    assert all(p.grad is None for p in made.recogniser.parameters())
    assert any(p.grad.abs().sum() > 0 for p in made.value.parameters())
    made.shortfall(sets).backward()
    assert any(p.grad.abs().sum() > 0 for p in made.recogniser.layers.parameters())
    with torch.no_grad():
        for part in (made.value.inside[-1], made.value.outside[-1], made.recogniser.head):
            part.weight.zero_()
            part.bias.zero_()
    assert made.shortfall(sets).item() == pytest.approx(-(3 + 4) / 2 * 0.693147, abs=1e-4)


def test_draws_of_the_recogniser_are_sets_whose_records_hang_together_and_follow_q():
    with draw_from(1):
        made, sets = SetFunction(2, TINY).recogniser, Sets.of([choice(A, A, B)])
        with torch.no_grad():
            made.head.weight.zero_()
            made.head.bias.copy_(torch.tensor([1.0, -9.0, *[5.0] * 8]))  # q = .73; all by common factors
        drawn = torch.cat([made.draw(sets)[1][0] for _ in range(300)])
    assert set(drawn.round(decimals=5).unique().tolist()) == {0.0, 1.0}
    assert (drawn[:, 0] == drawn[:, 2]).double().mean() > 0.95
    assert drawn.mean().item() == pytest.approx(0.586, abs=0.05)  # of N(0, 8) above probit(.27) = -.616: Z > -.218


def test_the_jaccard_index_of_chance_by_counting():
    assert chance(3, 1) == pytest.approx(1 / 3)
    assert chance(4, 2) == pytest.approx((1 * 0 + 4 * (1 / 3) + 1 * 1) / 6)  # none, one, both of two in common


def minorities(count: int, seed: int) -> list[Choice]:
    """Nine numbers near 1 or -1, three of them of one sign: those are chosen."""
    draw, made = torch.Generator().manual_seed(seed), []
    for _ in range(count):
        signs = torch.ones(9)
        signs[torch.randperm(9, generator=draw)[:3]] = -1
        few = signs < 0
        flip = 1 if torch.rand(1, generator=draw) < 0.5 else -1
        made.append(Choice((flip * signs + 0.1 * torch.randn(9, generator=draw))[:, None], few))
    return made


def test_what_is_rare_in_its_set_is_learnt_and_the_same_seed_learns_the_same():
    how = Learning(width=12, hidden=12, epochs=8, learning_rate=1e-2, batch=8, seed=3)
    before = torch.get_rng_state()
    made = how(minorities(80, 0), minorities(20, 1))
    assert (torch.get_rng_state() == before).all()
    apart = minorities(40, 2)
    with draw_from(0):
        assert sum(made.agreements(apart)) / 40 > 0.9 > 3 * chance(9, 3)
        assert set(made.choose(apart[0].records, 3)) == set(apart[0].chosen.nonzero().flatten().tolist())
        likely = made.chances(Sets.of([apart[0]]))[0]
    with draw_from(0):
        made.agreements(apart), made.choose(apart[0].records, 3)  # the draws from before
        assert set(made.choose(apart[0].records)) == set((likely > 0.5).nonzero().flatten().tolist())
    again = how(minorities(80, 0), minorities(20, 1)).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in made.state_dict().items())


def test_small_pools_to_learn_from_to_check_on_and_to_try_have_no_record_in_common():
    asked: list[list[int]] = []

    def first(places: list[int]) -> list[int]:
        asked.append(places)
        return [places.index(min(places))]

    numbers = torch.arange(53.0)[:, None]
    made = SmallPools(numbers, 5, first).ask(15, torch.Generator().manual_seed(0))
    parts = (made.learnt, made.check, made.apart)
    assert [len(part) for part in parts] == [15, 3, 3]
    seen = [{int(x) for each in part for x in each.records.flatten()} for part in parts]
    assert len(seen[0] | seen[1] | seen[2]) == sum(map(len, seen))
    assert all(len(set(places)) == 5 for places in asked)
    for each in (*made.learnt, *made.check, *made.apart):
        assert each.records[each.chosen].item() == each.records.min()


def test_every_record_of_the_whole_pool_is_judged_among_few_others():
    class Alike:
        """Says that a record is as likely as its set is large."""

        def chances(self, sets: Sets) -> torch.Tensor:
            return sets.there * sets.there.sum(1, keepdim=True) / 100

    likely = SmallPools(torch.zeros(23, 1), 5, lambda places: ()).judge(Alike())
    assert all(0.0399 <= each <= 0.0501 for each in likely.tolist())  # in pools of 5, 5, 5, 4 and 4


def test_it_says_how_far_it_agrees_with_the_teacher_beside_chance():
    network, request = llama(), text_request()
    told: list = []
    made = Subset(2, Hardest(1, rounds=1, epochs=1), pools=5, size=2, width=4, hidden=4, epochs=1)
    pool = passages(PLACES, 4)
    narrow = made.narrow(network, type(request)(request.forget, pool), told.append)
    assert len(narrow.retain) == 2
    assert [type(each) for each in told] == [Note, Note]
    said = told[1].what
    assert "In 1 small pools that it did not learn from, Subset chose as Hardest(count=1" in said
    assert "by chance 0.50" in said
    assert ("learnt nothing" in said) == ("did by 0.00" in said)


def test_what_cannot_be_learnt_is_refused_and_the_teacher_decides_whether_a_forget_set_is_read():
    with pytest.raises(
        UsageRefused, match="must choose fewer records than the 4 of a small pool .`size`.. It chooses 4"
    ):
        Subset(teacher=Hardest(count=4), size=4)
    with pytest.raises(DataRefused, match="there are 24 records. Give 100 at least"):
        Subset(count=5)(llama(), (), [[e] for e in passages(PLACES, 4)])
    assert not Subset(teacher=Hardest(count=4)).reads_forget
    assert Subset(teacher=Nearest(count=4)).reads_forget
