"""The `classifier` detector, on models whose weights are set by hand so that known words decide."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertTokenizerFast,
    ByT5Tokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForTokenClassification,
)

from tnt import detectors
from tnt.core.hashes import sha256_of
from tnt.core.params import load_yaml
from tnt.core.records import Completion
from tnt.detectors import classifier, running
from tnt.detectors.classifier import ClassifierParams, build
from tnt.detectors.span import Span
from tnt.project import checks

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "docs" / "recipes" / "toxicity.yaml"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXT = "What a day. You idiot, go home! Fine."
POSITIONS = 32
INSULTS = {"idiot": "insult", "fool": "insult", "kill": "threat"}


def save_bert(folder, words, labels, *, tokens=False, **config):
    """Save a BERT in which every word of a kind adds to the logit of its label.

    A word's embedding has +1 and -1 at its label's two coordinates, all other words at the last
    two, so that layer norms keep what they are. Attention is uniform and copies: after it [CLS]
    holds, at a label's first coordinate, the share of its words in the sentence.

    Args:
        folder: Where to.
        words: Word or word piece -> its label.
        labels: Names of the labels, in order.
        tokens: Whether the model classifies tokens.
        config: Passed on.
    """
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *words])}
    width = 2 * len(labels) + 2
    settings = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=1,
        max_position_embeddings=POSITIONS + 2,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        **config,
    )
    model = (BertForTokenClassification if tokens else BertForSequenceClassification)(settings)
    for name, weights in model.named_parameters():
        weights.data.zero_()
        if "LayerNorm.weight" in name:
            weights.data.fill_(1.0)
    embedding = model.bert.embeddings.word_embeddings.weight.data
    embedding[:, -2:] = torch.tensor([1.0, -1.0])
    for word, label in words.items():
        first = 2 * labels.index(label)
        embedding[vocabulary[word]] = 0.0
        embedding[vocabulary[word], first : first + 2] = torch.tensor([1.0, -1.0])
    if tokens:
        model.classifier.weight.data[:, 0:-2:2] = 4 * torch.eye(len(labels))
        model.classifier.bias.data[labels.index("O")] = 3.0
    else:
        layer = model.bert.encoder.layer[0]
        copied = (layer.attention.self.value, layer.attention.output.dense, model.bert.pooler.dense)
        for copy in copied:
            copy.weight.data = torch.eye(width)
        model.classifier.weight.data[:, 0:-2:2] = 100 * torch.eye(len(labels))
        model.classifier.bias.data.fill_(-3.0)
    model.save_pretrained(folder)
    vocab_file = folder / "vocab.txt"
    vocab_file.write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizerFast(vocab=str(vocab_file), do_lower_case=True).save_pretrained(folder)


@pytest.fixture(scope="module")
def toxic(tmp_path_factory):
    """A classifier of texts that may have several labels."""
    folder = tmp_path_factory.mktemp("toxic")
    save_bert(folder, INSULTS, ["insult", "threat"], problem_type="multi_label_classification")
    return folder


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """A classifier of tokens."""
    folder = tmp_path_factory.mktemp("names")
    words = {
        "ann": "B-PER", "lee": "I-PER", "rene": "B-PER", "lille": "B-LOC", "mac": "B-PER",
        "##beth": "O", "went": "O", "to": "O", "and": "O", "met": "O",
    }  # fmt: skip
    save_bert(folder, words, ["O", "B-PER", "I-PER", "B-LOC"], tokens=True)
    return folder


@pytest.fixture
def broken(toxic, tmp_path):
    """Return a function that copies the classifier and changes its config.json."""

    def make(**config):
        folder = tmp_path / "broken"
        shutil.copytree(toxic, folder)
        path = folder / "config.json"
        values = json.loads(path.read_text()) | config
        path.write_text(json.dumps(values))
        return folder

    return make


def params(folder, **changes):
    given = {"source": "local", "name": str(folder), "sha256": sha256_of(folder)}
    return ClassifierParams(**{**given, **changes})


def found(detect, text):
    return [(text[s.start : s.end], s.label) for s in detect(text, "")]


def logit(insults, tokens, labels):
    """Return what `save_bert` makes of a sentence: 100 tanh of [CLS]'s first coordinate, less 3.

    Layer norm scales the embeddings' +1 and -1 by s = sqrt(width / 2). [CLS] has s at the neutral
    coordinate and gets the mean of all tokens: s * share and s * (2 - share), normed again.
    """
    share, width = insults / tokens, 2 * labels + 2
    norm = math.sqrt(2 * (share**2 + (2 - share) ** 2) / width)
    return 100 * math.tanh(share / norm) - 3


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_sentences_with_the_label_are_flagged(toxic):
    [span] = build(params(toxic, labels=["insult"]))(TEXT, "")
    assert TEXT[span.start : span.end] == "You idiot, go home!"
    # [CLS] you idiot , go home ! [SEP]
    assert span == Span(12, 31, "insult", round(sigmoid(logit(1, 8, 2)), 3))


def test_only_the_labels_asked_for_are_flagged(toxic):
    text = "Idiot, I kill you. Kill. Go."
    first = "Idiot, I kill you."
    both = build(params(toxic, labels=["insult", "threat"]))
    assert found(both, text) == [(first, "insult"), (first, "threat"), ("Kill.", "threat")]
    assert found(build(params(toxic, labels=["insult"])), text) == [(first, "insult")]


def test_threshold_is_the_least_probability(toxic):
    # 24 times "go": [CLS] idiot go ... go [SEP] are 27 tokens
    text = "idiot" + " go" * 24
    score = round(sigmoid(logit(1, 27, 2)), 3)
    assert 0.5 < score < 0.99
    for threshold, count in ((score - 0.001, 1), (score, 1), (score + 0.001, 0)):
        detect = build(params(toxic, labels=["insult"], threshold=threshold))
        assert [span.score for span in detect(text, "")] == [score] * count


def test_one_label_at_a_time_is_a_softmax(tmp_path):
    save_bert(tmp_path, INSULTS, ["insult", "threat"])
    [span] = build(params(tmp_path, labels=["insult"], threshold=0.9))("idiot" + " go" * 24, "")
    # the threat's logit is -3: softmax of two is the sigmoid of their difference
    assert span.score == pytest.approx(sigmoid(logit(1, 27, 2) + 3), abs=1e-3)


def test_a_single_label_is_a_sigmoid(tmp_path):
    save_bert(tmp_path, {"idiot": "insult"}, ["insult"])
    [span] = build(params(tmp_path, labels=["insult"]))("idiot" + " go" * 18, "")
    assert 0.5 < span.score < 0.9
    assert span.score == pytest.approx(sigmoid(logit(1, 21, 1)), abs=1e-3)


def test_log_odds_of_a_softmax():
    # p = [1/2, 1/4, 1/4]: odds 1, 1/3, 1/3
    logits = {"a": math.log(2), "b": 0.0, "c": 0.0}
    expected = {"a": 0.0, "b": -math.log(3), "c": -math.log(3)}
    assert classifier._log_odds(logits, several=False) == pytest.approx(expected, abs=1e-3)
    assert classifier._log_odds({"a": 900.0, "b": -900.0}, several=False)["b"] == -1800.0
    assert classifier._probability(-1800.0) == 0.0
    assert classifier._probability(1800.0) == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TEXT, ["idiot"]),
        ("You idiot, you fool!", ["idiot", "fool"]),
        ("Idiot.", ["Idiot"]),
        ("Go on, (idiot)!", ["idiot"]),
        ("Idiot idiot, said the idiot", ["Idiot", "idiot", "idiot"]),
        ("A nice day.", []),
    ],
)
def test_tokens_are_the_words_that_carry_the_decision(toxic, text, expected):
    spans = build(params(toxic, labels=["insult"], spans="tokens"))(text, "")
    assert [text[span.start : span.end] for span in spans] == expected


def test_tokens_of_each_label_are_its_own(toxic):
    detect = build(params(toxic, labels=["insult", "threat"], spans="tokens"))
    assert found(detect, "You fool, I kill you!") == [("fool", "insult"), ("kill", "threat")]


def test_as_few_words_as_bring_the_sentence_under_the_threshold():
    """A judge by hand: each insult adds 9 to the log-odds -4, `really` 1 and `not` takes 1."""
    worth = {"idiot": 9, "fool": 9, "really": 1, "not": -1}

    def classify(texts):
        return [{"insult": -4 + sum(worth.get(w, 0) for w in text.split())} for text in texts]

    def deciding(text, threshold=0.5):
        found = classifier._deciding_words(text, ["insult"], classify, threshold)["insult"]
        return [text[start:end] for start, end in found]

    assert deciding("you idiot") == ["idiot"]
    assert deciding("you idiot you fool") == ["idiot", "fool"]  # 14, 5, 5 and -4
    assert deciding("not really an idiot") == ["idiot"]
    # 15, 6 without one insult, -3 without both; under 0.04 (log-odds -3.18) `really` goes too
    assert deciding("really idiot fool") == ["idiot", "fool"]
    assert deciding("really idiot fool", threshold=0.04) == ["really", "idiot", "fool"]
    # nothing brings it under 0.01 (log-odds -4.6): all of it
    assert deciding("you idiot", threshold=0.01) == ["you", "idiot"]


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["idiot"], "You, go (now)."),
        (["You", "now"], "idiot, go ()."),
        ([], "You idiot, go (now)."),
    ],
)
def test_erased_words_leave_a_sentence(words, left):
    text = "You idiot, go (now)."
    spans = [(text.index(word), text.index(word) + len(word)) for word in words]
    assert classifier._erase(text, spans) == left


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Pi is 3.14, see a.b.c. Yes", ["Pi is 3.14, see a.b.c.", "Yes"]),
        ("First line\n\n  second line \n", ["First line", "second line"]),
        ("He said: “No.” Then… he left.", ["He said: “No.”", "Then…", "he left."]),
        ("你好。再见。", ["你好。", "再见。"]),
        ("...", ["..."]),
        ("Oh!!! Stop?!", ["Oh!!!", "Stop?!"]),
        ("", []),
    ],
)
def test_sentences(text, expected):
    spans = [classifier._trimmed(text, *m.span()) for m in classifier._SENTENCE.finditer(text)]
    assert [text[start:end] for start, end in spans] == expected


@pytest.mark.parametrize("text", ["!", "a", "a.", ". ", ",", "a ", "!'", "\n", "...a"])
def test_repeated_marks_take_no_time(text):
    text = (text * 10_000)[:10_000] + "a"
    took = []
    for _ in range(3):  # a busy machine takes its time now and then; backtracking always would
        start = time.process_time()
        for pattern in (classifier._SENTENCE, classifier._WORD):
            assert len(list(pattern.finditer(text))) >= 1
        took.append(time.process_time() - start)
    assert min(took) < 0.2


def test_named_spans_are_joined(names):
    text = "Ann Lee went to Lille."
    detect = build(params(names, labels=["PER", "LOC"]))
    assert found(detect, text) == [("Ann Lee", "PER"), ("Lille", "LOC")]
    assert found(build(params(names, labels=["LOC"])), text) == [("Lille", "LOC")]
    # own label 4 sqrt(10 / 2), `O` 3, the two others 0
    own = math.exp(4 * math.sqrt(5))
    assert detect(text, "")[0].score == pytest.approx(own / (own + math.exp(3) + 2), abs=1e-3)


def test_named_spans_under_the_threshold_are_not_flagged(names):
    assert build(params(names, labels=["PER"], threshold=0.999))("Ann met Lee", "") == []


def test_aggregation_says_whether_words_stay_whole(names):
    text = "Macbeth met Ann"
    assert found(build(params(names, labels=["PER"])), text) == [("Macbeth", "PER"), ("Ann", "PER")]
    simple = build(params(names, labels=["PER"], aggregation="simple"))
    assert found(simple, text) == [("Mac", "PER"), ("Ann", "PER")]


def test_offsets_count_characters(toxic, names):
    text = "😀😀 Ïdiöt! René é 😀 Ann."
    assert build(params(toxic, labels=["insult"], spans="tokens"))(text, "")[0].start == 3
    assert found(build(params(toxic, labels=["insult"], spans="tokens")), text) == [
        ("Ïdiöt", "insult")
    ]
    assert found(build(params(names, labels=["PER"])), text) == [("René", "PER"), ("Ann", "PER")]


@pytest.mark.parametrize("text", ["", " ", "\n\n\t"])
def test_texts_without_words_have_no_span(toxic, names, text):
    assert build(params(toxic, labels=["insult"]))(text, "") == []
    assert build(params(toxic, labels=["insult"], spans="tokens"))(text, "") == []
    assert build(params(names, labels=["PER"]))(text, "") == []


TEXTS = [
    "", TEXT, "Ann Lee met Ann. " * 9, "Go.", "You idiot, you fool! I kill you.", " ",
    "René went to Lille " * 20, "idiot " * 70, "Macbeth",
]  # fmt: skip


@pytest.mark.parametrize("batch_size", [1, 2, 4, 16])
@pytest.mark.parametrize("spans", ["sentences", "tokens", None])
def test_batches_change_nothing(toxic, names, batch_size, spans):
    folder, labels = (toxic, ["insult", "threat"]) if spans else (names, ["PER", "LOC"])
    detect = build(params(folder, labels=labels, spans=spans, batch_size=batch_size))
    together = list(detect.many([(text, "") for text in TEXTS]))
    assert together == [detect(text, "") for text in TEXTS]
    assert together == [build(params(folder, labels=labels, spans=spans))(t, "") for t in TEXTS]
    assert any(together)


def test_long_sentences_are_read_in_halves(toxic):
    # 810 tokens for a model of 32
    text = "go " * 500 + "idiot " + "go " * 300 + "fool"
    detect = build(params(toxic, labels=["insult"], spans="tokens"))
    assert found(detect, text) == [("idiot", "insult"), ("fool", "insult")]
    pieces = build(params(toxic, labels=["insult"]))(text, "")
    assert ["idiot" in text[s.start : s.end] for s in pieces] == [True, False]
    assert all(len(text[s.start : s.end].split()) <= POSITIONS - 2 for s in pieces)


def test_a_long_word_is_cut(toxic):
    # 1005 characters are halved, the later half each time: 503, 252, 126, 63 (57 tokens), and 32,
    # which are 24 tokens and the two around them
    text = ",;" * 497 + "idiot,idiot"
    assert found(build(params(toxic, labels=["insult"])), text) == [(text[-32:], "insult")]


def test_long_texts_are_read_in_windows_that_overlap(names):
    for before in range(20, 40):  # somewhere the border of two windows splits the name
        text = "went " * before + "Ann Lee " + "and " * 60
        assert found(build(params(names, labels=["PER"])), text) == [("Ann Lee", "PER")]


def test_model_without_a_padding_token_takes_one_text_at_a_time(tmp_path):
    torch.manual_seed(0)
    letters = {letter: i for i, letter in enumerate("abcdefgh .")}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="."))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=".").save_pretrained(tmp_path)
    config = GPT2Config(
        vocab_size=10, n_positions=16, n_embd=8, n_layer=1, n_head=1, initializer_range=2.0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    detect = build(params(tmp_path, labels=["LABEL_0", "LABEL_1"]))
    texts = ["ab cd", "fade", "a bad face had a beach", ""]
    together = list(detect.many([(text, "") for text in texts]))
    assert together == [detect(text, "") for text in texts]
    assert [len(spans) > 0 for spans in together] == [True, True, True, False]


def test_model_without_a_bound_reads_512_tokens():
    class Unbounded:
        model_max_length = 10**30

    assert classifier._limit(Unbounded, T5Config()) == 512
    assert classifier._limit(Unbounded, BertConfig()) == 510  # RoBERTa's first position is 2


def test_nothing_is_loaded_before_the_first_text(toxic, monkeypatch):
    def load(params):
        raise AssertionError("loaded")

    monkeypatch.setattr(classifier, "_load", load)
    detect = build(params(toxic, labels=["insult"]))
    with pytest.raises(AssertionError, match="loaded"):
        detect("x", "")


def test_unknown_label_is_an_error_with_the_nearest(toxic, names):
    with pytest.raises(ValueError, match=r"has no label 'insults'. Did you mean 'insult'\?"):
        build(params(toxic, labels=["threat", "insults"]))
    with pytest.raises(ValueError, match=r"has no label 'x'. Valid: insult, threat\."):
        build(params(toxic, labels=["x"]))
    with pytest.raises(ValueError, match=r"has no label 'B-PER'. Did you mean 'PER'\?"):
        build(params(names, labels=["B-PER"]))
    with pytest.raises(ValueError, match=r"has no label 'O'. Valid: LOC, PER\."):
        build(params(names, labels=["O"]))


def test_folder_that_is_not_the_one_that_was_meant_is_an_error(toxic):
    with pytest.raises(ValueError, match=r"sha256 of .* is 'abc', but the folder has [0-9a-f]{64}"):
        build(params(toxic, labels=["insult"], sha256="abc"))
    with pytest.raises(ValueError, match=r"sha256 of .* is missing; the folder's is \w"):
        params(toxic, labels=["insult"], sha256=None)
    with pytest.raises(
        ValueError, match=r"sha256 of 'models/none' is missing, and so is that folder"
    ):
        ClassifierParams(source="local", name="models/none", labels=["insult"])
    with pytest.raises(ValueError, match=r"models/none does not exist"):
        build(ClassifierParams(source="local", name="models/none", sha256="a", labels=["insult"]))


@pytest.mark.parametrize("revision", [None, "main", "abc123", "A" * 40])
def test_hub_model_without_a_commit_is_an_error(revision):
    message = (
        r"revision .* is no 40-digit commit of 'me/toxic'; take one from https://hugg.*/commits"
    )
    with pytest.raises(ValueError, match=message):
        ClassifierParams(source="hub", name="me/toxic", revision=revision, labels=["insult"])


def test_pickle_is_refused(broken):
    folder = broken()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"^The classifier .* holds no \*\.safetensors, and a p"):
        build(params(folder, labels=["insult"]))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"auto_map": {"AutoModel": "a.B"}}, r"brings code of its own \(auto_map in its config"),
        ({"architectures": ["BertForMaskedLM"]}, r"is a BertForMaskedLM, no classifier of tokens"),
        ({"architectures": None}, r"is a None, no classifier"),
        ({"problem_type": "regression"}, r"gives numbers without a bound \(regression\)"),
    ],
)
def test_model_that_cannot_be_used_is_refused(broken, config, message):
    with pytest.raises(ValueError, match=rf"^The classifier .* {message}") as caught:
        build(params(broken(**config), labels=["insult"]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"config\.json is not readable JSON \("),
        ("[" * 100_000, r"config\.json is not readable JSON \("),
        ("[]", r"config\.json holds a list, no JSON object"),
        ({"id2label": ["insult"]}, r"an id2label in its config\.json that is no mapping"),
        ({"id2label": {"0": 3}}, r"an id2label in its config\.json that is no mapping"),
        ({"architectures": 3}, r"is a None, no classifier"),
    ],
)
def test_config_that_is_damaged_is_one_line_with_its_name(broken, content, message):
    folder = broken(**content) if isinstance(content, dict) else broken()
    if isinstance(content, str):
        (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        build(params(folder, labels=["insult"]))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", [BertForSequenceClassification, BertForTokenClassification])
def test_scores_that_are_not_finite_are_an_error(toxic, names, tmp_path, kind, value):
    """NaN is under every threshold: nothing was found, and the flag rate was 0."""
    folder, label = (toxic, "insult") if kind is BertForSequenceClassification else (names, "PER")
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    model = kind.from_pretrained(folder)
    model.classifier.bias.data[0] = value
    model.save_pretrained(damaged)
    detect = build(params(damaged, labels=[label]))
    with pytest.raises(ValueError, match=r"gave NaN or infinite scores"):
        detect("Ann met an idiot.", "")


def test_what_padding_scores_is_not_looked_at():
    output = SimpleNamespace(logits=torch.tensor([[[1.0, 2.0], [math.nan, 0.0]]]))
    classifier._refuse_infinite(None, (), {"attention_mask": torch.tensor([[1, 0]])}, output)
    with pytest.raises(ValueError, match="NaN"):
        classifier._refuse_infinite(None, (), {"attention_mask": torch.tensor([[1, 1]])}, output)


def test_params_of_the_other_kind_are_refused(toxic, names):
    with pytest.raises(ValueError, match=r"classifies tokens: .* Leave out `spans`"):
        build(params(names, labels=["PER"], spans="tokens"))
    with pytest.raises(ValueError, match=r"classifies whole texts. Leave out `aggregation`"):
        build(params(toxic, labels=["insult"], aggregation="first"))


@pytest.mark.parametrize("changes", [{"labels": []}, {"threshold": 0.0}, {"batch_size": 0}])
def test_params_that_cannot_work_are_refused(toxic, changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        params(toxic, **{"labels": ["insult"], **changes})


def test_model_without_a_trained_head_is_refused(broken):
    folder = broken()
    model = BertForSequenceClassification.from_pretrained(folder)
    model.bert.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(config))
    detect = build(params(folder, labels=["insult"]))
    with pytest.raises(ValueError, match=r"has no weights for 'classifier\.bias'"):
        detect("x", "")


def test_slow_tokenizer_is_refused(tmp_path):
    config = T5Config(
        vocab_size=384, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1,
        id2label={0: "O", 1: "PER"},
    )  # fmt: skip
    T5ForTokenClassification(config).save_pretrained(tmp_path)
    ByT5Tokenizer().save_pretrained(tmp_path)
    detect = build(params(tmp_path, labels=["PER"]))
    with pytest.raises(ValueError, match=r"has a slow tokenizer, which does not say where"):
        detect("Ann", "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_an_error(toxic):
    detect = build(params(toxic, labels=["insult"], device="cuda"))
    with pytest.raises(ValueError, match=r"is to run on 'cuda', but torch finds no GPU"):
        detect("x", "")


HUB = """
from tnt.detectors import classifier
from tnt.detectors.classifier import ClassifierParams, build

def try_(**changes):
    given = {"source": "hub", "name": "me/toxic", "revision": "a" * 40, "labels": ["insult"]}
    try:
        return build(ClassifierParams(**{**given, **changes}))("You idiot!", "")
    except ValueError as error:
        return error

print(try_())
print(try_(labels=["insults"]))
print(try_(revision="b" * 40))
"""


def test_hub_model_is_taken_from_the_cache_or_missed_in_one_line(toxic, tmp_path):
    snapshot = tmp_path / "hub/models--me--toxic/snapshots" / ("a" * 40)
    shutil.copytree(toxic, snapshot)
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", HUB], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    here, wrong, missing = done.stdout.splitlines()
    assert here.startswith("[Span(start=0, end=10, label='insult', score=")
    assert wrong == "The classifier 'me/toxic' has no label 'insults'. Did you mean 'insult'?"
    assert missing.startswith("The classifier 'me/toxic' cannot be loaded: ")
    assert missing.endswith("if it is a Hub id, the name and the network.")


def test_recipe_is_valid_and_its_detector_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert [*checks.load(RECIPE).rounds] == ["r1"]
    config = load_yaml(RECIPE)["detectors"]["toxicity"]
    labels = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
    words = {"idiot": "toxic", "fool": "toxic"}
    save_bert(tmp_path, words, labels, problem_type="multi_label_classification")
    del config["revision"]
    config |= {"source": "local", "name": str(tmp_path), "sha256": sha256_of(tmp_path)}
    rows = [
        Completion("p/1", sample, "base", "in", [1], [2], text, True)
        for sample, text in enumerate(["A nice day.", TEXT])
    ]
    flags = running.find_flags({"toxicity": detectors.build("toxicity", config)}, rows)
    assert [(flag.sample, flag.text, flag.label) for flag in flags] == [(1, "idiot", "toxic")]
