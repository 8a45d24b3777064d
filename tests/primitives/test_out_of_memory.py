"""Memory runs out in the middle of a read: it goes on with half as much at once, says so, and answers the same."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from expunge.errors import EnvironmentRefused
from expunge.primitives.out_of_memory import in_fitting_batches, is_out_of_memory, report_smaller_batches, try_in_memory

PATIENCE = 8
"""Failures that a model bears: 64 records are halved 6 times. A read that never grows smaller ends by it."""


@dataclass(frozen=True)
class Text:
    id: str
    size: int


@dataclass
class Narrow:
    """A model that reads so many tokens at once and no more."""

    room: int
    error: Callable[[], Exception] = lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    module: nn.Module = field(default_factory=lambda: nn.Linear(1, 1))
    calls: list[list[str]] = field(default_factory=list)
    failed: int = 0

    def read(self, part: list[Text]) -> list[str]:
        self.calls.append([text.id for text in part])
        if sum(text.size for text in part) > self.room:
            self.failed += 1
            assert self.failed <= PATIENCE, f"memory ran out {self.failed} times, with {len(part)} records at last"
            raise self.error()
        return [text.id.upper() for text in part]


TEXTS = [Text(letter, size) for letter, size in zip("abcdefg", (5, 3, 4, 4, 2, 6, 1), strict=True)]
GROUPS = [[6, 0, 1, 2], [3, 4, 5]]
"""13 tokens, then 12."""


def read(model: Narrow) -> list[tuple[list[int], list[str]]]:
    return list(in_fitting_batches(model.module, TEXTS, GROUPS, model.read))


def test_groups_that_fit_are_read_as_they_are():
    model = Narrow(room=13)
    assert read(model) == [([6, 0, 1, 2], ["G", "A", "B", "C"]), ([3, 4, 5], ["D", "E", "F"])]


@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: ..."),
        lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError,
    ],
)
def test_what_does_not_fit_is_read_in_halves_and_it_is_said_once(error):
    model, said = Narrow(7, error), []
    with report_smaller_batches(said.append):
        parts = read(model)
    # 13 tokens fail, so at most 6 are read at once: g and a (1 + 5), b (3, and 4 more would be 7), c; then d and e, f
    assert parts == [([6, 0], ["G", "A"]), ([1], ["B"]), ([2], ["C"]), ([3, 4], ["D", "E"]), ([5], ["F"])]
    assert said == ["Out of memory on cpu: batches have at most 6 tokens (or images) from here on"]
    assert model.calls[0] == ["g", "a", "b", "c"]


def test_what_was_found_out_holds_for_the_module_s_next_read():
    model = Narrow(7)
    with report_smaller_batches(lambda _: None):
        first = read(model)
    model.calls.clear()
    assert read(model) == first  # without a failure: it would warn, and warnings are errors here
    assert model.calls == [["g", "a"], ["b"], ["c"], ["d", "e"], ["f"]]


def test_a_record_that_does_not_fit_alone_ends_the_read_after_so_many_halvings():
    model, said = Narrow(5), []
    with (
        report_smaller_batches(said.append),
        pytest.raises(EnvironmentRefused, match=r"record f alone \(6 tokens; .*--device") as refused,
    ):
        read(model)
    assert refused.value.code == 7
    # 13, then 6 (g and a): from then on at most 3, and f, of 6, is read alone
    assert model.calls[:3] == [["g", "a", "b", "c"], ["g", "a"], ["g"]]
    assert model.calls[-1] == ["f"]
    assert len(said) == 2


def test_other_errors_pass_as_they_are():
    for error in (RuntimeError("shapes do not match"), ValueError("out of memory, says somebody else")):
        assert not is_out_of_memory(error)
        model = Narrow(0, lambda error=error: error)
        with pytest.raises(type(error), match=str(error)):
            read(model)
        assert len(model.calls) == 1


def test_outside_of_the_command_it_is_a_warning():
    with pytest.warns(RuntimeWarning, match="6 tokens"):
        read(Narrow(7))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(Narrow(13))


def test_what_a_failed_read_held_is_let_go_before_the_next():
    held = []

    class Big:
        def __del__(self) -> None:
            held.remove(id(self))

    def fail() -> None:
        big = Big()
        held.append(id(big))
        raise MemoryError

    assert try_in_memory(fail) is None
    assert held == []


def failures(model: Narrow, texts: list[Text]) -> list[int]:
    """Tokens of each call that memory did not hold."""
    size = {text.id: text.size for text in texts}
    totals = [sum(size[name] for name in call) for call in model.calls]
    return [total for total in totals if total > model.room]


@pytest.mark.parametrize(
    ("room", "tried"),
    [
        (64, []),
        (63, [64]),
        (32, [64]),
        (31, [64, 32]),
        (5, [64, 32, 16, 8]),
        (1, [64, 32, 16, 8, 4, 2]),
    ],
)
def test_each_failure_halves_what_is_read_at_once(room: int, tried: list[int]):
    texts = [Text(f"t{k}", 1) for k in range(64)]
    model, said = Narrow(room), []
    with report_smaller_batches(said.append):
        parts = list(in_fitting_batches(model.module, texts, [list(range(64))], model.read))
    assert failures(model, texts) == tried
    assert [int(line.partition(" at most ")[2].split()[0]) for line in said] == [total // 2 for total in tried]
    # every record is answered once, in order, and no part is smaller than memory asks for
    assert [k for group, _ in parts for k in group] == list(range(64))
    assert [name for _, names in parts for name in names] == [f"T{k}" for k in range(64)]
    most = (tried[-1] if tried else 128) // 2
    assert [len(group) for group, _ in parts] == [most] * (64 // most)


def test_records_of_unequal_length_are_halved_by_their_tokens():
    texts = [Text("long", 6), *(Text(f"t{k}", 1) for k in range(6))]
    model = Narrow(6)
    with report_smaller_batches(lambda _: None):
        parts = [group for group, _ in in_fitting_batches(model.module, texts, [list(range(7))], model.read)]
    assert failures(model, texts) == [12]  # 12 tokens, so at most 6: not three or four of the seven records
    assert parts == [[0], [1, 2, 3, 4, 5, 6]]


def test_a_record_that_never_fits_is_refused_after_as_many_calls_as_there_are_halvings():
    texts = [Text(f"t{k}", 1) for k in range(64)]
    model = Narrow(0)
    with report_smaller_batches(lambda _: None), pytest.raises(EnvironmentRefused, match="record t0 alone"):
        list(in_fitting_batches(model.module, texts, [list(range(64))], model.read))
    assert failures(model, texts) == [64, 32, 16, 8, 4, 2, 1]
