"""A tiny language model on disk, its tokenizers, and the command run in processes of its own."""

import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests import shapes

if os.environ.get("EXPUNGE_SHAPES") != "off":
    shapes.install()
torch.set_num_threads(1)
os.environ["EXPUNGE_CACHE"] = "off"  # no test may be answered from an earlier run, nor leave anything behind


def pytest_collection_finish() -> None:
    """Whatever is there by now stays to the end: a collection of garbage, as running out of memory asks for, would look
    at half a million objects each time."""
    gc.collect()
    gc.freeze()


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


@dataclass
class Started:
    """Processes that run the command, by rank."""

    children: list[int]
    streams: Path
    server: subprocess.Popen
    store: torch.distributed.TCPStore

    def wait_for(self, text: str) -> None:
        """Until the first process has said `text`; it must not end before."""
        said = Path(f"{self.streams}.0.2")
        end = time.monotonic() + 60
        while text not in (said.read_text() if said.exists() else ""):
            if time.monotonic() > end:
                for child in self.children:
                    os.kill(child, signal.SIGKILL)
                self.end()  # or the next that is started would read these codes
                pytest.fail(f"{text!r} was not said: {said.read_text()}")
            time.sleep(0.02)

    def end(self) -> list[Said]:
        """What each left."""
        codes = json.loads(self.server.stdout.readline())
        paths = [[Path(f"{self.streams}.{rank}.{place}") for place in (1, 2)] for rank in range(len(codes))]
        return [Said(code, *(path.read_text() for path in pair)) for code, pair in zip(codes, paths, strict=True)]


@contextmanager
def serving(module: str, home: Path) -> Iterator[Callable[..., Started]]:
    """Starts programs in processes forked from one that runs `module` and has paid for importing torch."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(home / "hub"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "TQDM_DISABLE": "1",  # as the command has it before anything is imported
    }
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-m", module]
    server = subprocess.Popen(command, cwd=Path(__file__).parents[1], env=environment, **pipes)
    count = itertools.count()

    def begin(*arguments: object, processes: int = 1, folder: Path = home, program: str = "") -> Started:
        streams = home / str(next(count))
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        asked = {
            "arguments": [*map(str, arguments)],
            "streams": str(streams),
            "folder": str(folder),
            "program": program,
            "processes": processes,
            "environment": shared(processes, store) if processes > 1 else {},
        }
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        return Started(json.loads(server.stdout.readline()), streams, server, store)

    yield begin
    server.stdin.close()
    server.wait(timeout=30)
    server.stdout.close()


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """Starts the command, or another program, in processes of its own."""
    with serving("tests.command_server", tmp_path_factory.mktemp("streams")) as begin:
        yield begin


@pytest.fixture(scope="session")
def script(tmp_path_factory):
    """Runs a script in a process of its own, which has torch and transformers, and neither peft nor expunge yet."""
    with serving("tests.script_server", tmp_path_factory.mktemp("scripts")) as begin:

        def run(text: str, *arguments: object, **options: object) -> Said:
            [said] = begin(*arguments, program=text, **options).end()
            return said

        yield run


def shared(processes: int, store: torch.distributed.TCPStore) -> dict[str, str]:
    """What torchrun, which keeps the store, tells processes that share a run; over the loopback alone."""
    return {
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "GLOO_SOCKET_IFNAME": "lo",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


@pytest.fixture(scope="session")
def expunge(start):
    """Runs the command in a process of its own."""

    def run(*arguments: object, **options) -> Said:
        [said] = start(*arguments, **options).end()
        return said

    return run
