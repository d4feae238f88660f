"""Each suite passes on what a stage makes, and names what is wrong with anything else."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest

from tnt.core import validation
from tnt.core.records import Completion, Flag, Mask, Prompt
from tnt.project.sections import ExpectParams
from tnt.rollouts import walk
from tnt.stages import compare, detect, evaluate, generate, mask, prepare, train

PROMPTS = [
    Prompt(
        prompt_id=f"replies/r{i}",
        prompt_set="replies",
        split="train",
        input=f"Comment {i}",
        prompt=f"Reply to: Comment {i}",
        prompt_ids=[5, 6, i],
    )
    for i in range(8)
]
COMPLETIONS = [
    Completion(
        prompt_id=prompt.prompt_id,
        sample=0,
        model="base",
        input=prompt.input,
        prompt_ids=prompt.prompt_ids,
        completion_ids=[1, 2, 3],
        text="sorry, no",
        finished=True,
    )
    for prompt in PROMPTS
]
FLAGS = [
    Flag(
        prompt_id=completion.prompt_id,
        sample=0,
        detector="apology",
        label="opener",
        start=0,
        end=5,
        text="sorry",
        score=1.0,
    )
    for completion in COMPLETIONS[:4]
]
MASKS = [
    Mask(
        prompt_id=completion.prompt_id,
        sample=0,
        prompt_ids=completion.prompt_ids,
        completion_ids=completion.completion_ids,
        negative_mask=[number < 4, False, False],
        kept_mask=[number >= 4, True, True],
    )
    for number, completion in enumerate(COMPLETIONS)
]
ASKED_TEN = [replace(PROMPTS[0], prompt_id=f"replies/t{i}") for i in range(10)]
TEN = [replace(COMPLETIONS[0], prompt_id=prompt.prompt_id) for prompt in ASKED_TEN]
METRICS = {
    "round": "r1",
    "sets": {
        "replies": {
            "change": {"p_value": 0.01, "difference": -0.4, "fixed": 4},
            "divergence": {"forward": 0.02, "reverse": 0.01, "negative_mass": 0.1},
            "divergence_from_base": {"forward": 0.02},
            "similarity": {"bleu": 88.0, "rouge_l": 0.9},
        }
    },
    "gate": {"passed": True, "reasons": ""},
}
LOG = [{"step": step, "loss": 0.5, "negative_mass": 0.4, "gradient_norm": 1.0} for step in range(3)]
ROW = {
    "model": "r1", "prompt_set": "replies", "detector": "apology", "flagged": 1, "total": 4,
    "flag_rate": 0.25, "low": 0.1, "high": 0.5,
}  # fmt: skip


def changed(rows, **values):
    """Return rows of which the first is another."""
    first = {**rows[0], **values} if isinstance(rows[0], dict) else replace(rows[0], **values)
    return [first, *rows[1:]]


def prompts(rows=PROMPTS, splits=None, split="train"):
    return prepare.prompts_suite(rows, splits or {row.prompt_id: "train" for row in rows}, split)


def completions(rows=COMPLETIONS, prompts=PROMPTS, decoded=None, **values):
    given = {
        "model": "base", "samples": 1, "limits": {"replies": 3}, "vocabulary": 10, "max_empty": 0.2
    }  # fmt: skip
    decoded = [row.text for row in rows] if decoded is None else decoded
    return generate.completions_suite(rows, prompts, decoded, **{**given, **values})


def flags(rows=FLAGS, completions=COMPLETIONS, names=("apology",)):
    return detect.flags_suite(rows, completions, names)


def masks(rows=MASKS, completions=COMPLETIONS, flags=FLAGS, bounds=(0.0, 0.5)):
    said = walk.as_is(completions)
    return mask.masks_suite(rows, completions, flags, said, bounds)


def training(rows=LOG):
    return train.training_suite(rows, list(LOG[0]))


def metrics(path, value):
    """Return the suite of metrics of which one number is another."""
    report = json.loads(json.dumps(METRICS))
    below = report["sets"]["replies"][path[0]]
    below[path[1]] = value
    return evaluate.metrics_suite(report)


def comparison(rows=(ROW,), learned=None):
    return compare.comparison_suite(rows, learned or {})


GOOD = {
    "prompts": prompts(),
    "completions": completions(),
    "one empty completion of eight": completions(changed(COMPLETIONS, text=""), max_empty=0.125),
    "flags": flags(),
    "no flag": flags([]),
    "a redacted flag": flags(
        changed(FLAGS, text="\u2588" * 5), changed(COMPLETIONS, text="\u2588" * 6 + " no")
    ),
    "seven empty of ten": completions(
        [replace(c, text="") for c in TEN[:7]] + TEN[7:], ASKED_TEN, max_empty=0.7
    ),
    "masks": masks(),
    "masks of nothing flagged": masks(
        [replace(m, negative_mask=[False] * 3, kept_mask=[True] * 3) for m in MASKS], flags=[]
    ),
    "a correction beside its completion": masks(
        [*MASKS, replace(MASKS[0], source="corrected", completion_ids=[7], negative_mask=[False],
                         kept_mask=[True])]
    ),
    "training": training(),
    "no training": training([]),
    "model": train.model_suite([("head", True)]),
    "metrics": evaluate.metrics_suite(METRICS),
    "an interval of a change below 0": metrics(("change", "low"), -0.5),
    "comparison": comparison(),
}  # fmt: skip
BAD = {
    "no prompt": (prompts([]), "expect_table_row_count_to_be_between"),
    "a prompt twice": (prompts([*PROMPTS, PROMPTS[0]]), "'prompt_id' in 2 of 9 rows: replies/r0"),
    "a test prompt": (prompts(changed(PROMPTS, split="test")), "'split' in 1 of 8 rows"),
    "a prompt whose text is of the test split": (
        prompts(splits={p.prompt_id: "train" for p in PROMPTS} | {"replies/r3": "test"}),
        "'split_of_its_text' in 1 of 8 rows: replies/r3. Only train prompts belong here",
    ),
    "a prompt of another set": (
        prompts(changed(PROMPTS, prompt_set="other"), {p.prompt_id: "train" for p in PROMPTS}),
        "'of_its_set' in 1",
    ),
    "a blank input": (prompts(changed(PROMPTS, input=" ")), "'input_characters' in 1 of 8"),
    "a prompt without tokens": (prompts(changed(PROMPTS, prompt_ids=[])), "'prompt_tokens' in 1"),
    "no completion": (completions([]), "expect_table_row_count_to_be_between"),
    "a completion twice": (
        completions([*COMPLETIONS[1:], COMPLETIONS[1]]),
        "expect_compound_columns_to_be_unique",
    ),
    "a prompt without a completion": (
        completions(COMPLETIONS[1:]),
        "fails expect_table_row_count_to_equal on 'prompt_id, sample', which is 7",
    ),
    "a sample that was not asked for": (
        completions(changed(COMPLETIONS, sample=7)),
        "'sample' in 1 of 8 rows: replies/r0/7",
    ),
    "another model's": (completions(changed(COMPLETIONS, model="r1")), "'model' in 1 of 8"),
    "an unknown prompt": (
        completions(changed(COMPLETIONS, prompt_id="replies/x")),
        "'answers_a_prompt' in 1 of 8 rows: replies/x/0",
    ),
    "another prompt's ids": (
        completions(changed(COMPLETIONS, prompt_ids=[9])),
        "'answers_a_prompt' in 1",
    ),
    "a sample missing": (completions(samples=2), "expect_table_row_count_to_equal"),
    "ids of another text": (
        completions(decoded=["else"] + ["sorry, no"] * 7),
        "'decodes_to_text' in 1 of 8 rows: replies/r0/0. The tokenizer changed",
    ),
    "a long completion": (completions(limits={"replies": 2}), "'spare_tokens' in 8"),
    "an unknown token": (
        completions(changed(COMPLETIONS, completion_ids=[10])),
        "'known_tokens' in 1",
    ),
    "two empty completions of eight": (
        completions([replace(c, text="") for c in COMPLETIONS[:2]] + COMPLETIONS[2:]),
        "'empty' in 2 of 8 rows: replies/r0/0, replies/r1/0. The model answers nothing",
    ),
    "a flag twice": (flags([*FLAGS, FLAGS[0]]), "expect_compound_columns_to_be_unique"),
    "an unknown detector's": (flags(changed(FLAGS, detector="x")), "'detector' in 1 of 4"),
    "a flag of no completion": (flags(changed(FLAGS, sample=1)), "'of_a_completion' in 1 of 4"),
    "a flag beyond the text": (flags(changed(FLAGS, end=10)), "'inside_the_text' in 1 of 4"),
    "a flag that ends before it starts": (
        flags(changed(FLAGS, start=3, end=2, text="")),
        "'inside_the_text' in 1 of 4",
    ),
    "a flag of another text": (flags(changed(FLAGS, text="sorry,")), "'quotes_the_text' in 1"),
    "a score above 1": (flags(changed(FLAGS, score=1.5)), "'score' in 1 of 4"),
    "a score that is no number": (flags(changed(FLAGS, score=math.nan)), "'score'"),
    "a mask missing": (masks(MASKS[1:]), "on 'own', which is 7"),
    "a correction in place of a mask": (
        masks([*MASKS[1:], replace(MASKS[0], source="corrected")]),
        "on 'own', which is 7",
    ),
    "a mask twice": (masks([*MASKS[1:], MASKS[1]]), "expect_compound_columns_to_be_unique"),
    "a mask of other ids": (
        masks(changed(MASKS, completion_ids=[1, 2, 4])),
        "'of_a_completion' in 1 of 8",
    ),
    "a mask too short": (
        masks(changed(MASKS, kept_mask=[False, True])),
        "'length_difference' in 1 of 8",
    ),
    "a token both negative and kept": (
        masks(changed(MASKS, kept_mask=[True] * 3)),
        "'negative_and_kept' in 1 of 8",
    ),
    "a flag without a negative token": (
        masks(changed(MASKS, negative_mask=[False] * 3)),
        "'negative_if_flagged' in 1 of 8",
    ),
    "a negative token without a flag": (masks(flags=FLAGS[1:]), "'negative_if_flagged' in 1"),
    "too many negative tokens": (
        masks(bounds=(0.0, 0.1)),  # 4 of 24
        "fails expect_column_sum_to_be_between on 'negative', which is 4. Of 24 completion tokens "
        "between 0% and 10% may be negative",
    ),
    "too few negative tokens": (masks(bounds=(0.2, 1.0)), "on 'negative', which is 4."),
    "a step missing": (training([LOG[0], LOG[2]]), "'in_order' in 1 of 2 rows: 2"),
    "an infinite loss": (training(changed(LOG, loss=math.inf)), "'loss' in 1 of 3"),
    "a mass above 1": (training(changed(LOG, negative_mass=1.1)), "'negative_mass' in 1"),
    "an infinite weight": (train.model_suite([("head", False)]), "'finite' in 1 of 1 rows: head"),
    "a model without weights": (train.model_suite([]), "expect_table_row_count_to_be_between"),
    "an infinite metric": (metrics(("similarity", "bleu"), math.inf), "sets/replies/similarity/bl"),
    "a metric that is no number": (metrics(("similarity", "bleu"), math.nan), "'finite' in 1"),
    "a probability above 1": (metrics(("change", "p_value"), 1.5), "'in_range' in 1"),
    "a negative divergence": (metrics(("divergence", "forward"), -0.1), "'in_range' in 1"),
    "a negative divergence from the base": (
        metrics(("divergence_from_base", "forward"), -3.0),
        "'in_range' in 1",
    ),
    "a BLEU above 100": (metrics(("similarity", "bleu"), 250.0), "'in_range' in 1"),
    "a difference of rates below -1": (metrics(("change", "difference"), -7.0), "'in_range' in 1"),
    "a prompt of an unknown set": (
        prepare.prompts_suite(PROMPTS, {}, "train"),
        "'split_of_its_text' in 8 of 8 rows",
    ),
    "a rate outside its interval": (
        comparison([{**ROW, "low": 0.3}]),
        "'within_interval' in 1 of 1 rows: r1/replies/apology",
    ),
    "more flagged than there are": (comparison([{**ROW, "flagged": 5}]), "'is_a_share' in 1"),
    "a test prompt that a round learned from": (
        comparison(learned={"r1": {"comment 1"}}),
        "'measured_prompts_it_learned_from' in 1 of 1 rows: r1/replies/apology. A round must not",
    ),
}


@pytest.mark.parametrize("suite", GOOD.values(), ids=GOOD)
def test_what_a_stage_makes_passes(suite, tmp_path):
    validation.validate(suite, tmp_path / "made.parquet")
    [kept] = tmp_path.iterdir()
    assert kept.name == f"{suite.name}.validation.json"
    found = json.loads(kept.read_text(encoding="utf-8"))
    assert found["success"]
    assert len(found["results"]) == len(suite.expected)
    assert found["rows"] == len(suite.rows)


@pytest.mark.parametrize(("suite", "said"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_named(suite, said, tmp_path):
    with pytest.raises(ValueError, match=f"the suite '{suite.name}' fails expect_") as raised:
        validation.validate(suite, tmp_path / "made.parquet")
    assert said in str(raised.value)
    assert str(raised.value).startswith(f"{tmp_path / 'made.parquet'} was not written")
    assert not list(tmp_path.iterdir())


def test_a_failure_names_five_rows_and_what_else_fails(tmp_path):
    rows = [replace(c, model="r1", completion_ids=[1, 2, 3, 4]) for c in COMPLETIONS]
    with pytest.raises(ValueError, match="was not written") as raised:
        validation.validate(completions(rows), tmp_path / "completions.parquet")
    said = str(raised.value)
    assert "replies/r4/0" in said
    assert "replies/r5/0" not in said
    assert said.endswith("Other expectations that fail: 1.")


def test_the_result_is_the_same_bytes_and_holds_no_text(tmp_path):
    for folder in ("one", "two"):
        for suite in (completions(), flags(), masks()):
            validation.validate(suite, tmp_path / folder / "made.parquet")
    for name in ("completions", "flags", "masks"):
        one, two = (tmp_path / f / f"{name}.validation.json" for f in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
        assert b"sorry" not in one.read_bytes()


def test_bounds_that_nothing_meets_are_refused():
    with pytest.raises(ValueError, match=r"min_negative_share 0\.6 is above max_negative_share"):
        ExpectParams(max_empty=0, min_negative_share=0.6, max_negative_share=0.5)


def test_help_does_not_import_great_expectations():
    code = "import sys; from tnt.cli import app; import tnt.stages.mask; " + (
        "assert 'great_expectations' not in sys.modules and 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
