"""Nothing that a library says reaches a user of the command: what matters we say ourselves, with what to do.

EXPUNGE_DEBUG=1 shows all of it.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TQDM_DISABLE": "1",  # the bars of libraries; ours is not of that kind
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
}
"""What libraries read from the environment when they are imported."""


def ask_for_quiet() -> None:
    """Tell libraries that are not imported yet to be quiet; what the user has set stays."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within the block no library's warning is shown and nothing is logged, whatever handlers there are."""
    shown, disabled = warnings.showwarning, logging.root.manager.disable
    warnings.showwarning = lambda *_, **__: None  # filters would be set anew by libraries that have a mind of their own
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        warnings.showwarning = shown
        logging.disable(disabled)
