"""Dataclasses in JSON: they come back as they were, and what does not fit is named by its place, never quoted."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Literal

import pytest

from expunge.events import BlockGroups, Change, Checked, Edited, Ended, Event, Note, Started, Step
from expunge.notation.typed_json import (
    MisfitError,
    event_from_json,
    event_to_json,
    from_json,
    schema,
    to_json,
)


@dataclass(frozen=True)
class Leaf:
    """A leaf of the tests.

    No second paragraph is shown."""

    size: float
    form: Literal["round", "long"] = "round"


@dataclass(frozen=True)
class Tree:
    """A tree of the tests."""

    name: str
    leaves: tuple[Leaf, ...]
    crown: Leaf | None = None
    heights: dict[str, int] = field(default_factory=dict)
    mark: int | str = 0
    felled: bool = False


TREE = Tree("oak", (Leaf(1.5), Leaf(2.0, "long")), Leaf(0.5), {"now": 3}, "red", True)
EVENTS: list[Event] = [
    Started(2, 10, 100, 5, None, 0.1, "none", None),
    Step(1, 0.5, 0.25, None, {"mlp": 1.0}, {}, 1e-4, 7, 0.5),
    Checked(1, 2.0, 1.5, 3.0, 0.5),
    Edited(1, 2, 3.0, {"layers.0": Change(1, 2, 3.0)}, selected=1, alpha=2.0, losses={"align": -1.0}),
    Ended("all 5 steps were taken", 4, 5, True, 3.0, 0.0, None, BlockGroups((0.5, 0.0), (0,))),
    Note("step 3: read in parts", 3, 2),
]


def through_a_file(value: object) -> object:
    return json.loads(json.dumps(value))


def test_a_dataclass_comes_back_as_it_was():
    assert from_json(Tree, through_a_file(to_json(TREE))) == TREE
    assert from_json(Tree, {"name": "elm", "leaves": []}) == Tree("elm", ())


def test_a_whole_number_is_a_number_too():
    (leaf,) = from_json(Tree, {"name": "elm", "leaves": [{"size": 2}]}).leaves
    assert (leaf.size, type(leaf.size)) == (2.0, float)
    assert math.isnan(from_json(Leaf, through_a_file({"size": math.nan})).size)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": 3}, "name must be a text"),
        ({"leaves": {}}, "leaves must be a list"),
        ({"leaves": [{"size": 1}, {"size": "secret"}]}, "leaves[1].size must be a number"),
        ({"leaves": [{"size": True}]}, "leaves[0].size must be a number"),
        ({"leaves": [{"size": 1, "form": "secret"}]}, "leaves[0].form must be one of round, long"),
        ({"leaves": [{}]}, "leaves[0].size is missing"),
        ({"leaves": ["secret"]}, "leaves[0] must be an object"),
        ({"crown": 3}, "crown must be an object or null"),
        ({"crown": {"size": None}}, "crown.size must be a number"),
        ({"heights": {"now": 1.5}}, "heights.now must be a whole number"),
        ({"heights": {"now": True}}, "heights.now must be a whole number"),
        ({"felled": 1}, "felled must be true or false"),
        ({"bark": 1}, "bark is not known"),
    ],
)
def test_what_does_not_fit_is_named_by_its_place(change: dict, told: str):
    with pytest.raises(MisfitError) as error:
        from_json(Tree, {**to_json(TREE), **change})
    assert str(error.value) == told


def test_the_schema_says_what_is_read():
    made = schema(Tree)
    assert made["required"] == ["name", "leaves"]
    assert made["properties"]["leaves"] == {"type": "array", "items": {"$ref": "#/$defs/Leaf"}}
    assert made["properties"]["crown"] == {"anyOf": [{"$ref": "#/$defs/Leaf"}, {"type": "null"}]}
    assert made["properties"]["heights"] == {"type": "object", "additionalProperties": {"type": "integer"}}
    assert made["$defs"]["Leaf"] == {
        "type": "object",
        "description": "A leaf of the tests.",
        "properties": {"size": {"type": "number"}, "form": {"enum": ["round", "long"]}},
        "required": ["size"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.kind)
def test_every_event_comes_back_from_its_line(event: Event):
    line = event_to_json(event)
    assert next(iter(line.items())) == ("kind", event.kind)
    assert event_from_json(through_a_file(line)) == event


def test_a_line_of_no_known_kind_is_refused():
    for line in ({"kind": "pause"}, {"step": 1}, {"kind": []}, [], None):
        with pytest.raises(MisfitError, match="kind must be one of start, step, check, edit, end, phase"):
            event_from_json(line)
    with pytest.raises(MisfitError, match=r"steps\[3\]\.forget must be a number"):
        event_from_json({**event_to_json(EVENTS[2]), "forget": "secret"}, "steps[3]")
