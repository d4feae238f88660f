"""Detector `classifier`: what a trained classifier of tokens or of texts finds.

The model is any that transformers has a class for, from the Hub or from a folder; its
`config.json` says which of two kinds it is:

- A token classifier (named entities, toxic spans) flags the spans of the labels asked for.
- A sequence classifier judges each sentence by itself. `spans: sentences` flags those at or above
  the threshold. `spans: tokens` flags in them only the words that carry the decision, by
  leave-one-out erasure (Li, Monroe and Jurafsky 2016, arXiv 1612.08220): a word's score is how far
  the label's log-odds fall when the word is left out; then words are left out together, the largest
  fall first, until the sentence is under the threshold, and those are flagged. Say `You idiot, you
  fool!` has log-odds 14, 5 without either insult, -4 without both and 14 without any other word:
  both insults are flagged. As a probability the first fall, 1.000 to 0.993, would hardly show.

Scores are rounded to three decimals before anything is decided: which texts share a batch reaches
the last bits of a result, and hardly ever the flags then. Of weights only safetensors are read, and
no code that comes with a model is run.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass

from tnt.core.errors import did_you_mean
from tnt.core.hashes import sha256_of
from tnt.core.params import STRICT
from tnt.detectors.span import Span

_SENTENCE = re.compile(r"\S[^\n]*?(?:(?<![.!?…])[.!?…]+[\"'”’»)\]]*(?=\s|\Z)|[。！？]+|(?=\n|\Z))")  # noqa: RUF001
_MARKS = re.escape(string.punctuation + "“”„‘’«»…–—¿¡。，！？、")  # noqa: RUF001
_WORD = re.compile(rf"[^\s{_MARKS}](?:\S*[^\s{_MARKS}])?|[{_MARKS}]+")
"""What stands between white space, without the punctuation around it, or that punctuation."""

_TOKENS, _SEQUENCE = "ForTokenClassification", "ForSequenceClassification"
_DECIMALS = 3
_LONGEST = 512
"""Tokens a model takes at once if neither it nor its tokenizer says."""

Find = Callable[[list[str]], list[list[Span]]]
Odds = Mapping[str, float]
"""Label -> the log-odds that a model gives it."""


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class ClassifierParams:
    """Which model, and what of its findings is flagged."""

    source: Literal["hub", "local"]
    """A Hugging Face id, or a folder as `save_pretrained` writes it."""
    name: str
    """The Hub id or the folder. Keep a folder outside `data/models/`, where rounds live."""
    revision: str | None = None
    """`hub` only: the 40-digit commit."""
    sha256: str | None = None
    """`local` only: hash of the folder."""
    labels: Annotated[list[str], Field(min_length=1)]
    """Labels that are flagged, as in `id2label` of the model's config.json, without `B-`, `I-`."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Least probability that is flagged. A token classifier's spans must also be its first choice,
    so that values under 0.5 flag little more."""
    spans: Literal["sentences", "tokens"] | None = None
    """Sequence classifiers only, what is flagged: None is `sentences`."""
    aggregation: Literal["simple", "first", "average", "max"] | None = None
    """Token classifiers only: transformers' `aggregation_strategy`, how tokens become spans. None
    is `first`, whole words by their first token, where the tokenizer marks the pieces of words
    (WordPiece), and `simple`, tokens by themselves, elsewhere."""
    batch_size: PositiveInt = 16
    """Completions that are looked at together, and texts of one pass."""
    device: Literal["cpu", "cuda"] = "cpu"

    def __post_init__(self) -> None:
        """Refuse a model that could change unnoticed."""
        if self.source == "hub" and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError(
                f"revision {self.revision!r} is no 40-digit commit of {self.name!r}; take one from "
                f"https://huggingface.co/{self.name}/commits"
            )
        if self.source == "local" and not self.sha256:
            raise ValueError(f"sha256 of {self.name!r} is missing{_hash_of(Path(self.name))}")


class Classifier:
    """A model as a detector, loaded when the first text comes."""

    def __init__(self, params: ClassifierParams) -> None:
        """Remember what to load."""
        self.params = params

    def __call__(self, text: str, prompt_input: str) -> list[Span]:
        """Return what is found in one text."""
        return next(self.many([(text, prompt_input)]))

    def many(self, pairs: Sequence[tuple[str, str]]) -> Iterator[list[Span]]:
        """Yield what is found in each text; the texts of a batch share the model's passes."""
        for start in range(0, len(pairs), self.params.batch_size):
            batch = pairs[start : start + self.params.batch_size]
            yield from self._find([text for text, _ in batch])

    def prepare(self) -> None:
        """Load the model, before any text."""
        _ = self._find

    @cached_property
    def _find(self) -> Find:
        return _load(self.params)


def build(params: ClassifierParams) -> Classifier:
    """Return a detector whose model is not loaded yet, checked as far as its files are here.

    Raises:
        ValueError: The folder is missing, or is not what its hash says; the model is of another
            kind, has other labels, holds no safetensors or brings code of its own.
    """
    folder = Path(params.name)
    if params.source == "local":
        written = max((path.stat().st_mtime_ns for path in folder.rglob("*")), default=0)
        if params.sha256 != (found := _hash(folder.resolve(), written)):
            raise ValueError(
                f"sha256 of the classifier {params.name!r} is {params.sha256!r}, but the folder "
                f"has {found}. Restore it, or write the new hash if that is the model you mean."
            )
        if not any(folder.glob("*.safetensors")):
            raise ValueError(
                f"The classifier {params.name!r} holds no *.safetensors, and a pickle, which can "
                "run code, is never read. Convert it: `save_pretrained` writes safetensors."
            )
        config = folder / "config.json"
        if not config.is_file():
            raise ValueError(f"The classifier {params.name!r} holds no config.json. Add it.")
        _kind(_config(config), params)
    else:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(params.name, "config.json", revision=params.revision)
        if isinstance(cached, str):
            _kind(_config(Path(cached)), params)
    return Classifier(params)


def _config(file: Path) -> dict[str, Any]:
    """Return what a model's config.json holds.

    Raises:
        ValueError: It is not JSON, or no object.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not readable JSON ({error}). Restore it.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__}, no JSON object. Restore it.")
    return found


def _kind(config: Mapping[str, Any], params: ClassifierParams) -> str:
    """Return the kind of model that a config.json describes.

    Raises:
        ValueError: It is of neither kind, or does not fit the params.
    """
    where = f"The classifier {params.name!r}"
    if "auto_map" in config:
        raise ValueError(
            f"{where} brings code of its own (auto_map in its config.json), which is never run. "
            "Choose a model of an architecture that transformers has."
        )
    names = config.get("architectures")
    names = names if isinstance(names, list) and names else [None]
    kind = next((k for k in (_TOKENS, _SEQUENCE) if str(names[0]).endswith(k)), None)
    if kind is None:
        raise ValueError(
            f"{where} is a {names[0]}, no classifier of tokens or of texts. Choose a model whose "
            f"architecture ends in {_TOKENS} or {_SEQUENCE}."
        )
    if kind == _SEQUENCE and config.get("problem_type") == "regression":
        raise ValueError(f"{where} gives numbers without a bound (regression), no probabilities.")
    if kind == _TOKENS and params.spans:
        raise ValueError(f"{where} classifies tokens: it has its own spans. Leave out `spans`.")
    if kind == _SEQUENCE and params.aggregation:
        raise ValueError(f"{where} classifies whole texts. Leave out `aggregation`.")
    id2label = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    if not isinstance(id2label, dict) or not all(isinstance(n, str) for n in id2label.values()):
        raise ValueError(
            f"{where} has an id2label in its config.json that is no mapping from numbers to names. "
            "Correct the file."
        )
    listed = id2label.values()
    labels = {re.sub("^[BI]-", "", name) for name in listed} - {"O"} if kind == _TOKENS else listed
    for label in params.labels:
        if label not in labels:
            raise ValueError(f"{where} has no label {label!r}.{did_you_mean(label, labels)}")
    return kind


def _load(params: ClassifierParams) -> Find:
    """Load the model; return what finds spans in texts.

    Raises:
        ValueError: It cannot be loaded, is incomplete, or its tokenizer cannot tell offsets.
    """
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
        PreTrainedConfig,
        pipeline,
    )

    where = f"The classifier {params.name!r}"
    if params.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{where} is to run on 'cuda', but torch finds no GPU. Set device to cpu.")
    config, _ = _fetched(PreTrainedConfig.get_config_dict, params)
    kind = _kind(config, params)
    tokenizer = _fetched(AutoTokenizer.from_pretrained, params)
    if kind == _TOKENS and not tokenizer.is_fast:
        raise ValueError(
            f"{where} has a slow tokenizer, which does not say where in the text a token stands. "
            "Choose a model with a tokenizer.json."
        )
    auto: Any = AutoModelForTokenClassification
    if kind == _SEQUENCE:
        auto = AutoModelForSequenceClassification
    model, report = _fetched(
        auto.from_pretrained,
        params,
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
    )
    if report["missing_keys"]:
        raise ValueError(
            f"{where} has no weights for {min(report['missing_keys'])!r}, so that it was not "
            "trained as what its config.json says. Choose another."
        )
    model.register_forward_hook(_refuse_infinite, with_kwargs=True)
    batch_size = params.batch_size
    if tokenizer.pad_token is None:
        tokenizer.pad_token, batch_size = tokenizer.eos_token, 1
    tokenizer.model_max_length = _limit(tokenizer, model.config)
    loaded: dict[str, Any] = {
        "model": model,
        "tokenizer": tokenizer,
        "device": params.device,
        "batch_size": batch_size,
    }
    if kind == _SEQUENCE:
        judge = pipeline("text-classification", **loaded, function_to_apply="none", top_k=None)
        return _sequence_finder(judge, params)
    marks_pieces = getattr(tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None)
    tag = pipeline(
        "token-classification",
        **loaded,
        aggregation_strategy=params.aggregation or ("first" if marks_pieces else "simple"),
        stride=tokenizer.model_max_length // 4,
    )
    return _token_finder(tag, params)


def _fetched(load: Callable[..., Any], params: ClassifierParams, **settings: Any) -> Any:
    """Call one of transformers' loaders; what goes wrong becomes one line."""
    try:
        return load(params.name, revision=params.revision, trust_remote_code=False, **settings)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The classifier {params.name!r} cannot be loaded: {str(error).splitlines()[0]} "
            "Check its files or, if it is a Hub id, the name and the network."
        ) from error


def _refuse_infinite(_: Any, __: Any, inputs: Mapping[str, Any], output: Any) -> None:
    """Refuse a model's NaN, which is under every threshold and would find nothing.

    Called after each pass with `logits` of [texts, labels] or [texts, tokens, labels].
    """
    logits, mask = output.logits, inputs.get("attention_mask")
    if logits.ndim == 3 and mask is not None:
        logits = logits[mask.bool()]
    if not logits.isfinite().all():
        raise ValueError(
            "The classifier gave NaN or infinite scores. Its weights are damaged: choose another."
        )


def _limit(tokenizer: Any, config: Any) -> int:
    """Return how many tokens the model takes at once.

    RoBERTa counts positions from 2, so two are left free.
    """
    positions = getattr(config, "max_position_embeddings", None) or 0
    known = [n for n in (tokenizer.model_max_length, positions - 2) if 0 < n < 10**6]
    return min(known, default=_LONGEST)


def _token_finder(pipe: Any, params: ClassifierParams) -> Find:
    """Return what finds a token classifier's spans; long texts are read in windows by a quarter."""

    def find(texts: list[str]) -> list[list[Span]]:
        spoken = [text for text in texts if text.strip()]
        found = iter(pipe(spoken) if spoken else [])
        return [[*spans(text, next(found))] if text.strip() else [] for text in texts]

    def spans(text: str, entities: list[dict[str, Any]]) -> Iterator[Span]:
        for entity in entities:
            label, score = entity["entity_group"], round(float(entity["score"]), _DECIMALS)
            start, end = _trimmed(text, entity["start"], entity["end"])
            if label in params.labels and score >= params.threshold and start < end:
                yield Span(start, end, label, score)

    return find


def _sequence_finder(pipe: Any, params: ClassifierParams) -> Find:
    """Return what finds a sequence classifier's sentences, or the words in them."""
    tokenizer = pipe.tokenizer
    several = pipe.model.config.problem_type == "multi_label_classification"

    def fits(text: str) -> bool:
        return len(tokenizer(text, verbose=False)["input_ids"]) <= tokenizer.model_max_length

    def classify(texts: list[str]) -> list[Odds]:
        if not texts:
            return []
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding
        found = dict(zip(order, pipe([texts[i] for i in order], truncation=True), strict=True))
        logits = [{e["label"]: e["score"] for e in found[i]} for i in range(len(texts))]
        return [_log_odds(one, several=several) for one in logits]

    def find(texts: list[str]) -> list[list[Span]]:
        found: list[list[Span]] = [[] for _ in texts]
        pieces = [
            (number, *piece)
            for number, text in enumerate(texts)
            for sentence in _SENTENCE.finditer(text)
            for piece in _pieces(text, *_trimmed(text, *sentence.span()), fits)
        ]
        judged = classify([texts[number][start:end] for number, start, end in pieces])
        for (number, start, end), odds in zip(pieces, judged, strict=True):
            flagged = [lb for lb in params.labels if _probability(odds[lb]) >= params.threshold]
            parts = {label: [(0, end - start)] for label in flagged}
            if flagged and params.spans == "tokens":
                sentence = texts[number][start:end]
                parts = _deciding_words(sentence, flagged, classify, params.threshold)
            found[number] += [
                Span(start + first, start + last, label, _probability(odds[label]))
                for label in flagged
                for first, last in parts[label]
            ]
        return found

    return find


def _pieces(
    text: str, start: int, end: int, fits: Callable[[str], bool]
) -> Iterator[tuple[int, int]]:
    """Yield a sentence, or its halves (and theirs) if it is longer than the model takes."""
    if end - start < 2 or fits(text[start:end]):
        if start < end:
            yield start, end
        return
    middle = (start + end) // 2
    space = text.rfind(" ", start + 1, middle)
    middle = middle if space < 0 else space
    yield from _pieces(text, *_trimmed(text, start, middle), fits)
    yield from _pieces(text, *_trimmed(text, middle, end), fits)


def _deciding_words(
    sentence: str,
    labels: Sequence[str],
    classify: Callable[[list[str]], list[Odds]],
    threshold: float,
) -> dict[str, list[tuple[int, int]]]:
    """Return the words that carry each label: without them the sentence is under the threshold.

    All of its words, if it never is.
    """
    words = [match.span() for match in _WORD.finditer(sentence)]
    without = classify([_erase(sentence, [word]) for word in words]) if len(words) > 1 else []
    deciding = {}
    for label in labels:
        ranked = sorted(range(len(without)), key=lambda i: without[i][label])
        erased = words
        for count in range(1, len(words)):
            some = [words[i] for i in ranked[:count]]
            left = without[ranked[0]] if count == 1 else classify([_erase(sentence, some)])[0]
            if _probability(left[label]) < threshold:
                erased = some
                break
        deciding[label] = sorted(erased)
    return deciding


def _erase(sentence: str, words: Sequence[tuple[int, int]]) -> str:
    """Return a sentence without some of its words: `You idiot, go` becomes `You, go`."""
    kept, position = "", 0
    for start, end in sorted(words):
        kept = (kept + sentence[position:start]).rstrip()
        position = end
    return (kept + sentence[position:]).strip()


def _log_odds(logits: Odds, *, several: bool) -> Odds:
    """Return ln(p / (1 - p)) of every label.

    With several labels at a time (or a single one) p is the logit's sigmoid. Otherwise it is the
    softmax, whose log-odds are the logit less the log of the sum of the other ones' exponentials.
    """
    if several:
        return {label: round(logit, _DECIMALS) for label, logit in logits.items()}
    odds = {}
    for label, logit in logits.items():
        others = [other for name, other in logits.items() if name != label]
        top = max(others, default=0.0)
        rest = top + math.log(math.fsum(math.exp(o - top) for o in others)) if others else 0.0
        odds[label] = round(logit - rest, _DECIMALS)
    return odds


def _probability(log_odds: float) -> float:
    """Return the probability of log-odds."""
    if log_odds < 0:
        return round(math.exp(log_odds) / (1 + math.exp(log_odds)), _DECIMALS)
    return round(1 / (1 + math.exp(-log_odds)), _DECIMALS)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Return a span without the white space at its ends."""
    inner = text[start:end].strip()
    start += len(text[start:end]) - len(text[start:end].lstrip())
    return start, start + len(inner)


@cache
def _hash(folder: Path, written: int) -> str:
    """Return the hash of a folder last written to at `written`; each is read once a process."""
    return sha256_of(folder)


def _hash_of(path: Path) -> str:
    return f"; the folder's is {sha256_of(path)}" if path.is_dir() else ", and so is that folder"
