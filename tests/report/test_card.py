"""Cards: names of the hub and of nobody's, and letters that would break a table."""

import pytest

from expunge.report.card import hub_id, mark


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("org/name", "org/name"),
        ("org/my-model_1.5@main", "org/my-model_1.5"),
        ("my-model", None),
        ("gpt2", None),
        ("./org/name", None),
        ("a/b/c", None),
        ("org/name\nlicense: mit", None),
        ("", None),
    ],
)
def test_only_an_id_of_the_hub_is_named_as_the_base(name: str, known: str | None):
    assert hub_id(name) == known


def test_a_name_stays_within_its_cell_and_its_marks():
    assert mark("a`b|c\nd") == "`a'b/c d`"
    assert mark("x\u202ey") == "`x\\u202ey`"
