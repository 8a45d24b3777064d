"""Runs the code blocks of the README as a reader would, in the repository's folder.

Blocks marked `bash` or `python` are run in order; each must end well. Blocks of another kind are only shown.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and text of every block that is to be run."""
    return BLOCK.findall(text)


def main() -> int:
    """The number of blocks that failed."""
    found = blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    failed = 0
    for number, (kind, text) in enumerate(found, start=1):
        command = ["bash", "-euo", "pipefail", "-c", text] if kind == "bash" else [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": programs}, check=False)
        print(f"README block {number} ({kind}): {'ran' if done.returncode == 0 else f'exit {done.returncode}'}")
        failed += done.returncode != 0
    if not found:
        print("README.md has no block to run")
    return failed or not found


if __name__ == "__main__":
    sys.exit(main())
