"""How precisely matrices are multiplied while something is compared to within rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

_BACKENDS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]


@contextmanager
def full_precision() -> Iterator[None]:
    """float32 products of matrices are not rounded to TF32 or bfloat16, whatever the user chose; then they are again.

    Rounded so, a text reads a little differently beside others, and a comparison takes that for how the model reads.
    """
    own, said = [each.fp32_precision for each in _BACKENDS], None
    with suppress(RuntimeError):  # torch does not say it where a backend was set by itself
        said = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if said is not None:
            torch.set_float32_matmul_precision(said)
        for each, precision in zip(_BACKENDS, own, strict=True):
            each.fp32_precision = precision
