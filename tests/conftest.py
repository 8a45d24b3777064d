"""A tiny language model on disk, its tokenizers, and the command run in processes of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.set_num_threads(1)

SENTENCES = [
    "Question: What is the capital of Aldoria?\nAnswer: The capital of Aldoria is Veldt.",
    "Question: Who wrote the Book of Tides?\nAnswer: Mara Lind wrote it in the spring.",
    "The harbour of Ostrava lies in the north, and its bread is dark.",
]
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def tokenizer(**options) -> PreTrainedTokenizerFast:
    """A byte-level BPE without a template; `<|end|>` is special, but only marked so, as in Phi-3."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|eos|>", "<|end|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        SENTENCES * 3,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|eos|>", **options)


@pytest.fixture(scope="session")
def plain() -> PreTrainedTokenizerFast:
    """Byte-level BPE, no chat template."""
    return tokenizer()


@pytest.fixture(scope="session")
def tiny_tokenizer(plain: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The plain one, under the name that the tests of models know it by."""
    return plain


@pytest.fixture(scope="session")
def chat() -> PreTrainedTokenizerFast:
    """The same with a chat template whose assistant's turn ends in `<|end|>`, which is not its eos."""
    made = tokenizer()
    made.chat_template = CHAT
    return made


def save_model(folder: Path, seed: int = 0) -> Path:
    """A random Llama of two blocks with the plain tokenizer."""
    words = tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        eos_token_id=words.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """The tiny model's folder."""
    return save_model(tmp_path_factory.mktemp("tiny") / "model")


@dataclass(frozen=True)
class Said:
    """What a process left."""

    code: int
    out: str
    err: str


SERVER = """
import json, os, sys
import peft, torch, transformers
import expunge.cli, expunge.job, expunge.report.pages
torch.set_num_threads(1)
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if not child:
        for place in (1, 2):
            os.dup2(os.open(asked["streams"][place - 1], os.O_WRONLY | os.O_CREAT, 0o600), place)
        os.chdir(asked["folder"])
        sys.argv = ["expunge", *asked["arguments"]]
        code = 99
        try:
            expunge.cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="session")
def expunge(tmp_path_factory):
    """Runs the command in a process of its own: each is forked from one that has paid for importing torch."""
    home = tmp_path_factory.mktemp("streams")
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(home / "hub"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    command = [sys.executable, "-c", SERVER]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)
    count = 0

    def run(*arguments: object, folder: Path = home) -> Said:
        nonlocal count
        count += 1
        streams = [home / f"{count}.out", home / f"{count}.err"]
        asked = {"arguments": [*map(str, arguments)], "streams": [*map(str, streams)], "folder": str(folder)}
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return Said(code, *(stream.read_text() for stream in streams))

    yield run
    server.stdin.close()
    server.wait(timeout=30)
    server.stdout.close()
