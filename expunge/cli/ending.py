"""How the command ends: one line that says why, and an exit code. A traceback could hold the text of a record."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import typer

from expunge.cli.signals import Interrupts, ignore_signals
from expunge.errors import EnvironmentRefused, Refusal, UsageRefused
from expunge.runtime.atomic_files import refuse_full_disk

INTERRUPTED = 130
UNFIT = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.EIO, errno.EMFILE)
LOADED = 1_150_000_000
"""Bytes of addresses that a process has once torch, transformers and peft are loaded (1,135 million, on Linux)."""
NO_ROOM = ("failed to map segment", "Cannot allocate memory", "cannot allocate memory", "can't start new thread")


def run_guarded(run: Callable[[], object], debug: bool) -> int:
    try:
        code = run()
        if code == INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        ignore_signals()
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return _end_interrupted()
    except BaseException as error:
        ignore_signals()
        if Interrupts.asked and not debug:  # a library made something else of it
            return _end_interrupted()
        if debug:
            raise
        return _tell(error)


def _end_interrupted() -> int:
    ignore_signals()
    _say(f"expunge: interrupted; {Interrupts.left}.")
    return INTERRUPTED


def _tell(error: BaseException) -> int:
    """Say in one line why the run ends; its exit code. A traceback can hold text that was to be forgotten."""
    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, Refusal):
        _say(error.line())
        return error.code
    refusal = _environment(error)
    if refusal:
        _say(refusal.line())
        return refusal.code
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # the parser's own: a wrong option or argument
        said = error.format_message() if hasattr(error, "format_message") else str(error)
        if said:  # nothing was asked at all, and the help that was printed says it all
            _say(UsageRefused(said).line())
        return int(error.exit_code)
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    place = f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}" if where else "?"
    _say(
        f"expunge: E1-unexpected: {type(error).__name__} in {place}. This is a fault of expunge: please report it "
        f"with the traceback that EXPUNGE_DEBUG=1 prints (it may quote your data)."
    )
    return 1


def _environment(error: BaseException) -> EnvironmentRefused | None:
    """What the machine lacks: memory, room on a disk, leave to write. None where the error is of another kind."""
    if _out_of_memory(error):
        return _no_room()
    try:
        refuse_full_disk(error, Path.cwd())
    except EnvironmentRefused as full:
        return full
    if isinstance(error, OSError) and error.errno in UNFIT and isinstance(error.filename, str):
        return EnvironmentRefused(f"{error.filename}: {error.strerror}. Nothing was written there.")
    return None


def check_room_for_torch() -> None:
    """Refuse a limit on the address space in which torch cannot even be loaded: it would abort without a word."""
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit not in (-1, resource.RLIM_INFINITY) and limit < LOADED:
        raise EnvironmentRefused(
            f"The limit on this process's memory (ulimit -v) is {limit / 1e6:,.0f} MB, and torch and transformers "
            f"alone take {LOADED / 1e6:,.0f} MB of addresses. Raise it."
        )


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, ImportError | OSError | RuntimeError) and any(sign in str(error) for sign in NO_ROOM):
        return True
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from expunge.primitives.out_of_memory import is_out_of_memory

    return is_out_of_memory(error)


def _no_room() -> EnvironmentRefused:
    return EnvironmentRefused(
        "Out of memory, where nothing can be read in smaller parts. Give Finetune a larger accumulate or "
        "activations='recomputed', or take more processes, another --device or a smaller model; `expunge plan` says "
        "how much is needed."
    )


def _say(line: str) -> None:
    """Print why the run ends; where torchrun started several processes, the first that ends says it for all."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from expunge.runtime.processes import speaks_for_all

        if not speaks_for_all():
            return
    typer.echo(line, err=True)
