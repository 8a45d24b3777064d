"""Training is plain descent on the cross-entropy of the answers, and a schedule without a stop is taken to its end."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from expunge.adapters.full import Full
from expunge.adapters.lora import LoRA
from expunge.core.model import network_of
from expunge.core.request import Request
from expunge.errors import UsageRefused
from expunge.events import Checked, Ended, Started, Step
from expunge.methods.epochs import Epochs
from expunge.methods.train import Train
from expunge.notation.parse import parse
from expunge.objectives.ascent import Ascent
from expunge.report.run import Run
from expunge.report.verdict import criterion
from tests.methods.runs import REQUEST, Events, passages, run, tiny

LEARNT = Request(passages("d", 7, 5))


def loss_of(module, examples) -> torch.Tensor:
    """Mean cross-entropy of all answer tokens, by transformers' own forward pass, one text at a time."""
    logits, labels = [], []
    for example in examples:
        ids = torch.tensor([example.tokens])
        logits.append(module(ids).logits[0, example.first - 1 : -1])
        labels.append(ids[0, example.first :])
    return cross_entropy(torch.cat(logits), torch.cat(labels))


def test_a_step_on_all_records_is_the_gradient_of_their_mean_cross_entropy():
    network = tiny()
    module = network.module.requires_grad_(True)
    loss_of(module, LEARNT.forget).backward()
    wanted = {name: (p - 0.1 * p.grad).detach() for name, p in module.named_parameters()}
    module.requires_grad_(False)
    method = Train(optimizer="sgd", learning_rate=0.1, weight_decay=0.0, batch=7, epochs=1.0, schedule="constant")
    result = network_of(method(network, LEARNT).plain(), "a test")
    for name, parameter in result.module.named_parameters():
        assert torch.allclose(parameter, wanted[name], atol=1e-6), name


@pytest.mark.parametrize("adapter", [Full(), LoRA(rank=2)])
def test_records_are_learnt_in_as_many_steps_as_their_epochs_have_and_the_last_is_kept(adapter):
    events = Events()
    method = Train(adapter=adapter, learning_rate=1e-2, epochs=6.0, batch=2, warmup=1.0)
    network = network_of(method(tiny(), LEARNT, events).plain(), "a test")
    steps = events.of(Step)
    assert len(steps) == 21  # 6 epochs of 7 records, 2 a step
    rates = [step.learning_rate for step in steps]
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])  # an epoch of 3.5 steps warms up, so 4
    assert rates[-1] == pytest.approx(0.01 / 17)
    assert events.of(Ended)[0].kept_step == 21
    first, last = (float(loss_of(module, LEARNT.forget).detach()) for module in (tiny().module, network.module))
    assert last < first - 0.1
    assert [check.step for check in events.of(Checked)] == [0, 21]


def test_sets_beside_the_records_are_not_read():
    beside = replace(REQUEST, forget=LEARNT.forget)
    method = Train(learning_rate=1e-2, epochs=1.0, batch=4)
    one, other = (network_of(method(tiny(), request).plain(), "a test") for request in (beside, LEARNT))
    for (name, mine), theirs in zip(one.module.named_parameters(), other.module.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Train(epochs=0)", "^Train: the `epochs` must be positive and finite. Got 0.$"),
        ("Train(batch=0)", r"^Train: batch must be at least 1 \(got 0\)"),
        ("Train(warmup=-1.0)", "^Train: the `warmup` must be at least 0 and finite. Got -1.0.$"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(text: str, said: str):
    with pytest.raises(UsageRefused, match=said):
        parse(text)


# A published schedule, as it is published


@pytest.mark.parametrize("steps", [9, Epochs(count=9 * 4 / 7)])
def test_a_run_without_a_stop_takes_every_step_keeps_the_last_and_misses_nothing(steps):
    """Ascent at a rate that ruins the model, which any limit of a `Stop` would end."""
    _, events = run(objective=Ascent(), adapter=Full(), learning_rate=0.3, steps=steps, stop=None)
    [started], [ended] = events.of(Started), events.of(Ended)
    assert (ended.steps, ended.kept_step, ended.reached) == (9, 9, True)
    assert ended.kept_forget > 50  # beyond where a `Stop` sees a run away
    assert ended.kept_rise > 1
    assert all(outcome.result == "yes" for outcome in criterion(Run(started=started, ended=ended)))
    _, stopped = run(objective=Ascent(), adapter=Full(), learning_rate=0.3, steps=9, stop=parse("Stop(every=1)"))
    assert stopped.of(Ended)[0].steps < 9
