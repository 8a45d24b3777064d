"""Other people's results on TOFU, as values: open-unlearning's JSON (read and written), and TOFU's own logs (read).

    open-unlearning   {"forget_Q_A_Prob": {"agg_value": ..., "value_by_index": {"0": {"prob": ..., "avg_loss": ...}}}}
    TOFU              {"eval_log_forget.json": {"avg_gt_loss": {"0": ...}, "num_token_gt": {"0": ...}, ...}, ...}

Either may be gzipped. Losses are means over labelled tokens, in nats.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from expunge.benchmarks._values import PARAPHRASE, RIGHT, WRONG, Column, Values
from expunge.errors import DataRefused

LARGEST = 1 << 30
"""Bytes that a log may unpack to."""
OPEN_UNLEARNING = {"forget": "forget", "retain": "retain", "ra": "real_authors", "wf": "world_facts"}
"""Our sets by the letters that open-unlearning's names begin with."""
ANSWERS = {"Q_A_Prob": RIGHT, "Q_A_PARA_Prob": PARAPHRASE, "Q_A_PERT_Prob": WRONG}
ROUGE = {"rougeL_recall": "rouge", "rougeL_f1": "rouge_f1", "rouge1_recall": "rouge_words"}
OF_FORGET = {"extraction_strength": "extraction_strength", "exact_memorization": "exact_memorisation"}
RATIOS = {
    "forget": "forget_truth_ratio",
    "retain": "retain_Truth_Ratio",
    "ra": "ra_Truth_Ratio",
    "wf": "wf_Truth_Ratio",
}
ATTACKS = {
    "mia_loss": "loss",
    "mia_min_k": "min_k",
    "mia_min_k_plus_plus": "min_k_plus",
    "mia_zlib": "zlib",
    "mia_gradnorm": "gradient_norm",
    "mia_reference": "reference",
}
TOFU_LOGS = {
    "forget": "eval_log_forget.json",
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
}
TOFU_COLUMNS = {
    "avg_gt_loss": (RIGHT, "loss"),
    "num_token_gt": (RIGHT, "tokens"),
    "avg_paraphrased_loss": (PARAPHRASE, "loss"),
    "num_token_paraphrased": (PARAPHRASE, "tokens"),
    "average_perturb_loss": (WRONG, "loss"),
    "num_token_perturb": (WRONG, "tokens"),
    "rougeL_recall": (RIGHT, "rouge"),
    "rouge1_recall": (RIGHT, "rouge_words"),
}
Row = tuple[Column, int, float]


def read_log(path: Path) -> Values:
    """The values of a log of either kind. Raises `DataRefused`."""
    log = _load(path)
    kinds = {TOFU_LOGS["forget"]: _tofu, **{name: _open_unlearning for name in (RATIOS["forget"], "forget_Q_A_Prob")}}
    reader = next((kinds[name] for name in kinds if isinstance(log.get(name), dict)), None)
    if reader is None:
        raise DataRefused(
            f"{path}: neither a result of open-unlearning (TOFU_EVAL.json) nor a log of TOFU "
            f"(eval_log_aggregated.json): it has none of {', '.join(kinds)}. Give one of those, or a model."
        )
    try:
        return Values.collect(reader(log))
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise DataRefused(f"{path}: a value in it is not what such a log holds there. Write it again.") from error


def _load(path: Path) -> Mapping[str, Any]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read(LARGEST + 1)
        read = json.loads(raw) if len(raw) <= LARGEST else None
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise DataRefused(f"{path}: not a JSON file that can be read. Give a log, or a model.") from error
    if not isinstance(read, dict):
        raise DataRefused(f"{path}: holds no JSON object. Give a log, or a model.")
    return read


def _spread(where: str, answer: str, measure: str, record: str, value: Any) -> Iterator[Row]:
    """The rows of one value, or of a list of one for each wrong answer."""
    for number, each in enumerate(value, start=1) if isinstance(value, list) else [(0, value)]:
        name = f"{answer} {number or 1}" if answer == WRONG else answer
        yield Column(where, measure, name), int(record), float(each)


def _tofu(log: Mapping[str, Any]) -> Iterator[Row]:
    for where, name in TOFU_LOGS.items():
        for column, (answer, measure) in TOFU_COLUMNS.items():
            for record, value in log.get(name, {}).get(column, {}).items():
                yield from _spread(where, answer, measure, record, value)


def _open_unlearning(log: Mapping[str, Any]) -> Iterator[Row]:
    for letters, where in OPEN_UNLEARNING.items():
        for name, answer in ANSWERS.items():
            for record, value in _by_index(log, f"{letters}_{name}"):
                yield from _spread(where, answer, "loss", record, value["avg_loss"])
        for record, value in _by_index(log, f"{letters}_Q_A_ROUGE"):
            for theirs, ours in ROUGE.items():
                if theirs in value:
                    yield Column(where, ours), int(record), value[theirs]
        for record, value in _by_index(log, RATIOS[letters]):
            yield Column(where, "truth_ratio"), int(record), value["score"]
    for name, measure in OF_FORGET.items():
        for record, value in _by_index(log, name):
            yield Column("forget", measure), int(record), value["score"]
    for name, measure in ATTACKS.items():
        for where in ("forget", "holdout"):
            for record, value in _by_index(log.get(name) or {}, where):
                yield Column(where, measure), int(record), value["score"]


def _by_index(log: Mapping[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    """What a metric holds for each record; a record that could not be measured is null there."""
    for record, value in ((log.get(name) or {}).get("value_by_index") or {}).items():
        if value is not None:
            yield record, value


def write_log(values: Values, totals: Mapping[str, float]) -> str:
    """The values in open-unlearning's form; `totals` are its `agg_value`, by its names."""
    made: dict[str, Any] = {}
    for letters, where in OPEN_UNLEARNING.items():
        for name, answer in ANSWERS.items():
            losses = _list_losses(values, where, answer)
            if losses:
                shown = {str(k): {"prob": _exp(loss), "avg_loss": loss} for k, loss in losses.items()}
                made[f"{letters}_{name}"] = {"value_by_index": shown}
        _put(made, f"{letters}_Q_A_ROUGE", values, where, ROUGE)
        _put(made, RATIOS[letters], values, where, {"score": "truth_ratio"})
    for name, measure in OF_FORGET.items():
        _put(made, name, values, "forget", {"score": measure})
    for name, measure in ATTACKS.items():
        attack: dict[str, Any] = {}
        for where in ("forget", "holdout"):
            _put(attack, where, values, where, {"score": measure})
        if len(attack) == 2:
            made[name] = attack
    for name, total in totals.items():
        made.setdefault(name, {})["agg_value"] = total if math.isfinite(total) else None
    return json.dumps(made, indent=1, sort_keys=True)


def _list_losses(values: Values, where: str, answer: str) -> Mapping[int, Any]:
    if answer != WRONG:
        return values.records(where, "loss", answer) if values.has(where, "loss", answer) else {}
    if not values.has(where, "loss", f"{WRONG} 1"):
        return {}
    return dict(zip(values.records(where, "loss", f"{WRONG} 1"), values.wrong(where, "loss"), strict=True))


def _exp(loss: Any) -> Any:
    return [math.exp(-each) for each in loss] if isinstance(loss, list) else math.exp(-loss)


def _put(made: dict[str, Any], name: str, values: Values, where: str, measures: Mapping[str, str]) -> None:
    """Each record's measures under their names, where there are any."""
    known = {theirs: values.records(where, ours) for theirs, ours in measures.items() if values.has(where, ours)}
    records = next(iter(known.values()), {})
    if records:
        shown = {str(k): {theirs: column[k] for theirs, column in known.items()} for k in records}
        made[name] = {"value_by_index": shown}
