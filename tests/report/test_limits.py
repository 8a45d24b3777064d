"""What a report says that its result does not show."""

from dataclasses import dataclass

import pytest

from expunge.audits.linear_probe import LinearProbe
from expunge.audits.loss import Loss
from expunge.core.audit import Audit
from expunge.core.question import HiddenStates
from expunge.report.limits import limits
from expunge.report.report import Saved
from tests.families import text_request


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
