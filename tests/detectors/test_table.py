"""The table of detectors: kinds, plugins, and what a detector may do wrong."""

from __future__ import annotations

import re
import sys

import pytest

from tnt import detectors
from tnt.core.hashes import sha256_of
from tnt.core.records import Completion
from tnt.detectors import build
from tnt.detectors.pinned import DetectorsParams, build_pinned
from tnt.detectors.running import find_flags
from tnt.detectors.span import Span
from tnt.project.pins import input_files

PLUGIN = """\
from pydantic.dataclasses import dataclass

from tnt.detectors.span import Span
from tnt.core.params import STRICT
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
    with pytest.raises(
        ValueError, match=r"detectors\.x has no 'kind'. Add one of: annotations, cl"
    ):
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
    files = input_files(detectors.parse("x", {"kind": plugin, "word": "tea"}))
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
    files = {
        file.as_posix() for file in input_files(detectors.parse("x", {"kind": kind, "word": "tea"}))
    }
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
        input_files(detectors.parse("x", {"kind": "plugins.broken:build"}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('("words",)', '"words"', r"its `inputs` is 'words'\. It must be a tuple of names among"),
        ('("words",)', '("word", "list")', r"its `inputs` is .* params: word, words"),
        ("build.params = Params", "build.params = dict", r"params dataclass as the attribute"),
    ],
)
def test_plugin_that_does_not_keep_to_the_contract_is_one_line(plugin, tmp_path, old, new, message):
    (tmp_path / "plugins" / "odd.py").write_text(PLUGIN.replace(old, new))
    with pytest.raises(ValueError, match=rf"'plugins\.odd:build' is not a detector: .*{message}"):
        input_files(detectors.parse("x", {"kind": "plugins.odd:build", "word": "tea"}))


def test_input_that_is_not_given_is_no_file(plugin, tmp_path):
    code = PLUGIN.replace('words: str = "data/lists/words.txt"', "words: str | None = None")
    (tmp_path / "plugins" / "optional.py").write_text(code)
    files = input_files(detectors.parse("x", {"kind": "plugins.optional:build", "word": "tea"}))
    assert [file.name for file in files] == ["helping.py", "optional.py"]


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
        input_files(detectors.parse("x", {"kind": "phrases", "list": path}))


def test_input_that_does_not_exist_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"reads 'data/lists/none\.txt', which does not exist"):
        input_files(detectors.parse("x", {"kind": "phrases", "list": "data/lists/none.txt"}))


def test_pinned_input_that_changed_is_an_error(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("tea\n")
    instances = {"x": {"kind": "phrases", "list": str(path)}}
    params = DetectorsParams(instances=instances, inputs={str(path): sha256_of(path)})
    assert build_pinned(params)[0]["x"]("hot tea", "") == [Span(4, 7, "words")]
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

    message = r"Detector 'mine' failed on completion 'p/1', sample 2: KeyError: TNT_DEBUG=1 shows"
    with pytest.raises(ValueError, match=message) as caught:
        find_flags({"mine": broken}, [completion("abc")])
    assert isinstance(caught.value.__cause__, KeyError)


def first(*_):
    return [Span(0, 1)]


def secretive(*_):
    raise RuntimeError("cannot read 'Peter Hall'")


def asked(many, one=first, **methods):
    """Return a detector that is asked about many texts, or one."""

    def detect(text, prompt_input):
        return one(text, prompt_input)

    vars(detect).update(many=many, **methods)
    return detect


def test_failure_shows_nothing_of_the_text(capsys):
    for detect in (secretive, asked(secretive, secretive)):
        with pytest.raises(ValueError, match=r"sample 2: RuntimeError: ") as caught:
            find_flags({"mine": detect}, [completion("Peter Hall")])
        assert "Peter" not in str(caught.value)
    assert "Peter" not in capsys.readouterr().err


def test_what_fails_before_a_text_is_seen_is_shown():
    def prepare():
        raise ValueError("torch finds no GPU. Set device to cpu.")

    detect = asked(secretive, prepare=prepare)
    message = r"^Detector 'mine' cannot be loaded: torch finds no GPU. Set device to cpu\.$"
    with pytest.raises(ValueError, match=message):
        find_flags({"mine": detect}, [completion("abc")])
    assert find_flags({"mine": detect}, []) == []


@pytest.mark.parametrize(
    ("many", "said"),
    [
        (secretive, r"`many` stopped after 0 of 3 completions \(RuntimeError\)"),
        (
            lambda pairs: [first()],
            r"`many` stopped after 1 of 3 completions \(StopIteration\)",
        ),
        (lambda pairs: [[], [], None], r"`many` stopped after 2 of 3 completions \(TypeError\)"),
    ],
    ids=["fails", "too few", "None"],
)
def test_what_many_does_not_answer_is_asked_one_by_one_and_said(capsys, many, said):
    rows = [completion("abc", f"p/{i}") for i in range(3)]
    flags = find_flags({"mine": asked(many)}, rows)
    assert {flag.prompt_id for flag in flags} >= {"p/2"}
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(rf"Detector 'mine': {said}\. The others are looked at one by one", line)


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ((0, 1), "a tuple, which is no Span,"),
        ("abc", "a str, which is no Span,"),
        (Span("0", 1), "a Span whose start is a str"),
        (Span(0, 1.0), "a Span whose end is a float"),
        (Span(False, 1), "a Span whose start is a bool"),
        (Span(0, 1, None), "a Span whose label is a NoneType"),
        (Span(0, 1, ["x"]), "a Span whose label is a list"),
        (Span(0, 1, "x", "1"), "a Span whose score is a str"),
        (Span(0, 1, "x", float("nan")), "a Span whose score is nan"),
        (Span(0, 1, "x", float("inf")), "a Span whose score is inf"),
        (Span(0, 1, "x", 1.5), "a Span whose score is 1.5"),
    ],
)
def test_what_is_no_span_is_an_error_that_names_both(span, message):
    message = rf"^Detector 'mine' returned {message} for completion 'p/1', sample 2\. Correct"
    with pytest.raises(ValueError, match=message):
        find_flags({"mine": lambda *_: [span]}, [completion("abc")])


@pytest.mark.parametrize("span", [(1, 4), (-1, 2), (2, 2), (3, 4)])
def test_span_outside_the_text_is_an_error_that_names_both(span):
    message = rf"'mine' returned the span {span[0]}:{span[1]} for .*'p/1'.* 3 characters"
    with pytest.raises(ValueError, match=message):
        find_flags({"mine": lambda *_: [Span(*span)]}, [completion("abc")])


def test_every_kind_of_the_table_takes_its_params():
    assert set(detectors.DETECTORS) >= {"phrases", "repetition"}
    for kind in detectors.DETECTORS.values():
        assert set(kind.inputs) <= set(kind.params.__dataclass_fields__)
