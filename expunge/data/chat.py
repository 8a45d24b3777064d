"""Where an answer stands in a conversation, as the model's own chat template writes it.

The template writes the finished conversation, and the answer is looked for in it. What a template writes when it asks
for an answer (`add_generation_prompt`) is not used: it need not be what stands before a finished one. Llama 2's lacks a
space, Qwen3's an empty block of thoughts, DeepSeek-R1's opens one, and some templates do not know the setting.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expunge.errors import ModelRefused, UsageRefused
from expunge.runtime.limits import LETTERS, MEMORY, SECONDS, TakesTooMuchError, check_length, set_limits, try_apart

Turns = Sequence[Mapping[str, Any]]
"""Messages in their order, each with `role` and `content`; the last is the assistant's."""

QUESTION = "Dolor"
ANSWERS = ("Lorem", "Ipsa")
"""Words that show where a template puts an answer; neither begins or ends in a letter of the other's place."""
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
CLOSED = "</think>"
READ = {"messages", "bos_token", "eos_token", "add_generation_prompt", "tools", "documents", "continue_final_message"}
"""Names in a template that transformers fills itself."""


class MisfitError(Exception):
    """Why a template cannot write a conversation, in words without its text."""


@dataclass(frozen=True)
class Written:
    """A conversation up to the end of its last answer."""

    text: str
    """With the token that ends the answer, where the template writes one."""
    start: int
    """Where the answer begins in the text."""
    stop: int
    """Where the answer ends in the text."""

    @property
    def before(self) -> str:
        """All that stands before the answer."""
        return self.text[: self.start]

    @property
    def ends(self) -> bool:
        """Whether a token that ends the answer is part of the text."""
        return self.stop < len(self.text)


@dataclass(frozen=True)
class Chat:
    """A tokenizer's chat template, looked at once. Raises `ModelRefused` where it drops questions or answers."""

    tokenizer: Any
    arguments: Mapping[str, Any]
    """What the template is given beside the messages, such as `enable_thinking`."""
    listed: bool = False
    """Whether contents are given as a list of parts, for templates that iterate over them."""
    after: str = ""
    """What the template writes after an answer."""

    @staticmethod
    def of(tokenizer: Any, arguments: Mapping[str, Any]) -> Chat:
        """The tokenizer's template with these arguments."""
        check_arguments(tokenizer, arguments)
        for listed in (False, True):
            chat = Chat(tokenizer, arguments, listed)
            text = chat.render(_turns(ANSWERS[0]))
            if QUESTION in text and ANSWERS[0] in text.rpartition(QUESTION)[2]:
                _, after = chat.around(_turns(ANSWERS[0]))
                return Chat(tokenizer, arguments, listed, after)
        raise ModelRefused(
            "The tokenizer's chat template does not write the question, and the answer after it, as they are given, so "
            "all questions would look alike. Fix or remove it."
        )

    def render(self, turns: Turns) -> str:
        """The finished conversation as the template writes it."""
        given = [dict(turn) for turn in turns]
        for turn in given if self.listed else ():
            turn["content"] = [{"type": "text", "text": turn["content"]}]
        try:
            if not try_apart(str(self.tokenizer.chat_template)):
                raise TakesTooMuchError
            with set_limits():
                return check_length(str(self.tokenizer.apply_chat_template(given, tokenize=False, **self.arguments)))
        except (TakesTooMuchError, MemoryError) as error:
            raise ModelRefused(
                f"The tokenizer's chat template takes more than {SECONDS:g} s or {MEMORY >> 30} GB, or writes more "
                f"than {LETTERS:,} letters. Fix or remove it."
            ) from error
        except Exception as error:  # templates are third-party programs and can fail in any way
            kind = type(error).__name__
            raise ModelRefused(f"The tokenizer's chat template failed ({kind}). Fix or remove it.") from error

    def around(self, turns: Turns) -> tuple[str, str]:
        """What the template writes before and after the last answer, whatever that says."""
        one, other = (self.render([*turns[:-1], {"role": "assistant", "content": said}]) for said in ANSWERS)
        back = os.path.commonprefix([one[::-1], other[::-1]])[::-1]
        return os.path.commonprefix([one, other]), back

    def write(self, turns: Turns) -> Written:
        """The conversation and the place of its last answer. Raises `MisfitError` where the template changes either."""
        try:
            text = self.render(turns)
        except ModelRefused as error:
            raise MisfitError(_blame(turns)) from error
        shown = _squeeze(text)
        if any(_squeeze(turn["content"]) not in shown for turn in turns if turn["role"] != "assistant"):
            raise MisfitError("the model's chat template does not write all of its questions as they are")
        said, stop = turns[-1]["content"], len(text) - len(self.after)
        if text.endswith(said + self.after) and not _thoughts(turns[-1]):
            return self._cut(text, stop - len(said), stop)
        return self._search(turns, text)

    def _search(self, turns: Turns, text: str) -> Written:
        """The answer's place, by what stands around any answer to the same conversation."""
        before, after = self.around(turns)
        thoughts, said = _thoughts(turns[-1]), turns[-1]["content"].rpartition(CLOSED)[2].strip()
        # Thoughts belong to the answer: it begins where the text is no longer that of an answer without any.
        start = len(os.path.commonprefix([text, before])) if thoughts else len(before)
        stop = len(text) - len(after)
        middle = text[start:stop]
        if thoughts and _squeeze(thoughts) not in _squeeze(middle):
            raise MisfitError("the model's chat template drops the thoughts before its answer: leave them out")
        fits = middle.strip().endswith(said) if thoughts else text.startswith(before) and middle.strip() == said
        if not (text.endswith(after) and fits):
            raise MisfitError("the model's chat template does not write its answer as it is")
        return self._cut(text, start, stop)

    def _cut(self, text: str, start: int, stop: int) -> Written:
        return Written(text[: stop + end_in(self.tokenizer, text[stop:])], start, stop)


def _turns(answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": answer}]


def _thoughts(turn: Mapping[str, Any]) -> str:
    """What the assistant thought before it answered."""
    own = next((str(turn[name]) for name in THOUGHTS if turn.get(name)), "")
    return own or turn["content"].rpartition(CLOSED)[0].rpartition("<think>")[2].strip()


def _squeeze(text: str) -> str:
    return "".join(text.split())


def _blame(turns: Turns) -> str:
    """Why a template that reads a question with its answer may refuse these turns."""
    roles = [str(turn["role"]) for turn in turns]
    if roles[0] == "system" and roles[1:] == ["user", "assistant"]:
        return "the model's chat template takes no system turn: write it at the head of the first question"
    return f"the model's chat template takes no conversation of {', '.join(roles)}"


def end_in(tokenizer: Any, after: str) -> int:
    """Letters of what follows an answer up to the end of the special token that ends it; 0 where there is none."""
    bare = after.lstrip()
    marks = [*tokenizer.all_special_tokens, *(t.content for t in tokenizer.added_tokens_decoder.values() if t.special)]
    # Not every special token has a role such as eos: Phi-3's <|end|> is merely marked as special.
    mark = max((mark for mark in marks if bare.startswith(mark)), key=len, default="")
    return len(after) - len(bare) + len(mark) if mark else 0


def check_arguments(tokenizer: Any, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that the template does not read: it would pass over them in silence."""
    template = str(tokenizer.chat_template or "")
    unread = [name for name in arguments if name in READ or not re.search(rf"\b{re.escape(name)}\b", template)]
    if unread:
        where = "The model's chat template" if template else "The model has no chat template, which"
        raise UsageRefused(f"{where} reads no '{unread[0][:40]}'. Leave it out of --chat-template-kwargs.")
