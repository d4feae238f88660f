"""Which characters of a completion's text each of its generated tokens holds.

The generated ids are the truth: offsets come from decoding them, never from tokenising the text.
Byte-level tokens that hold part of a character count as holding that character.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import Any, Self

from tnt.models import decode

_REPLACEMENT = "\ufffd"
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTE_OF_LETTER = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + i): byte for i, byte in enumerate(b for b in range(256) if b not in _PRINTABLE)
}
"""How byte-level tokenizers write bytes in the names of tokens (GPT-2's encoder.py)."""
_BYTE_OF_NAME = {f"<0x{byte:02X}>": byte for byte in range(256)}
"""The tokens of one byte that SentencePiece falls back to."""
_BEGINS = bytes(byte & 0xC0 != 0x80 for byte in range(256))
"""1 for the bytes that begin a character in UTF-8, 0 for those that continue one."""
_STAND_INS = {1: b"?", 2: "é".encode(), 3: _REPLACEMENT.encode()}
"""Characters of one, two and three bytes."""


def token_spans(
    tokenizer: Any, ids: Sequence[int], text: str, pieces: Pieces | None = None
) -> list[tuple[int, int]]:
    """Return the characters [start, end) of `text` that each token holds a part of.

    "a😀" in five tokens of a byte each gives (0, 1) and four times (1, 2). Special tokens hold no
    character. Bytes that are no UTF-8 hold the U+FFFD that stands for them in `text`.

    Args:
        tokenizer: The one whose ids they are.
        ids: As generated.
        text: What they decode to.
        pieces: The tokenizer's, where many calls share them.

    Raises:
        ValueError: `text` is not what the ids decode to.
    """
    check_text(tokenizer, ids, text)
    if pieces is None:
        pieces = Pieces.of(tokenizer)
    spans = None if pieces is None else pieces.spans(ids, text)
    return _spans_by_decoding(tokenizer, ids, text) if spans is None else spans


class Pieces(dict[int, bytes]):
    """The bytes that every id adds to a text, worked out from the tokenizer's own decoder, once.

    Nothing is taken on trust: `spans` is None unless the pieces of the ids, put together, are the
    text.
    """

    @classmethod
    def of(cls, tokenizer: Any) -> Self | None:
        """Return a tokenizer's, none as yet looked up; None if it is not of `tokenizers`."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        return None if backend is None else cls(backend)

    def __init__(self, backend: Any) -> None:
        """Take a tokenizer of the library `tokenizers`."""
        super().__init__()
        self.name_of = backend.id_to_token
        self.decode = " ".join if backend.decoder is None else backend.decoder.decode
        added = backend.get_added_tokens_decoder().values()
        self.skipped = {None, *(token.content for token in added if token.special)}
        self.byte_level = self.decode(["Ġ"]) == " "
        self.byte_fallback = self.decode(["<0xC3>", "<0xA9>"]) == "é"

    def __missing__(self, token: int) -> bytes:
        """Work out and keep what an id adds to a text, wherever it is not the first."""
        name = self.name_of(token)
        self[token] = piece = b"" if name in self.skipped else self.piece(name, ["a"])
        return piece

    def piece(self, name: str, before: list[str]) -> bytes:
        """Return what a token adds to `before`, which is empty or a single letter."""
        if self.byte_level:
            known = _BYTE_OF_LETTER.keys() >= {*name}
            return bytes(_BYTE_OF_LETTER[letter] for letter in name) if known else name.encode()
        if self.byte_fallback and _BYTE_OF_NAME.get(name, 0) >= 0x80:
            return bytes([_BYTE_OF_NAME[name]])
        return self.decode([*before, name])[len(before) :].encode()

    def spans(self, ids: Sequence[int], text: str) -> list[tuple[int, int]] | None:
        """Return the characters [start, end) of each token; None if the pieces do not add up."""
        found = [self[token] for token in ids]
        if not self.byte_level:  # the text's first token has lost its space, or never had one
            for i, name in enumerate(map(self.name_of, ids)):
                if name not in self.skipped:
                    found[i] = self.piece(name, [])
                    break
        if self.byte_fallback and _REPLACEMENT in text:
            self._spoil(found, ids)
        data = b"".join(found)
        if data.decode(errors="replace") != text:
            return None
        if _REPLACEMENT in text:
            data = _repaired(data)
        begun = [*accumulate(data.translate(_BEGINS), initial=0)]  # characters, by bytes read
        ends = [*accumulate(map(len, found))]
        return [
            (begun[start + 1] - 1 if start < end else begun[end], begun[end])
            for start, end in zip([0, *ends], ends, strict=False)
        ]

    def _spoil(self, found: list[bytes], ids: Sequence[int]) -> None:
        """Give every byte of a run that is no UTF-8 a U+FFFD of its own, as the decoder does."""
        names = [self.name_of(token) for token in ids]
        shown = [i for i, name in enumerate(names) if name not in self.skipped]
        for is_run, places in groupby(shown, key=lambda i: names[i] in _BYTE_OF_NAME):
            run = [*places]
            if is_run and _repaired(data := b"".join(found[i] for i in run)) != data:
                for i in run:
                    found[i] = b"\xff"


def _repaired(data: bytes) -> bytes:
    """Return `data` with every U+FFFD that decoding would show as a character just as long."""
    while True:
        try:
            data.decode()
            return data
        except UnicodeDecodeError as error:
            stand_in = _STAND_INS[error.end - error.start]
            data = data[: error.start] + stand_in + data[error.end :]


def _spans_by_decoding(tokenizer: Any, ids: Sequence[int], text: str) -> list[tuple[int, int]]:
    """Return the characters [start, end) of each token, for any tokenizer, slowly.

    Every token is decoded behind the settled token before it, so that word pieces, leading spaces
    and split characters come out as they did in `text`. Tokens beside a U+FFFD, which may be an
    incomplete character or one that was written, are not told apart: all of them hold it.
    """
    special = {
        token
        for token in {*ids}
        if decode(tokenizer, [token]) != decode(tokenizer, [token], skip_special=False)
    }
    visible = [i for i, token in enumerate(ids) if token not in special]

    def shown_by(start: int, end: int) -> str:
        return decode(tokenizer, [ids[i] for i in visible[start:end]])

    spans: list[tuple[int, int]] = []
    context, read = 0, 0  # tokens context:read are the text before token read, whose text is open
    settled = 0  # characters of `text` before token read
    shown = 0  # characters that tokens read:n hold in full
    for n in range(len(visible)):
        fresh = shown_by(context, n + 1)[len(shown_by(context, read)) :]
        whole = len(fresh.rstrip(_REPLACEMENT))  # trailing ones are one character still incomplete
        spans.append((settled + shown, settled + min(len(fresh), whole + 1)))
        shown = whole
        if fresh and whole == len(fresh) and text.startswith(fresh, settled):
            if _REPLACEMENT in fresh:
                spans[read:] = [(settled, settled + whole)] * (n + 1 - read)
            context, read, settled, shown = read, n + 1, settled + whole, 0
    if settled < len(text):
        spans[read:] = [(settled, len(text))] * (len(visible) - read)
    for i, token in enumerate(ids):
        if token in special:
            end = spans[i - 1][1] if i else 0
            spans.insert(i, (end, end))
    return spans


def check_text(tokenizer: Any, ids: Sequence[int], text: str) -> None:
    """Raise a ValueError if `text` is not what the ids decode to."""
    if (decoded := decode(tokenizer, ids)) != text:
        raise ValueError(
            f"A completion's {len(ids)} token ids decode to {len(decoded)} characters that are not "
            f"its text of {len(text)}. Re-run generate with this tokenizer."
        )
