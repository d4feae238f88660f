"""Params: what is wrong with them in one sentence, and edits that keep comments."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic.dataclasses import dataclass

from tnt.core.errors import Faults, did_you_mean
from tnt.core.params import STRICT, dump_yaml, edited, load_section, load_yaml, merge, parse
from tnt.sampling import SamplingParams


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class Inner:
    """Nested."""

    width: int = 3


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class Section:
    """A section with one field of each kind."""

    rate: float
    mode: Literal["fast", "slow"] = "fast"
    names: list[str] | None = None
    inner: Inner | None = None
    pair: tuple[float, float] = (0.0, 1.0)


def test_values_become_the_dataclass():
    values = {"rate": 0.5, "mode": "slow", "names": ["a"], "inner": {"width": 4}, "pair": [1, 2]}
    expected = Section(rate=0.5, mode="slow", names=["a"], inner=Inner(width=4), pair=(1.0, 2.0))
    assert parse(values, Section, where="x") == expected
    assert parse({"rate": 2}, Section, where="x") == Section(rate=2.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 1, "mod": "fast"}, r"f\.yaml: unknown key 'mod'\. Did you mean 'mode'\?"),
        ({"rate": 1, "zzz": 1}, r"unknown key 'zzz'\. Valid: inner, mode, names, pair, rate"),
        ({"rate": 1, "inner": {"widht": 4}}, r"unknown key 'inner\.widht'.* mean 'width'\?"),
        ({"mode": "fast"}, r"f\.yaml: the key 'rate' is missing\. Add it\."),
        ({"rate": "0.5"}, r"f\.yaml: rate is '0\.5': input should be a valid number\. Correct"),
        ({"rate": True}, r"rate is True: "),
        ({"rate": 1, "inner": {"width": 1.5}}, r"inner\.width is 1\.5: "),
        ({"rate": 1, "mode": "medium"}, r"mode is 'medium': input should be 'fast' or 'slow'"),
        ({"rate": 1, "names": "a"}, r"names is 'a': "),
        ({"rate": 1, 7: "x"}, r"f\.yaml: the key 7 is not a string"),
        ({"rate": 1, "inner": {True: 1}}, r"the key True is not a string"),
        ({"rate": 1, "names": [{3: 4}]}, r"the key 3 is not a string"),
    ],
)
def test_what_does_not_fit_is_one_sentence_with_key_value_and_remedy(values, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse(values, Section, where="f.yaml")
    assert "\n" not in str(caught.value)


def test_all_that_does_not_fit_is_told_and_a_misspelt_key_is_not_missing_too():
    values = {"raet": 1, "mode": 3, "pair": [1], "inner": {"width": "x", "height": 2}}
    with pytest.raises(Faults) as caught:
        parse(values, Section, where="f.yaml")
    assert sorted(line.split("'")[0] for line in caught.value.lines) == [
        "f.yaml: inner.width is ",
        "f.yaml: mode is 3: input should be ",
        "f.yaml: the key ",
        "f.yaml: unknown key ",
        "f.yaml: unknown key ",
    ]


def test_check_of_a_whole_section_keeps_its_own_words():
    with pytest.raises(ValueError, match=r"^g: the section is .*: samples above 1 are all"):
        parse({"max_new_tokens": 5, "batch_size": 2, "samples": 3}, SamplingParams, where="g")


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"top_p is 1\.5: input should be less than or equal to 1"):
        parse({"max_new_tokens": 5, "batch_size": 2, "top_p": 1.5}, SamplingParams, where="g")


def test_nearest_name_or_all_of_them():
    assert did_you_mean("repitition", ["repetition", "phrases"]) == " Did you mean 'repetition'?"
    assert did_you_mean("x", ["b", "a"]) == " Valid: a, b."
    assert did_you_mean("x", []) == " Valid: none."


def test_override_is_laid_over_key_by_key():
    default = {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "list": [1, 2], "none": None}
    override = {"b": {"d": {"f": 4}, "c": 5}, "list": [3], "none": {"x": 1}}
    merged = merge(default, override)
    assert merged == {
        "a": 1,
        "b": {"c": 5, "d": {"e": 3, "f": 4}},
        "list": [3],
        "none": {"x": 1},
    }
    assert default == {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "list": [1, 2], "none": None}
    assert merge({"lora": {"rank": 4}}, {"lora": None}) == {"lora": None}


def test_section_of_a_file_is_read(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("rate: 1.0e-5\ninner: {width: 2}\n")
    assert load_section(path, Section) == Section(rate=1e-5, inner=Inner(width=2))
    path.write_text("rate: x\n")
    with pytest.raises(ValueError, match=r"s\.yaml: rate is 'x'"):
        load_section(path, Section)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2\n", r"p\.yaml, line 2 is not valid YAML"),
        ("a: 1\na: 2\n", r"p\.yaml, line 2 is not valid YAML: found duplicate key"),
        (
            "a: {kind: b.c:d}\n",
            r"line 1 is .* unexpected ':'\. Inside {} or \[\], put quotes around",
        ),
        ("- 1\n", r"p\.yaml holds list, not a mapping"),
        ("", r"p\.yaml holds NoneType, not a mapping"),
    ],
)
def test_file_that_is_no_mapping_is_named(tmp_path, text, message):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_yaml(path)


def test_missing_file_and_wrong_encoding_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.yaml does not exist"):
        load_yaml(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("a: caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.yaml is not valid YAML"):
        load_yaml(tmp_path / "latin.yaml")


COMMENTED = """\
# at the top
train:
  rate: 1.0e-5  # measured

  mode: 'fast'
rounds:   # in order
  r1: {parent: base}
"""


def test_edited_keeps_comments_and_quotes(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(COMMENTED)
    seen = []
    with edited(path, lambda new: seen.append(load_yaml(new))) as params:
        params["rounds"]["r2"] = {"parent": "r1"}
    text = path.read_text()
    expected = {
        "train": {"rate": 1e-5, "mode": "fast"},
        "rounds": {"r1": {"parent": "base"}, "r2": {"parent": "r1"}},
    }
    assert load_yaml(path) == expected
    assert seen == [expected]
    for kept in ("# at the top", "rate: 1.0e-5  # measured", "mode: 'fast'", "# in order"):
        assert kept in text
    assert "r1: {parent: base}" in text
    assert list(tmp_path.iterdir()) == [path]


def test_edit_that_changes_nothing_leaves_the_data_and_the_comments(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(COMMENTED)
    with edited(path, load_yaml):
        pass
    once = path.read_text()
    assert [line.split() for line in once.splitlines()] == [
        line.split() for line in COMMENTED.splitlines()
    ]


def test_what_is_no_yaml_is_refused_before_it_is_edited(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("a: [1\n")
    with pytest.raises(ValueError, match=r"params\.yaml, line \d is not valid YAML"):
        edit_that_fails(path, check=load_yaml)


def refused(values):
    raise ValueError("no good")


def edit_that_fails(path, *, check):
    with edited(path, check) as params:
        params["rounds"]["r2"] = {}
        if check is load_yaml:
            raise RuntimeError


@pytest.mark.parametrize(("check", "error"), [(refused, ValueError), (load_yaml, RuntimeError)])
def test_edit_that_fails_leaves_the_old_file(tmp_path, check, error):
    path = tmp_path / "params.yaml"
    path.write_text(COMMENTED)
    with pytest.raises(error):
        edit_that_fails(path, check=check)
    assert path.read_text() == COMMENTED
    assert list(tmp_path.iterdir()) == [path]


def test_dump_is_read_back_as_it_was(tmp_path):
    values = {
        "b": {"text": "a: b\n\n{input}", "list": [1, 2.5, None, True]},
        "a": "yes",
        "n": "007",
    }
    path = tmp_path / "d.yaml"
    path.write_text(dump_yaml(values), encoding="utf-8")
    assert load_yaml(path) == values
    assert list(load_yaml(path)) == ["b", "a", "n"]
