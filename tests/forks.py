"""Processes forked from one that has paid for its imports; it reads what to start from a pipe, a line of JSON each.

It answers each line with the processes' numbers, then with their exit codes.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Run = Callable[[str, Sequence[str]], None]
"""Runs a program, or what stands for none, with its arguments."""


def fork(
    run: Run,
    arguments: Sequence[str],
    streams: tuple[Path, Path],
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    program: str = "",
) -> int:
    """A process of its own, whose output and errors are added to two files, or to one; its number."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        for place, path in enumerate(streams, start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), place)
        faulthandler.enable(sys.__stderr__)  # who dies inside of C says in which line
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what runs in the background ignore it
        os.chdir(folder or Path.cwd())
        os.environ.update(environment or {})
        run(program, arguments)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int) -> int:
    """The exit code of a process that was forked here."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def serve(run: Run) -> None:
    """Start what is asked for until the pipe is closed."""
    for line in sys.stdin:
        asked = json.loads(line)
        children = [
            fork(
                run,
                asked["arguments"],
                (Path(f"{asked['streams']}.{rank}.1"), Path(f"{asked['streams']}.{rank}.2")),
                Path(asked["folder"]),
                asked["environment"] | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                asked["program"],
            )
            for rank in range(asked["processes"])
        ]
        print(json.dumps(children), flush=True)
        print(json.dumps([wait(child) for child in children]), flush=True)
