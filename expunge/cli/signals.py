"""Signals: the first one ends a run cleanly, with exit code 130, and leaves no traceback wherever it strikes."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

ENDING = ("SIGINT", "SIGTERM", "SIGHUP")
SOON = 0.05
"""Seconds after which an interrupt that was swallowed strikes again."""


class Interrupts:
    """Whether an end was asked for, and what is left of the run then."""

    asked = False
    left = "no result was written"


def heed_signals() -> None:
    """Have SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt. What the caller ignores, as nohup does, stays ignored.

    Python drops an exception that strikes while an object is finalised: the interrupt is then raised anew, later.
    """
    for name in ENDING:
        number = getattr(signal, name)
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    sys.unraisablehook = _unraisable


def ignore_signals() -> None:
    """From here on the process ends by itself, and soon."""
    for name in (*ENDING, "SIGALRM"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)


def _interrupt(number: int, frame: FrameType | None) -> None:
    Interrupts.asked = True
    raise KeyboardInterrupt


def _unraisable(event: Any) -> None:
    if not issubclass(event.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(event)
    else:
        signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, SOON)
