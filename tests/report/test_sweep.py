"""How runs of a sweep are ranked, by hand."""

import math

import pytest

from expunge.core.audit import BOTH
from expunge.report.rules import misses
from expunge.report.sweep import Figures, Sweep, Tried, rank
from tests.report.made_up import apart, around, asked, findings, good, share


def tried(name: str, *figures: Figures | None) -> list[Tried]:
    return [
        Tried(f"{name}_seed-{k}", {"learning_rate": name}, k, 0 if each else 5, {}, each, None)
        for k, each in enumerate(figures)
    ]


def places(*groups: list[Tried]) -> list[tuple[str, int]]:
    return [(run.folder, run.place) for run in rank([run for group in groups for run in group])]


def test_what_harms_nothing_goes_before_what_is_nearer_and_then_the_least_harm():
    near, far = Figures(0.0, 0.4), Figures(0.0, 2.0)
    harmful, worse = Figures(0.5, 0.1), Figures(0.7, 0.0)
    order = places(tried("a", worse), tried("b", far), tried("c", harmful), tried("d", near))
    assert order == [("d_seed-0", 1), ("b_seed-0", 2), ("c_seed-0", 3), ("a_seed-0", 4)]


def test_of_seeds_the_largest_harm_and_the_mean_distance_count_and_the_best_seed_goes_first():
    steady = tried("a", Figures(0.0, 1.0), Figures(0.0, 0.8))  # mean 0.9
    wild = tried("b", Figures(0.0, 0.1), Figures(0.2, 0.1))  # one seed harms
    middling = tried("c", Figures(0.0, 0.1), Figures(0.0, 1.9))  # mean 1.0
    failed = tried("d", Figures(0.0, 0.0), None)
    assert places(steady, wild, middling, failed) == [
        *(("a_seed-1", 1), ("a_seed-0", 1)),
        *(("c_seed-0", 2), ("c_seed-1", 2)),
        *(("b_seed-0", 3), ("b_seed-1", 3)),
        *(("d_seed-0", 4), ("d_seed-1", 4)),
    ]


def test_a_rule_of_the_users_ranks_alone_and_what_was_not_measured_is_last():
    far, near, none = Figures(0.0, 0.0, 3.0), Figures(9.0, 9.0, 1.0), Figures(0.0, 0.0, math.inf)
    order = places(tried("c", none), tried("a", far), tried("b", near))
    assert order == [("b_seed-0", 1), ("a_seed-0", 2), ("c_seed-0", 3)]


def test_a_sweep_in_which_every_run_failed_has_no_best():
    runs = rank(tried("a", None, None))
    assert Sweep(1, "", "", "", "", "", "", {}, runs).best is None


# The distances that the rule reads


def distances(table) -> dict[str, float]:
    return {miss.name: miss.tolerances for miss in misses(findings(table), asked(table))}


def test_a_miss_is_in_tolerances_and_only_on_the_side_that_counts():
    """The holdout has Choice 0.7, Loss 5.1 and Rouge 0.03; tolerances are 0.05, ln 2 and 0.05, of membership 0.1."""
    made = distances(
        good(
            forget__Choice=share(0.5),
            forget__Loss=around(5.1 + 2 * math.log(2)),
            forget__Rouge=around(0.0),  # less than a model that never saw it is fine
            both__MinK=apart(0.2),
            retain__Choice=share(0.95),  # 0.05 less than 1.0, of which a hundredth may be lost
            neighbours__Loss=around(6.0),  # better than before
        )
    )
    assert made["forget.Choice"] == pytest.approx(0.2 / 0.05)
    assert made["forget.Loss"] == pytest.approx(2.0)
    assert made["forget.Rouge"] == 0.0
    assert made[f"{BOTH}.MinK"] == pytest.approx(0.3 / 0.1)
    assert made["retain.Choice"] == pytest.approx(0.05 / 0.01)
    assert made["neighbours.Loss"] == 0.0
    assert "holdout.Choice" not in made  # luck, which nothing can harm


def test_what_is_as_far_as_is_let_pass_exceeds_nothing():
    """0.99 is a hundredth less than 1.0, and in binary a little more."""
    every = misses(findings(good(retain__Choice=share(0.99, 100))), asked(good()))
    [at] = [miss for miss in every if miss.name == "retain.Choice"]
    assert at.tolerances > 1
    assert at.excess == 0.0


def test_what_is_no_number_is_infinitely_far():
    made = distances(good(forget__Loss=[math.inf] * 40, retain__Loss=[math.nan] * 40))
    assert made["forget.Loss"] == made["retain.Loss"] == math.inf
