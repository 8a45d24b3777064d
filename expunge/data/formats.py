"""The formats that records of texts come in, each turned into one of three: a text, a question with its answer, or a
conversation.

| format | columns | becomes |
|---|---|---|
| ours | `question`, `answer` | a question with its answer |
| running text | `text` | a text |
| chat (OpenAI, TRL) | `messages`: dictionaries with `role` and `content` | a conversation |
| ShareGPT | `conversations`: dictionaries with `from` and `value` | a conversation |
| completion | `prompt`, `completion`: both texts, or both messages | a question with its answer, or a conversation |
| Alpaca | `instruction`, `output`; also `input`, `system`, `history` | a question with its answer, or a conversation |
| RWKU | `query`, `answer` | a question with its answer; one with a blank, `___`, after a request to fill it |
| MUSE | `prompt`, `gt` | a question with its answer, as a completion is |
| TOFU | also `perturbed_answer`, or `option1`, ...; `paraphrased_...` | the same with `options`, and in other words |

Nothing that a fault says is text of a record.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Columns = Mapping[str, Any]

COMMON = ("id", "options", "lead", "chat_template_kwargs", "sample_weight")
"""Columns that may stand beside every question."""
PERTURBED = "perturbed_answer"
NUMBERED = re.compile(r"option\d+")
"""Wrong answers as TOFU has them: a list, or a column each, where the right answer is one of them."""
REWORDED = {"question": "paraphrased_question", "answer": "paraphrased_answer"}
BLANK = "___"
FILL = "Please complete the blank in the following question."
"""What RWKU asks before a text with a blank (`eval_forget` of its code)."""
CHATS = ("messages", "conversations", "conversation")
ROLES = {
    **{name: name for name in ("system", "user", "assistant", "tool")},
    "developer": "system",
    "human": "user",
    **dict.fromkeys(("gpt", "model", "chatgpt", "bot", "bard", "bing"), "assistant"),
}
"""Roles by the names that files give them."""
CALLS = ("tool_calls", "function_call")
KEPT = ("name", "reasoning_content", "reasoning", "thinking")
"""Further keys of a message that chat templates read."""
ROLES_READ = "user, assistant, system and tool"


class FormatError(Exception):
    """What is wrong with a row, in words without its text."""


def read_row(columns: Columns) -> dict[str, Any]:
    """The row as a text, a question with its answer, or a conversation; as it is where its format is not known."""
    known = [kind for kind, (wants, _) in FORMATS.items() if all(name in columns for name in wants)]
    chats = [name for name in CHATS if name in columns]
    if "chosen" in columns and "rejected" in columns:
        raise FormatError("pairs of a 'chosen' and a 'rejected' answer are not read: give the answer meant as 'answer'")
    if "input_ids" in columns and not known and not chats:
        raise FormatError("'input_ids' are not read: tokens belong to one tokenizer. Give the text")
    if "text" in columns and (chats or "instruction" in known):
        other = chats[0] if chats else "instruction"
        raise FormatError(f"both 'text' and '{other}': say which is meant by removing the other column")
    if chats:
        return _common(columns) | _chat(columns[chats[0]], _read_text(columns, "system"))
    if known and "text" not in columns:
        made = FORMATS[known[0]][1](columns)
        return _common(columns) | _wrong_answers(columns, made.get("answer")) | made | _add_paraphrase(columns, made)
    return dict(columns)


def paraphrase_of(columns: Columns) -> dict[str, Any] | None:
    """The same record in other words, with its wrong answers, where the file has it; under the same id."""
    if "text" in columns or "paraphrase" not in columns:
        return None
    options = [option for option in columns.get("options", ()) if option != columns["paraphrase"]["answer"]]
    own = {name: columns[name] for name in ("id", "system", "chat_template_kwargs") if name in columns}
    return {**own, **({"options": options} if options else {}), **columns["paraphrase"]}


def turns_of(columns: Columns) -> list[dict[str, Any]]:
    """The messages of a row that asks something, its last answer included."""
    if "messages" in columns:
        return [{k: v for k, v in turn.items() if k != "weight"} for turn in columns["messages"]]
    system = [{"role": "system", "content": columns["system"]}] if columns.get("system") else []
    asked = {"role": "user", "content": columns["question"]}
    return [*system, asked, {"role": "assistant", "content": columns["answer"]}]


def answers_in(columns: Columns) -> list[int]:
    """The places of the assistant's turns among the messages, but for those of weight 0."""
    if "messages" not in columns:
        return [len(turns_of(columns)) - 1]
    turns = columns["messages"]
    return [k for k, turn in enumerate(turns) if turn["role"] == "assistant" and turn.get("weight", 1)]


def add_system(columns: Columns, system: str) -> dict[str, Any]:
    """The row with a system turn, where it asks something and has none."""
    if "text" in columns or columns.get("verbatim") or columns.get("system"):
        return dict(columns)
    if "messages" not in columns:
        return {**columns, "system": system}
    turns = columns["messages"]
    head = [] if turns[0]["role"] == "system" else [{"role": "system", "content": system}]
    return {**columns, "messages": [*head, *turns]}


def _common(columns: Columns) -> dict[str, Any]:
    return {name: columns[name] for name in COMMON if name in columns}


def _read_text(columns: Columns, name: str) -> str:
    """A column of text that may be absent or empty."""
    value = columns.get(name) or ""
    if not isinstance(value, str):
        raise FormatError(f"'{name}' is {type(value).__name__}, but must be text")
    return value


def _wrong_answers(columns: Columns, right: object) -> dict[str, Any]:
    """The options that TOFU's columns hold, the right answer left out; nothing where the row has its own, or none."""
    given = columns.get(PERTURBED) or [columns[name] for name in columns if NUMBERED.fullmatch(name)]
    if "options" in columns or not given:
        return {}
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise FormatError(f"'{PERTURBED}' must be a list of texts (the wrong answers)")
    wrong = [each for each in dict.fromkeys(listed) if each.strip() and each != right]
    return {"options": wrong} if wrong else {}


def _add_paraphrase(columns: Columns, made: Columns) -> dict[str, Any]:
    """TOFU's paraphrase of a row, unless it says the same in the same words."""
    if "question" not in made or not any(name in columns for name in REWORDED.values()):
        return {}
    said = {own: _read_text(columns, other) or made[own] for own, other in REWORDED.items()}
    return {"paraphrase": said} if any(said[name] != made[name] for name in said) else {}


def _query(columns: Columns) -> dict[str, Any]:
    asked = columns["query"]
    blank = isinstance(asked, str) and BLANK in asked
    return {"question": f"{FILL}\n{asked}" if blank else asked, "answer": columns["answer"]}


def _native(columns: Columns) -> dict[str, Any]:
    asked = {name: columns[name] for name in ("question", "answer")}
    return {**asked, "system": columns["system"]} if _read_text(columns, "system").strip() else asked


def _completion(columns: Columns) -> dict[str, Any]:
    prompt, completion = columns["prompt"], columns["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        # As TRL has it: answers of the prompt are history, which is read and not learnt.
        read = [{**turn, "weight": 0} if isinstance(turn, dict) else turn for turn in prompt]
        return _chat([*read, *completion], "")
    if isinstance(prompt, list) or isinstance(completion, list):
        raise FormatError("'prompt' and 'completion' must be both texts or both lists of messages")
    return {"question": prompt, "answer": completion, "verbatim": True}


def _alpaca(columns: Columns) -> dict[str, Any]:
    answer = columns["output"] if "output" in columns else columns["response"]
    more = _read_text(columns, "input") or _read_text(columns, "context")
    asked = columns["instruction"]
    # Both in one turn, a line each, as LLaMA-Factory has it.
    question = f"{asked}\n{more}" if isinstance(asked, str) and more.strip() else asked
    history = columns.get("history") or []
    if not history:
        return _native({"question": question, "answer": answer, "system": columns.get("system")})
    if not isinstance(history, list) or any(not isinstance(p, list | tuple) or len(p) != 2 for p in history):
        raise FormatError("'history' must be a list of pairs [question, answer]")
    pairs = [*history, (question, answer)]
    turns = [
        {"role": role, "content": said} for p in pairs for role, said in zip(("user", "assistant"), p, strict=True)
    ]
    return _chat(turns, _read_text(columns, "system"))


FORMATS: dict[str, tuple[tuple[str, ...], Callable[[Columns], dict[str, Any]]]] = {
    "question": (("question", "answer"), _native),
    "completion": (("prompt", "completion"), _completion),
    "query": (("query", "answer"), _query),
    "gt": (
        ("prompt", "gt"),
        lambda columns: {"question": columns["prompt"], "answer": columns["gt"], "verbatim": True},
    ),
    "instruction": (("instruction", "output"), _alpaca),
    "response": (("instruction", "response"), _alpaca),
    "output": (("input", "output"), lambda columns: {"question": columns["input"], "answer": columns["output"]}),
}
"""The columns that tell a format, and what reads it; the first that a row has is meant."""


def _chat(messages: object, system: str) -> dict[str, Any]:
    """A conversation; one question with one answer is written as such, so that equal records are equal."""
    if not isinstance(messages, list) or not messages:
        raise FormatError("the messages must be a list of dictionaries with 'role' and 'content'")
    turns = [_turn(message, place) for place, message in enumerate(messages, start=1)]
    if system.strip() and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": system})
    if turns[-1]["role"] != "assistant":
        raise FormatError("the last message is not the assistant's, so nothing is answered: remove it")
    if not any(turn["role"] == "assistant" and turn.get("weight", 1) for turn in turns):
        raise FormatError("no message of the assistant counts: all have 'weight' 0")
    plain = all(set(turn) == {"role", "content"} for turn in turns)
    head, asked = (turns[0]["content"], turns[1:]) if turns[0]["role"] == "system" else ("", turns)
    if plain and [turn["role"] for turn in asked] == ["user", "assistant"]:
        one = {"question": asked[0]["content"], "answer": asked[1]["content"]}
        return {**one, "system": head} if head else one
    return {"messages": turns}


def _turn(message: object, place: int) -> dict[str, Any]:
    """A message with the usual names of its keys."""
    if not isinstance(message, Mapping):
        raise FormatError(f"message {place} is {type(message).__name__}, but must have 'role' and 'content'")
    held = {key: value for key, value in message.items() if value is not None and value != []}
    if any(held.get(name) for name in CALLS):
        raise FormatError(f"message {place} calls a tool, which is not read: write the call into its 'content'")
    role = held.get("role", held.get("from"))
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise FormatError(f"the role of message {place} is not known: the roles read are {ROLES_READ}")
    content = _content(held.get("content", held.get("value")), place)
    turn = {"role": ROLES[role.lower()], "content": content}
    turn |= {name: held[name] for name in KEPT if isinstance(held.get(name), str) and held[name].strip()}
    weight = held.get("weight", 1)
    if weight not in (0, 1):
        raise FormatError(f"the 'weight' of message {place} must be 0 or 1")
    return turn if weight else {**turn, "weight": 0}


def _content(content: object, place: int) -> str:
    """The text of a message; parts of texts are joined."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise FormatError(f"message {place} holds more than text, such as images, which is not read")
        content = "".join(str(part) for part in parts)
    if not isinstance(content, str) or not content.strip():
        kind = "empty" if content is None or isinstance(content, str) else type(content).__name__
        raise FormatError(f"message {place} is {kind}, but must be text")
    return content
