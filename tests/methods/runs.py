"""Short runs of a tiny model that the tests of training look at."""

from typing import TypeVar

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from expunge.adapters.bounded import Bounded
from expunge.core.model import Network, network_of
from expunge.core.request import Request
from expunge.data.text import Passage
from expunge.events import Event
from expunge.methods.finetune import Finetune
from expunge.methods.stop import Stop
from expunge.models.language import LanguageModel
from expunge.objectives.grad_diff import GradDiff

torch.set_num_threads(1)

V = 40
FREE = Stop(level=None, max_retain_increase=None, every=1000)
"""Takes every step and keeps the last."""


def tiny(dtype: torch.dtype = torch.float32) -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, eos_token_id=0
    )
    module = LlamaForCausalLM(config).eval().to(dtype)
    for parameter in module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return LanguageModel.of(module, None)


def passages(name: str, count: int, seed: int) -> tuple[Passage, ...]:
    """Examples of 2 to 8 labelled tokens."""
    draw = torch.Generator().manual_seed(seed)

    def passage(k: int) -> Passage:
        length = 4 + (3 * k) % 7
        return Passage(
            f"{name}-{k}", tuple(torch.randint(1, V, (length,), generator=draw).tolist()), 2, "", f"{name}-{k}"
        )

    return tuple(passage(k) for k in range(count))


REQUEST = Request(forget=passages("f", 7, 1), retain=passages("r", 9, 2), holdout=passages("h", 5, 3))


E = TypeVar("E", bound=Event)


class Events(list[Event]):
    """What a run tells, by kind."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self if isinstance(event, kind)]


def run(network: Network | None = None, request: Request = REQUEST, **options) -> tuple[Network, Events]:
    events = Events()
    settings = {"objective": GradDiff(), "adapter": Bounded(rank=4), "learning_rate": 1e-2, "stop": FREE}
    plan = Finetune(**{**settings, "steps": 5, "batch": 4, "retain_batch": 5, **options})
    return network_of(plan(network or tiny(), request, events), "a test"), events


def numbers(network: Network) -> dict[str, torch.Tensor]:
    """The parameters that moved."""
    return {name: parameter.detach().clone() for name, parameter in network.trainable().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)
