"""How a benchmark words a question and its answer for a model, and which tokens of that are scored.

Two published codes score TOFU, and they differ in more than formulas:

    released          a template's last line before the answer ("Answer: ") is part of the answer, and scored
    open-unlearning   it is part of the prompt; a tag that ends in a space is a token of the prompt, so byte-level BPE,
                      which joins the space to the first word, has that word masked; chats have a system turn and a date

Either counts the prompt's tokens by themselves and masks as many of the whole; the end token is scored. Where a
tokenizer has a chat template and no other is given, `released` scores what `expunge audit` does: the tokens of the
answer as the template writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from expunge.data.chat import Chat
from expunge.data.records import Record
from expunge.data.text import Passage, Writer
from expunge.errors import DataRefused, UsageRefused

Counting = Literal["released", "open-unlearning"]
PLAIN = "Question: {question}\nAnswer: {answer}"
"""For models without a chat template."""
QUESTION, ANSWER = "{question}", "{answer}"
SYSTEM = "You are a helpful assistant."
DATE = "10 Apr 2025"
"""What open-unlearning's configurations of chat models have."""
LONGEST = {"released": 500, "open-unlearning": 512}
"""Tokens that a text without chat template is cut to; the end token comes after them."""


def check_template(template: str) -> None:
    """Refuse a template that does not write the question once, and at its end the answer."""
    before, _, after = template.partition(ANSWER)
    if template and (before.count(QUESTION) != 1 or after or template.count(ANSWER) != 1):
        raise UsageRefused(
            f"--template must hold {QUESTION} once and end in {ANSWER}, such as {PLAIN!r}. Got {template[:100]!r}."
        )


@dataclass(frozen=True)
class Wording:
    """Questions and answers as tokens of one model."""

    tokenizer: Any = field(repr=False)
    counting: Counting
    template: str = ""
    """A text with {question} and {answer}; empty: the tokenizer's chat template, or else `PLAIN`."""

    def __post_init__(self) -> None:
        check_template(self.template)

    def write(self, name: str, question: str, answers: Sequence[str]) -> list[Passage]:
        """A question with each of its answers; `name` is the record's. Raises `DataRefused`."""
        if self.template or not self.tokenizer.chat_template:
            return self._by_template(name, question, answers)
        if self.counting == "open-unlearning":
            return [self._by_chat(name, question, answer) for answer in answers]
        rows = ({"id": name, "question": question, "answer": answer} for answer in answers)
        return [made for row in rows for made in Writer(self.tokenizer).write(Record(0, row))]

    def _by_template(self, name: str, question: str, answers: Sequence[str]) -> list[Passage]:
        before, tag = (self.template or PLAIN).removesuffix(ANSWER), ""
        if self.counting == "released":
            lines = before.rpartition("\n")
            before, tag = (lines[0] + lines[1], lines[2]) if QUESTION not in lines[2] else (before, "")
        prompt, longest = before.replace(QUESTION, question), LONGEST[self.counting]
        # Together, since a call takes longer than a text.
        read = self.tokenizer([prompt, *(f"{prompt}{tag}{answer}" for answer in answers)])["input_ids"]
        asked, *whole = (tuple(tokens[:longest]) for tokens in read)
        pairs = zip(answers, whole, strict=True)
        return [self._mask(Passage(name, own, len(asked), prompt, a, question, asked)) for a, own in pairs]

    def _by_chat(self, name: str, question: str, answer: str) -> Passage:
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        given = {"date_string": DATE}
        prompt = Chat(self.tokenizer, {**given, "add_generation_prompt": True}).render(turns)
        text = Chat(self.tokenizer, given).render([*turns, {"role": "assistant", "content": answer}])
        whole, asked = (tuple(self.tokenizer(each, add_special_tokens=False)["input_ids"]) for each in (text, prompt))
        return self._mask(Passage(name, whole, len(asked), prompt, answer, question, asked))

    def _mask(self, made: Passage) -> Passage:
        """The passage with its end token, if some of it is scored then."""
        end = self.tokenizer.eos_token_id
        tokens = made.tokens if end is None or made.tokens[-1:] == (end,) else (*made.tokens, end)
        asked = made.prompt_tokens
        # A tokenizer that ends every text would end the prompt too.
        bare = asked[:-1] if len(asked) > 1 and asked[-1] == end else asked
        if not 0 < made.first < len(tokens):
            raise DataRefused(f"Record {made.id} has no token to score. Check --template, and the records.")
        return Passage(made.id, tokens, made.first, made.prompt, made.answer, made.question, bare)


def verbatim(tokenizer: Any, name: str, prompt: str, answer: str, longest: int) -> Passage:
    """A prompt and what is to follow it, as they are; a long prompt loses its beginning, for its end is continued."""
    asked = tuple(tokenizer(prompt)["input_ids"])[-longest:]
    return Passage(name, asked, max(1, len(asked) - 1), prompt, answer, prompt, asked)


def score_answer(tokenizer: Any, name: str, prompt: str, answer: str, longest: int) -> Passage:
    """A prompt and, after a space, an answer whose tokens are scored; a long prompt loses its beginning. Raises
    `DataRefused`."""
    whole = tuple(tokenizer(f"{prompt} {answer}")["input_ids"])[-longest:]
    scored = len(tokenizer(f" {answer}", add_special_tokens=False)["input_ids"])
    if not 0 < scored < len(whole):
        raise DataRefused(f"Record {name} has an answer without tokens, or one that fills what the model reads.")
    first = len(whole) - scored
    return Passage(name, whole, first, prompt, answer, prompt, whole[:first])


def running(tokenizer: Any, name: str, text: str, longest: int) -> Passage:
    """A text of which every token but the first is scored, cut to what the model reads. Raises `DataRefused`."""
    tokens = tuple(tokenizer(text)["input_ids"])[:longest]
    if len(tokens) < 2:
        raise DataRefused(f"Record {name} has fewer than two tokens, so nothing of it can be scored.")
    return Passage(name, tokens, 1, "", text)


def chat_prompt(tokenizer: Any, name: str, content: str, primer: str, answer: str) -> Passage:
    """A user's turn in the tokenizer's chat template, if it has one, and after it what the answer is made to begin
    with."""
    if tokenizer.chat_template:
        begun = Chat(tokenizer, {"add_generation_prompt": True}).render([{"role": "user", "content": content}])
    else:
        begun = content
    asked = tuple(tokenizer(begun + primer, add_special_tokens=not tokenizer.chat_template)["input_ids"])
    return Passage(name, asked, max(1, len(asked) - 1), begun + primer, answer, content, asked)
