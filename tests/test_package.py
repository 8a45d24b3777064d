"""What is installed: a file that is no module comes along only where `pyproject.toml` names it."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_file_beside_the_modules_is_installed():
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["expunge"]
    package = ROOT / "expunge"
    found = {p for p in package.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert found == {path for pattern in asked for path in package.glob(pattern)}
    assert package / "py.typed" in found  # else type checkers take everything here for Any
