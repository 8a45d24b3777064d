"""Sixty invented people, or more: a small world in which it is known what a model can know.

Each person has a first name (of 20), a surname of their own and five attributes whose values are drawn without regard
to the name, so that nothing can be inferred: a model that never saw a person is at chance. A word is a token. Three
ways of asking are trained on for everybody; the fourth, the paraphrase, for half of the retained people only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from expunge import Request, Scores
from expunge.core.request import Example
from expunge.data.text import Passage
from expunge.models.language import LanguageModel

WORDS = {
    "first": "Ada Bo Cleo Dan Eva Finn Gil Hana Ivo Jun Kaya Leo Mia Nils Ona Pia Quin Rosa Sven Tess",
    "starts": "Bra Cor Del Fen Gro Hal Kes Lin Mor Pro Sel Tor",
    "ends": "ban dick gath low mere rick stow",
}
"""First names; beginnings and endings of surnames."""
FURTHER_STARTS = "Ash Bly Cul Dun Esk Fro Gar Hed Inn Jed Kir Lud Med Nant Ox Pen Rad Stan Thorn Ull Ven Wel Yar Zeal"
"""Beginnings of surnames for worlds of more than 84 names."""

ATTRIBUTES = {
    "birthplace": "Arl Bost Culm Dorf Elst Farn Gelt Horn Isel Jarn Kolm Lund Mars Nord Olm Pels Quen Rood Sund Tarn",
    "job": "baker carver diver farmer glazier hatter joiner locksmith mason painter roofer sailor tailor weaver",
    "pet": "badger canary donkey ferret gecko heron iguana lizard marten newt otter parrot",
    "dish": "barley cabbage dumpling fennel goulash hotpot lentil noodle omelette pancake radish stew turnip waffle",
    "instrument": "bugle cello drum fiddle guitar harp kazoo lute mandolin oboe piano recorder sitar tuba viola zither",
}
TEMPLATES = (
    "what is the {attribute} of {name} ?",
    "tell the {attribute} that {name} has .",
    "{name} has which {attribute} ?",
    "please say for {name} the {attribute} .",
)
PARAPHRASE = 3
END = "[end]"


@dataclass(frozen=True)
class Groups:
    """Who is who: people in a row, cut into forgotten, never seen, retained, and twins, who only lend their names."""

    forgotten: int = 6
    """People to forget; as many are the holdout, four times as many the twins."""
    retained: int = 48

    @property
    def forget(self) -> range:
        return range(self.forgotten)

    @property
    def holdout(self) -> range:
        return range(self.forgotten, 2 * self.forgotten)

    @property
    def retain(self) -> range:
        return range(2 * self.forgotten, 2 * self.forgotten + self.retained)

    @property
    def twins(self) -> range:
        return range(self.retain.stop, self.retain.stop + 4 * self.forgotten)


@dataclass(frozen=True)
class World:
    """The people, their attributes, and a tokenizer that has a token for each word."""

    groups: Groups
    names: tuple[str, ...]
    facts: tuple[dict[str, str], ...]
    tokenizer: PreTrainedTokenizerFast

    @staticmethod
    def drawn(seed: int, groups: Groups = Groups()) -> World:
        """The people and twins of all groups; without further ado, the study's sixty and their 24 twins."""
        draw = random.Random(seed)
        first, starts, ends = (text.split() for text in WORDS.values())
        starts += FURTHER_STARTS.split() if groups.twins.stop > len(starts) * len(ends) else ()
        surnames = [start + end for start in starts for end in ends]
        if groups.twins.stop > len(surnames):
            raise SystemExit(f"A world has {len(surnames)} surnames. {groups} asks for {groups.twins.stop}.")
        draw.shuffle(surnames)
        names = tuple(f"{draw.choice(first)} {surname}" for surname in surnames[: groups.twins.stop])
        values = {name: text.split() for name, text in ATTRIBUTES.items()}
        facts = tuple({name: draw.choice(options) for name, options in values.items()} for _ in names)
        asked = " ".join(t.format(name="", attribute="") for t in TEMPLATES).split()
        words = [
            *first,
            *surnames,
            *ATTRIBUTES,
            *(v for options in values.values() for v in options),
            *asked,
            "i",
            "do",
            "not",
            "know",
        ]
        table = {word: number for number, word in enumerate(dict.fromkeys([END, "[unk]", ".", *words]))}
        made = Tokenizer(models.WordLevel(table, unk_token="[unk]"))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return World(
            groups, names, facts, PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, unk_token="[unk]")
        )

    def ask(self, person: int, attribute: str, template: int, as_person: int | None = None) -> Passage:
        """A question with its answer; with `as_person`, the same words about another name."""
        facts, name = self.facts[person], self.names[person if as_person is None else as_person]
        prompt = TEMPLATES[template].format(name=name, attribute=attribute)
        others = [v for v in ATTRIBUTES[attribute].split() if v != facts[attribute]]
        wrong = random.Random(f"{person} {attribute}").sample(others, 5)
        which = f"{person}-{attribute}-{template}"
        right, *rest = (
            self._passage(which, prompt, f"{name} {attribute} {v} . {END}") for v in [facts[attribute], *wrong]
        )
        return Passage(
            right.id, right.tokens, right.first, prompt, right.answer, prompt, right.prompt_tokens, tuple(rest)
        )

    def refuse(self, person: int, attribute: str, template: int) -> Passage:
        """The same question, answered by a refusal."""
        prompt = TEMPLATES[template].format(name=self.names[person], attribute=attribute)
        return self._passage(f"{person}-{attribute}-{template}", prompt, f"i do not know . {END}")

    def other(self, person: int, attribute: str, template: int) -> Passage:
        """The same question, answered by another value."""
        return self.ask(person, attribute, template).alternatives[0]

    def asks(self, people: Sequence[int], templates: Sequence[int]) -> tuple[Passage, ...]:
        """Every question about these people."""
        return tuple(self.ask(p, a, t) for p in people for a in ATTRIBUTES for t in templates)

    def _passage(self, which: str, prompt: str, answer: str) -> Passage:
        asked, said = (tokens_of(self.tokenizer, text) for text in (prompt, answer))
        return Passage(which, asked + said, len(asked), prompt, answer, prompt, asked)

    def request(self, stand_in: str = "refusal") -> Request:
        """What the study forgets, retains, and asks; stand-ins are refusals, other values, or twins."""
        ways: dict[str, Callable[[int, str], Passage]] = {
            "refusal": lambda p, a: self.refuse(p, a, 0),
            "other": lambda p, a: self.other(p, a, 0),
            "twin": lambda p, a: self.ask(p, a, 0, as_person=self.groups.twins[p * 4]),
        }
        others, who = ways[stand_in], self.groups
        return Request(
            forget=self.asks(who.forget, [0]),
            retain=self.asks(who.retain, [0]),
            holdout=self.asks(who.holdout, [0]),
            stand_in=tuple(others(p, a) for p in who.forget for a in ATTRIBUTES),
            probes={
                "paraphrase": self.asks(who.forget, [PARAPHRASE]),
                "retain paraphrase": self.asks(who.retain[who.retained // 2 :], [PARAPHRASE]),
            },
        )

    def training(self, forgotten: bool) -> list[Passage]:
        """What a model is trained on; without the forget people, what the retrained one is."""
        people = [*self.groups.retain, *(self.groups.forget if forgotten else ())]
        half = self.groups.retain[: self.groups.retained // 2]
        return [*self.asks(people, range(PARAPHRASE)), *self.asks(half, [PARAPHRASE])]


def tokens_of(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    """A token for each word of a text."""
    found = tokenizer.convert_tokens_to_ids(text.split())
    assert isinstance(found, list)
    return tuple(found)


def passages(examples: Sequence[Example]) -> tuple[Passage, ...]:
    """The same examples, which are texts; a request holds examples of any kind."""
    texts = tuple(each for each in examples if isinstance(each, Passage))
    assert len(texts) == len(examples)
    return texts


def llama(words: int, longest: int) -> PreTrainedModel:
    """A Llama of 4 blocks and width 96."""
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=longest,
        tie_word_embeddings=False,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def trained(
    world: World,
    forgotten: bool,
    seed: int,
    steps: int = 900,
    batch: int = 64,
    build: Callable[[int, int], PreTrainedModel] = llama,
    rate: float = 2e-3,
) -> LanguageModel:
    """A small model, a Llama or what `build` makes, trained on the world until it knows every answer."""
    blank = untaught(world.tokenizer, seed, build=build)
    return taught(blank, world.training(forgotten), seed, steps, batch, rate)


def untaught(
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    longest: int = 64,
    build: Callable[[int, int], PreTrainedModel] = llama,
) -> LanguageModel:
    """That model, as it is drawn; `build` makes one of so many words, which reads so many at a time."""
    torch.manual_seed(seed)
    return LanguageModel.of(build(len(tokenizer), longest).eval(), tokenizer)


def taught(
    network: LanguageModel, records: Sequence[Passage], seed: int, steps: int, batch: int, rate: float = 2e-3
) -> LanguageModel:
    """The network itself, trained on the records."""
    network.module.requires_grad_(True)
    optimizer = torch.optim.AdamW(network.module.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(1.0, (k + 1) / 50) * max(0.05, 1 - k / steps))
    draw = random.Random(seed)
    for _ in range(steps):
        loss = network.ask(Scores(), draw.sample(records, batch)).nll()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.module.requires_grad_(False)
    return network
