"""The table of detectors: kinds, plugins, and what a detector may do wrong."""

from __future__ import annotations

import sys

import pytest

from tnt import detectors
from tnt.artifacts import sha256_of
from tnt.detectors import DetectorsParams, build, build_pinned, find_flags, input_files
from tnt.detectors.span import Span
from tnt.records import Completion

PLUGIN = """\
from pydantic.dataclasses import dataclass

from tnt.detectors.span import Span
from tnt.params import STRICT
from plugins import helping


@dataclass(config=STRICT, frozen=True, kw_only=True)
class Params:
    word: str
    words: str = "data/lists/words.txt"


def build(params):
    def detect(text, prompt_input):
        start = text.find(params.word)
        return [] if start < 0 else [Span(start, start + len(params.word), "word")]

    return detect


build.params = Params
build.inputs = ("words",)
not_a_detector = 3


def bare(params):
    return None
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A project folder with a plugin of its own; returns the dotted path."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "shouting.py").write_text(PLUGIN)
    (tmp_path / "plugins" / "helping.py").write_text("")
    (tmp_path / "data" / "lists").mkdir(parents=True)
    (tmp_path / "data" / "lists" / "words.txt").write_text("tea\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield "plugins.shouting:build"
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "plugins":
            del sys.modules[name]


def completion(text, prompt_id="p/1", sample=2):
    return Completion(prompt_id, sample, "base", "in", [1], [2], text, True)


def test_unknown_kind_is_an_error_with_the_nearest():
    with pytest.raises(ValueError, match=r"detectors\.x\.kind is 'phrase'.* mean 'phrases'\?"):
        build("x", {"kind": "phrase"})


def test_missing_kind_and_unknown_params_are_errors():
    with pytest.raises(ValueError, match=r"detectors\.x has no 'kind'. Add one of: phrases, rep"):
        build("x", {"list": "a.txt"})
    with pytest.raises(ValueError, match=r"detectors\.x: unknown key 'ngrams'.* mean 'ngram'\?"):
        build("x", {"kind": "repetition", "ngrams": 3})


def test_dotted_path_names_a_detector_of_ones_own(plugin):
    detect = build("x", {"kind": plugin, "word": "tea"})
    assert detect("hot tea", "") == [Span(4, 7, "word")]
    with pytest.raises(ValueError, match=r"detectors\.x: the key 'word' is missing"):
        build("x", {"kind": plugin})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("plugins.nothing:build", r"cannot be imported: ModuleNotFoundError: No module"),
        ("plugins.shouting:biuld", r"cannot be imported: AttributeError: .* no attribute 'biuld'"),
        ("plugins.shouting:not_a_detector", r"is not a detector: it must be a function"),
        ("plugins.shouting:bare", r"is not a detector.*the attribute `params`"),
    ],
)
@pytest.mark.usefixtures("plugin")
def test_dotted_path_to_no_detector_is_an_error(kind, message):
    with pytest.raises(ValueError, match=message):
        build("x", {"kind": kind, "word": "tea"})


def test_code_and_inputs_of_a_plugin_are_what_it_depends_on(plugin):
    files = input_files("x", {"kind": plugin, "word": "tea"})
    assert [file.as_posix() for file in files] == [
        "data/lists/words.txt",
        "plugins/helping.py",
        "plugins/shouting.py",
    ]


@pytest.mark.parametrize("kind", ["plugins.loud:build", "plugins.loud.rules:build"])
def test_all_of_a_plugin_that_is_a_package_is_pinned(plugin, tmp_path, kind):
    rules = PLUGIN.replace("from plugins import helping", "from . import words")
    for name, text in {
        "__init__": "from plugins.loud.rules import build",
        "rules": rules,
        "words": "from plugins import helping",
        "unused": "",
    }.items():
        file = tmp_path / "plugins" / "loud" / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    files = {file.as_posix() for file in input_files("x", {"kind": kind, "word": "tea"})}
    loud = {f"plugins/loud/{name}.py" for name in ("__init__", "rules", "words")}
    assert files == {"data/lists/words.txt", "plugins/helping.py", *loud}


@pytest.mark.parametrize(
    ("code", "error"),
    [("def build(:\n", "SyntaxError: invalid syntax"), ("1 / 0\n", "ZeroDivisionError: division")],
)
def test_plugin_that_cannot_run_is_one_line(plugin, tmp_path, code, error):
    (tmp_path / "plugins" / "broken.py").write_text(code)
    message = rf"^detectors\.x\.kind 'plugins\.broken:build' cannot be imported: {error}"
    with pytest.raises(ValueError, match=message) as caught:
        input_files("x", {"kind": "plugins.broken:build"})
    assert "\n" not in str(caught.value)


def test_plugin_that_fails_when_it_is_built_is_named(plugin, tmp_path):
    code = PLUGIN.replace("    def detect(", "    params.word.index('z')\n\n    def detect(")
    (tmp_path / "plugins" / "failing.py").write_text(code)
    with pytest.raises(ValueError, match=r"^detectors\.x cannot be built: ValueError: substring"):
        build("x", {"kind": "plugins.failing:build", "word": "tea"})


@pytest.mark.parametrize(
    "path", ["words.txt", "data/words.txt", "data/lists/../words.txt", "/etc/hostname"]
)
def test_input_outside_the_lists_is_refused(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "lists").mkdir(parents=True)
    for name in ("words.txt", "data/words.txt"):
        (tmp_path / name).write_text("tea\n")
    with pytest.raises(ValueError, match=r"detectors\.x reads .* under data/lists or"):
        input_files("x", {"kind": "phrases", "list": path})


def test_input_that_does_not_exist_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"reads 'data/lists/none\.txt', which does not exist"):
        input_files("x", {"kind": "phrases", "list": "data/lists/none.txt"})


def test_pinned_input_that_changed_is_an_error(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("tea\n")
    instances = {"x": {"kind": "phrases", "list": str(path)}}
    params = DetectorsParams(instances=instances, inputs={str(path): sha256_of(path)})
    assert build_pinned(params)["x"]("hot tea", "") == [Span(4, 7, "words")]
    path.write_text("cake\n")
    with pytest.raises(ValueError, match=r"words\.txt changed after it was resolved"):
        build_pinned(params)


def test_flags_carry_what_was_found_and_where():
    found = {"b": lambda text, _: [Span(0, 2, "l", 0.5)], "a": lambda text, _: []}
    [flag] = find_flags(found, [completion("abc")])
    assert (flag.prompt_id, flag.sample, flag.detector, flag.label) == ("p/1", 2, "b", "l")
    assert (flag.start, flag.end, flag.text, flag.score) == (0, 2, "ab", 0.5)


def test_detector_sees_the_text_and_the_prompts_input():
    seen = []
    find_flags({"x": lambda *given: seen.append(given) or []}, [completion("abc")])
    assert seen == [("abc", "in")]


def test_span_returned_twice_is_one_flag():
    assert len(find_flags({"x": lambda *_: [Span(0, 1)] * 3}, [completion("abc")])) == 1


def test_detector_that_raises_is_named_with_the_completion():
    def broken(text, prompt_input):
        return {}["missing"]

    message = r"Detector 'mine' failed on completion 'p/1', sample 2: KeyError: 'missing'"
    with pytest.raises(ValueError, match=message):
        find_flags({"mine": broken}, [completion("abc")])


@pytest.mark.parametrize("span", [(1, 4), (-1, 2), (2, 2), (3, 4)])
def test_span_outside_the_text_is_an_error_that_names_both(span):
    message = rf"'mine' returned the span {span[0]}:{span[1]} for .*'p/1'.* 3 characters"
    with pytest.raises(ValueError, match=message):
        find_flags({"mine": lambda *_: [Span(*span)]}, [completion("abc")])


def test_every_kind_of_the_table_takes_its_params():
    assert set(detectors.DETECTORS) >= {"phrases", "repetition"}
    for kind in detectors.DETECTORS.values():
        assert set(kind.inputs) <= set(kind.params.__dataclass_fields__)
