"""Steps that run out of memory: they are read in more parts, with the same result, and a single record ends the run."""

import pytest
import torch
from torch import nn

from expunge.audits.loss import Loss
from expunge.core.model import Network
from expunge.core.request import Request
from expunge.edit.gradient_norm import GradientNorm
from expunge.errors import EnvironmentRefused
from expunge.events import Note, Step
from expunge.objectives.grad_diff import GradDiff
from expunge.objectives.npo import NPO
from expunge.objectives.pdu import PDU
from expunge.objectives.retain_kl import RetainKL
from expunge.objectives.retain_nll import RetainNLL
from expunge.primitives.out_of_memory import report_smaller_batches
from expunge.train.accumulation import Accumulation
from tests.methods.runs import REQUEST, Events, apart, numbers, run, tiny


def narrow(nodes: int, dtype: torch.dtype = torch.float64) -> Network:
    """A network that reads so many tokens at once and no more, as a small card would."""

    def check(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].numel() > nodes:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {inputs[0].numel()} kB")

    network = tiny(dtype)
    network.module.get_input_embeddings().register_forward_pre_hook(check)
    return network


def parts_told(events: Events) -> list[tuple[int, int]]:
    return [(event.step, event.parts) for event in events.of(Note)]


# Of the 4 forget and 5 retain records of a step, of 4 to 10 tokens each, up to 64 stand in one call.


@pytest.mark.parametrize(
    "objective", [GradDiff(), NPO(beta=0.3) + RetainKL(), PDU(multiplier=1.0, slack=0.0, warmup=0)], ids=repr
)
def test_steps_are_read_in_more_parts_and_come_out_as_before(objective):
    whole, at_once = run(tiny(torch.float64), objective=objective)
    with report_smaller_batches(lambda _: None):
        cut, events = run(narrow(25), objective=objective)
    assert apart(numbers(whole), numbers(cut)) < 1e-6
    assert [event.loss for event in events.of(Step)] == pytest.approx([e.loss for e in at_once.of(Step)])
    [*_, (_, last)] = parts_told(events)
    assert last == 4  # 2 parts of 2 and 2 or 3 records are more than 25 tokens somewhere in five steps
    assert "so steps have 4 micro-batches from here on (accumulate=4)" in events.of(Note)[-1].what


def test_the_parts_are_those_that_a_user_would_have_asked_for():
    with report_smaller_batches(lambda _: None):
        cut, events = run(narrow(25), steps=3)
    asked, _ = run(tiny(torch.float64), steps=3, accumulate=4)
    assert parts_told(events) == [(1, 2), (1, 4)]
    assert apart(numbers(cut), numbers(asked)) < 1e-9


def test_a_step_of_one_record_that_does_not_fit_ends_the_run_and_names_the_settings():
    with report_smaller_batches(lambda _: None), pytest.raises(EnvironmentRefused) as refused:
        run(narrow(11), retain_batch=8)
    assert refused.value.code == 7
    assert "as few records at once as possible (forget 1, retain 2). Lower batch or retain_batch" in str(refused.value)


def test_an_objective_that_cannot_be_read_in_parts_says_so_where_memory_ends():
    with (
        report_smaller_batches(lambda _: None),
        pytest.raises(EnvironmentRefused, match=r"step 1: out of memory .*accumulate=1"),
    ):
        run(narrow(25, torch.float32), objective=RetainNLL() + 0.1 * GradientNorm())


def test_an_audit_reads_less_at_once_and_finds_the_same():
    request = Request(REQUEST.forget, REQUEST.retain, REQUEST.holdout)
    wide, said = Loss()(tiny(torch.float64), request), []
    with report_smaller_batches(said.append):
        found = Loss()(narrow(20), request)
    for one, other in zip(wide, found, strict=True):
        assert other.scores == pytest.approx(one.scores, abs=1e-9)
    assert said
    assert all("tokens (or images) from here on" in line for line in said)
    with (
        report_smaller_batches(lambda _: None),
        pytest.raises(EnvironmentRefused, match=r"record [fhr]-2 alone \(10 tokens"),
    ):
        Loss()(narrow(9), request)


def test_each_step_is_cut_as_it_was_when_it_was_read():
    sets = {"forget": range(4), "retain": range(6)}
    parts = Accumulation([(1, 1)])
    assert parts.double(3, sets) == Note(
        "step 3: out of memory, so steps have 2 micro-batches from here on (accumulate=2)", step=3, parts=2
    )
    parts.double(5, sets)
    assert [parts.at(step) for step in range(1, 7)] == [1, 1, 2, 2, 4, 4]
    assert [[list(run) for run in each.values()] for each in parts.cut(3, sets)] == [
        [[0, 1], [0, 1, 2]],
        [[2, 3], [3, 4, 5]],
    ]
    with pytest.raises(EnvironmentRefused, match=r"forget 1, retain 2"):
        parts.double(5, sets)


def test_twice_in_one_step_is_one_change():
    parts = Accumulation([(1, 1)])
    for _ in range(3):
        parts.double(1, {"forget": range(7)})
    assert parts.since == [(1, 7)]  # 1, 2, 4, and not 8: there are 7 records
