"""DM-Direct with TRAK: by hand on a network of one matrix, and what a sketch keeps."""

import copy

import pytest
import torch

from expunge import Request
from expunge.core.question import LogProbabilities
from expunge.edit.datamodel_direct import DatamodelDirect
from expunge.errors import DataRefused, UsageRefused
from expunge.internals.sketches import Sketcher, damp
from tests.families import family_of
from tests.methods.test_newton import REQUEST, network


def test_the_step_is_traks_formula_with_the_gradients_themselves():
    net = network()
    ours = DatamodelDirect(multiplier=3.0, side=5, damping=0.1)(net, REQUEST)
    before, after = (dict(each.module.named_parameters()) for each in (net, ours))
    sketcher = Sketcher(net, 5, 0)
    forget, every = sketcher.sketch(REQUEST.forget), sketcher.sketch([*REQUEST.forget, *REQUEST.retain])
    doubt = 1 - net.ask(LogProbabilities(), REQUEST.forget).log_probs.exp()
    moments = every.T @ every
    damped = moments + 0.1 * moments.diag().mean() * torch.eye(len(moments))
    numbers = torch.linalg.inv(damped) @ (doubt.double()[:, None] * forget).sum(0)
    assert sketcher.matrices() == ["body.weight", "classifier.weight"]
    p, q = sketcher._draw("classifier.weight", before["classifier.weight"])
    step = p.T @ numbers[25:].view(5, 5) @ q
    assert torch.allclose(before["classifier.weight"] - after["classifier.weight"], 3 * step, atol=1e-9)
    assert float(step.detach().abs().max()) > 1e-4
    assert torch.equal(before["classifier.bias"], after["classifier.bias"])


def test_the_scores_move_by_the_sum_of_traks_attributions_to_first_order():
    net = network()
    tiny = 1e-3
    ours = DatamodelDirect(multiplier=tiny, side=5, damping=0.1)(net, REQUEST)
    sketcher = Sketcher(net, 5, 0)
    forget, asked = sketcher.sketch(REQUEST.forget), sketcher.sketch(REQUEST.retain)
    every = torch.cat([forget, asked])
    doubt = 1 - net.ask(LogProbabilities(), REQUEST.forget).log_probs.double().exp()
    tau = asked @ torch.linalg.inv(damp(every.T @ every, 0.1)) @ forget.T @ doubt
    before, after = (_log_odds(each, REQUEST.retain) for each in (net, ours))
    assert torch.allclose(before - after, tiny * tau, rtol=0.02, atol=2e-5)


def _log_odds(net, examples) -> torch.Tensor:
    said = net.ask(LogProbabilities(), examples).log_probs.double()
    return said - torch.log(-torch.expm1(said))


def test_a_direction_is_what_its_sketches_are_multiplied_with():
    net, request = family_of("vit")
    sketcher = Sketcher(net, 3, 7)
    numbers = torch.randn(9 * len(sketcher.matrices()), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tiny, moved = 1e-3, net.fork(copy.deepcopy(net.module))
    parameters = dict(moved.module.named_parameters())
    with torch.no_grad():
        for name, step in sketcher.direction(tiny * numbers):
            parameters[name].add_(step)
    rise = _log_odds(moved, request.forget) - _log_odds(net, request.forget)
    assert torch.allclose(rise, tiny * sketcher.sketch(request.forget) @ numbers, rtol=0.05, atol=5e-5)


def test_what_the_forgotten_answers_rested_on_goes_and_the_rest_stays_nearer():
    net = network()
    ours = DatamodelDirect(multiplier=5.0)(net, REQUEST)
    fell = [float((_log_odds(net, e) - _log_odds(ours, e)).mean()) for e in (REQUEST.forget, REQUEST.retain)]
    assert fell[0] > 0.1
    assert fell[0] > 1.5 * abs(fell[1])


def test_no_retain_set_and_settings_that_mean_nothing_are_refused():
    with pytest.raises(DataRefused, match="retain set"):
        DatamodelDirect()(network(), Request(REQUEST.forget))
    for wrong in ({"damping": 0.0}, {"multiplier": -1.0}, {"side": 0}, {"seed": -1}):
        with pytest.raises(UsageRefused, match=next(iter(wrong))):
            DatamodelDirect(**wrong)
