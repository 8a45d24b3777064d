"""What the model itself says is trained on too (our own): its wording of an answer is not that of the file.

A record says "Tokyo.", the model "The capital of Japan is Tokyo.": trained on the record alone it may go on saying the
sentence, since there the answer follows other words. So before training, the model is asked every question of the
forget and the retain set, also with its answer begun for it ("The answer is"). Where its greedy text holds the right
answer, word for word, the text becomes a record of the same set, labelled from the answer on; what stands before is its
prompt, and gives nothing away. Answers that it does not write, such as long ones in other words, are trained on as they
are in the file. Images, plain texts and models without a tokenizer have no questions: for them this is `learn` alone.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from expunge.core.method import Method, WeightMethod
from expunge.core.model import Batch, Model, Network
from expunge.core.objective import Objective
from expunge.core.request import Request
from expunge.errors import UsageRefused
from expunge.events import Note, OnEvent
from expunge.internals.examples import Tokenized
from expunge.internals.wordings import Wordings
from expunge.methods.finetune import Finetune

SETS = ("forget", "retain")
MOST = 200
"""Most questions of a set that are asked, from the first on."""


@dataclass(frozen=True)
class OwnWords(WeightMethod):
    """Train on the model's own wording of the answers, beside the records."""

    learn: Method = Finetune()
    """How the records and the model's own words are trained on."""
    max_new_tokens: int = 24
    """Tokens after which what the model says is cut."""
    starts: tuple[str, ...] = ("", "The answer is")
    """How its answers are made to begin, one after the other; empty: as they begin by themselves."""

    resumable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageRefused(f"The `max_new_tokens` of OwnWords must be at least 1. Got {self.max_new_tokens!r}.")

    def change(self, network: Network, request: Request, on_event: OnEvent) -> Model:
        added = {name: self._word(network, getattr(request, name)) for name in SETS}
        if any(added.values()):
            counts = ", ".join(f"{len(made)} for the {name} set" for name, made in added.items() if made)
            on_event(Note(f"The model's own words hold the right answer and are trained on too: {counts}"))
        sets: dict[str, Any] = {name: (*getattr(request, name), *made) for name, made in added.items()}
        return self.learn(network, replace(request, **sets), on_event)

    @property
    def minimises(self) -> Objective | None:
        return self.learn.minimises

    def with_seed(self, seed: int) -> Self:
        return replace(self, learn=self.learn.with_seed(seed))

    def _word(self, network: Network, examples: Batch) -> list[Tokenized]:
        """A record for each question whose answer the model writes in words that no record has."""
        asked = [e for e in examples[:MOST] if isinstance(e, Tokenized) and e.prompt_tokens]
        if not (asked and network.answers_to(Wordings)):
            return []
        known = {e.record_digest() for e in examples}
        made: dict[str, Tokenized] = {}
        for start in self.starts:
            said = network.ask(Wordings(self.max_new_tokens, start), asked)
            made |= {e.record_digest(): e for e in said if e is not None}
        return [example for digest, example in made.items() if digest not in known]
