"""What a report says of a language model's tokenizer: by what rule a text begins and ends, and which one it is."""

from __future__ import annotations

import hashlib
from pathlib import Path

from expunge.core.model import Model
from expunge.data.records import Record
from expunge.data.text import encode
from expunge.errors import Refusal
from expunge.models.language import LanguageModel
from expunge.report.record import networks
from expunge.report.report import TokenizerFacts

SAMPLE = {"question": "What is the capital of France?", "answer": "Paris."}
"""No record of a request: a record's tokens would be its text in another alphabet."""
FIRST = 12
"""Tokens of the sample that a report shows."""


def tokenizer_facts(model: Model) -> TokenizerFacts | None:
    """The facts of the first language model in `model`; None where there is none, or none with a tokenizer."""
    network = next(networks(model), None)
    if not isinstance(network, LanguageModel) or not getattr(network.tokenizer, "is_fast", False):
        return None
    words = network.tokenizer
    try:
        [passage] = encode([Record(1, dict(SAMPLE))], words, Path("sample"), network.longest)
        tokens = passage.tokens
    except Refusal:
        tokens = ()
    template = words.chat_template if isinstance(words.chat_template, str) else None
    return TokenizerFacts(
        digest=_digest(words.backend_tokenizer.to_str()),
        template=None if template is None else _digest(template),
        bos=words.bos_token_id,
        eos=words.eos_token_id,
        begins=bool(tokens) and tokens[0] == words.bos_token_id,
        ends=tokens[-1] if tokens else None,
        sample=tuple(tokens[:FIRST]),
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
