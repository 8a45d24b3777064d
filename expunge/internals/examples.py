"""What a model of one family needs of an example: the tokens of a text, the pixels of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from expunge.core.request import Example

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from expunge.core.model import Batch


@runtime_checkable
class Prompted(Example, Protocol):
    """An example that a continuation can be asked of."""

    @property
    def prompt_tokens(self) -> tuple[int, ...]:
        """Tokens of the prompt, which a continuation is generated from; empty for a plain text."""

    @property
    def answer(self) -> str:
        """The right continuation."""


@runtime_checkable
class Tokenized(Prompted, Protocol):
    """An example for a language model: a token sequence whose last tokens are labelled."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """All tokens, prompt and answer."""

    @property
    def first(self) -> int:
        """Index of the first labelled token, at least 1."""

    @property
    def question(self) -> str:
        """The question as the file has it; empty for a plain text."""


@runtime_checkable
class Pictured(Example, Protocol):
    """An example for an image classifier."""

    @property
    def pixels(self) -> Float[Tensor, "channels height width"]:
        """The image as the model reads it."""

    @property
    def label(self) -> int:
        """Number of its class."""

    @property
    def digest(self) -> str:
        """SHA-256 of the image's size and pixels, as its file has them."""


def are_absent(forget: Batch, retain: Batch) -> bool:
    """Whether a class is deleted: all are images, and no class of the forget set is one of the retain set's."""
    gone, stays = ({e.label for e in each if isinstance(e, Pictured)} for each in (forget, retain))
    return all(isinstance(e, Pictured) for e in forget) and bool(gone and stays) and not gone & stays
