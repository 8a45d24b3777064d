"""Limits on a program of somebody else's, such as a chat template: its time, its memory and the length of its text."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

SECONDS = 5.0
"""Of a processor, so that a busy machine makes no difference."""
MEMORY = 1 << 30
"""Bytes beyond those that the process has."""
LETTERS = 10_000_000


class TakesTooMuchError(Exception):
    """Somebody else's program went beyond a limit."""


@contextmanager
def set_limits(seconds: float = SECONDS, memory: int = MEMORY) -> Iterator[None]:
    """Raise `TakesTooMuchError` where the block takes more processor time, `MemoryError` where it takes more memory.

    The time is noticed between two steps of Python: not within one long product of whole numbers (`try_apart` is).
    Elsewhere than in the main thread there is no limit on time, and elsewhere than on Linux none on memory.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = _size() + memory
    bound = bool(_size()) and (soft == resource.RLIM_INFINITY or most < soft)
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGPROF, _stop) if main else None
    try:
        if main:
            signal.setitimer(signal.ITIMER_PROF, seconds)
        if bound:
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))
        yield
    finally:
        if bound:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        if main:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before or signal.SIG_DFL)


def check_length(text: str) -> str:
    """`text`; raises `TakesTooMuchError` where it is longer than any conversation."""
    if len(text) > LETTERS:
        raise TakesTooMuchError
    return text


@lru_cache(maxsize=64)
def try_apart(template: str) -> bool:
    """Whether a template that multiplies ends within the limits, tried in a process that can be killed."""
    if "*" not in template:  # nothing else in the language takes long in one step and little memory
        return True
    command = [sys.executable, "-I", "-c", TRIAL.format(seconds=int(SECONDS), memory=MEMORY)]
    try:
        ended = subprocess.run(command, input=template, capture_output=True, text=True, timeout=120)
    except (OSError, UnicodeError, subprocess.TimeoutExpired):
        return False
    return ended.returncode == 0


TRIAL = """
import resource, sys
from jinja2.sandbox import ImmutableSandboxedEnvironment
resource.setrlimit(resource.RLIMIT_CPU, ({seconds}, {seconds} + 1))
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
turns = [{{"role": "user", "content": "Dolor"}}, {{"role": "assistant", "content": "Lorem"}}]
try:
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    made.from_string(sys.stdin.read()).render(messages=turns, bos_token="", eos_token="", add_generation_prompt=False)
except MemoryError:
    sys.exit(1)
except Exception:
    pass  # what it lacks here it may have where it is rendered
"""


def _size() -> int:
    """Bytes of this process's address space; 0 where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    return 0


def _stop(number: int, frame: object) -> None:
    raise TakesTooMuchError
