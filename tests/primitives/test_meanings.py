"""What sets hold: as declared, else by the convention of names; and a declared name is its text everywhere else."""

import copy
import json
import pickle

import pytest

from expunge.primitives.meanings import MEANINGS, SetName, declaration_of, is_unseen, meaning_of, should_be_gone


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("forget", "gone"),
        ("forget_2", "gone"),
        ("paraphrases", "gone"),
        ("retain", "kept"),
        ("neighbours", "kept"),
        ("general", "kept"),
        ("neutral", "kept"),
        ("holdout", "never"),
        ("world", None),
        ("stand_in", None),
    ],
)
def test_names_say_by_convention_what_a_set_holds(name: str, meaning: str | None):
    assert (meaning_of(name), declaration_of(name)) == (meaning, None)
    for said in MEANINGS:  # what is declared wins
        named = SetName(name, said)
        assert (meaning_of(named), declaration_of(named)) == (said, said)
        assert (should_be_gone(named), is_unseen(named)) == (said == "gone", said == "never")


def test_a_declared_name_is_its_text_and_keeps_its_meaning_in_copies():
    named = SetName("twins", "gone")
    assert ({named: 1}["twins"], {"twins": 1}[named], json.dumps(named), f"{named}") == (1, 1, '"twins"', "twins")
    for made in (copy.deepcopy(named), pickle.loads(pickle.dumps(named))):
        assert (made, declaration_of(made)) == ("twins", "gone")
