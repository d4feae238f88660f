"""What every artifact must be, one suite per artifact; `tnt.validation` checks it.

A suite is a table of few flat columns derived from an artifact's rows, and stock expectations of
Great Expectations on them. Texts never enter it: rows are named by their keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass as params_dataclass

from tnt.params import STRICT
from tnt.records import Completion, Flag, Mask, Prompt, Split
from tnt.validation import Expected, Suite

Share = Annotated[float, Field(ge=0, le=1)]

_SHARES = {
    "rate", "low", "high", "p_value", "exact_match", "rouge_l", "finished_share", "repetition",
    "rouge_l_to_references", "negative_mass",
}  # fmt: skip
_SHARE, _FINITE = (0.0, 1.0), (-1e300, 1e300)
_ROUND_OFF = 1e-6


@params_dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class ExpectParams:
    """Bounds on what a round makes; what lies outside stops it."""

    max_empty: Share
    """Share of completions that may be empty."""
    min_negative_share: Share = 0.0
    """Least share of a round's completion tokens that are negative."""
    max_negative_share: Share
    """Greatest such share: with too few kept tokens nothing holds the model in place."""

    def __post_init__(self) -> None:
        """Refuse bounds that nothing can meet."""
        if self.min_negative_share > self.max_negative_share:
            raise ValueError(
                f"min_negative_share {self.min_negative_share} is above max_negative_share "
                f"{self.max_negative_share}; swap them"
            )


def prompts(
    rows: Sequence[Prompt],
    splits: Mapping[str, Split],
    split: Split,
    *,
    watched: bool = False,
) -> Suite:
    """Return what is expected of prompts.

    Args:
        rows: The prompts.
        splits: Prompt id -> the split that its text belongs to, computed anew.
        split: The only split that may be in the file,
        watched: but for validation prompts, if this is true.
    """
    table = [
        {
            "prompt_id": row.prompt_id,
            "of_its_set": row.prompt_id.startswith(f"{row.prompt_set}/"),
            "split": row.split,
            "split_of_its_text": splits.get(row.prompt_id, "unknown"),
            "input_characters": len(row.input.strip()),
            "prompt_tokens": len(row.prompt_ids),
        }
        for row in rows
    ]
    allowed = [split, "validation"] if watched else [split]
    leak = f"Only {split} prompts belong here: a round must not see what measures it."
    return _suite(
        "prompts",
        ("prompt_id",),
        table,
        Expected("TableRowCountToBeBetween", "Name prompt files with prompts.", {"min_value": 1}),
        Expected("ColumnValuesToBeUnique", "Make the ids unique.", {"column": "prompt_id"}),
        _true("of_its_set", "A prompt's id is `<set>/<id>`: delete the file and run `dvc repro`."),
        _in("split", allowed, leak),
        _in("split_of_its_text", allowed, leak),
        _between("input_characters", 1, None, "Give every prompt an input."),
        _between("prompt_tokens", 1, None, "Check the prompt set's template."),
    )


def completions(
    rows: Sequence[Completion],
    asked: Sequence[Prompt],
    decoded: Sequence[str],
    *,
    model: str,
    samples: int,
    limits: Mapping[str, int],
    vocabulary: int,
    max_empty: float,
) -> Suite:
    """Return what is expected of completions.

    Args:
        rows: The completions.
        asked: The prompts that must be answered, each as often as there are samples.
        decoded: What each completion's ids decode to.
        model: Whose they are.
        samples: Completions per prompt.
        limits: Prompt set -> most new tokens.
        vocabulary: Number of token ids.
        max_empty: Share that may be empty.
    """
    of = {prompt.prompt_id: prompt for prompt in asked}
    table = [
        {
            "prompt_id": row.prompt_id,
            "sample": row.sample,
            "model": row.model,
            "answers_a_prompt": (prompt := of.get(row.prompt_id)) is not None
            and (prompt.prompt_ids, prompt.input) == (row.prompt_ids, row.input),
            "decodes_to_text": text == row.text,
            "spare_tokens": limits[row.prompt_set] - len(row.completion_ids),
            "known_tokens": all(0 <= token < vocabulary for token in row.completion_ids),
            "empty": not row.text.strip(),
        }
        for row, text in zip(rows, decoded, strict=True)
    ]
    again = "Delete the file and run `dvc repro`, which makes it again."
    return _suite(
        "completions",
        ("prompt_id", "sample"),
        table,
        Expected("TableRowCountToBeBetween", "Give the round prompts.", {"min_value": 1}),
        Expected("TableRowCountToEqual", again, {"value": len(asked) * samples}),
        _unique(("prompt_id", "sample"), again),
        _in("sample", list(range(samples)), again),
        _in("model", [model], again),
        _true("answers_a_prompt", again),
        _true("decodes_to_text", "The tokenizer changed: run `dvc repro` from `base` on."),
        _between("spare_tokens", 0, None, "Check max_new_tokens."),
        _true("known_tokens", "Model and tokenizer do not belong together: check `base`."),
        _in(
            "empty",
            [False],
            "The model answers nothing: check the prompt set's template and chat setting, or raise "
            "expect.max_empty.",
            mostly=max(1 - max_empty - _ROUND_OFF, 0),
        ),
    )


def flags(rows: Sequence[Flag], completions: Sequence[Completion], names: Iterable[str]) -> Suite:
    """Return what is expected of flags; there may be none.

    Args:
        rows: The flags.
        completions: What they are about, redacted where the flags are.
        names: The detectors that ran.
    """
    texts = {(c.prompt_id, c.sample): c.text for c in completions}
    table = []
    for row in rows:
        text = texts.get((row.prompt_id, row.sample))
        table.append(
            {
                **{name: getattr(row, name) for name in Flag.KEY},
                "of_a_completion": text is not None,
                "inside_the_text": text is not None and 0 <= row.start < row.end <= len(text),
                "quotes_the_text": text is not None and text[row.start : row.end] == row.text,
                "score": row.score,
            }
        )
    correct = "Correct the detector that is named."
    return _suite(
        "flags",
        Flag.KEY,
        table,
        _unique(Flag.KEY, correct),
        _in("detector", sorted(names), "Delete the file and run `dvc repro`."),
        _true("of_a_completion", "Run detect on the same completions.parquet."),
        _true("inside_the_text", correct),
        _true("quotes_the_text", correct),
        *_number("score", _SHARE, f"{correct} A score is a probability."),
    )


def masks(
    rows: Sequence[Mask],
    completions: Sequence[Completion],
    flags: Sequence[Flag],
    bounds: tuple[float, float],
) -> Suite:
    """Return what is expected of masks.

    Args:
        rows: The masks.
        completions: What they are about.
        flags: What made tokens negative.
        bounds: Least and greatest share of negative tokens in the tokens of all completions.
    """
    of = {(c.prompt_id, c.sample): c for c in completions}
    flagged: dict[tuple[str, int], bool] = {}
    for flag in flags:
        key = (flag.prompt_id, flag.sample)
        flagged[key] = flagged.get(key, False) or bool(flag.text.strip())
    table, tokens = [], 0
    for row in rows:
        key = (row.prompt_id, row.sample)
        completion = of.get(key)
        own = row.source == "generated"
        tokens += len(row.completion_ids) if own else 0
        both = [a and b for a, b in zip(row.negative_mask, row.kept_mask, strict=False)]
        table.append(
            {
                **{name: getattr(row, name) for name in Mask.KEY},
                "generated": int(own),
                "of_a_completion": completion is not None
                and row.prompt_ids == completion.prompt_ids
                and (not own or row.completion_ids == completion.completion_ids),
                "length_difference": max(
                    abs(len(mask) - len(row.completion_ids))
                    for mask in (row.negative_mask, row.kept_mask)
                ),
                "negative_and_kept": sum(both),
                "negative": sum(row.negative_mask),
                "negative_if_flagged": any(row.negative_mask) == (own and flagged.get(key, False)),
            }
        )
    again = "Delete the file and run `dvc repro`, which makes it again."
    low, high = bounds
    return _suite(
        "masks",
        Mask.KEY,
        table,
        Expected("TableRowCountToBeBetween", "Give the round prompts.", {"min_value": 1}),
        Expected(
            "ColumnSumToBeBetween",
            again,
            {"column": "generated", "min_value": len(completions), "max_value": len(completions)},
        ),
        _unique(Mask.KEY, again),
        _true("of_a_completion", again),
        _in("length_difference", [0], again),
        _in("negative_and_kept", [0], again),
        _true("negative_if_flagged", "Run detect and mask on the same completions.parquet."),
        Expected(
            "ColumnSumToBeBetween",
            f"Of {tokens} completion tokens between {low:.0%} and {high:.0%} may be negative: "
            "correct the detectors, or expect.min_negative_share and expect.max_negative_share.",
            {
                "column": "negative",
                "min_value": math.ceil(low * tokens - _ROUND_OFF),
                "max_value": math.floor(high * tokens + _ROUND_OFF),
            },
        ),
    )


def training(rows: Sequence[Mapping[str, float | None]], columns: Sequence[str]) -> Suite:
    """Return what is expected of a training log, which is empty where nothing was flagged.

    What starts with `validation_` is measured now and then, and None in between.
    """
    watched = [name for name in columns if name.startswith("validation_")]
    columns = [name for name in columns if name not in watched]
    table = [
        {
            "in_order": row["step"] == number,
            "finite_where_watched": all(
                math.isfinite(value) for name in watched if (value := row[name]) is not None
            ),
            **{name: row[name] for name in columns},
        }
        for number, row in enumerate(rows)
    ]
    diverged = "Lower train.learning_rate or train.negative_weight."
    return _suite(
        "training",
        ("step",),
        table,
        _true("in_order", "Delete the folder of the round in work/ and run `dvc repro`."),
        _true("finite_where_watched", diverged),
        *[
            expected
            for name in columns
            for expected in _number(name, _SHARE if name in _SHARES else _FINITE, diverged)
        ],
    )


def model(weights: Iterable[tuple[str, bool]]) -> Suite:
    """Return what is expected of a trained model: `weights` is name, whether it is finite."""
    return _suite(
        "model",
        ("weight",),
        [{"weight": name, "finite": finite} for name, finite in weights],
        Expected("TableRowCountToBeBetween", "Train it again.", {"min_value": 1}),
        Expected("ColumnValuesToBeUnique", "Train it again.", {"column": "weight"}),
        _true("finite", "Lower train.learning_rate or train.negative_weight."),
    )


def metrics(report: Mapping[str, Any]) -> Suite:
    """Return what is expected of a round's metrics: numbers that are finite and in range."""
    table = [
        {
            "metric": "/".join(path),
            "finite": math.isfinite(value),
            "in_range": low <= value <= high,
        }
        for path, value in _numbers(report)
        for low, high in [_bounds(path)]
    ]
    bug = "This is a fault in the measurement: please report it with the file."
    return _suite(
        "metrics",
        ("metric",),
        table,
        Expected("TableRowCountToBeBetween", bug, {"min_value": 1}),
        _true("finite", bug),
        _true("in_range", bug),
    )


def comparison(rows: Sequence[Mapping[str, Any]], learned: Mapping[str, set[str]]) -> Suite:
    """Return what is expected of the table of all models.

    Args:
        rows: One per model, prompt set and detector.
        learned: Round -> those of the prompts that all models are measured on, which it learned
            from. There must be none.
    """
    table = [
        {
            "model": row["model"],
            "prompt_set": row["prompt_set"],
            "detector": row["detector"],
            "within_interval": row["low"] <= row["flag_rate"] <= row["high"],
            "is_a_share": 0 <= row["flagged"] <= row["total"],
            "measured_prompts_it_learned_from": len(learned.get(row["model"], ())),
        }
        for row in rows
    ]
    key = ("model", "prompt_set", "detector")
    bug = "This is a fault in the measurement: please report it with the file."
    return _suite(
        "comparison",
        key,
        table,
        Expected("TableRowCountToBeBetween", bug, {"min_value": 1}),
        _unique(key, bug),
        _true("within_interval", bug),
        _true("is_a_share", bug),
        _in(
            "measured_prompts_it_learned_from",
            [0],
            "A round must not learn from what measures it: check prompt_sets.<set>.shares and "
            "evaluate.split.",
        ),
    )


def _bounds(path: tuple[str, ...]) -> tuple[float, float]:
    """Return between what a metric must lie, given the keys that lead to it."""
    if path[-1] in _SHARES:
        return _SHARE
    if path[-1] == "bleu":
        return 0.0, 100.0 + _ROUND_OFF
    if path[-1] == "difference":
        return -1.0, 1.0
    return (-_ROUND_OFF if path[-2:-1] and path[-2].startswith("divergence") else 0.0), _FINITE[1]


def _suite(
    name: str, key: Sequence[str], rows: Sequence[Mapping[str, Any]], *expected: Expected
) -> Suite:
    return Suite(name, tuple(key), rows, expected)


def _true(column: str, remedy: str) -> Expected:
    return _in(column, [True], remedy)


def _in(column: str, values: list[Any], remedy: str, mostly: float = 1.0) -> Expected:
    arguments = {"column": column, "value_set": values, "mostly": mostly}
    return Expected("ColumnValuesToBeInSet", remedy, arguments)


def _between(column: str, low: float, high: float | None, remedy: str) -> Expected:
    arguments = {"column": column, "min_value": low, "max_value": high}
    return Expected("ColumnValuesToBeBetween", remedy, arguments)


def _number(column: str, bounds: tuple[float, float], remedy: str) -> list[Expected]:
    """A NaN is a missing value to Great Expectations, and those pass any bounds."""
    missing = Expected("ColumnValuesToNotBeNull", remedy, {"column": column})
    return [missing, _between(column, *bounds, remedy)]


def _unique(key: Sequence[str], remedy: str) -> Expected:
    return Expected("CompoundColumnsToBeUnique", remedy, {"column_list": list(key)})


def _numbers(
    value: Any, path: tuple[str, ...] = ()
) -> Iterable[tuple[tuple[str, ...], float | int]]:
    """Yield every number in nested mappings with the keys that lead to it."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _numbers(below, (*path, str(key)))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value
