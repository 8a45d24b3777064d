"""Whether each causal architecture is read, trained and written as its own library does it, or refused with the reason.

python -m tests.architecture_table                  the tables of all architectures, image classifiers too, printed
python -m tests.architecture_table --write          and written to docs/architectures.md
python -m tests.architecture_table llama phi3:long  some of them; with --write too, the others' rows stay as they are
python -m tests.architecture_table --rows FILE      rows that FILE has are not worked out again, new ones are added
"""

from __future__ import annotations

import copy
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from expunge.adapters.bounded import Bounded
from expunge.adapters.full import Full
from expunge.core.question import LogProbabilities, Scores, Text
from expunge.core.request import Request
from expunge.data.text import Passage
from expunge.errors import ModelRefused
from expunge.methods.finetune import Finetune
from expunge.models.language import LanguageModel
from expunge.models.open import family_of
from expunge.models.probe import ANY_LENGTH
from expunge.models.source import Source, config_of, load_module
from expunge.models.writing import _tried
from expunge.objectives.ascent import Ascent
from expunge.objectives.retain_nll import RetainNLL
from tests.architecture_rows import Row, assert_close, assert_gradients, read_rows, rows, spread, table
from tests.architectures import CAUSAL, build, tiny
from tests.families import EVERY_STEP
from tests.image_table import IMAGE_HEAD, check_image, image_names

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
LIMITS = (
    "sliding_window sliding_window_size window_size attention_window_size keep_window_size local_attention "
    "attention_chunk_size chunk_size mamba_chunk_size index_topk indexer_budget block_size index_block_size "
    "local_attn_chunk_length lsh_attn_chunk_length original_max_position_embeddings floor_scale log_scaling_n_floor"
)
"""Settings that say at which length an architecture begins to read otherwise. They are 8 or 16 in a tiny model, which
every probe sees; set to 40 only the longest record is beyond them."""
FAR = dict.fromkeys(LIMITS.split(), 40)
LONG_ROPE = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [1.5, 2.5, 4.0, 8.0],
        "original_max_position_embeddings": 40,
    },
    "original_max_position_embeddings": 40,
}
SITUATIONS: dict[str, dict[str, Any]] = {
    "phi3:long": LONG_ROPE,
    "llama:dynamic": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
    "llama:yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "llama4_text:floor": {"floor_scale": 8, "attn_scale": 0.5, "attn_temperature_tuning": True},
    "bert:encoder": {"is_decoder": False},
    "bert:decoder": {"is_decoder": True},
    "roberta:encoder": {"is_decoder": False},
    "roberta:decoder": {"is_decoder": True},
    "electra:decoder": {"is_decoder": True},
    "big_bird:decoder": {"is_decoder": True, "attention_type": "original_full"},
    "roformer:decoder": {"is_decoder": True},
}
"""Settings of an architecture that change how it reads, by name."""
HEAD = """# How each architecture is read

Every causal architecture of transformers {version}, as a tiny model with random weights, asked by
`python -m tests.architecture_table --write`. Of each row it was asserted: records of 3 to 58 tokens, read together and
in batches, are answered as by `model(input_ids)` one by one (to 1e-4), with the same gradients; greedy text is plain
argmax, whatever the folder's `generation_config` asks for; what was forgotten and saved answers in plain transformers
as it did in memory; and a model that sees what comes later, or draws its answers, is refused. `NAME:far` has its
windows, chunks and selections at 40 tokens instead of 8, beyond what the probe at loading sees; other settings are
named in the script.

**{total} rows, {read} read, {refused} refused, {unbuilt} not built, {wrong} wrong.**

| architecture | read as | written by | note |
|---|---|---|---|
"""
LENGTHS = (3, 5, 9, 17, 31, 45)
LONGEST = 58
ANSWER = 7
WRITTEN = 5
"""How many tokens of an answer are trained on, and how many are written."""
POISON = {
    "no_repeat_ngram_size": 1,
    "bad_words_ids": [[7]],
    "suppress_tokens": [8, 9],
    "forced_eos_token_id": 2,
    "exponential_decay_length_penalty": (1, 1.5),
    "guidance_scale": 2.0,
    "num_return_sequences": 1,
    "return_dict_in_generate": True,
    "repetition_penalty": 1.5,
    "min_new_tokens": 3,
}
"""What a folder's generation_config may ask for; greedy text has none of it."""


class Words:
    """A tokenizer that names each token by its number."""

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The numbers."""
        return " ".join(map(str, tokens))

    def get_vocab(self) -> dict[str, int]:
        """No words."""
        return {}

    def save_pretrained(self, folder: Path) -> None:
        """Nothing is written."""


def names() -> list[str]:
    """All that is tried: architectures, each also with limits far away, and some in certain settings."""
    return [each for name in CAUSAL for each in ((name, f"{name}:far") if has_limits(name) else (name,))] + [
        *SITUATIONS
    ]


def has_limits(kind: str) -> bool:
    """Whether it has one of the settings that say at which length it begins to read otherwise."""
    try:
        return str(tiny(kind, **FAR).to_dict()) != str(tiny(kind).to_dict())
    except (ValueError, StrictDataclassError):  # one that depends on another
        return False


def make(name: str) -> nn.Module:
    """A tiny model whose weights are so large that attention is felt."""
    kind, _, setting = name.partition(":")
    module = build(kind, **(FAR if setting == "far" else SITUATIONS.get(name, {})))
    return spread(module).float().eval().requires_grad_(False)


def records(vocabulary: int) -> list[Passage]:
    """Some that begin alike, of 3 to 45 tokens, and one that is longer than every limit."""
    draw = torch.Generator().manual_seed(2)
    words = [(3 + torch.randint(vocabulary - 3, (LONGEST,), generator=draw)).tolist() for _ in range(8)]
    made = []
    for k, length in enumerate((*LENGTHS, 12, LONGEST)):
        stem = words[0][: min(6, length - 2)] if k % 3 else []
        tokens = (*stem, *words[k][len(stem) : length])
        first = max(1, length - ANSWER)
        made.append(Passage(str(k), tokens, first, "", "", f"{k}?", tokens[:first]))
    return made


def open_again(plain: Any) -> tuple[Any, LanguageModel]:
    """The model, saved by transformers and opened as the command opens it, but for the tokenizer; and a plain copy."""
    with tempfile.TemporaryDirectory() as folder:
        plain.save_pretrained(folder)
        source = Source(folder)
        try:
            family_of(config_of(source), "it")
            module = load_module(source, AutoModelForCausalLM, torch.float32)
        except ModelRefused as refusal:
            raise ModelRefused(str(refusal).replace(folder, "it")) from None
    return copy.deepcopy(module), LanguageModel.of(module, Words())


def check(name: str) -> Row:
    """One architecture's row, after all that must hold of it was asserted."""
    try:
        plain = make(name)
    except ImportError as error:
        return Row(name, note=f"could not be built tiny: {' '.join(str(error).split()[:6])} ...")
    try:
        plain, network = open_again(plain)
    except ModelRefused as refusal:
        return Row(name, note=f"refused: {str(refusal).partition('. Model type should')[0]}")
    read = records(min(network.vocabulary, len(scores_of(plain, [1])[0])))
    with torch.inference_mode():
        checks: tuple[Callable[[], None], ...] = (
            lambda: check_causal(plain, read),
            lambda: check_reading(plain, network, read),
        )
        for each in checks:
            each()
    check_gradients(plain, network, read)
    with torch.inference_mode():
        check_texts(plain, network, read)
    check_forgetting(network, read)
    return Row(name, how(network), how_written(network))


def how(network: LanguageModel) -> str:
    """In words, how it is read."""
    parts = ((network.trees, "trees"), (network.rows, "padded rows"))
    some = [f"{name} to {most}" if most < 4096 else name for most, name in parts if most]
    return ", ".join([*some, *(["one by one"] if network.rows < ANY_LENGTH else [])])


def how_written(network: LanguageModel) -> str:
    """In words, how texts of one and of another length are written."""
    tried = _tried.get(network.module, {})
    right = dict.fromkeys(way.__name__ for (way, _), most in tried.items() if most)
    last = max((most for _, most in tried), default=0)
    spelled = not any(right_to for (_, most), right_to in tried.items() if most == last)
    return ", ".join([*right, *(["spell"] if spelled else [])])


def answers(module: nn.Module, tokens: Sequence[int], first: int) -> Tensor:
    """The library's own log-probabilities of the labelled tokens."""
    rows = scores_of(module, tokens)[first - 1 : len(tokens) - 1].log_softmax(-1)
    return rows.gather(-1, torch.tensor(tokens[first:])[:, None])[:, 0]


def scores_of(module: nn.Module, tokens: Sequence[int]) -> Tensor:
    """The library's own scores at each position of a text alone."""
    said: Tensor = module(input_ids=torch.tensor([tokens]), use_cache=False).logits
    return said[0]


def check_causal(plain: nn.Module, read: Sequence[Passage]) -> None:
    """What is read later changes nothing of what was read before; and nothing is drawn by lot."""
    long = read[4].tokens
    whole = scores_of(plain, long)
    again = scores_of(plain, long)
    assert torch.equal(whole, again), "two answers to one text differ: it should be refused"
    other = (*long[:-1], long[-1] - 1)
    assert_close(scores_of(plain, other)[:-1], whole[:-1], "it sees the future: scores")


def check_reading(plain: nn.Module, network: LanguageModel, read: Sequence[Passage]) -> None:
    """Together and in the batches that it is read in, each record's answers are those of the record alone."""
    theirs = [answers(plain, one.tokens, one.first) for one in read]
    said = network.ask(LogProbabilities(), read).log_probs
    for one, ours, right in zip(read, said.split([one.rows for one in read]), theirs, strict=True):
        assert_close(ours, right, f"read together, the log-probabilities of a record of {one.size} tokens")
    for group in network.batches(read):
        said = network.ask(LogProbabilities(), [read[k] for k in group]).log_probs
        assert_close(said, torch.cat([theirs[k] for k in group]), "read in batches, log-probabilities")


def check_gradients(plain: nn.Module, network: LanguageModel, read: Sequence[Passage]) -> None:
    """Of the sum of all log-probabilities, as of the records one by one."""
    for module in (plain, network.module):
        module.requires_grad_(True)
    sum(answers(plain, one.tokens, one.first).sum() for one in read).backward()
    network.ask(Scores(), read).log_prob().sum().backward()
    assert_gradients(network.module, plain)
    for module in (plain, network.module):
        module.zero_grad()
        module.requires_grad_(False)


def check_texts(plain: Any, network: LanguageModel, read: Sequence[Passage]) -> None:
    """Greedy text is plain argmax, whatever the generation_config asks for."""
    stop = ends_of(plain)
    for name, value in POISON.items():
        setattr(network.module.generation_config, name, value)
    texts = network.ask(Text(WRITTEN), read)
    for one, text in zip(read, texts, strict=True):
        tokens = list(one.prompt_tokens)
        while len(tokens) < one.first + WRITTEN and not (len(tokens) > one.first and tokens[-1] in stop):
            tokens.append(int(scores_of(plain, tokens)[-1].argmax()))
        right = " ".join(map(str, tokens[one.first :]))
        assert text == right, f"after {one.first} tokens {text!r} is written, not {right!r}"
    network.module.generation_config = copy.deepcopy(plain.generation_config)


def ends_of(plain: Any) -> set[int]:
    """The tokens that end a text."""
    config = plain.config.get_text_config(decoder=True)
    end = plain.generation_config.eos_token_id
    end = config.eos_token_id if end is None else end
    return set() if end is None else {end} if isinstance(end, int) else set(end)


def check_forgetting(network: LanguageModel, read: Sequence[Passage]) -> None:
    """What a method returns answers, once saved, in the plain library as it did in memory."""
    request = Request(forget=tuple(read[:3]), retain=tuple(read[3:]))
    wanted = Finetune(objective=Ascent() + RetainNLL(), steps=2, learning_rate=1e-2, stop=EVERY_STEP)
    try:
        changed = replace(wanted, adapter=Bounded())(network, request)
    except ModelRefused:
        changed = replace(wanted, adapter=Full())(network, request)
    said = changed.ask(LogProbabilities(), read).log_probs
    before = network.ask(LogProbabilities(), read).log_probs
    assert not torch.allclose(said, before, atol=1e-4), "forgetting changed nothing"
    with tempfile.TemporaryDirectory() as folder:
        changed.plain().save(Path(folder))
        loaded, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"], f"saved without {sorted(info['missing_keys'])[:2]}"
    with torch.inference_mode():
        theirs = [answers(loaded.eval(), one.tokens, one.first) for one in read]
    assert_close(said, torch.cat(theirs), "saved and loaded, log-probabilities", 2e-4)


# The command


def main(arguments: list[str]) -> None:
    """The command."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    kept = Path(arguments[arguments.index("--rows") + 1]) if "--rows" in arguments else None
    wanted = [each for each in arguments if not each.startswith("--") and each != str(kept)]
    first, _, second = PAGE.read_text(encoding="utf-8").partition(IMAGE_HEAD.partition("\n")[0])
    parts = []
    for head, every, one, page in (HEAD, names(), check, first), (IMAGE_HEAD, image_names(), check_image, second):
        known = {row.name: row for row in read_rows(page)} if wanted else {}
        for row in rows([name for name in every if name in wanted or not wanted], one, kept):
            known[row.name] = row
            print(row, flush=True)
        parts.append(table(head, [known[name] for name in every if name in known], transformers.__version__))
    if "--write" in arguments:
        PAGE.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
