"""What a language model writes after prompts, and what of it becomes a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from expunge.core.question import Text
from expunge.internals.examples import Tokenized
from expunge.internals.wordings import Wordings, find_words
from expunge.models.decoding import ends, side_by_side
from expunge.models.writing import write
from expunge.primitives.out_of_memory import in_fitting_batches

if TYPE_CHECKING:
    from expunge.core.model import Batch
    from expunge.models.language import LanguageModel


def continue_prompts(network: LanguageModel, question: Text, prompts: Sequence[Tokenized]) -> list[str]:
    """Batched greedy decoding. Tokens that are known to be generated are prefilled with the prompt."""
    stop, max_new_tokens = ends(network.module), question.max_new_tokens
    begun: list[tuple[int, ...]] = []
    for prompt, known in zip(prompts, question.begun or [0] * len(prompts), strict=True):
        # With a lead between prompt and answer, the answer does not follow the prompt.
        rows = min(known, max_new_tokens) if prompt.tokens[: prompt.first] == prompt.prompt_tokens else 0
        answer = prompt.tokens[prompt.first : prompt.first + rows]
        end = next((place + 1 for place, token in enumerate(answer) if token in stop), len(answer))
        begun.append(answer[:end])
    left = [0 if own and own[-1] in stop else max_new_tokens - len(own) for own in begun]
    begun_whole = [(*prompt.prompt_tokens, *own) for prompt, own in zip(prompts, begun, strict=True)]
    order = sorted((k for k in range(len(prompts)) if left[k]), key=lambda k: len(begun_whole[k]))
    longest = max(map(len, begun_whole), default=0)
    side = side_by_side(network.module, longest + max_new_tokens)
    groups = [order[start : start + side] for start in range(0, len(order), side)]
    place = {id(prompt): k for k, prompt in enumerate(prompts)}

    def write_group(part: Batch) -> list[list[int]]:
        own = [place[id(prompt)] for prompt in part]
        return write(network, [begun_whole[k] for k in own], [left[k] for k in own])

    said = [list(own) for own in begun]
    for group, texts in in_fitting_batches(network.module, prompts, groups, write_group):
        for k, text in zip(group, texts, strict=True):
            said[k] += text
    return [str(network.tokenizer.decode(own, skip_special_tokens=True)) for own in said]


def word_answers(network: LanguageModel, question: Wordings, prompts: Sequence[Tokenized]) -> list[Tokenized | None]:
    """Each prompt with the text that the model writes in place of its answer, labelled from the answer's words on; None
    where these are not in the text."""
    started = tuple(network.tokenizer(question.start, add_special_tokens=False)["input_ids"])
    begun: list[Any] = [replace(one, prompt_tokens=(*one.prompt_tokens, *started)) for one in prompts]  # type: ignore[type-var]
    written = continue_prompts(network, Text(question.max_new_tokens), begun)
    # A decoder may drop the space that a continuation begins with.
    texts = [f"{question.start} {text.lstrip()}" if question.start else text for text in written]
    return [_word(network.tokenizer, text, prompt) for text, prompt in zip(texts, prompts, strict=True)]


def _word(tokenizer: Any, text: str, prompt: Tokenized) -> Tokenized | None:
    place = find_words(text, prompt.answer)
    if place is None:
        return None
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    before = next(k for k, (_, end) in enumerate(read["offset_mapping"]) if end > place)
    made: Any = replace(
        prompt,  # type: ignore[type-var]
        id=f"{prompt.id}, own words",
        tokens=(*prompt.prompt_tokens, *read["input_ids"]),
        first=len(prompt.prompt_tokens) + before,
        answer=text[place:],
        lead=text[:place].rstrip(),
        alternatives=(),
    )
    return cast(Tokenized, made)
