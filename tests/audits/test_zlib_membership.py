"""Zlib membership by hand: a loss counts for more where there is little in the text."""

import math
import zlib
from dataclasses import replace

import pytest

from expunge.audits.loss_membership import LossMembership
from expunge.audits.zlib_membership import ZlibMembership
from expunge.core.audit import BOTH
from expunge.core.request import Request
from expunge.report.limits import say_unasked
from tests.audits.scripted import Asked, Scripted, likely, membership
from tests.families import picture_request, vit

RICH, POOR = "Veldt, Brenn, Elsin and Ostrava by the sea.", "na na na na na na na na na na na na na na na"


def saying(answer: str, *probabilities: float) -> Asked:
    return replace(likely(answer, *probabilities), answer=answer)


def test_the_mean_loss_is_divided_by_the_packed_size():
    found = membership(ZlibMembership(), (saying(RICH, 0.5), saying(POOR, 0.5, 0.125, 0.25)), (saying("-", 0.5),))
    sizes = [len(zlib.compress(text.encode())) for text in (RICH, POOR)]
    assert found.scores[:2] == pytest.approx([-math.log(2) / sizes[0], -2 * math.log(2) / sizes[1]], rel=1e-9)


def test_a_text_that_repeats_itself_is_not_taken_for_a_member_because_its_loss_is_low():
    forget, holdout = (saying(RICH, 0.5),), (saying(POOR, 0.6),)
    assert membership(LossMembership(), forget, holdout).value == 0
    assert membership(ZlibMembership(), forget, holdout).value == 1


def test_images_have_no_text_to_pack_and_the_audit_says_so():
    request, audit = picture_request(), ZlibMembership()
    assert audit(vit(), request) == ()
    assert audit.lacks(BOTH, request) == "ZlibMembership: the forget set has no record that it can be asked of"
    assert say_unasked(request, [audit, LossMembership()]) == [audit.lacks(BOTH, request)]
    told, texts = (saying(RICH, 0.5),), (saying(POOR, 0.5),)
    assert say_unasked(Request(forget=told, holdout=texts), [audit]) == []
    assert audit(Scripted(), Request(forget=told)) == ()
