"""expunge makes trained networks forget chosen data, and shows how far they did.

Importing it is cheap: torch, transformers and peft are loaded by the first name that needs them.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from expunge import _peft_hook

if TYPE_CHECKING:
    from expunge.adapters.bounded import Bounded
    from expunge.adapters.full import Full
    from expunge.adapters.lora import LoRA
    from expunge.core.audit import Audit, Finding
    from expunge.core.model import Model, Network
    from expunge.core.objective import Objective
    from expunge.core.request import Request
    from expunge.methods.finetune import Finetune
    from expunge.methods.stop import Stop
    from expunge.models.open import open_model, open_network
    from expunge.notation.parse import parse
    from expunge.report.report import Report
    from expunge.run.prepare import Inputs, read_request
    from expunge.run.unlearn import unlearn

__version__ = "0.1.0"

_HOME = {
    "Audit": "core.audit",
    "Bounded": "adapters.bounded",
    "Finding": "core.audit",
    "Finetune": "methods.finetune",
    "Full": "adapters.full",
    "Inputs": "run.prepare",
    "LoRA": "adapters.lora",
    "Model": "core.model",
    "Network": "core.model",
    "Objective": "core.objective",
    "Report": "report.report",
    "Request": "core.request",
    "Stop": "methods.stop",
    "open_model": "models.open",
    "open_network": "models.open",
    "parse": "notation.parse",
    "read_request": "run.prepare",
    "unlearn": "run.unlearn",
}
__all__ = [
    "Audit",
    "Bounded",
    "Finding",
    "Finetune",
    "Full",
    "Inputs",
    "LoRA",
    "Model",
    "Network",
    "Objective",
    "Report",
    "Request",
    "Stop",
    "open_model",
    "open_network",
    "parse",
    "read_request",
    "unlearn",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"expunge.{_HOME[name]}"), name)
    raise AttributeError(f"module 'expunge' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])


_peft_hook.install(sys.meta_path)
