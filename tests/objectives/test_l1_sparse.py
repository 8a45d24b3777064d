"""L1-sparse unlearning's penalty, by hand."""

import pytest
import torch

from expunge.adapters.full import Full
from expunge.core.request import Request
from expunge.core.view import Run, View
from expunge.errors import UsageRefused
from expunge.methods.finetune import Finetune
from expunge.notation.parse import parse
from expunge.objectives.l1_sparse import L1Sparse
from tests.families import pictures, vit


def test_it_is_the_sum_of_all_weights_sizes_and_its_slope_is_their_sign():
    network = Full().insert(vit(lambda module: module), Request(pictures(4, 0)))
    weights = list(network.trainable().values())
    loss = L1Sparse()(View(network, {"forget": pictures(4, 0)}), None)
    assert loss.item() == pytest.approx(sum(float(weight.detach().abs().sum()) for weight in weights), rel=1e-5)
    loss.backward()
    assert all(torch.equal(weight.grad, weight.detach().sign()) for weight in weights)


@pytest.mark.parametrize(("step", "left"), [(0, 1.0), (1, 1.0), (2, 0.75), (4, 0.25), (5, 0.0), (9, 0.0)])
def test_it_falls_to_nothing_in_a_line(step: int, left: float):
    network = Full().insert(vit(lambda module: module), Request(pictures(4, 0)))
    whole = L1Sparse()(View(network, {"forget": pictures(4, 0)}), None).item()
    found = L1Sparse(falls=4)(View(network, {"forget": pictures(4, 0)}, run=Run(step=step)), None)
    assert found.item() == pytest.approx(left * whole, rel=1e-6)


def test_a_run_under_it_ends_with_smaller_weights_than_one_without():
    network, request = vit(lambda module: module), Request(pictures(4, 0), pictures(8, 1))

    def size(objective: str) -> float:
        method = parse(f"Finetune(objective={objective}, adapter=Full(), learning_rate=1e-3, steps=5, stop=None)")
        assert isinstance(method, Finetune)
        made = method(network, request).plain()
        return sum(float(weight.detach().abs().sum()) for weight in made.module.parameters())

    assert size("RetainNLL() + 0.05 * L1Sparse()") < size("RetainNLL()") < size("RetainNLL() + -0.05 * L1Sparse()")


def test_it_does_not_fall_over_fewer_than_no_steps():
    with pytest.raises(UsageRefused, match="`falls` of L1Sparse must be at least 0"):
        L1Sparse(falls=-1)
