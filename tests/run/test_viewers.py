"""A run's numbers for a viewer."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from expunge.errors import EnvironmentRefused, UsageRefused
from expunge.events import Checked, Note, Step
from expunge.run.checks import VIEWERS, check_viewer
from expunge.run.viewers import log_events, numbers_of

STEP = Step(3, 1.5, 0.25, None, {"mlp": 2.0}, {"frobenius": 0.5}, 1e-4, 9, 1.2)
ROOT = Path(__file__).parents[2]
CHECK = Checked(4, 4.75, 0.5, 5.25, 0.5)
EVENTS = (STEP, CHECK, Note("text"))


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


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
    with log_events(None, tmp_path, "out", told.append) as on_event:
        on_event(STEP)
    assert told == [STEP]
    assert list(tmp_path.iterdir()) == []


def test_a_viewer_that_is_not_known_is_refused():
    with pytest.raises(UsageRefused, match="--log-to 'wandb' is not known. Allowed: tensorboard, trackio"):
        check_viewer("wandb")


@pytest.mark.parametrize("viewer", VIEWERS)
def test_a_viewer_that_is_not_installed_is_refused_with_what_to_install(viewer: str, tmp_path: Path):
    if importlib.util.find_spec(viewer) is not None:
        pytest.skip(f"{viewer} is installed")
    with (
        pytest.raises(EnvironmentRefused, match=rf"it is not installed. Run: pip install 'expunge\[{viewer}\]'"),
        log_events(viewer, tmp_path, "out", print),
    ):
        pass


def told_to(viewer: str, folder: Path) -> list:
    """What goes on to whoever listens, where a viewer is told too."""
    told: list = []
    with log_events(viewer, folder, "out", told.append) as on_event:
        for event in EVENTS:
            on_event(event)
    return told


@needs("tensorboard")
def test_tensorboard_reads_back_what_was_told(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert told_to("tensorboard", tmp_path) == [*EVENTS]
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    found = {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    assert {tag: step for tag, [(step, _)] in found.items()} == {
        name: event.step for event in (STEP, CHECK) for name in numbers_of(event)
    }
    wanted = {name: value for event in (STEP, CHECK) for name, value in numbers_of(event).items()}
    assert {tag: value for tag, [(_, value)] in found.items()} == pytest.approx(wanted)


@needs("trackio")
def test_trackio_reads_back_what_was_told_and_says_nothing_to_standard_output(tmp_path: Path):
    """In a process of its own: trackio reads its place from the environment as it is imported."""
    lines = """
        from pathlib import Path
        from tests.run.test_viewers import EVENTS, told_to
        assert told_to("trackio", Path()) == [*EVENTS]
        from trackio.sqlite_storage import SQLiteStorage
        import json, sys
        found = [SQLiteStorage.get_runs("expunge"), SQLiteStorage.get_logs("expunge", "out")]
        print("", json.dumps(found), sep=chr(10), file=sys.stderr)
    """
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", textwrap.dedent(lines)]
    said = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert (said.returncode, said.stdout) == (0, ""), said.stderr
    runs, logs = json.loads(said.stderr.splitlines()[-1])
    assert runs == ["out"]
    found = [{name: each[name] for name in each if "/" in name} | {"step": each["step"]} for each in logs]
    assert found == [{**numbers_of(event), "step": event.step} for event in (STEP, CHECK)]
