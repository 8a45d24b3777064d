"""A run's numbers for a viewer."""

import importlib.util
from pathlib import Path

import pytest

from expunge.errors import EnvironmentRefused, UsageRefused
from expunge.events import Checked, Note, Step
from expunge.run.checks import check_viewer
from expunge.run.viewers import log_events, numbers_of

STEP = Step(3, 1.5, 0.25, None, {"mlp": 2.0}, {"frobenius": 0.5}, 1e-4, 9, 1.2)
CHECK = Checked(4, 4.75, 0.5, 5.25, 0.5)
THERE = importlib.util.find_spec("tensorboard") is not None


def test_each_number_of_a_step_and_of_a_check_has_a_name_and_what_was_not_read_has_none():
    assert numbers_of(STEP) == {
        "step/loss": 1.5,
        "step/forget": 0.25,
        "step/rate": 1e-4,
        "gradient/mlp": 2.0,
        "delta/frobenius": 0.5,
    }
    assert numbers_of(CHECK) == {"check/forget": 4.75, "check/retain": 0.5, "check/short": 0.5}
    assert numbers_of(Note("text")) == {}


def test_without_a_viewer_events_go_where_they_went(tmp_path: Path):
    told: list = []
    with log_events(None, tmp_path, told.append) as on_event:
        on_event(STEP)
    assert told == [STEP]
    assert list(tmp_path.iterdir()) == []


def test_a_viewer_that_is_not_known_is_refused():
    with pytest.raises(UsageRefused, match="--log-to 'trackio' is not known. Allowed: tensorboard"):
        check_viewer("trackio")


@pytest.mark.skipif(THERE, reason="tensorboard is installed")
def test_a_viewer_that_is_not_installed_is_refused_with_what_to_install(tmp_path: Path):
    with (
        pytest.raises(EnvironmentRefused, match=r"it is not installed. Run: pip install 'expunge\[tensorboard\]'"),
        log_events("tensorboard", tmp_path, print),
    ):
        pass


@pytest.mark.skipif(not THERE, reason="tensorboard is not installed")
def test_tensorboard_reads_back_what_was_told(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told: list = []
    with log_events("tensorboard", tmp_path, told.append) as on_event:
        for event in (STEP, CHECK, Note("text")):
            on_event(event)
    assert told == [STEP, CHECK, Note("text")]
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    found = {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    assert {tag: step for tag, [(step, _)] in found.items()} == {
        name: event.step for event in (STEP, CHECK) for name in numbers_of(event)
    }
    wanted = {name: value for event in (STEP, CHECK) for name, value in numbers_of(event).items()}
    assert {tag: value for tag, [(_, value)] in found.items()} == pytest.approx(wanted)
