"""Examples in turn, in a new order each time round."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch

Kind = TypeVar("Kind")


def shuffle_forever(examples: Sequence[Kind], generator: torch.Generator) -> Iterator[Kind]:
    """Each of them once before any comes again."""
    while True:
        for index in torch.randperm(len(examples), generator=generator).tolist():
            yield examples[index]
