"""The `pii` detector: what Presidio finds, what is allowed, and that nothing is downloaded."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tnt import detectors
from tnt.core.params import load_yaml
from tnt.core.records import Completion
from tnt.detectors import pii, running
from tnt.detectors.pii import ENTITIES, PiiParams, build
from tnt.detectors.span import Span
from tnt.project import checks

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "docs" / "recipes" / "pii.yaml"


@pytest.fixture(scope="module")
def detect():
    """Return the detector with its defaults."""
    return build(PiiParams())


def found(detect, text, prompt_input=""):
    return [(text[s.start : s.end], s.label) for s in detect(text, prompt_input)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to ann.lee@example.co.uk!", [("ann.lee@example.co.uk", "EMAIL_ADDRESS")]),
        ("Call me on 0121 496 0123 tonight.", [("0121 496 0123", "PHONE_NUMBER")]),
        ("Abroad: +44 121 496 0123.", [("+44 121 496 0123", "PHONE_NUMBER")]),
        # Luhn: 4 1 1 ... 1 1 doubles to 8 1 2 1 ... 2 1, which adds up to 30; one more does not.
        ("My card is 4111 1111 1111 1111.", [("4111 1111 1111 1111", "CREDIT_CARD")]),
        ("My card is 4111 1111 1111 1112.", []),
        ("Pay to GB33BUKB20201555555555.", [("GB33BUKB20201555555555", "IBAN_CODE")]),
        ("Pay to GB33BUKB20201555555556.", []),
        ("I was told so by Sarah Connor.", [("Sarah Connor", "PERSON")]),
        ("Log in at 192.168.1.10 first.", [("192.168.1.10", "IP_ADDRESS")]),
        ("Or at 2001:db8::1 then.", [("2001:db8::1", "IP_ADDRESS")]),
        ("My SSN is 219-09-9999.", [("219-09-9999", "US_SSN")]),
        ("The market in Walsall opens on Monday at 9:30.", []),
        ("", []),
        (" \n", []),
    ],
)
def test_private_data_is_flagged_where_it_stands(detect, text, expected):
    assert found(detect, text) == expected


def test_offsets_count_characters(detect):
    text = "😀😀 Zoë Müller: zoë 212-555-0198"
    assert detect(text, "") == [
        Span(3, 13, "PERSON", 0.85),
        Span(19, 31, "PHONE_NUMBER", 0.4),
    ]


def test_threshold_is_the_least_score():
    text = "Call 0121 496 0123 or 192.168.1.10."  # scores 0.4 and 0.6
    assert len(found(build(PiiParams(threshold=0.4)), text)) == 2
    assert found(build(PiiParams(threshold=0.41)), text) == [("192.168.1.10", "IP_ADDRESS")]
    assert found(build(PiiParams(threshold=0.61)), text) == []


def test_entities_say_what_is_looked_for():
    text = "Sarah Connor lives in Birmingham, in the post code NW1 6XE, and rang 0121 496 0123."
    detect = build(PiiParams(entities=["LOCATION", "UK_POSTCODE"], threshold=0.1))
    expected = [("Birmingham", "LOCATION"), ("NW1 6XE", "UK_POSTCODE")]
    assert found(detect, text) == expected


def test_unknown_entity_is_an_error_with_the_nearest():
    message = r"cannot look for 'EMAIL_ADRESS'.* mean 'EMAIL_ADDRESS'\?"
    with pytest.raises(ValueError, match=message):
        build(PiiParams(entities=["PERSON", "EMAIL_ADRESS"]))


def test_default_entities_are_known(detect):
    _, wanted = detect._analyzer
    assert tuple(wanted) == ENTITIES


def test_what_is_allowed_is_not_flagged():
    text = "Sarah Connor or SARAH CONNOR, 0121 496 0123; not Sarah."
    detect = build(PiiParams(allow=["sarah connor", "0121 496 0123"]))
    assert found(detect, text) == [("Sarah", "PERSON")]


def test_what_the_prompt_says_may_be_said_again():
    text = "Sarah Connor, call Peter Smith on 0121 496 0123."
    given = "I am sarah\nconnor. Peter Smithson is not my name."
    both = [("Peter Smith", "PERSON"), ("0121 496 0123", "PHONE_NUMBER")]
    assert found(build(PiiParams()), text, given) == [("Sarah Connor", "PERSON"), *both]
    assert found(build(PiiParams(skip_given=True)), text, given) == both


def test_the_prompt_is_not_searched_unless_that_is_asked(monkeypatch):
    detect = build(PiiParams(allow=["x"]))
    monkeypatch.setattr(pii, "re", None)
    assert not detect._is_allowed("Ann", "Ann")
    assert detect._is_allowed("X", "")


def test_of_overlapping_findings_the_highest_score_stays():
    text = "0123456789abcde"
    low, high, other = Span(0, 9, "a", 0.4), Span(5, 12, "b", 0.9), Span(12, 15, "c", 0.1)
    assert pii._apart(text, [low, high, other]) == [Span(0, 5, "a", 0.4), high, other]
    assert pii._apart(text, [Span(0, 4, "a", 0.5), Span(0, 5, "b", 0.5)]) == [Span(0, 5, "b", 0.5)]


def test_what_only_the_lower_finding_covers_is_kept():
    """Without its separators, on both sides, and not if there is nothing else."""
    text = "Ann (x@y.zz), Bob; (0121)"
    whole, first, last = Span(0, 25, "a", 0.4), Span(4, 13, "b", 1.0), Span(19, 25, "c", 0.9)
    left = [Span(0, 3, "a", 0.4), first, Span(14, 17, "a", 0.4), last]
    assert pii._apart(text, [first, whole, last]) == left
    assert pii._apart(text, [Span(3, 14, "a", 0.4), first]) == [first]


@pytest.mark.parametrize(
    ("text", "name", "mail"),
    [
        ("Signed: Peter Hall,peter.hall@example.com", "Peter Hall", "peter.hall@example.com"),
        ("It was said by Jane Doe@example.org, Tom", "Jane", "Doe@example.org"),
    ],
)
def test_a_name_beside_an_address_stays_flagged(detect, text, name, mail):
    """The name's finding overlaps the address, and used to vanish with all of it."""
    assert found(detect, text)[:2] == [(name, "PERSON"), (mail, "EMAIL_ADDRESS")]


def test_nothing_is_downloaded_or_printed(monkeypatch, capfd):
    asked = []

    def refuse(*arguments, **_):
        asked.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    detect = build(PiiParams())
    text = "Write to ann@example.org or see www.example.org, says the European Union's 3rd report."
    assert found(detect, text) == [("ann@example.org", "EMAIL_ADDRESS")]
    assert asked == []
    assert capfd.readouterr() == ("", "")


def test_nothing_is_loaded_before_the_first_text(monkeypatch):
    monkeypatch.setattr(pii, "_load", None)
    detect = build(PiiParams())
    assert detect("", "") == []
    with pytest.raises(TypeError):
        detect("Ann", "")


def test_missing_package_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr(pii, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'tnt\[pii\]'"):
        build(PiiParams())


def test_missing_model_is_an_error_that_says_what_to_install():
    message = r"'en_core_web_xl' is not installed: pip install en_core_web_xl, or python -m spacy d"
    with pytest.raises(ValueError, match=message):
        build(PiiParams(spacy_model="en_core_web_xl"))


def test_package_that_is_no_model_is_refused():
    with pytest.raises(ValueError, match=r"'numpy' is no spaCy model: it holds no meta\.json"):
        build(PiiParams(spacy_model="numpy"))
    with pytest.raises(ValueError, match=r"'/tmp' is not installed"):
        build(PiiParams(spacy_model="/tmp"))


def test_model_of_another_language_is_an_error():
    detect = build(PiiParams(language="de"))
    with pytest.raises(ValueError, match=r"finds no names in 'de': its language is 'en'"):
        detect("Hallo", "")


@pytest.mark.parametrize(
    "changes", [{"entities": []}, {"threshold": 0.0}, {"threshold": 1.1}, {"language": "english"}]
)
def test_params_that_cannot_work_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        PiiParams(**changes)


def test_recipe_is_valid_and_its_detector_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert [*checks.load(RECIPE).rounds] == ["r1"]
    config = load_yaml(RECIPE)["detectors"]["pii"]
    assert tuple(config["entities"]) == ENTITIES
    text = "Thanks Sarah! Yours, Peter Smith, 0121 496 0123"
    row = Completion("p/1", 0, "base", "Sarah is late again.", [1], [2], text, True)
    flags = running.find_flags({"pii": detectors.build("pii", config)}, [row])
    assert {(flag.text, flag.label) for flag in flags} == {
        ("Peter Smith", "PERSON"),
        ("0121 496 0123", "PHONE_NUMBER"),
    }
