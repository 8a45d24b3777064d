"""Registers the bounded adapter with peft as soon as both peft and expunge are imported, in either order.

peft takes seconds to import, so `import expunge` does not import it; an import hook registers the adapter after peft.
Where a module of ours imports peft, the hook waits for the end of that one too, so that it is never met half loaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

REGISTERING = "expunge.adapters._bounded_peft"
OURS = "expunge.adapters."


class _AfterPeft:
    """A meta path finder that finds peft, and our modules on it, by the other finders, and registers the bounded
    adapter after the outermost of them is loaded."""

    def __init__(self) -> None:
        self.looking = False
        self.loading = 0

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if not (name == "peft" or name.startswith(OURS)) or self.looking:
            return None
        self.looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.looking = False
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                self.loading += 1
                try:
                    load(module)
                finally:
                    self.loading -= 1
                if not self.loading and "peft" in sys.modules:
                    importlib.import_module(REGISTERING)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install(finders: list[Any]) -> None:
    """Register now if peft is imported already, else when it is."""
    if "peft" in sys.modules:
        importlib.import_module(REGISTERING)
    elif not any(isinstance(finder, _AfterPeft) for finder in finders):
        finders.insert(0, _AfterPeft())
