"""Requests: overlap is refused without a word of text, and the fingerprint follows the contents alone."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from expunge.core.request import Request
from expunge.data.records import Record
from expunge.data.text import Passage, encode
from expunge.errors import DataRefused
from expunge.report.record import count_repeats

CANARY = "zanzibar-lighthouse-77"


@dataclass(frozen=True)
class Fact:
    """An example that says one thing."""

    id: str
    text: str = field(repr=False)
    rows: int = 1
    size: int = 1
    alternatives: tuple = ()
    weight: float = 1.0

    def record_digest(self) -> str:
        return Passage(self.id, (1, 2), 1, "", self.text).record_digest()

    fact_digest = record_digest


def facts(*texts: str, start: int = 1) -> tuple[Fact, ...]:
    return tuple(Fact(f"f{k}", text) for k, text in enumerate(texts, start=start))


def test_an_empty_forget_set_is_refused():
    with pytest.raises(DataRefused, match="nothing to forget"):
        Request(forget=())


@pytest.mark.parametrize(("one", "other"), [("forget", "retain"), ("forget", "holdout"), ("retain", "holdout")])
def test_overlap_is_refused_with_ids_and_without_text(one: str, other: str):
    sets = {"forget": facts("other", start=50), one: facts("a", CANARY), other: facts(f"  {CANARY.upper()} ", start=9)}
    with pytest.raises(DataRefused) as refused:
        Request(**sets)
    assert str(refused.value).startswith(f"1 records are in the {one} set and in the {other} set (f2 = f9).")
    assert CANARY not in str(refused.value).lower()


def test_many_overlaps_are_counted_and_five_are_named():
    texts = [f"t{k}" for k in range(8)]
    with pytest.raises(DataRefused, match=r"^8 records .*\(f1 = f1, f2 = f2, f3 = f3, f4 = f4, f5 = f5, \.\.\.\)"):
        Request(forget=facts(*texts), retain=facts(*texts))


def test_probes_may_ask_about_the_forgotten_again():
    request = Request(forget=facts("a"), probes={"again": facts("a"), "none": ()})
    assert list(request.sets()) == ["forget", "again"]


def test_the_fingerprint_knows_neither_order_nor_ids():
    one = Request(forget=facts("a", "b"), retain=facts("c", "d"))
    other = Request(forget=facts("B", " a ", start=7), retain=facts("d", "c"))
    assert one.fingerprint() == other.fingerprint()
    assert len(one.fingerprint()) == 64


@pytest.mark.parametrize(
    "other",
    [
        Request(forget=facts("a", "x"), retain=facts("c")),
        Request(forget=facts("a", "c"), retain=facts("b")),
        Request(forget=facts("a", "b")),
        Request(forget=facts("a", "b"), holdout=facts("c")),
        Request(forget=facts("a", "b", "b"), retain=facts("c")),
        Request(forget=facts("a", "b"), retain=facts("c"), probes={"p": facts("d")}),
    ],
)
def test_the_fingerprint_knows_contents_counts_and_parts(other: Request):
    assert Request(forget=facts("a", "b"), retain=facts("c")).fingerprint() != other.fingerprint()


def test_duplicates_are_counted_with_case_and_spaces_evened():
    request = Request(forget=facts("Tall Oak", "tall  oak", "TALL OAK\n", "pine"), retain=facts("x", "y"))
    assert {name: count_repeats(sets) for name, sets in request.sets().items()} == {"forget": 2, "retain": 0}


def test_where_a_question_ends_is_part_of_what_is_said(plain):
    rows = [{"id": "x", "question": "a b", "answer": "c"}, {"id": "y", "question": "a", "answer": "b c"}]
    one, other = encode([Record(k, row) for k, row in enumerate(rows)], plain, Path("f.jsonl"), 99)
    assert one.record_digest() != other.record_digest()
    Request(forget=(one,), retain=(other,))
