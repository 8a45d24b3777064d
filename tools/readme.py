"""Runs the code blocks of the README as a reader would, in an empty folder but for a tiny random `my-model`.

Blocks marked `bash` or `python` are run in order; each must end well. Blocks of another kind are only shown.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = "from pathlib import Path; from tests.conftest import save_model; save_model(Path('my-model'))"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and text of every block that is to be run."""
    return BLOCK.findall(text)


def environment() -> dict[str, str]:
    """The repository on Python's path, and the programs of its environment on the shell's."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": programs, "PYTHONPATH": str(ROOT)}


def ran(number: int, kind: str, text: str, folder: str) -> bool:
    """Whether a block ended well."""
    command = ["bash", "-euo", "pipefail", "-c", text] if kind == "bash" else [sys.executable, "-c", text]
    code = subprocess.run(command, cwd=folder, env=environment(), check=False).returncode
    print(f"README block {number} ({kind}): {f'exit {code}' if code else 'ran'}", flush=True)
    return code == 0


def main() -> int:
    """The number of blocks that failed."""
    found = blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", MODEL], cwd=folder, env=environment(), check=True)
        failed = sum(not ran(number, *block, folder) for number, block in enumerate(found, start=1))
    if not found:
        print("README.md has no block to run")
    return failed or not found


if __name__ == "__main__":
    sys.exit(main())
