"""Prompts: strict reading, a split that duplicates never straddle, templates."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnt.prompts import PromptSetParams, RawPrompt, Shares, read_file, read_sets, render, split_of

SHARES = Shares(train=0.5, validation=0.2, test=0.3)


def encoder(chat_template=None):
    """Stand in for a tokenizer: a character a token, 1 in front as the special token."""

    def encode(text, *, add_special_tokens):
        return SimpleNamespace(input_ids=[*([1] if add_special_tokens else []), *map(ord, text)])

    def apply_chat_template(messages, *, tokenize, add_generation_prompt):
        assert not tokenize
        assert add_generation_prompt
        [message] = messages
        return f"<{message['role']}>{message['content']}<assistant>"

    encode.chat_template = chat_template
    encode.apply_chat_template = apply_chat_template
    return encode


def written(tmp_path, text, name="a.jsonl"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def line(**values):
    return json.dumps(values, ensure_ascii=False) + "\n"


def test_lines_become_prompts_in_order(tmp_path):
    text = line(id="b", input="héllo 😀", reference="r") + "\n  \n" + line(id="a", input="x\ny")
    expected = [RawPrompt("b", "héllo 😀", "r"), RawPrompt("a", "x\ny", None)]
    assert read_file(written(tmp_path, text)) == expected
    assert (
        read_file(written(tmp_path, line(id="a", input="x", reference=None)))[0].reference is None
    )


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_a_newline_ends_a_line(tmp_path, separator):
    """A JSON string may hold U+2028 as it is, and web text does."""
    text = line(id="a", input=f"one{separator}two")
    if separator < " ":
        assert separator not in text  # JSON escapes control characters
    assert read_file(written(tmp_path, text)) == [RawPrompt("a", f"one{separator}two")]


def test_windows_line_ends_are_read(tmp_path):
    text = (line(id="a", input="x") + line(id="b", input="y")).replace("\n", "\r\n")
    path = tmp_path / "a.jsonl"
    path.write_bytes(text.encode())
    assert [row.id for row in read_file(path)] == ["a", "b"]


def test_byte_order_mark_is_skipped(tmp_path):
    path = written(tmp_path, "\ufeff" + line(id="a", input="x"))
    assert read_file(path) == [RawPrompt("a", "x")]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"id": "b", "input": ', r"is not JSON"),
        ("[1]\n", r"is '\[1\]', not a JSON object"),
        (line(id="b", imput="y"), r"unknown key 'imput'\. Did you mean 'input'\?"),
        (line(id="b"), r"'input' is None"),
        (line(id="b", input=" "), r"'input' is ' '\. It must be a text"),
        (line(id="b", input=3), r"'input' is 3"),
        (line(id=7, input="y"), r"'id' is 7"),
        (line(input="y"), r"'id' is None"),
        (line(id="b", input="y", reference=4), r"'reference' is 4"),
        (line(id="a", input="y"), r"the id 'a' occurs twice"),
        ('{"id": "b", "input": "y", "input": "z"}', r"is not JSON \(a key occurs twice among"),
        ('{"id": "b", "input": "\\ud83d"}', r"is not JSON \(.*surrogates not allowed"),
    ],
)
def test_bad_line_is_an_error_with_file_and_line(tmp_path, bad, message):
    path = written(tmp_path, line(id="a", input="x") + "\n" + bad)
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 3:? ?{message}"):
        read_file(path)


def test_missing_empty_or_not_utf8_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"none\.jsonl does not exist"):
        read_file(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"a\.jsonl holds no prompt"):
        read_file(written(tmp_path, "\n\n"))
    path = tmp_path / "latin.jsonl"
    path.write_bytes(line(id="a", input="é").encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.jsonl is not UTF-8"):
        read_file(path)


def test_files_of_a_set_are_joined_and_ids_may_recur_in_another_set(tmp_path):
    written(tmp_path, line(id="a", input="1"), "replies/one.jsonl")
    written(tmp_path, line(id="b", input="2"), "replies/two.jsonl")
    written(tmp_path, line(id="a", input="3"), "news/one.jsonl")
    replies, news = tmp_path / "replies", tmp_path / "news"
    files = {
        "replies": [replies / "one.jsonl", replies / "two.jsonl"],
        "news": [news / "one.jsonl"],
    }
    assert [(name, row.input) for name, row in read_sets(files)] == [
        ("replies", "1"),
        ("replies", "2"),
        ("news", "3"),
    ]


def test_id_in_two_files_of_a_set_is_an_error_that_names_both(tmp_path):
    written(tmp_path, line(id="a", input="1"), "replies/one.jsonl")
    written(tmp_path, line(id="a", input="2"), "replies/two.jsonl")
    folder = tmp_path / "replies"
    with pytest.raises(ValueError, match=r"two\.jsonl: the id 'a' is also in one\.jsonl"):
        list(read_sets({"replies": [folder / "one.jsonl", folder / "two.jsonl"]}))


def test_splits_have_about_their_shares():
    splits = [split_of(f"prompt number {i}", SHARES) for i in range(4000)]
    for name, share in (("train", 0.5), ("validation", 0.2), ("test", 0.3)):
        deviation = (share * (1 - share) / 4000) ** 0.5
        assert splits.count(name) / 4000 == pytest.approx(share, abs=4 * deviation)


def test_a_share_of_nothing_or_everything_is_exact():
    none = Shares(train=0, validation=0.3, test=0.7)
    assert {split_of(str(i), none) for i in range(300)} == {"validation", "test"}
    everything = Shares(train=1, validation=0, test=0)
    assert {split_of(str(i), everything) for i in range(300)} == {"train"}


def test_larger_test_share_keeps_what_was_test():
    larger = Shares(train=0.3, validation=0.2, test=0.5)
    tests = {i for i in range(500) if split_of(str(i), SHARES) == "test"}
    assert tests <= {i for i in range(500) if split_of(str(i), larger) == "test"}


@given(st.lists(st.text("abcßéÀ", min_size=1), min_size=1, max_size=5))
def test_texts_that_differ_in_case_and_white_space_only_share_a_split(words):
    plain = " ".join(words)
    shouted = "\n\t " + "  \u00a0".join(word.upper() for word in words) + " "
    assert split_of(plain, SHARES) == split_of(shouted, SHARES)


def test_shares_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match=r"add up to 0\.9; make it 1"):
        Shares(train=0.5, validation=0.2, test=0.2)
    Shares(train=0.7, validation=0.2, test=0.1)  # 0.9999999999999999 in binary


def test_template_without_a_place_for_the_input_is_refused():
    with pytest.raises(ValueError, match=r"no '\{input\}'"):
        PromptSetParams(template="Reply:", chat=False, shares=SHARES)


def test_template_surrounds_the_input_as_it_is():
    params = PromptSetParams(template="Reply {x}: {input}!", chat=False, shares=SHARES)
    raw = RawPrompt("7", "{input} {0} %s \\1", "ref")
    prompt = render(raw, "replies", params, encoder())
    assert prompt.prompt_id == "replies/7"
    assert prompt.prompt == "Reply {x}: {input} {0} %s \\1!"
    assert prompt.prompt_ids == [1, *map(ord, prompt.prompt)]
    assert (prompt.input, prompt.reference) == (raw.input, "ref")
    assert prompt.split == split_of(raw.input, SHARES)


def test_chat_template_brings_its_own_special_tokens():
    params = PromptSetParams(template="Say {input}", chat=True, shares=SHARES)
    prompt = render(RawPrompt("7", "hi"), "replies", params, encoder("template"))
    assert prompt.prompt == "<user>Say hi<assistant>"
    assert prompt.prompt_ids == list(map(ord, prompt.prompt))


def test_model_without_a_chat_template_is_an_error_that_names_the_set():
    params = PromptSetParams(template="{input}", chat=True, shares=SHARES)
    with pytest.raises(ValueError, match=r"prompt_sets\.replies\.chat is true, but"):
        render(RawPrompt("7", "hi"), "replies", params, encoder())
