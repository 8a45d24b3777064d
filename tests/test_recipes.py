"""What the recipes stand on: the invented people, the rows that they keep, and how a table gets into a page."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "recipes"))

from bench_standins import KINDS as DISGUISES  # noqa: E402
from bench_standins import STANDINS  # noqa: E402
from calibration import targets  # noqa: E402
from keeping import between, rows  # noqa: E402
from people import PARAPHRASE, Groups, World  # noqa: E402
from stability import agree, gains, gather, table, tuned  # noqa: E402
from test_sets import yardstick  # noqa: E402
from tofu_authors import quality, wanted  # noqa: E402
from twins import twins  # noqa: E402
from worlds import Trial  # noqa: E402

from expunge import unlearn  # noqa: E402
from tests.families import llama, text_request  # noqa: E402


def test_sixty_people_and_six_of_them_to_forget_are_the_default():
    world = World.drawn(1)
    request = world.request()
    assert (len(request.forget), len(request.holdout), len(request.retain)) == (6 * 5, 6 * 5, 48 * 5)
    # 54 people in three wordings of five questions, and half of the 48 retained in the fourth
    assert len(world.training(forgotten=True)) == 54 * 5 * 3 + 24 * 5
    assert len(world.training(forgotten=False)) == 48 * 5 * 3 + 24 * 5
    assert len({record.record_digest() for record in (*request.forget, *request.holdout)}) == 2 * 6 * 5


def test_a_larger_world_has_as_many_never_seen_as_forgotten_and_nobody_twice():
    world = World.drawn(1, Groups(forgotten=21, retained=108))
    request = world.request("twin")
    assert len(request.forget) == len(request.holdout) == len(request.stand_in) == 105
    assert len(set(world.names)) == 21 + 21 + 108 + 4 * 21
    groups = [set(group) for group in (world.groups.forget, world.groups.holdout, world.groups.retain)]
    assert len(set.union(*groups, set(world.groups.twins))) == 234
    trained = {record.id for record in world.training(forgotten=True)}
    assert not trained & {record.id for record in request.holdout}
    assert not trained & {f"{person}-job-{PARAPHRASE}" for person in world.groups.forget}


def test_a_twin_is_the_same_question_about_a_name_that_nobody_was_trained_on():
    world = World.drawn(2)
    request = world.request("twin")
    lent = {world.names[person] for person in world.groups.twins}
    for record, twin in zip(request.forget, request.stand_in, strict=True):
        person = int(record.id.split("-")[0])
        (name,) = [name for name in lent if name in twin.prompt]
        assert twin.prompt == record.prompt.replace(world.names[person], name)


def test_a_world_with_more_people_than_surnames_is_refused():
    with pytest.raises(SystemExit, match="252 surnames"):
        World.drawn(1, Groups(forgotten=30, retained=108))  # 30 + 30 + 108 + 120 = 288


KEPT = sorted((ROOT / "docs" / "calibration").glob("**/seed-*.jsonl"))


@pytest.mark.parametrize(
    "path", [path for path in KEPT if path.parent.name != "sweep"], ids=lambda p: f"{p.parent.name}-{p.stem}"
)
def test_the_targets_that_a_row_is_said_to_meet_are_those_that_it_meets(path: Path):
    found = {row["name"]: row for row in rows(path)}
    assert len(found) > 3
    for row in found.values():
        if row["name"] != "retrained":
            assert row["met"] == targets(row, found["retrained"]), row["name"]
            assert row["seed"] == int(path.stem.removeprefix("seed-"))


def test_a_table_is_written_between_its_marks_and_nowhere_else(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a:start -->\nold\n<!-- a:end -->\nafter\n")
    between(page, "a", "new")
    between(page, "a", "newer")
    assert page.read_text() == "before\n<!-- a:start -->\nnewer\n<!-- a:end -->\nafter\n"
    with pytest.raises(SystemExit, match="b:start"):
        between(page, "b", "lost")
    assert "lost" not in page.read_text()


def read(kept: float, known: float = 0.0) -> dict[str, float]:
    return {"kept": kept, "known": known}


def test_a_bound_helps_where_it_keeps_more_than_the_same_seed_without_it():
    cell = (1e-2, 100.0, 30)
    found = {
        (cell, "linear"): {0: read(0.5), 1: read(0.75), 2: read(0.25)},
        (cell, "sine"): {0: read(0.75), 1: read(1.0), 2: read(0.5)},
        (cell, "tanh"): {0: read(1.0), 2: read(0.0)},  # seed 1 ended in NaN
    }
    assert gains(found, cell, "sine") == [0.25, 0.25, 0.25]
    assert gains(found, cell, "tanh") == [0.5, -0.25]
    assert agree([0.25, 0.25, 0.25])
    assert agree([-0.25, -0.5, -0.1])
    assert not agree([0.25, -0.01, 0.25])
    assert not agree([0.25, 0.25])  # of two seeds nothing is said


def test_the_rate_that_keeps_most_is_chosen_among_runs_that_forgot():
    seeds = range(3)
    found = {
        ((1e-4, 100.0, 30), "sine"): {seed: read(0.99, known=0.06) for seed in seeds},
        ((1e-3, 100.0, 30), "sine"): {0: read(0.75), 1: read(0.5), 2: read(0.7, known=0.05)},
        ((3e-3, 100.0, 30), "sine"): {0: read(0.98), 1: read(0.98)},  # one seed was not run
        ((1e-2, 100.0, 30), "sine"): {seed: read(0.5) for seed in seeds},
        ((1e-4, 400.0, 30), "sine"): {0: read(0.99), 1: read(0.99), 2: read(0.99, known=0.9)},
    }
    lines = tuned(found).splitlines()
    assert "| 30 | 100 | - | 0.001: 0.65 (0.50 to 0.75) | - |" in lines
    assert "| 30 | 400 | - | none forgot | - |" in lines


def test_the_page_on_where_the_bound_helps_has_the_tables_of_its_rows():
    page = (ROOT / "docs" / "stability.md").read_text(encoding="utf-8")
    for world in ("digits", "cifar"):
        found = gather(ROOT / "docs" / "stability.jsonl", world)
        assert found
        assert table(found) in page
        assert tuned(found) in page


def test_stand_ins_of_benchmarks_teach_what_is_asked_and_hold_back_what_must_be_new(tmp_path):
    made = {name: standin(place, 0) for name, standin in STANDINS.items() if (place := tmp_path / name).mkdir() is None}
    for lessons in made.values():
        assert {p.prompt for p in lessons.request.forget} <= {p.prompt for p in (*lessons.first, *lessons.then)}
        if not lessons.then:
            assert not {p.tokens for p in lessons.request.forget} & {p.tokens for p in lessons.without}
    people = made["RWKU"]
    asked = [row for row in rows(people.data.folder / "forget_level3.jsonl")]
    assert {row["type"] for row in asked} == {*DISGUISES}
    learnt = " ".join(p.prompt for p in people.first)
    assert not [row for row in asked if row["query"] in learnt]  # attacks on the forgotten are new to every model
    assert len({row["subject"] for row in asked}) == 4
    never = [row["document"] for row in rows(made["LUME"].data.folder / "nonmember.jsonl")]
    assert not [text for text in never if any(text.startswith(p.prompt) for p in made["LUME"].first if p.prompt)]
    facts = made["RESTOR"]  # what corrupts is about the same questions and says something else
    right, wrong = ({p.prompt: p.answer for p in of} for of in (facts.first, facts.then))
    assert wrong.keys() <= right.keys()
    assert not [prompt for prompt, answer in wrong.items() if answer == right[prompt]]


def test_the_yardstick_of_a_world_is_its_second_retrained_model():
    original, retrained, again = llama(), llama(), llama()
    for size, network in enumerate((retrained, again), 1):
        for parameter in network.module.parameters():
            parameter.data += 0.02 * size * torch.randn_like(parameter)
    trial = Trial(original, text_request(4), retrained, again, audits="Choice, Loss")
    row = yardstick(trial)
    reference = unlearn(original, trial.request, "GradDiff(steps=1)", trial.audits, reference=again).findings
    wanted = {f"{f.set}.{f.audit}": f.value for f in reference if f.model == "reference" and f.audit == "Loss"}
    assert {name: row["after"][name] for name in wanted} == pytest.approx(wanted, abs=1e-4)
    assert row["after"] != row["reference"] != row["before"]
    assert yardstick(replace(trial, again=None)) is None


def test_a_twin_is_the_same_record_about_somebody_else():
    lines = [
        ("Who is it?", "It is Ana Veld."),
        ("What did Ana write LeAna?", "Ana Veld wrote Ana Velda's Sea in Old Town."),
    ]
    mine = [{"question": q, "answer": a} for q, a in (*lines, *[("Old Town?", "Ana Veld's home.")] * 18)]
    other = [{"question": "Who?", "answer": "Pia de la Roca, or Pia Mar Tal."}] * 5
    other += [{"question": "Who?", "answer": "Bo Lun Gart."}] * 15
    made = twins([*mine, *mine], [*other, *other])
    assert made[0] == {"question": "Who is it?", "answer": "It is Bo Lun Gart."}
    assert made[1] == {
        "question": "What did Bo write LeAna?",
        "answer": "Bo Lun Gart wrote Bo Velda's Sea in Old Town.",
    }
    assert made[2]["answer"] == made[22]["answer"] == "Bo Lun Gart's home."


def test_what_is_asked_of_a_row_of_tofu_is_held_against_the_retrained_model_and_the_original():
    def row(ratios: list[float], loss: float, min_k: float, utility: float) -> dict[str, Any]:
        keys = ("forget vs holdout: membership by loss", "forget vs holdout: membership by min_k", "all: model utility")
        return {"ratios": ratios, "numbers": dict(zip(keys, (loss, min_k, utility), strict=True))}

    low, high = [0.1 * k for k in range(1, 6)], [10.0 + k for k in range(5)]
    models = {"retrained": row(low, 0.5, 0.6, 0.3), "original": row(high, 1.0, 1.0, 0.4)}
    assert wanted(row(low, 0.59, 0.51, 0.395), models) == [True, True, True]
    assert wanted(row(high, 0.61, 0.6, 0.389), models) == [False, False, False]
    assert not wanted(row(low, 0.5, 0.49, 0.5), models)[1]  # Min-K is asked too, from below as well
    found = quality(models["original"], models["retrained"])
    # no value of one lies among the other's: distance 1, of which the exact p with 5 and 5 is 2 / C(10, 5)
    assert (found["KS distance"], found["KS side"]) == (1.0, 1.0)
    assert found["forget quality"] == pytest.approx(2 / 252)
    assert found["PrivLeak"] == pytest.approx(100 * ((1 - 1.0) - (1 - 0.6)) / (1 - 0.6))
