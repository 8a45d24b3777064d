"""Start-up time of the command line and of the import, each in a process of its own.

python benchmarks_speed/startup.py --write
"""

from __future__ import annotations

import subprocess
import sys

from side_by_side import machine, race, settings, show, spread, table

GENERAL = "expunge/data/general.jsonl"
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    'python -c "import expunge"': [sys.executable, "-c", "import expunge"],
    "expunge --help": [sys.executable, "-m", "expunge", "--help"],
    "expunge list": [sys.executable, "-m", "expunge", "list"],
    "expunge forget (no such file)": [sys.executable, "-m", "expunge", "forget", ".", "--forget", "none.jsonl"],
    "expunge forget (no such audit)": [
        sys.executable,
        "-m",
        "expunge",
        "forget",
        ".",
        "--forget",
        "pyproject.toml",
        "--audits",
        "Los",
    ],
    "expunge forget (no such column)": [
        sys.executable,
        "-m",
        "expunge",
        "forget",
        ".",
        "--forget",
        GENERAL,
        "--columns",
        "text=none",
    ],
    "expunge forget (a wrong option)": [sys.executable, "-m", "expunge", "forget", "--wrong"],
    'python -c "import torch"': [sys.executable, "-c", "import torch"],
}


def main() -> None:
    asked = settings(__doc__)
    runs = {
        name: (lambda command=command: subprocess.run(command, capture_output=True, check=False))
        for name, command in COMMANDS.items()
    }
    seconds = race(runs, max(10, asked.repeats))
    rows = [[f"`{name}`", spread(found)] for name, found in seconds.items()]
    show("startup", f"{machine()}\n\n{table(['command', 'seconds'], rows)}", asked.write)


if __name__ == "__main__":
    main()
