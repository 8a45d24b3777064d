"""Signals that strike anywhere: one line, 130, no traceback. Of a small program, since torch takes seconds to load."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from expunge.cli.signals import Interrupts, heed_signals
from expunge.cli.ending import run_guarded
{body}
heed_signals()
sys.exit(run_guarded(run, False))
"""
WAITS = """
import time
def run():
    print("ready", flush=True)
    time.sleep(30)
"""
SWALLOWS = """
import time
class Finalised:
    def __del__(self):
        print("ready", flush=True)
        end = time.monotonic() + 30
        while time.monotonic() < end: time.sleep(0.01)
def run():
    Finalised()
    end = time.monotonic() + 30
    while time.monotonic() < end: time.sleep(0.01)
"""
MISTAKES = """
import time
def run():
    try:
        print("ready", flush=True)
        time.sleep(30)
    except BaseException:
        raise ValueError("something else")
"""
ENDS = """
import atexit, time
def late():
    print("ready", flush=True)
    time.sleep(0.5)
atexit.register(late)
def run():
    Interrupts.left = "never seen"
"""


def strike(body: str, kind: signal.Signals, **options: object) -> tuple[int, str]:
    command = [sys.executable, "-c", PROGRAM.format(body=body)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as run:
        assert run.stdout.readline() == "ready\n"
        run.send_signal(kind)
        try:
            _, said = run.communicate(timeout=20)
        finally:
            run.kill()
    return run.returncode, said


def heed() -> None:
    """Where tests run in the background, a shell has them ignore SIGINT, and nohup SIGHUP, which children inherit."""
    for kind in (signal.SIGINT, signal.SIGHUP):
        signal.signal(kind, signal.SIG_DFL)


@pytest.mark.parametrize("body", [WAITS, SWALLOWS, MISTAKES], ids=["waits", "swallows", "mistakes"])
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_with_one_line(body: str, kind: signal.Signals):  # R12
    said = strike(body, kind, preexec_fn=heed)
    assert said == (130, "expunge: interrupted; no result was written.\n")


def test_a_signal_after_the_end_changes_nothing():
    assert strike(ENDS, signal.SIGINT, preexec_fn=heed) == (0, "")


def test_a_run_under_nohup_outlives_its_terminal():
    body = WAITS.replace("30", "0.5")
    assert strike(body, signal.SIGHUP, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) == (0, "")


def test_a_signal_while_the_command_itself_is_loaded_ends_it_with_one_line(tmp_path: Path):
    (tmp_path / "typer.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(30)\n")
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import expunge.__main__"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=heed, **pipes) as run:
        assert run.stdout.readline() == "ready\n"
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=20)
    assert (run.returncode, said) == (130, "expunge: interrupted; no result was written.\n")
