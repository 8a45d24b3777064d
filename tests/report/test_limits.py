"""What a report says that its result does not show."""

from dataclasses import dataclass, replace

import pytest

from expunge.audits.choice import Choice
from expunge.audits.linear_probe import LinearProbe
from expunge.audits.loss import Loss
from expunge.audits.loss_membership import LossMembership
from expunge.audits.min_k import MinK
from expunge.core.audit import Audit
from expunge.core.question import HiddenStates
from expunge.core.request import Request
from expunge.report.limits import limits, say_unasked
from expunge.report.run import Saved
from tests.families import passages, text_request


@dataclass(frozen=True)
class Inside(Loss):
    """Somebody else's audit of hidden states."""

    reads = (HiddenStates,)


@pytest.mark.parametrize(("audit", "tried"), [(Loss(), False), (LinearProbe(), True), (Inside(), True)], ids=repr)
def test_probes_of_hidden_states_are_not_tried_unless_an_audit_reads_them(audit: Audit, tried: bool):
    first, *_ = limits(text_request(), (), [audit], referenced=False, saved="")
    assert ("probes of hidden states" in first) is not tried


def test_what_holds_of_a_family_is_said_in_its_own_words():
    said = limits(text_request(), ("Other languages were not asked about.",), [Loss()], referenced=True, saved="")
    assert said.count("Other languages were not asked about.") == 1


def test_a_model_that_was_read_back_is_named_by_its_format():
    said = limits(
        text_request(), (), [Loss()], referenced=False, saved=Saved(True, 0.0, 3.0, "bfloat16 safetensors", 0.02)
    )
    assert any(limit.startswith("The folder audited is bfloat16 safetensors, read back from disk.") for limit in said)
    assert not any("read back" in limit for limit in limits(text_request(), (), [Loss()], False, None))
    assert any("changed class scores by up to 0.02; the run changed them by up to 3." in limit for limit in said)


def sized(forget: int, retain: int = 0, holdout: int = 0) -> Request:
    """Sets of so many records, no two alike."""
    names = [f"Place {k}" for k in range(forget + retain + holdout)]
    return Request(
        forget=passages(names[:forget], 0),
        retain=passages(names[forget : forget + retain], 1),
        holdout=passages(names[forget + retain :], 2),
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (sized(29, 70, 30), "Few examples, so wide intervals: forget (29)."),
        (sized(30, 29, 28), "Few examples, so wide intervals: retain (29), holdout (28)."),
        (sized(30, 70), "No holdout set was given"),
        (sized(30), "No retain set was given"),
        (sized(31, 69, 30), "The forget set is more than 30 % of the data given"),
        (sized(30, 70, 30), "Only the records themselves were asked."),
    ],
)
def test_what_a_request_lacks_is_said(given: Request, said: str):
    assert sum(limit.startswith(said) for limit in limits(given, (), [Loss()], referenced=True, saved=None)) == 1


@pytest.mark.parametrize("word", ["Few examples", "No holdout", "No retain", "The forget set is more", "No retrained"])
def test_what_a_request_has_is_not_missed(word: str):
    """30 records in each set, 30 of 100 to be forgotten."""
    assert not any(limit.startswith(word) for limit in limits(sized(30, 70, 30), (), [Loss()], True, None))


def test_an_audit_says_of_which_sets_it_was_not_asked_and_what_they_lack():
    sets = {"forget": text_request().forget, "retain": text_request().retain, "holdout": text_request().holdout}
    request = Request(**{name: tuple(replace(e, alternatives=()) for e in given) for name, given in sets.items()})
    assert say_unasked(text_request(), [Choice(), Loss(), MinK()]) == []
    told = "Choice: forget, retain and holdout have no options, so it was not asked of them"
    assert say_unasked(request, [Choice(), Loss(), MinK()]) == [told]
    alone = "Choice: forget has no options, so it was not asked of it"
    assert say_unasked(request, [Choice()], added=("retain", "holdout")) == [alone]
    assert f"{told}." in limits(request, (), [Choice()], True, None)
    assert say_unasked(replace(request, holdout=()), [MinK(), LossMembership()]) == [
        "MinK and LossMembership: there is no holdout set, so nothing was compared"
    ]
