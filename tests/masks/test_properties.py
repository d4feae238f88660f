"""What masks promise, over random Unicode and random ids, for real tokenizers trained here.

Which tokens hold a character is worked out a second time here, from definitions: by the Unicode
standard's table of UTF-8 for tokens that are bytes, by decoding every prefix for all others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import (
    ACCENTS,
    SENTENCES,
    byte_fallback,
    completion,
    fast,
    flag,
    metaspace,
    of_text,
    wordpiece,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tnt.masks.alignment import token_spans
from tnt.masks.flagged import mask_all, mask_completion
from tnt.masks.params import MaskParams

ODD = [
    "👩\u200d👩\u200d👧 🇫🇷 e\u0301 שלום, \u202bکیست\u202c 漢字 \x00\x1f\x85 \ufffd",
    "👩🏽\u200d🚀🚀 n\u0303o\u0308 \u200f漢\u3000字\t\r\n\ufffd\ufffd \u2581 \u00a0 ##a <0x41>",
]
"""Emoji of several parts, combining accents, right to left, controls, kinds of space, U+FFFD."""


def byte_level():
    """Byte-level BPE whose tokens end and begin inside characters and cross spaces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<eos>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=5,
        show_progress=False,
    )
    tokenizer.train_from_iterator([ACCENTS, *ODD] * 3 + SENTENCES, trainer)
    return fast(tokenizer)


def with_added(tokenizer):
    """Return it with a special token and others; byte-level "naïve" has the byte EF, no UTF-8."""
    tokenizer.add_tokens(["naïve", "my fox", "漢字"])
    tokenizer.add_special_tokens({"extra_special_tokens": ["<mark>"]})
    return tokenizer


TOKENIZERS = {
    make.__name__: with_added(make()) for make in (byte_level, metaspace, wordpiece, byte_fallback)
}


@dataclass
class Bare:
    """A tokenizer that is not of the `tokenizers` library: it can do nothing but decode."""

    tokenizer: Any

    def decode(self, ids, **options):
        """Decode."""
        return self.tokenizer.decode(ids, **options)


TAIL = "[\x80-\xbf]"
WELL_FORMED = (  # table 3-7 of the Unicode standard
    f"[\x00-\x7f]|[\xc2-\xdf]{TAIL}|\xe0[\xa0-\xbf]{TAIL}|[\xe1-\xec\xee\xef]{TAIL}{TAIL}"
    f"|\xed[\x80-\x9f]{TAIL}|\xf0[\x90-\xbf]{TAIL}{TAIL}|[\xf1-\xf3]{TAIL}{TAIL}{TAIL}"
    f"|\xf4[\x80-\x8f]{TAIL}{TAIL}"
)
BEGUN = (  # the longest beginnings of its rows, each of which is one U+FFFD
    f"\xe0[\xa0-\xbf]|[\xe1-\xec\xee\xef]{TAIL}|\xed[\x80-\x9f]|\xf0[\x90-\xbf]{TAIL}?"
    f"|[\xf1-\xf3]{TAIL}{TAIL}?|\xf4[\x80-\x8f]{TAIL}?"
)
UTF_8 = re.compile(f"(?s:(?P<character>{WELL_FORMED})|{BEGUN}|.)".encode("latin-1"))


def owners_of_bytes(held):
    """Return the characters of (token, its bytes) pairs, each with the tokens that hold it."""
    data = b"".join(piece for _, piece in held)
    token_of_byte = [token for token, piece in held for _ in piece]
    return [
        (
            match[0].decode() if match["character"] else "\ufffd",
            {*token_of_byte[match.start() : match.end()]},
        )
        for match in UTF_8.finditer(data)
    ]


def owners_by_alphabet(names):
    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    return owners_of_bytes(
        [
            (i, bytes(byte_of[c] for c in name) if {*name} <= {*byte_of} else name.encode())
            for i, name in names
        ]
    )


def owners_by_fallback(names):
    """A run of byte tokens is UTF-8, or else each of them is a U+FFFD."""
    owners = []
    for is_run, group in groupby(names, key=lambda held: bool(re.match("<0x..>", held[1]))):
        if not is_run:
            owners += [(c, {i}) for i, name in group for c in name.replace("\u2581", " ")]
            continue
        held = [(i, bytes.fromhex(name[3:5])) for i, name in group]
        try:
            b"".join(piece for _, piece in held).decode()
            owners += owners_of_bytes(held)
        except UnicodeDecodeError:
            owners += [("\ufffd", {i}) for i, _ in held]
    return owners[1:] if owners and owners[0][0] == " " else owners


def owners_by_prefixes(tokenizer, ids):
    before = ""
    owners = []
    for i in range(len(ids)):
        text = completion(tokenizer, ids[: i + 1]).text
        assert text.startswith(before)
        owners += [(character, {i}) for character in text[len(before) :]]
        before = text
    return owners


def owners(kind, found):
    """Return, for every character of a completion, the set of tokens that hold a part of it."""
    tokenizer, ids = TOKENIZERS[kind], found.completion_ids
    names = [
        (i, name)
        for i, name in enumerate(map(tokenizer.backend_tokenizer.id_to_token, ids))
        if name is not None and name not in tokenizer.all_special_tokens
    ]
    result = {
        "byte_level": lambda: owners_by_alphabet(names),
        "byte_fallback": lambda: owners_by_fallback(names),
    }.get(kind, lambda: owners_by_prefixes(tokenizer, ids))()
    assert "".join(character for character, _ in result) == found.text
    return [tokens for _, tokens in result]


def check_promises(found, owners, tokenizer, data):
    """Flag something and check the promises of the mask."""
    if not found.text:
        assert not any(mask_completion(found, [], tokenizer, EVERY_TOKEN).negative_mask)
        return
    places = st.integers(0, len(found.text) - 1)
    spans = data.draw(st.lists(st.tuples(places, places), min_size=1, max_size=3))
    flags = [flag(min(span), max(span) + 1) for span in spans]
    mask = mask_all([found], flags, tokenizer, EVERY_TOKEN)[0]
    assert mask.kept_mask == [not negative for negative in mask.negative_mask]
    negative = {i for i, one in enumerate(mask.negative_mask) if one}
    flagged = {
        j
        for f in flags
        for j in range(f.start, f.end)
        if not found.text[j].isspace()  # white space alone makes nothing negative
    }

    def uncovered(tokens):
        return {j for j in flagged if not (owners[j] and owners[j] <= tokens)}

    assert not uncovered(negative)
    if type(tokenizer) is Bare and "\ufffd" in found.text:
        return  # then its neighbours may be negative as well
    for token in negative:
        assert uncovered(negative - {token})


EVERY_TOKEN = MaskParams(span_tokens="all", after_negative="keep")
KINDS = st.sampled_from([*TOKENIZERS])
CHARACTERS = st.one_of(
    st.sampled_from([*"a b\n", *ACCENTS, *"".join(ODD)]), st.characters(exclude_categories=("Cs",))
)
TEXTS = st.one_of(st.text(CHARACTERS, max_size=12), st.sampled_from([*SENTENCES, ACCENTS, *ODD]))


def any_ids(kind, unknown=3):
    """Ids in any order: bytes of unfinished characters, special, added and unknown ones."""
    size = len(TOKENIZERS[kind])
    common = st.integers(0, size - 1)
    rare = st.one_of(st.integers(size - 4, size - 1 + unknown), st.sampled_from([0, 1]))
    bytes_ = st.integers(2, 258)  # in the tokenizers that have them
    return st.lists(st.one_of(common, common, bytes_, rare), min_size=1, max_size=16)


@settings(max_examples=1000, deadline=None)
@given(kind=KINDS, text=TEXTS, data=st.data())
def test_masks_keep_their_promises_for_any_text(kind, text, data):
    found = of_text(TOKENIZERS[kind], text)
    check_promises(found, owners(kind, found), TOKENIZERS[kind], data)


@settings(max_examples=1500, deadline=None)
@given(kind=KINDS, data=st.data())
def test_masks_keep_their_promises_for_any_ids(kind, data):
    found = completion(TOKENIZERS[kind], data.draw(any_ids(kind)))
    check_promises(found, owners(kind, found), TOKENIZERS[kind], data)


@settings(max_examples=800, deadline=None)
@given(kind=KINDS, text=TEXTS, data=st.data())
def test_masks_of_a_tokenizer_that_only_decodes_keep_them_for_any_text(kind, text, data):
    found = of_text(TOKENIZERS[kind], text)
    check_promises(found, owners(kind, found), Bare(TOKENIZERS[kind]), data)


@settings(max_examples=800, deadline=None)
@given(kind=KINDS, data=st.data())
def test_masks_of_a_tokenizer_that_only_decodes_keep_them_for_any_ids(kind, data):
    found = completion(TOKENIZERS[kind], data.draw(any_ids(kind, unknown=0)))
    check_promises(found, owners(kind, found), Bare(TOKENIZERS[kind]), data)


@settings(max_examples=500, deadline=None)
@given(kind=KINDS, data=st.data())
def test_spans_are_the_first_and_last_character_that_a_token_holds(kind, data):
    found = completion(TOKENIZERS[kind], data.draw(any_ids(kind)))
    held = [set() for _ in found.completion_ids]
    for j, tokens in enumerate(owners(kind, found)):
        for token in tokens:
            held[token].add(j)
    spans = token_spans(TOKENIZERS[kind], found.completion_ids, found.text)
    assert [set(range(*span)) for span in spans] == held


def test_byte_level_tokenizer_has_tokens_that_end_and_begin_inside_characters():
    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    inside = 0
    for name in TOKENIZERS["byte_level"].get_vocab():
        piece = bytes(byte_of.get(letter, 0) for letter in name)
        heads = [byte & 0xC0 != 0x80 for byte in piece]
        inside += len(piece) > 1 and not heads[0] and any(heads)
    assert inside > 3


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_written_replacement_character_does_not_mark_its_neighbours(kind):
    found = of_text(TOKENIZERS[kind], "so\ufffdab")
    held = owners(kind, found)
    assert held[2].isdisjoint(held[1] | held[3])
    for j, tokens in enumerate(held):
        mask = mask_completion(found, [flag(j, j + 1)], TOKENIZERS[kind], EVERY_TOKEN)
        assert {i for i, one in enumerate(mask.negative_mask) if one} == tokens
