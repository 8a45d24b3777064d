"""What can be written after a command: each option's name, its help and its check, once for all commands that take it.

A command takes groups of options as one argument each; `spread_options` shows the parser the options themselves.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from typer import Argument, Option

from expunge.cli.config import read_config
from expunge.data.records import TARGETS
from expunge.errors import DataRefused, UsageRefused
from expunge.run.probes import split_probe

Model = Annotated[str, Argument(metavar="MODEL", help="Folder, FILE.gguf, or hub id (org/name@revision).")]
Adapter = Annotated[
    Path | None, Option("--adapter", help="Folder of a LoRA or a bounded adapter to merge into MODEL first.")
]
Audits = Annotated[str | None, Option("--audits", help="Such as 'Loss, MinK(fraction=0.4)'.")]
Out = Annotated[Path, Option("--out", help="New folder for the result.")]
Seed = Annotated[int | None, Option("--seed", help="Replaces the method's own seed.")]
Benchmark = Annotated[
    str | None,
    Option(
        "--benchmark",
        metavar="NAME[=PLACE]",
        help="A benchmark's files: tofu, tofu=FOLDER, tofu=ORG/NAME@COMMIT; else those in EXPUNGE_DATA.",
    ),
]
Records = Annotated[
    list[Path] | None,
    Option("--data", help="What to learn: .jsonl, .csv, .parquet, or an image folder. May be given several times."),
]
Without = Annotated[list[Path] | None, Option("--without", help="Records to leave out of it, such as a forget file.")]
DryRun = Annotated[bool, Option("--dry-run", help="Say what it will cost, as `plan` does, and end.")]
Split = Annotated[str | None, Option("--split", help="Of the benchmark, such as forget05.")]
Config = Annotated[
    Path | None,
    Option(
        "--config",
        is_eager=True,
        callback=read_config,
        help="TOML file of options, such as a run's config.toml; what is typed beside it wins.",
    ),
]
Device = Annotated[str, Option("--device", help="cpu or cuda.")]
DTYPES = ("float32", "bfloat16", "float16")
HOLDS = ("whole", "cut")
MOST_SEEDS = 1000
DEVICE = re.compile(r"cpu|cuda(:\d+)?")
Hold = Annotated[str, Option("--hold", help="With several processes: each audits a whole model, or one cut over all.")]


@dataclass(frozen=True)
class Sets:
    """The files of a request."""

    forget: Annotated[
        Path | None, Option("--forget", help="What to forget: .jsonl, .csv, .parquet, or an image folder.")
    ] = None
    retain: Annotated[Path | None, Option("--retain", help="What to keep; training holds on to it.")] = None
    holdout: Annotated[Path | None, Option("--holdout", help="Like the forget set, but never seen by any model.")] = (
        None
    )
    probe: Annotated[
        list[str] | None,
        Option(
            "--probe", metavar="NAME=FILE:MEANING", help="A further set to audit; it holds what is gone, kept or never."
        ),
    ] = None
    earlier: Annotated[
        list[Path] | None,
        Option("--earlier", metavar="OUT", help="Result of an earlier request: what it forgot must still be gone."),
    ] = None
    benchmark: Benchmark = None
    split: Split = None

    def check(self) -> None:
        """Refuse a file that is not there."""
        for name in ("forget", "retain", "holdout"):
            present(f"--{name}", getattr(self, name))

    def probes(self) -> dict[str, Path]:
        """The file of each probe, by its name."""
        read: dict[str, Path] = {}
        for text in self.probe or ():
            name, path = split_probe(text)
            if name in read:
                raise UsageRefused(f"--probe {name} is given twice. Give each probe a name of its own.")
            read[name] = path
        for name, file in read.items():
            present(f"--probe {name}", file)
        return read


@dataclass(frozen=True)
class Images:
    """Which images of the forget file to forget."""

    forget_class: Annotated[str | None, Option("--forget-class", help="Images: the class to forget.")] = None
    forget_ids: Annotated[Path | None, Option("--forget-ids", help="Images: file of ids to forget, one a line.")] = None


@dataclass(frozen=True)
class Texts:
    """How texts are read where their file does not say it."""

    system: Annotated[str, Option("--system", help="Texts: system turn of questions that have none.")] = ""
    chat_template_kwargs: Annotated[
        str | None,
        Option("--chat-template-kwargs", metavar="JSON", help="Texts: such as '{\"enable_thinking\": false}'."),
    ] = None
    block_size: Annotated[int, Option("--block-size", help="Texts: most tokens of a piece of a running text.")] = 0
    keep_duplicates: Annotated[
        bool, Option("--keep-duplicates", help="Count each of several equal records of a set, not one of them.")
    ] = False
    columns: Annotated[
        str | None,
        Option("--columns", metavar="OURS=THEIRS", help="Texts: such as 'question=query,answer=gt', for every file."),
    ] = None

    def read_columns(self) -> dict[str, str]:
        """What the files call each column that is meant."""
        made: dict[str, str] = {}
        for pair in filter(None, (part.strip() for part in (self.columns or "").split(","))):
            ours, sign, theirs = (part.strip() for part in pair.partition("="))
            if not (sign and theirs):
                raise UsageRefused(f"--columns '{pair}': write OURS=THEIRS, such as question=query,answer=gt.")
            if ours not in TARGETS or ours in made:
                why = "is given twice" if ours in made else f"is not known. Allowed: {', '.join(TARGETS)}"
                raise UsageRefused(f"--columns: '{ours}' {why}.")
            made[ours] = theirs
        return made

    def template(self) -> dict[str, Any]:
        """What the chat template is given beside the messages."""
        try:
            given = json.loads(self.chat_template_kwargs or "{}")
        except (ValueError, RecursionError):
            given = None
        if not isinstance(given, dict):
            raise UsageRefused("--chat-template-kwargs must be a JSON object, such as '{\"enable_thinking\": false}'.")
        return given


@dataclass(frozen=True)
class Training:
    """How to forget."""

    stand_in: Annotated[Path | None, Option("--stand-in", help="The forget prompts with what to say instead.")] = None
    method: Annotated[
        str | None,
        Option("--method", help="Such as 'Finetune(objective=NPO() + RetainKL())'. By default the report names it."),
    ] = None
    seed: Seed = None
    added_probes: Annotated[
        bool,
        Option(
            "--added-probes/--no-added-probes",
            help="Texts: ask general knowledge and plain prose too, where no --probe says what should stay.",
        ),
    ] = True


@dataclass(frozen=True)
class Judging:
    """What the findings are held against, and what the report shows."""

    reference: Annotated[str | None, Option("--reference", help="A model retrained without the forget set.")] = None
    require: Annotated[
        list[str] | None,
        Option(
            "--require",
            metavar="RULE",
            help="Beside the verdict's own rules, such as 'retain.Choice >= before - 0.05'.",
        ),
    ] = None
    show_text: Annotated[bool, Option("--show-text", help="Put prompts and generations into the report.")] = False


@dataclass(frozen=True)
class Keeping:
    """What is kept of a run on its way, and how its result is written."""

    checkpoint_every: Annotated[
        int, Option("--checkpoint-every", help="Steps between two checkpoints; 0 for none.")
    ] = 20
    resume: Annotated[bool, Option("--resume", help="Go on from the newest checkpoint of the run that OUT names.")] = (
        False
    )
    dtype: Annotated[
        str | None, Option("--dtype", help="Of the weights: float32, bfloat16, float16; else as they came.")
    ] = None

    log_to: Annotated[
        str | None, Option("--log-to", help="Hand the run's numbers to a viewer too: tensorboard or trackio.")
    ] = None

    def check(self) -> None:
        """Refuse a precision that is not known."""
        one_of("--dtype", self.dtype, (None, *DTYPES))


@dataclass(frozen=True)
class Output:
    """What is shown."""

    json: Annotated[bool, Option("--json", help="Print the result as JSON, and nothing else to standard output.")] = (
        False
    )
    quiet: Annotated[bool, Option("--quiet", "-q", help="Show nothing but errors.")] = False


@dataclass(frozen=True)
class Devices:
    """The machine that a run is planned for."""

    device: Device = "cpu"
    processes: Annotated[int, Option("--processes", help="Devices that the run is spread over.")] = 1
    device_memory: Annotated[float | None, Option("--device-memory", help="GB of each, where not here.")] = None
    dtype: Annotated[
        str | None, Option("--dtype", help="Of the weights: float32, bfloat16, float16; else as they came.")
    ] = None
    rate: Annotated[float | None, Option("--rate", help="TFLOP/s of a device elsewhere, for the time.")] = None
    hold: Hold = "whole"

    def check(self) -> None:
        """Refuse what no machine has."""
        if self.device not in ("cpu", "cuda"):
            raise UsageRefused(f"--device '{self.device}': `plan` knows cpu and cuda.")
        if not 1 <= self.processes <= 65536:
            raise UsageRefused(f"--processes must be from 1 to 65536. Got {self.processes}.")
        if self.device_memory is not None and not 0 < self.device_memory < 1e9:
            raise UsageRefused("--device-memory must be a positive number of gigabytes.")
        if self.rate is not None and not 0 < self.rate < 1e12:
            raise UsageRefused("--rate must be a positive number of TFLOP/s.")
        one_of("--dtype", self.dtype, (None, *DTYPES))


def one_of(option: str, value: str | None, allowed: tuple[str | None, ...]) -> None:
    """Refuse a value that an option does not take."""
    if value not in allowed:
        raise UsageRefused(f"{option} '{value}' is not known. Allowed: {', '.join(filter(None, allowed))}.")


def check_device(device: str) -> None:
    """Refuse what is no name of a device."""
    if not DEVICE.fullmatch(device):
        raise UsageRefused(f"--device '{device}' is not known. Allowed: cpu, cuda, cuda:0, ...")


def read_seeds(text: str, single: int | None) -> tuple[int, ...]:
    """The seeds of `0-4` or `0,3,7`, in that order. Raises `UsageRefused`."""
    if single is not None:
        raise UsageRefused("Give --seed or --seeds, not both.")
    if not re.fullmatch(r"\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*", text):
        raise UsageRefused(f"--seeds '{text[:100]}' could not be read. Write 0-4, or 0,3,7.")
    ranges = [[int(end) for end in part.split("-")] for part in text.split(",")]
    if any(each[0] > each[-1] for each in ranges) or sum(each[-1] - each[0] for each in ranges) >= MOST_SEEDS:
        raise UsageRefused(f"--seeds {text[:100]}: give each range upwards, and at most {MOST_SEEDS} seeds.")
    seeds = [seed for each in ranges for seed in range(each[0], each[-1] + 1)]
    if len(set(seeds)) < len(seeds):
        raise UsageRefused(f"--seeds {text[:100]} names a seed twice.")
    return tuple(seeds)


def present(option: str, path: Path | None) -> None:
    """Refuse what an option names where it is not there."""
    if path is not None and not path.exists():
        raise DataRefused(f"{option} {path}: no such file or folder. Check the path.")


def spread_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of its groups in place of the groups."""
    own = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in own.items() if is_dataclass(kind)}
    members = {name: [field.name for field in fields(kind)] for name, kind in groups.items()}
    shown: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in groups:
            shown.append(_parameter(name, own[name], parameter.default))
            continue
        hints = get_type_hints(groups[name], include_extras=True)
        for field in fields(groups[name]):
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            shown.append(_parameter(field.name, hints[field.name], default))

    def run(**given: Any) -> None:
        folded = {name: groups[name](**{key: given.pop(key) for key in keys}) for name, keys in members.items()}
        command(**given, **folded)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    return run


def _parameter(name: str, hint: object, default: object) -> inspect.Parameter:
    # By keyword only, so that what must be given may stand after what need not.
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
