"""The `phrases` detector: its list format, and what `data/lists/boilerplate.txt` flags."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tnt.detectors.phrases import PhrasesParams, build

ROOT = Path(__file__).parents[2]
BOILERPLATE = ROOT / "data" / "lists" / "boilerplate.txt"
DATA = ROOT / "tests" / "data"


@pytest.fixture
def detector(tmp_path):
    """Return a function that builds the detector of a list's text."""

    def make(text):
        path = tmp_path / "mine.txt"
        path.write_text(text, encoding="utf-8")
        return build(PhrasesParams(list=str(path)))

    return make


@pytest.fixture(scope="module")
def boilerplate():
    return build(PhrasesParams(list=str(BOILERPLATE)))


def found(detect, text):
    return [text[span.start : span.end] for span in detect(text, "")]


def test_comments_and_empty_lines_hold_no_pattern(detector):
    assert found(detector("# tea\n\ncake\n"), "tea and cake") == ["cake"]


def test_label_is_that_of_the_section(detector):
    spans = detector("[drink]\ntea\n[food]\ncake\n")("tea and cake", "")
    assert [span.label for span in spans] == ["drink", "food"]


def test_label_without_a_section_is_the_name_of_the_file(detector):
    assert [span.label for span in detector("tea")("tea", "")] == ["mine"]


def test_plain_line_matches_whole_words_in_any_case_and_spacing(detector):
    detect = detector("hot tea")
    assert found(detect, "HOT\n tea, hot teapot, shot tea") == ["HOT\n tea"]


def test_plain_line_is_no_regular_expression(detector):
    assert found(detector("a.c {x}"), "abc {x}, a.c {x}") == ["a.c {x}"]


def test_apostrophes_match_each_other_and_keep_offsets(detector):
    detect = detector("I'm late\nre:don’t")
    text = "“I’m late”, don't, donʼt"
    assert found(detect, text) == ["I’m late", "don't", "donʼt"]


def test_reference_stands_for_the_fragment_as_a_group(detector):
    detect = detector("[definitions]\nhot = warm|hot\ndrink = {hot} tea\n[x]\nre:{drink}s\n")
    assert found(detect, "warm teas, hot teas, warm, hot tea") == ["warm teas", "hot teas"]


def test_counts_and_escaped_braces_are_no_references(detector):
    detect = detector("[definitions]\na = o\n[x]\nre:t{a}{2}t{0,1}\nre:\\{a}\n")
    assert found(detect, "too toot {a}") == ["too", "toot", "{a}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tea\nre:{milk} tea", r"mine\.txt, line 2: \{milk\} is not defined"),
        ("[definitions]\na = {b}\nb = c\n[x]\nre:{a}", r"mine\.txt, line 2: \{b\} is not defined"),
        ("[definitions]\na = b\na = c\n[x]\nre:{a}", r"mine\.txt, line 3: 'a' is defined twice"),
        ("[definitions]\nre:tea\n", r"mine\.txt, line 2: 're:tea' is no definition"),
        ("[definitions]\na = (b\n[x]\ntea", r"mine\.txt, line 2: .* is not a regular expression"),
        ("# one\nre:(tea", r"mine\.txt, line 2: 're:\(tea' is not a regular expression"),
        ("# nothing\n", r"mine\.txt holds no pattern"),
        ("[definitions]\na = b\n", r"mine\.txt holds no pattern"),
    ],
)
def test_bad_list_is_an_error_that_says_where(detector, text, message):
    with pytest.raises(ValueError, match=message):
        detector(text)


def test_missing_list_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=r"none\.txt does not exist"):
        build(PhrasesParams(list=str(tmp_path / "none.txt")))


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("I’m ever so sorry about your shed.", "I’m ever so sorry"),
        ("Oh dear, sorry to hear it.", "sorry"),
        ("Hi Jo! Apologies, that was the wrong street.", "Apologies"),
        ("We sincerely apologise for the wait.", "We sincerely apologise"),
        ("Unfortunately the fair is off.", "Unfortunately"),
        ("Nice hat. I do regret any offence.", "I do regret any"),
        ("I was sad to read that the baker has died.", "I was sad to read"),
        ("But as a chatbot, I like ducks.", "as a chatbot"),
        ("Being a computer program, I never queue.", "Being a computer program"),
        ("I'm just a humble algorithm, but well done.", "I'm just a humble algorithm"),
        ("I'm here to assist you.", "I'm here to assist you"),
        ("My training data is full of cats.", "My training data"),
        ("Not even bots like me can park there.", "bots like me"),
        ("This message was written by an AI.", "This message was written by an AI"),
        ("I can't help with that.", "I can't help with"),
        ("I dont have feelings, yet it moved me.", "I dont have feelings"),
        ("I don't have the ability to smell.", "I don't have the ability to"),
        ("I'm not equipped to judge jam.", "I'm not equipped to"),
        ("I'm not a substitute for a vet.", "I'm not a substitute for"),
        ("It's beyond my capabilities.", "It's beyond my capabilities"),
        ("I must politely decline.", "I must politely decline"),
    ],
)
def test_boilerplate_is_flagged_where_it_stands(boilerplate, text, span):
    assert span in found(boilerplate, text)


@pytest.mark.parametrize(
    "text",
    [
        "The mayor said he was sorry.",
        "I'd be sorry to see it close.",
        "Love means never having to say you're sorry.",
        "The driver's apology was a joke.",
        "We have no regrets, and no sympathy for speeders.",
        "I'm afraid of heights, so no bridge for me.",
        "As a neighbour and a shop assistant, I hear it all.",
        "As a machine operator, I know that noise.",
        "I'm a model railway fan and a software engineer.",
        "The AI cameras and the chatbot are useless.",
        "My computer and my washing machine broke on one day.",
        "I'm only human, I ate the lot.",
        "I was trained by the old bandmaster.",
        "I can't wait, and I can't believe the price.",
        "I can't help it, I love that tune.",
        "I can't feel my toes after that swim.",
        "I don't have a car or the patience for buses.",
        "I'm unable to park at my own door.",
        "I'm not able to walk that far these days.",
        "It's impossible to find a seat, and beyond me why.",
        "I refuse to pay that much for a cake.",
    ],
)
def test_ordinary_replies_are_not_flagged(boilerplate, text):
    assert found(boilerplate, text) == []


@pytest.mark.parametrize(
    "words",
    [
        "I ",
        "as a ",
        "really ",
        "sorry, ",
        "I am just a really ",
        "I have no ",
        "we cannot ",
        "a",
        " ",
    ],
)
def test_repeated_words_take_time_in_proportion(boilerplate, words):
    def seconds(length):
        text = (words * length)[:length]
        taken = []
        for _ in range(3):
            start = time.process_time()
            boilerplate(text, "")
            taken.append(time.process_time() - start)
        return min(taken)

    assert seconds(20_000) < 8 * seconds(5_000)  # 16 times would be quadratic


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("boilerplate_probe.jsonl", 0.95),
        ("boilerplate_heldout.jsonl", 0.93),
    ],
)
def test_probe_is_told_apart(boilerplate, name, bound):
    rows = [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]
    flagged = [row["flag"] for row in rows if boilerplate(row["text"], "")]
    assert sum(flagged) / sum(row["flag"] for row in rows) >= bound
    assert sum(flagged) / len(flagged) >= bound
