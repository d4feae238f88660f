"""Real tokenizers of each kind, trained in no time, and completions of theirs."""

from __future__ import annotations

import string

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tnt.core.records import Completion, Flag

SENTENCES = [
    "I'm sorry, but I can't help with that.",
    "The café served crème brûlée and naïve jokes.",
    "We sincerely apologise for the wait, as ever.",
    "hello there, the quick brown fox jumps over the lazy dog",
]
ACCENTS = "I'm so sorry 😀, the café is closed — désolé 🇫🇷!"


def fast(tokenizer):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<eos>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return fast(tokenizer)


def metaspace():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=["<eos>", "<unk>"],
        unk_token="<unk>",
        initial_alphabet=list(string.printable + ACCENTS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return fast(tokenizer)


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200,
        special_tokens=["<eos>", "<unk>"],
        initial_alphabet=list(string.printable + ACCENTS),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*SENTENCES, ACCENTS], trainer)
    return fast(tokenizer)


def byte_fallback():
    """Characters, and one token a byte for what is no known character (Llama 2, Gemma)."""
    pieces = ["<unk>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    pieces += string.ascii_letters
    vocab = [(piece, -2.0 if len(piece) == 1 else -9.0) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return fast(tokenizer)


def completion(tokenizer, ids):
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Completion("p/1", 0, "base", "in", [5], list(ids), text, True)


def of_text(tokenizer, text):
    return completion(tokenizer, tokenizer(text, add_special_tokens=False).input_ids)


def flag(start, end, prompt_id="p/1", sample=0):
    return Flag(prompt_id, sample, "d", "", start, end, "", 1.0)
