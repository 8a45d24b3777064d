"""Folders of dataclasses made of parts: what is written is read back, and nothing else is built."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from expunge.errors import ModelRefused, UsageRefused
from expunge.primitives.composed_files import FILE, describe, kind_name, open_parts, save_parts


class Part:
    """What fields may hold."""


@dataclass(frozen=True)
class Leaf(Part):
    """A part that is a file."""

    text: str


@dataclass(frozen=True)
class Tree(Part):
    """A part made of others."""

    first: Part
    rest: tuple[Part, ...] = ()
    share: float = 0.5
    names: tuple[str, ...] = ()
    extra: object = None


def save(part: Part, folder: Path) -> None:
    if isinstance(part, Leaf):
        folder.mkdir()
        (folder / "leaf").write_text(part.text)
    else:
        save_parts(part, Part, folder, save)


def read(folder: Path) -> Part:
    leaf = folder / "leaf"
    return Leaf(leaf.read_text()) if leaf.exists() else open_parts(folder, Part, read)


def test_parts_in_parts_and_settings_are_read_back_in_their_order(tmp_path):
    made = Tree(Tree(Leaf("inner")), tuple(Leaf(str(k)) for k in range(12)), 0.25, ("a", "b"))  # 10 comes after 9
    save(made, tmp_path / "tree")
    assert read(tmp_path / "tree") == made


def test_a_description_names_the_class_and_its_settings_alone():
    one = Tree(Leaf("x"), share=0.1)
    assert describe(one, Part) == describe(Tree(Leaf("y"), share=0.1), Part) != describe(Tree(Leaf("x")), Part)
    assert describe(one, Part).startswith(kind_name(Tree))


def test_a_setting_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UsageRefused, match="Tree has a setting that JSON cannot hold. Define its `save`"):
        save_parts(Tree(Leaf("x"), extra={1, 2}), Part, tmp_path / "tree", save)
    assert not (tmp_path / "tree").exists()


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", "3", "{}", '{"settings": {}}', '{"kind": "a:B", "settings": 3}', "[" * 100_000]
)
def test_a_file_that_describes_nothing_is_refused(text, tmp_path):
    if text is not None:
        (tmp_path / FILE).write_text(text)
    with pytest.raises(ModelRefused, match=f"{FILE} does not describe a model. Save the model again."):
        read(tmp_path)


@pytest.mark.parametrize("name", ["os:system", "expunge.errors:Refusal", "expunge.nowhere:Thing", "x" * 5000, "", ":"])
def test_a_class_that_is_no_part_is_neither_imported_nor_built(name, tmp_path):
    (tmp_path / FILE).write_text(json.dumps({"kind": name}))
    with pytest.raises(ModelRefused, match="which is not imported. Import it first.") as refused:
        read(tmp_path)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("settings", [{"colour": "red"}, {"share": 1.0}])
def test_files_that_do_not_fit_the_class_are_refused(settings, tmp_path):
    """A field that is not there, and the part that is missing."""
    (tmp_path / FILE).write_text(json.dumps({"kind": kind_name(Tree), "settings": settings}))
    with pytest.raises(ModelRefused, match="cannot be built from the files in it. Save the model again."):
        read(tmp_path)
