"""Character spans to token masks, with real tokenizers trained here."""

from __future__ import annotations

import pytest
from small_tokenizers import (
    ACCENTS,
    byte_fallback,
    byte_level,
    completion,
    fast,
    flag,
    metaspace,
    of_text,
    wordpiece,
)
from tokenizers import Tokenizer, decoders, models

from tnt.core.records import Completion
from tnt.masks import alignment, flagged
from tnt.masks.alignment import token_spans
from tnt.masks.flagged import mask_all, mask_completion
from tnt.masks.params import MaskParams

BYTE_LEVEL = byte_level()
BYTE_FALLBACK = byte_fallback()
TOKENIZERS = {
    "byte_level": BYTE_LEVEL,
    "metaspace": metaspace(),
    "wordpiece": wordpiece(),
    "byte_fallback": BYTE_FALLBACK,
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]


def masked(tokenizer, found, *spans, span_tokens="all", after_negative="keep"):
    params = MaskParams(span_tokens=span_tokens, after_negative=after_negative)
    return mask_completion(found, [flag(*span) for span in spans], tokenizer, params)


def test_spans_of_tokens_cover_the_text_in_order(tokenizer):
    found = of_text(tokenizer, ACCENTS)
    spans = token_spans(tokenizer, found.completion_ids, found.text)
    assert len(spans) == len(found.completion_ids)
    assert spans[0][0] == 0
    assert spans[-1][1] == len(found.text)
    starts, ends = zip(*spans, strict=True)
    assert list(starts) == sorted(starts)
    assert list(ends) == sorted(ends)
    assert set(range(len(found.text))) == {i for span in spans for i in range(*span)}


def test_whole_tokens_hold_exactly_their_own_characters(tokenizer):
    found = of_text(tokenizer, "hello there")
    for i, (start, end) in enumerate(
        token_spans(tokenizer, found.completion_ids, found.text), start=1
    ):
        prefix = completion(tokenizer, found.completion_ids[:i]).text
        assert prefix == found.text[:end]
        assert start < end or not found.text[start:end].strip()


@pytest.mark.parametrize("word", ["sorry", "there", "fox"])
def test_flagged_word_is_covered_and_its_neighbours_are_not(tokenizer, word):
    found = of_text(tokenizer, "I said sorry and there a fox sat")
    start = found.text.index(word)
    mask = masked(tokenizer, found, (start, start + len(word)))
    spans = token_spans(tokenizer, found.completion_ids, found.text)
    held = "".join(
        found.text[s:e] for (s, e), n in zip(spans, mask.negative_mask, strict=True) if n
    )
    assert held.strip() == word
    assert mask.kept_mask == [not negative for negative in mask.negative_mask]


def test_all_tokens_of_a_split_emoji_are_negative():
    found = of_text(BYTE_LEVEL, "a😀b")
    assert len(found.completion_ids) == 6  # no merge has seen the four bytes
    assert masked(BYTE_LEVEL, found, (1, 2)).negative_mask == [False, *[True] * 4, False]
    assert masked(BYTE_LEVEL, found, (2, 3)).negative_mask == [False] * 5 + [True]


def test_byte_fallback_tokens_hold_their_own_character_only():
    found = of_text(BYTE_FALLBACK, "a😀bcd")
    names = BYTE_FALLBACK.convert_ids_to_tokens(found.completion_ids)
    expected = ["<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]
    emoji = names.index("<0xF0>")
    assert names[emoji : emoji + 4] == expected
    by_character = {
        character: [
            name
            for name, negative in zip(
                names, masked(BYTE_FALLBACK, found, (i, i + 1)).negative_mask, strict=True
            )
            if negative
        ]
        for i, character in enumerate(found.text)
    }
    # Undecoded bytes show as one U+FFFD each, which once reached into the characters behind them.
    assert {c: names for c, names in by_character.items() if c in "😀bcd"} == {
        "😀": expected,
        "b": ["b"],
        "c": ["c"],
        "d": ["d"],
    }


def test_token_that_ends_one_character_and_begins_another_overlaps_both():
    tokenizer = Tokenizer(models.BPE({"Ã": 0, "©": 1, "©Ã": 2, "<eos>": 3, "<unk>": 4}, []))
    tokenizer.decoder = decoders.ByteLevel()
    found = completion(fast(tokenizer), [0, 2, 1])  # C3 | A9 C3 | A9
    assert found.text == "éé"
    assert masked(fast(tokenizer), found, (0, 1)).negative_mask == [True, True, False]
    assert masked(fast(tokenizer), found, (1, 2)).negative_mask == [False, True, True]


def test_completion_cut_inside_a_character_can_be_flagged_there():
    ids = BYTE_LEVEL("a😀", add_special_tokens=False).input_ids[:-1]
    found = completion(BYTE_LEVEL, ids)
    assert found.text == "a\ufffd"
    assert masked(BYTE_LEVEL, found, (1, 2)).negative_mask == [False, True, True, True]


def test_every_byte_of_a_completion_cut_inside_a_character_can_be_flagged():
    ids = BYTE_FALLBACK("a😀", add_special_tokens=False).input_ids[:-1]
    found = completion(BYTE_FALLBACK, ids)
    for i in range(found.text.index("\ufffd"), len(found.text)):
        assert any(masked(BYTE_FALLBACK, found, (i, i + 1)).negative_mask)


def test_special_tokens_hold_no_character(tokenizer):
    found = of_text(tokenizer, "so sorry")
    ended = completion(tokenizer, [*found.completion_ids, tokenizer.eos_token_id])
    assert ended.text == found.text
    mask = masked(tokenizer, ended, (0, len(ended.text)))
    assert (mask.negative_mask[-1], mask.kept_mask[-1]) == (False, True)
    assert any(mask.negative_mask)


def test_white_space_alone_makes_no_token_negative():
    found = of_text(BYTE_LEVEL, "ab cd")
    space = found.text.index(" ")
    assert not any(masked(BYTE_LEVEL, found, (space, space + 1)).negative_mask)


# Five tokens, a character each, so that the expected lists can be read off the text.
LETTERS = Tokenizer(models.BPE({c: i for i, c in enumerate("abcdefgh")} | {"<eos>": 8}, []))
LETTERS.decoder = decoders.ByteLevel()
LETTERS = fast(LETTERS)


@pytest.mark.parametrize(
    ("span_tokens", "after_negative", "negative", "kept"),
    [
        # flagged: bcd and g of abcdefgh
        ("all", "keep", ".bcd..g.", "a...ef.h"),
        ("all", "drop", ".bcd..g.", "a......."),
        ("all", "end", ".bcd....", "a......."),
        ("first", "keep", ".b....g.", "a...ef.h"),
        ("first", "drop", ".b....g.", "a......."),
        ("first", "end", ".b......", "a......."),
    ],
)
def test_masks_of_two_spans_by_hand(span_tokens, after_negative, negative, kept):
    found = completion(LETTERS, range(8))
    assert found.text == "abcdefgh"
    mask = masked(
        LETTERS, found, (1, 4), (6, 7), span_tokens=span_tokens, after_negative=after_negative
    )
    assert mask.negative_mask == [c != "." for c in negative]
    assert mask.kept_mask == [c != "." for c in kept]


@pytest.mark.parametrize("after_negative", ["keep", "drop", "end"])
def test_completion_without_a_flag_is_kept_whole(after_negative):
    mask = masked(LETTERS, completion(LETTERS, range(8)), after_negative=after_negative)
    assert mask.negative_mask == [False] * 8
    assert mask.kept_mask == [True] * 8


def test_overlapping_spans_with_first_mark_each_start():
    mask = masked(LETTERS, completion(LETTERS, range(8)), (1, 4), (2, 6), span_tokens="first")
    assert mask.negative_mask == [c != "." for c in ".bc....."]
    assert mask.kept_mask == [c != "." for c in "a.....gh"]


def test_adjacent_spans_are_one_to_end():
    mask = masked(LETTERS, completion(LETTERS, range(8)), (1, 3), (3, 5), after_negative="end")
    assert mask.negative_mask == [c != "." for c in ".bcde..."]


def test_ids_that_no_tokenisation_gives_are_masked_as_they_are():
    canonical = of_text(BYTE_LEVEL, "I'm sorry")
    single = [BYTE_LEVEL.convert_tokens_to_ids(c) for c in "I'mĠsorry"]
    assert single != canonical.completion_ids
    found = completion(BYTE_LEVEL, single)
    assert found.text == "I'm sorry"
    mask = masked(BYTE_LEVEL, found, (4, 9))
    assert mask.completion_ids == single
    assert mask.negative_mask == [False] * 4 + [True] * 5


@pytest.mark.parametrize("span", [(6, 9), (-1, 2), (3, 3), (8, 9)])
def test_flag_beyond_the_text_is_an_error_that_names_both(span):
    with pytest.raises(ValueError, match=rf"Flag {span[0]}:{span[1]} .*'p/1' \(8 characters\)"):
        masked(LETTERS, completion(LETTERS, range(8)), span)


def test_text_that_is_not_what_the_ids_say_is_an_error():
    with pytest.raises(ValueError, match="2 token ids decode to 2 characters that"):
        token_spans(LETTERS, [0, 1], "ba")


def test_every_completion_gets_its_own_flags():
    rows = [
        Completion(f"p/{i}", sample, "base", "in", [5], [0, 1], "ab", True)
        for i in range(2)
        for sample in range(2)
    ]
    flags = [flag(0, 1, "p/1", 0), flag(1, 2, "p/0", 1), flag(1, 2, "p/1", 0)]
    masks = mask_all(rows, flags, LETTERS, MaskParams())
    assert [(m.prompt_id, m.sample, m.negative_mask) for m in masks] == [
        ("p/0", 0, [False, False]),
        ("p/0", 1, [False, True]),
        ("p/1", 0, [True, True]),
        ("p/1", 1, [False, False]),
    ]


def test_flag_of_an_unknown_completion_is_an_error():
    with pytest.raises(ValueError, match=r"\('p/7', 0\), which is no completion"):
        mask_all([completion(LETTERS, [0])], [flag(0, 1, "p/7")], LETTERS, MaskParams())


def test_completion_without_a_token_has_empty_masks():
    mask = masked(LETTERS, completion(LETTERS, []))
    assert (mask.negative_mask, mask.kept_mask) == ([], [])


def test_text_that_is_not_what_the_ids_say_is_an_error_without_a_flag_too():
    wrong = Completion("p/1", 0, "base", "in", [5], [0, 1], "ba", True)
    with pytest.raises(ValueError, match="2 token ids decode to 2 characters that"):
        mask_all([wrong], [], LETTERS, MaskParams())


def test_completions_are_taken_one_by_one_so_that_a_bar_shows_how_far_it_is(monkeypatch):
    seen = []
    monkeypatch.setattr(flagged, "mask_completion", lambda c, *_: seen.append(c))
    rows = [completion(LETTERS, [0])] * 3

    def watched():
        for i, row in enumerate(rows):
            assert len(seen) == i
            yield row

    mask_all(watched(), [], LETTERS, MaskParams())
    assert seen == rows


def test_known_kinds_of_tokenizer_need_no_decoding_token_by_token(tokenizer, monkeypatch):
    monkeypatch.setattr(alignment, "_spans_by_decoding", None)
    for ids in (tokenizer(ACCENTS).input_ids, range(len(tokenizer))):
        found = completion(tokenizer, ids)
        assert len(token_spans(tokenizer, ids, found.text)) == len(ids)


def test_pieces_that_do_not_add_up_to_the_text_are_not_believed():
    tokenizer = Tokenizer(models.BPE({"a</w>": 0, "b</w>": 1, "<eos>": 2, "<unk>": 3}, []))
    tokenizer.decoder = decoders.BPEDecoder()  # a word's end is a space, but not the last word's
    found = completion(fast(tokenizer), [0, 1, 2])
    assert found.text == "a b"
    assert masked(fast(tokenizer), found, (0, 1)).negative_mask == [True, False, False]
    assert masked(fast(tokenizer), found, (2, 3)).negative_mask == [False, True, False]


def test_white_space_inside_a_flagged_span_does_not_end_it():
    """The token of a paragraph's end has no character that counts, and stood for the span's end."""
    tokenizer = fast(
        Tokenizer(models.WordLevel({"a": 0, "b": 1, "\n\n": 2, "c": 3}, unk_token="a"))
    )
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    found = completion(tokenizer, [0, 2, 1, 3])
    assert found.text == "a\n\nbc"
    mask = masked(tokenizer, found, (0, 4), after_negative="end")
    assert mask.negative_mask == [True, False, True, False]
    apart = masked(tokenizer, found, (0, 1), (3, 4), after_negative="end")
    assert apart.negative_mask == [True, False, True, False]
