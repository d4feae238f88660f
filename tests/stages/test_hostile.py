"""Hostile content: whatever a model says, and a detector calls it, goes through as text.

No stage takes it for code, for a path or for the end of something, and no error quotes it.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
import tiny

from tnt import prompts
from tnt.annotations import label_studio
from tnt.core import artifacts
from tnt.core.params import dump_yaml, load_yaml
from tnt.core.records import Completion, Flag, Mask, Prompt
from tnt.detectors import phrases, running
from tnt.detectors.span import Span
from tnt.evaluation import metrics
from tnt.losses.batches import collate
from tnt.masks import flagged
from tnt.masks.params import MaskParams
from tnt.report import examples

TOKENIZER = tiny.tokenizer()
EVERYTHING = MaskParams(span_tokens="all", after_negative="keep")
MARKUP = (
    "<script>alert(1)</script> <img src=x onerror=alert(2)> {{ 7*7 }} {% raw %} </td></table> "
    """'"> &lt;b&gt; <!-- ${rounds} %(x)s"""
)
TEXTS = {
    "control characters": "a\x01\x07\x1b[31m\x7f\x85 sorry \x9f\r\n\t\v\f",
    "NUL": "\x00sorry\x00 \x00",
    "right to left": "\u202e\u05e9\u05dc\u05d5\u05dd sorry مرحبا\u202c \u200f\u2067!",
    "ZWJ emoji": "👨\u200d👩\u200d👧\u200d👦 sorry 🏳️\u200d🌈👍🏽 \u200d",
    "combining": "s\u0301 sorry " + "e" + "\u0301" * 50 + " ﷽ İ ß ﬁ",
    "line ends of every kind": "a\u2028sorry\u2029b\x1c\x1d\x1e\r",
    "replacement characters": "\ufffd sorry \ufffd\ufffd",
    "beyond the basic plane": "\U0001d4fc\U0001d4f8 sorry \U0010ffff\U000e0001",
    "markup": f"{MARKUP} sorry {MARKUP}",
    "spaces": " \u00a0\u3000 sorry \u200b ",
}


def completion(text, *, ids=None, prompt_id="replies/p", model="r1"):
    """Return a completion of the tiny tokenizer, a token a byte."""
    ids = TOKENIZER(text).input_ids if ids is None else ids
    return Completion(prompt_id, 0, model, "input", [5, 6], ids, text, True)


def flag(start, end, detector="d", text="", label=""):
    return Flag("replies/p", 0, detector, label, start, end, text, 1.0)


def flags_of(text, detector="sorry"):
    found = running.find_flags({detector: lambda text, _: spans_of(text)}, [completion(text)])
    assert found
    return found


def spans_of(text):
    start = text.find("sorry")
    return [Span(start, start + 5)] if start >= 0 else []


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_hostile_text_is_flagged_where_it_says_so_and_nowhere_else(tmp_path, text):
    """Detect, store, mask: the negative tokens are the bytes of `sorry`, which is five of them."""
    (tmp_path / "list.txt").write_text("sorry\n", encoding="utf-8")
    detect = phrases.build(phrases.PhrasesParams(list=str(tmp_path / "list.txt")))
    found = running.find_flags({"phrases": detect}, [completion(text)])
    assert [f.text for f in found] == ["sorry"]
    rows = [completion(text)]
    artifacts.write(rows, tmp_path / "completions.parquet", Completion)
    artifacts.write(found, tmp_path / "flags.parquet", Flag)
    assert artifacts.read(tmp_path / "completions.parquet", Completion) == rows
    [mask] = flagged.mask_all(
        rows, artifacts.read(tmp_path / "flags.parquet", Flag), TOKENIZER, EVERYTHING
    )
    start = len(text[: text.index("sorry")].encode())
    expected = [start <= i < start + 5 for i in range(len(text.encode()))]
    assert mask.negative_mask == expected
    assert mask.kept_mask == [not negative for negative in expected]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_character_of_hostile_text_can_be_flagged(text):
    """The negative tokens of a flag on one character are the bytes of that character."""
    for i, character in enumerate(text):
        [mask] = flagged.mask_all([completion(text)], [flag(i, i + 1)], TOKENIZER, EVERYTHING)
        start, size = len(text[:i].encode()), len(character.encode()) * bool(character.strip())
        assert [n for n, hit in enumerate(mask.negative_mask) if hit] == [
            *range(start, start + size)
        ]


BYTE_IDS = {
    byte: id_
    for code in (*range(128), *range(128, 0xD800, 61), 0xD7FF, 0x1F600, 0xE0001)
    for byte, id_ in zip(chr(code).encode(), TOKENIZER(chr(code)).input_ids, strict=True)
}


@pytest.mark.parametrize(
    "data", [b"\xed\xa0\x80", b"\xed\xa0\xbd\xed\xb8\x80", b"\xf0\x9f\x98", b"\x80" * 7, b"a\xc3"]
)
def test_bytes_that_are_no_text_never_become_half_a_surrogate_pair(tmp_path, data):
    """A model may say any bytes; what they decode to can be stored, flagged and masked."""
    ids = [BYTE_IDS[byte] for byte in data]
    text = TOKENIZER.decode(ids, clean_up_tokenization_spaces=False)
    assert text == data.decode(errors="replace")
    row = completion(text, ids=ids)
    artifacts.write([row], tmp_path / "c.parquet", Completion)
    assert artifacts.read(tmp_path / "c.parquet", Completion) == [row]
    [mask] = flagged.mask_all([row], [flag(0, len(text))], TOKENIZER, EVERYTHING)
    assert all(mask.negative_mask)


def test_completions_of_no_and_of_ten_thousand_tokens(tmp_path):
    """Through detect, store, mask and collate, beside one of two tokens."""
    long = ("fine, yes. " * 909 + "sorry")[-10_000:]
    texts = {"replies/a": "", "replies/b": long, "replies/c": "no"}
    rows = [completion(text, prompt_id=key) for key, text in texts.items()]
    assert [len(row.completion_ids) for row in rows] == [0, 10_000, 2]
    found = running.find_flags({"sorry": lambda text, _: spans_of(text)}, rows)
    assert [(f.prompt_id, f.start, f.end) for f in found] == [("replies/b", 9_995, 10_000)]
    artifacts.write(rows, tmp_path / "completions.parquet", Completion)
    rows = artifacts.read(tmp_path / "completions.parquet", Completion)
    masks = flagged.mask_all(rows, found, TOKENIZER, MaskParams())
    artifacts.write(masks, tmp_path / "masks.parquet", Mask)
    masks = artifacts.read(tmp_path / "masks.parquet", Mask)
    assert [sum(mask.negative_mask) for mask in masks] == [0, 5, 0]
    assert [sum(mask.kept_mask) for mask in masks] == [0, 9_995, 2]
    batch = collate([mask for mask in masks if mask.completion_ids])
    assert batch.input_ids.shape == (2, 10_002)
    assert batch.token_ids.tolist() == [i for row in rows for i in row.completion_ids]
    assert int(batch.negative.sum()) == 5
    assert int(batch.rows.sum()) == len(batch.token_ids) == 10_002


def test_flags_of_two_detectors_that_overlap_make_one_mask():
    """0:5 and 3:8 are 0:8: a token is negative or not, and a completion flagged once."""
    row = completion("sorry, no.")
    found = [flag(0, 5, "a"), flag(3, 8, "b"), flag(3, 8, "a"), flag(4, 5, "c")]
    [mask] = flagged.mask_all([row], found, TOKENIZER, EVERYTHING)
    assert mask.negative_mask == [i < 8 and i != 6 for i in range(10)]  # 6 is the space
    assert [a + b for a, b in zip(mask.negative_mask, mask.kept_mask, strict=True)] == [1] * 10
    [alone] = flagged.mask_all([row], [flag(0, 8)], TOKENIZER, EVERYTHING)
    assert mask == alone
    rate = metrics.flag_rate([row], {(f.prompt_id, f.sample) for f in found})
    assert (rate.flagged, rate.total) == (1, 1)
    pieces = [piece.text for piece in examples.cut(row.text, found)]
    assert pieces == ["sor", "r", "y", ", n", "o."]


def run(project, *stages):
    for stage in stages:
        done = project.run(*project.command(stage))
        assert done.returncode == 0, done.stderr
        yield done.stdout


def test_a_round_in_which_everything_is_flagged_goes_through(project):
    """Nothing is kept: no clean completion to compare, and no divergence at kept tokens."""
    project.write("data/lists/boilerplate.txt", "re:(?s).+\n")
    with project.params() as params:
        params["expect"]["max_negative_share"] = 1.0
    [*run(project, "resolve", "detect", "mask", "train", "respond", "evaluate", "compare")]
    masks = artifacts.read(project.path / "data/rounds/r1/masks.parquet", Mask)
    assert all(any(mask.negative_mask) for mask in masks)
    found = project.json("data/evaluations/r1/metrics.json")
    for of_set in found["sets"].values():
        assert of_set["clean_unchanged"]["total"] == 0
        assert of_set["divergence"]["forward"] is None
        assert of_set["divergence"]["kept_tokens"] == 0
    assert "clean" not in found["gate"]["reasons"]
    assert "no replies were fine before" in project.read("data/report/index.html")


class Page(HTMLParser):
    """What a browser makes of a page: its elements, and the text."""

    def __init__(self, html):  # noqa: D107
        super().__init__(convert_charrefs=True)
        self.elements, self.attributes, self.texts = set(), set(), [""]
        self.titles = set()
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):  # noqa: D102
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.titles |= {value for name, value in attrs if name == "title"}
        self.texts.append("")

    def handle_endtag(self, tag):  # noqa: D102
        self.texts.append("")

    def handle_data(self, data):  # noqa: D102
        self.texts[-1] += data

    def handle_comment(self, data):  # noqa: D102
        self.elements.add("a comment")


OURS = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "a", "b", "ul", "li",
    "table", "tr", "th", "td", "mark", "header", "nav", "main", "footer", "section", "article",
    "h3", "div", "span", "small", "code", "pre", "dl", "dt", "dd", "caption", "thead", "tbody",
    "details", "summary", "figure", "figcaption", "picture", "source", "img", "abbr", "strong",
    "em", "del", "ins", "kbd", "form", "fieldset", "legend", "label", "input", "select", "option",
    "button", "noscript", "script",
}  # fmt: skip
ATTRIBUTES = {
    "lang", "charset", "name", "content", "class", "href", "title", "http-equiv", "id", "alt",
    "aria-label", "aria-labelledby", "tabindex", "role", "scope", "media", "srcset", "src",
    "width", "height", "aria-live", "autocomplete", "checked", "data-after", "data-before",
    "data-kind", "download", "hidden", "placeholder", "rel", "rowspan", "spellcheck", "type",
    "value",
}  # fmt: skip
OF_LABEL_STUDIO = {"View", "Style", "Header", "Text", "Labels", "Label"}


def pages(project):
    folder = project.path / "data/report"
    sources = {p.name: p.read_text(encoding="utf-8") for p in folder.glob("*.html")}
    found = {name: Page(source) for name, source in sources.items()}
    assert len(found) == 3
    for name, page in found.items():
        assert sources[name].count("<script") == (0 if name == "index.html" else 2)
        assert page.elements <= OURS
        assert page.attributes <= ATTRIBUTES
    return found


def test_hostile_completions_and_detectors_are_text_in_the_report(project):
    """Compared by `compare` itself: answers, inputs and the name of a detector full of markup."""
    for model in ("base", "r1", "r2"):
        path = project.path / f"data/evaluations/{model}/completions.parquet"
        text = f"{MARKUP} sorry" if model == "base" else f"{MARKUP} fine"
        rows = [
            Completion(**fields(row) | {"text": text, "input": f"{MARKUP}?"})
            for row in artifacts.read(path, Completion)
        ]
        artifacts.write(rows, path, Completion)
    resolved = project.path / "data/resolved/base/compare.yaml"
    values = load_yaml(resolved)
    instances = values["detectors"]["instances"]
    values["detectors"]["instances"] = {"boilerplate": instances["boilerplate"]} | {
        f"{MARKUP} [x]": instances["boilerplate"]
    }
    project.write("data/resolved/base/compare.yaml", dump_yaml(values))
    [*run(project, "compare")]
    found = pages(project)
    assert f"{MARKUP} [x]" in {text for page in found.values() for text in page.texts}
    source = project.read("data/report/r1.html")
    data = json.loads(re.search(r'id="data">(.*?)</script>', source, re.DOTALL)[1])
    assert data["detectors"] == ["boilerplate", f"{MARKUP} [x]"]
    for row in data["examples"]:
        assert row["input"] == f"{MARKUP}?"
        assert "".join(p if isinstance(p, str) else p[0] for p in row["after"]) == f"{MARKUP} fine"
        flagged = [p for p in row["before"] if not isinstance(p, str) and p[2:]]
        assert [(p[0], p[2:]) for p in flagged] == [("sorry", [1, 0])]


def fields(row):
    return {name: getattr(row, name) for name in row.__slots__}


PLUGIN = """
from dataclasses import dataclass

from tnt.detectors.span import Span


@dataclass
class Params:
    label: str


def build(params):
    def detect(text, prompt_input):
        return [Span(0, 1, label=params.label)]

    return detect


build.params = Params
"""


def test_a_hostile_label_of_a_detector_is_stored_and_shown_as_text(project):
    project.write("plugins/own.py", PLUGIN)
    with project.params() as params:
        params["detectors"]["own"] = {"kind": "plugins.own:build", "label": MARKUP}
        params["rounds"]["r1"]["detectors"] = ["own"]
    [*run(project, "resolve", "detect", "evaluate", "compare")]
    stored = artifacts.read(project.path / "data/rounds/r1/flags.parquet", Flag)
    assert {row.label for row in stored} == {MARKUP}
    pages(project)
    done = project.tnt("annotate", "export", "r1", "--format", "label-studio")
    assert done.returncode == 0, done.stderr
    interface = ElementTree.fromstring(done.stdout[done.stdout.index("<View>") :])
    assert MARKUP in [label.get("value") for label in interface.iter("Label")]
    assert {element.tag for element in interface.iter()} <= OF_LABEL_STUDIO


def test_a_template_in_a_prompt_is_no_template(project):
    """Neither ours, nor Jinja's of the chat template, nor DVC's."""
    shares = prompts.Shares(train=0, validation=0.3, test=0.7)
    hostile = [f"{{{{7*7}}}}{{input}}{{% raw %}}${{rounds}}{{0}}%s{i}" for i in range(9)]
    hostile = next(text for text in hostile if prompts.split_of(text, shares) == "test")
    name = "data/prompts/questions/first.jsonl"
    project.write(name, project.read(name) + json.dumps({"id": "x", "input": hostile}) + "\n")
    [*run(project, "resolve", "prepare_test")]
    rows = artifacts.read(project.path / "data/prepared/test_prompts.parquet", Prompt)
    assert [r.prompt for r in rows if r.prompt_id == "questions/x"] == [f"{hostile}?: "]


SECRET = "SECRET-7331"


@pytest.mark.parametrize(
    "arguments",
    [
        ([completion(SECRET)], [flag(0, 99)]),
        ([completion(SECRET, ids=[5, 6])], [flag(0, 3)]),
        ([completion(SECRET, ids=[5, 6])], []),
        ([completion(SECRET)], [Flag("replies/x", 0, "d", "", 0, 1, SECRET, 1.0)]),
    ],
    ids=["flag beyond the end", "ids of another text", "the same unflagged", "flag of nothing"],
)
def test_no_error_of_the_masking_quotes_a_completion(arguments):
    with pytest.raises(ValueError, match="Re-run") as raised:
        flagged.mask_all(*arguments, TOKENIZER, EVERYTHING)
    assert SECRET not in str(raised.value)
    assert SECRET[:6] not in str(raised.value)


def raises(text, _):
    raise KeyError(f"not found: {text}")


def reads_no_number(text, _):
    return [Span(0, int(text))]


@pytest.mark.parametrize(
    "detect",
    [raises, reads_no_number, lambda text, _: [Span(0, 99)], lambda text, _: [text]],
    ids=["raises it", "cannot convert it", "span beyond it", "returns it"],
)
def test_no_error_of_a_detector_quotes_a_completion(detect):
    with pytest.raises(ValueError, match=r"^Detector 'own' .* 'replies/p', sample 0") as raised:
        running.find_flags({"own": detect}, [completion(SECRET)])
    assert SECRET not in str(raised.value)
    assert "Correct the detector" in str(raised.value)


def test_labels_in_an_interface_are_escaped():
    parsed = ElementTree.fromstring(label_studio.labelling_config([MARKUP, "plain"]))
    assert [label.get("value") for label in parsed.iter("Label")] == [MARKUP, "plain"]
