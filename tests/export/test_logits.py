"""Differences of class scores, worked out from the scores themselves."""

import pytest

from expunge.core.question import Scores
from expunge.export.logits import compare_logits
from tests.families import llama, text_request


def test_the_differences_are_those_of_the_scores_and_the_divergence_has_a_direction():
    one, other = llama(), llama()
    other.module.lm_head.weight.data *= 3.0
    examples = text_request().retain
    first, second = (each.ask(Scores(), examples).logits.detach().double() for each in (one, other))
    found, back = compare_logits(one, other, examples), compare_logits(other, one, examples)
    assert found.mean == pytest.approx(float((first - second).abs().mean()), rel=1e-5)
    assert found.largest == pytest.approx(float((first - second).abs().max()), rel=1e-5)
    logs, others = first.log_softmax(-1), second.log_softmax(-1)
    assert found.kl == pytest.approx(float((logs.exp() * (logs - others)).sum(-1).mean()), rel=1e-4)
    assert abs(found.kl - back.kl) > 0.1 * found.kl
    assert (found.rows, found.texts) == (sum(example.rows for example in examples), len(examples))
    assert compare_logits(one, one, examples).kl == 0
