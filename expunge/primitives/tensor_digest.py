"""SHA-256 over tensors: their names, types, shapes and bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def add_tensors(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    """Add tensors to a digest of hashlib's, in the order of their names."""
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The digest of tensors alone."""
    digest = hashlib.sha256()
    add_tensors(digest, tensors)
    return digest.hexdigest()
