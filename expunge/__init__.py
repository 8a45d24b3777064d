"""expunge makes trained networks forget chosen data, and shows how far they did.

Importing it is cheap: torch, transformers and peft are loaded by the first name that needs them.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from expunge import _peft_hook

if TYPE_CHECKING:
    from expunge.adapters._adapter_files import load_adapter
    from expunge.adapters.bounded import Bounded
    from expunge.adapters.full import Full
    from expunge.adapters.lora import LoRA
    from expunge.audits._kinds import MembershipAudit, ScoreAudit, WhiteBoxAudit
    from expunge.core.adapter import Adapted, Adapter
    from expunge.core.audit import Audit, Finding
    from expunge.core.method import Method, WeightMethod
    from expunge.core.model import Model, Network, Wrapper, answers
    from expunge.core.objective import Objective
    from expunge.core.question import HiddenStates, LogProbabilities, Routes, RowStatistics, Scores, Text
    from expunge.core.request import Request
    from expunge.methods.finetune import Finetune
    from expunge.methods.stop import Stop
    from expunge.models.open import open_model
    from expunge.notation.parse import parse
    from expunge.primitives.meanings import SetName
    from expunge.report.report import Report
    from expunge.run.prepare import Inputs, read_request
    from expunge.run.select import select_records
    from expunge.run.sweep import sweep
    from expunge.run.unlearn import unlearn

__version__ = "0.1.0"

_HOME = {
    "Adapted": "core.adapter",
    "Adapter": "core.adapter",
    "Audit": "core.audit",
    "Bounded": "adapters.bounded",
    "Finding": "core.audit",
    "Finetune": "methods.finetune",
    "Full": "adapters.full",
    "HiddenStates": "core.question",
    "Inputs": "run.prepare",
    "LoRA": "adapters.lora",
    "LogProbabilities": "core.question",
    "MembershipAudit": "audits._kinds",
    "Method": "core.method",
    "Model": "core.model",
    "Network": "core.model",
    "Objective": "core.objective",
    "Report": "report.report",
    "Request": "core.request",
    "Routes": "core.question",
    "RowStatistics": "core.question",
    "ScoreAudit": "audits._kinds",
    "Scores": "core.question",
    "SetName": "primitives.meanings",
    "Stop": "methods.stop",
    "Text": "core.question",
    "WeightMethod": "core.method",
    "WhiteBoxAudit": "audits._kinds",
    "Wrapper": "core.model",
    "answers": "core.model",
    "load_adapter": "adapters._adapter_files",
    "open_model": "models.open",
    "parse": "notation.parse",
    "read_request": "run.prepare",
    "select_records": "run.select",
    "sweep": "run.sweep",
    "unlearn": "run.unlearn",
}
__all__ = [
    "Adapted",
    "Adapter",
    "Audit",
    "Bounded",
    "Finding",
    "Finetune",
    "Full",
    "HiddenStates",
    "Inputs",
    "LoRA",
    "LogProbabilities",
    "MembershipAudit",
    "Method",
    "Model",
    "Network",
    "Objective",
    "Report",
    "Request",
    "Routes",
    "RowStatistics",
    "ScoreAudit",
    "Scores",
    "SetName",
    "Stop",
    "Text",
    "WeightMethod",
    "WhiteBoxAudit",
    "Wrapper",
    "answers",
    "load_adapter",
    "open_model",
    "parse",
    "read_request",
    "select_records",
    "sweep",
    "unlearn",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"expunge.{_HOME[name]}"), name)
    raise AttributeError(f"module 'expunge' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])


_peft_hook.install(sys.meta_path)
