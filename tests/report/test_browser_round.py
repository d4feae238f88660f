"""The page of a round in a real browser: what is shown, how it is found, that text stays text."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import measured
import pytest
from browser import MARKS, axe, playwright
from measured import rate
from reports import data

from tnt.core import artifacts
from tnt.core.records import Completion, Flag
from tnt.detectors.redaction import BLOT
from tnt.report import examples, site

pytestmark = MARKS

SETS = ("questions", "replies", "summaries")
LONG = "A long story, told twice. " * 4000
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "<!-- <script>",
    "{{ 7*7 }} {% raw %}",
    "\u202eright to left\u202c "
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u202e and no end",
    "NUL \x00 bell \x07 escape \x1b[31m delete \x7f \x85 \u2028 \ufffe \ufeff",
    "\r\n  two lines\r\n\tand a tab  ",
    "👩\u200d👩\u200d👧 🏳\ufe0f\u200d🌈 e\u0301 Z\u0351\u036b\u0343a\u0334l\u0321g\u0489o",
    "javascript:alert(1) & &amp; ' \" ` \\ \\u003c",
    LONG,
    "",
)


def completion(name, text, prompt_input, ids=(1,)):
    return Completion(name, 0, "m", prompt_input, [1], list(ids), text, True)


def flagged(name, text, word, detector):
    start = text.find(word)
    if start < 0:
        return []
    return [Flag(name, 0, detector, "", start, start + len(word), word, 1.0)]


def made(count):
    """Return examples of all kinds, in words that are found by counting."""
    before, after, old, new = [], [], [], []
    filler = "The shop on the corner opens at nine and closes when the last guest has gone home. "
    for number in range(count):
        name = f"{SETS[number % 3]}/{number:04}"
        asked = f"Question {number}: when does the shop open? 😀"
        was = ("I'm sorry, " if number % 5 == 0 else "") + f"{filler * 3}Number {number}."
        now = was if number % 2 else was.replace("I'm sorry, ", "").replace("nine", "Ten")
        if number % 7 == 0:
            now = "Well, sorry. " + now
        before.append(completion(name, was, asked))
        after.append(completion(name, now, asked, [1] if now == was else [2]))
        old += flagged(name, was, "sorry", "boilerplate")
        new += flagged(name, now, "sorry", "boilerplate") + flagged(
            name, now, "Well, sorry", "hedges"
        )
    return examples.pair(before, after, old, new)


def page_of(rows, name, parent):
    detectors = {"boilerplate": measured.change(rate(5, 10), rate(1, 10))}
    of_set = measured.of_set(detectors, rate(3, 4))
    metrics = measured.metrics(dict.fromkeys(SETS, of_set), detectors, "too <much>")
    return site.RoundPage(
        name=name,
        parent=parent,
        detectors=["boilerplate"],
        metrics=metrics,
        examples=rows,
        looked_for=["boilerplate", "hedges"],
        learned_from={"replies": 164, "summaries": 139},
    )


def hostile():
    """Return every text before as after another one, flagged from end to end."""
    before = [completion(f"p/{i}", text, text) for i, text in enumerate(HOSTILE)]
    texts = HOSTILE[1:] + HOSTILE[:1]
    after = [completion(f"p/{i}", text, text, [2]) for i, text in enumerate(texts)]
    flags = [
        Flag(c.prompt_id, 0, "boilerplate", "", 0, len(c.text), "", 1.0) for c in before if c.text
    ]
    return examples.pair(before, after, flags, [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a report of three rounds: ordinary ones, hostile ones, and very many."""
    folder = tmp_path_factory.mktemp("report")
    pages = [
        page_of(made(298), "r1", "base"),
        page_of(hostile(), "r2", "r1"),
        page_of(made(5000), "r3", "r2"),
    ]
    site.write(pages, data(pages), folder)
    return folder


@pytest.fixture(scope="module")
def tab(chromium):
    """Return a tab, and the list of what was wrong in it."""
    page = chromium.new_page()
    page.set_default_timeout(10_000)
    complaints = []

    def asked(request):
        if not request.url.startswith(("file:", "data:", "blob:")):
            complaints.append(request.url)

    def asks(dialog):
        complaints.append(dialog.message)
        dialog.dismiss()

    page.on("request", asked)
    page.on("dialog", asks)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text))
    return page, complaints


@pytest.fixture
def visit(tab, folder):
    """Return a function that opens a page; it must not complain, ask, or leave the machine."""
    page, complaints = tab

    def open_page(address="r1.html", *, scheme="light", media="screen", width=1200):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme, media=media)
        page.goto("about:blank")
        page.goto(f"{folder.as_uri()}/{address}")
        return page

    yield open_page
    assert complaints == []


@pytest.fixture(scope="module")
def records():
    return examples.embedded(made(298), ["boilerplate", "hedges"])["examples"]


def words(pieces):
    return "".join(piece if isinstance(piece, str) else piece[0] for piece in pieces)


def selected(records, kind="", prompt_set="", query=""):
    return [
        row["id"]
        for row in records
        if kind in ("", row["kind"])
        and prompt_set in ("", row["set"])
        and any(
            query.lower() in text.lower()
            for text in (row["input"], words(row["before"]), words(row["after"]))
        )
    ]


def shown(page):
    return page.locator("article").evaluate_all("rows => rows.map(row => row.dataset.id)")


def shows(page, expected):
    """Check what is listed: the count, and every page of it."""
    assert page.locator("#count").inner_text() == f"{len(expected)} of 298"
    assert page.locator("#count").get_attribute("aria-live") == "polite"
    seen = page.evaluate(
        """() => {
            const rows = document.getElementById("rows");
            const shown = () => [...rows.children].map(row => row.dataset.id);
            const pages = [shown()], forth = document.getElementById("forth");
            while (!forth.disabled) { forth.click(); pages.push(shown()); }
            return pages;
        }"""
    )
    assert seen == [expected[i : i + 20] for i in range(0, len(expected) or 1, 20)]


def test_filters_and_search_show_exactly_the_rows_that_fit(visit, records):
    page = visit()
    shows(page, selected(records))
    counts = Counter(row["kind"] for row in records)
    assert set(counts) == set(examples.KINDS)
    for kind in examples.KINDS:
        button = page.locator(f"[data-kind='{kind}']")
        assert button.inner_text() == f"{kind.capitalize()} {counts[kind]}"
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        shows(page, selected(records, kind))
    page.locator("[data-kind='']").click()
    for name in SETS:
        page.select_option("#set", name)
        shows(page, selected(records, prompt_set=name))
    page.select_option("#set", "")
    for query in (
        "SORRY",
        "question 12",
        "Number 29.",
        "opens at ten",
        "😀",
        "no such words",
        ".*",
    ):
        page.fill("#query", query)
        shows(page, selected(records, query=query))
    page.fill("#query", "Number 1")
    page.select_option("#set", "replies")
    page.locator("[data-kind='still flagged']").click()
    shows(page, selected(records, "still flagged", "replies", "Number 1"))


def test_address_holds_the_view_and_one_example(visit, records):
    page = visit()
    page.locator("[data-kind='fixed']").click()
    page.select_option("#set", "replies")
    page.fill("#query", "shop & #1%?")
    assert shown(page) == []
    page.fill("#query", "opens at")
    page = visit("r1.html" + page.evaluate("location.hash"))
    assert shown(page) == selected(records, "fixed", "replies", "opens at")[:20]
    assert page.locator("#query").input_value() == "opens at"
    assert page.locator("#set").input_value() == "replies"
    assert shown(visit("r1.html#page=3")) == selected(records)[40:60]
    page = visit("r1.html#example=" + quote(records[150]["id"], safe=""))
    assert shown(page) == selected(records)[140:160]
    assert page.evaluate("document.activeElement.dataset.id") == records[150]["id"]
    page.locator("article h3 a").nth(3).click()
    focused = page.locator("[data-id]:focus")
    playwright.expect(focused).to_have_attribute("data-id", records[143]["id"])
    for nonsense in ("kind=none&set=%&page=-7", "page=1e9", "example=__proto__", "%E0%A4%A"):
        page.evaluate("hash => { location.hash = hash }", nonsense)
        playwright.expect(focused).to_have_count(0)
        assert len(shown(page)) > 0


def test_keys(visit, records):
    page = visit()
    focused = "document.activeElement.dataset.id"
    ids = selected(records)
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate(focused) == ids[1]
    page.keyboard.press("k")
    assert page.evaluate(focused) == ids[0]
    page.keyboard.press("n")
    assert page.evaluate(focused) == ids[20]
    page.keyboard.press("k")
    assert page.evaluate(focused) == ids[19]
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == ids[20]
    page.keyboard.press("p")
    assert shown(page) == ids[:20]
    for number, kind in enumerate(examples.KINDS, 1):
        page.keyboard.press(str(number))
        assert shown(page) == selected(records, kind)[:20]
    page.keyboard.press("0")
    page.keyboard.press("Control+j")
    page.keyboard.press("Alt+2")
    assert shown(page) == ids[:20]
    page.keyboard.press("/")
    page.keyboard.type("n/j1")
    assert page.locator("#query").input_value() == "n/j1"
    assert page.locator("#count").inner_text() == "0 of 298"
    page.keyboard.press("Escape")
    page.fill("#query", "")
    page.locator("#keys").uncheck()
    page.keyboard.press("1")
    assert shown(page) == ids[:20]


def test_flags_name_their_detector_and_changes_are_marked(visit):
    page = visit("r1.html#example=questions%2F0000")
    row = page.locator("[data-id='questions/0000']")
    mark = row.locator(".before mark")
    assert mark.evaluate("mark => mark.firstChild.textContent") == "sorry"
    assert mark.text_content() == "sorry flagged by boilerplate"
    assert row.locator(".after mark").all_text_contents() == [
        "Well,  flagged by hedges",
        "sorry flagged by boilerplate flagged by hedges",
    ]
    assert row.locator(".before del").all_text_contents()[-1] == "nine"
    assert row.locator(".after ins").all_text_contents()[-1] == "Ten"
    assert row.locator(".before ins, .after del").count() == 0
    same = visit("r1.html#kind=clean+and+unchanged").locator("article").first
    assert same.locator(".text").count() == 2  # the prompt and what both say
    assert same.locator("mark, ins, del").count() == 0


def test_whatever_a_model_says_is_shown_as_text(visit):
    page = visit("r2.html")
    for number, (was, now) in enumerate(zip(HOSTILE, HOSTILE[1:] + HOSTILE[:1], strict=True)):
        row = page.locator(f"[data-id='p/{number}']")
        while row.locator(".side button").count():
            assert len(row.locator(".text.cut").first.text_content()) < 3000
            row.locator(".side button").first.click()
        for side, text in (("input", was), ("before", was), ("after", now)):
            found = row.locator(f".{side} .text").evaluate(
                "text => { const copy = text.cloneNode(true);"
                "copy.querySelectorAll('.by').forEach(by => by.remove()); return copy.textContent }"
            )
            assert found == (text or "nothing")
    kinds = page.locator("#rows *").evaluate_all("all => all.map(one => one.localName)")
    assert set(kinds) <= {
        "a", "article", "bdi", "button", "del", "div", "h3", "h4", "ins", "mark", "span"
    }  # fmt: skip
    assert page.locator("script").count() == 2
    assert page.locator("iframe, img, object, embed").count() == 0
    page.fill("#query", "onerror=")
    assert len(shown(page)) == 2


def test_half_a_surrogate_pair_never_gets_here(tmp_path):
    rows = [completion("p/0", "half \ud83d", "")]
    with pytest.raises(ValueError, match="does not fit string"):
        artifacts.write(rows, tmp_path / "completions.parquet", Completion)


def test_five_thousand_examples_are_there_in_two_seconds(visit):
    begun = time.monotonic()
    page = visit("r3.html")
    page.locator("article").nth(19).wait_for()
    assert time.monotonic() - begun < 2
    assert page.locator("#count").inner_text() == "5000 of 5000"
    assert page.locator("article").count() == 20
    slowest = page.evaluate(
        """() => Math.max(...["sorry", "number 49", "zzz", ""].map(query => {
            const box = document.getElementById("query"), begun = performance.now();
            box.value = query;
            box.dispatchEvent(new Event("input"));
            return performance.now() - begun;
        }))"""
    )
    assert slowest < 500


@pytest.mark.parametrize(
    ("address", "scheme"),
    [("r1.html#q=Number+4", "light"), ("r1.html#q=Number+4", "dark"), ("r2.html", "light")],
)
def test_axe_finds_nothing_serious(visit, address, scheme):
    """Eleven examples, of every kind; and the hostile ones."""
    page = visit(address, scheme=scheme)
    if "q=" in address:
        assert page.locator(".badge").count() == 11
        assert len({*page.locator(".badge").all_text_contents()}) == len(examples.KINDS)
    page.locator("summary").click()
    found = axe.Axe().run(page).response["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []


@pytest.mark.parametrize("address", ["r1.html#kind=fixed", "r2.html"])
def test_a_narrow_phone_never_scrolls_sideways(visit, address):
    page = visit(address, width=320)
    page.locator("summary").click()
    page.evaluate("document.querySelectorAll('.side button').forEach(button => button.click())")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_without_scripts_the_page_says_where_the_answers_are(chromium, folder):
    with chromium.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(f"{folder.as_uri()}/r1.html")
        assert "r1.csv" in page.locator("noscript").inner_text()
        assert page.locator("#browser").is_hidden()
        assert page.locator("table").first.is_visible()


def test_print_leaves_the_filters_out(visit):
    page = visit(media="print")
    assert page.locator("#filters").is_hidden()
    assert page.locator("#forth").is_hidden()
    assert page.locator("article").nth(19).is_visible()


def test_rounds_are_linked(visit, folder):
    page = visit("r2.html")
    for label, name in {"All rounds": "index", "← r1": "r1", "r3 →": "r3"}.items():
        link = page.locator("header nav a", has_text=label).get_attribute("href")
        assert link == f"{name}.html"
        assert (folder / link).is_file()
    assert (folder / page.locator("section a[download]").first.get_attribute("href")).is_file()
    assert visit("r1.html").locator("[rel=prev]").count() == 0
    assert visit("r3.html").locator("[rel=next]").count() == 0


def test_what_is_redacted_is_nowhere_in_the_folder(tmp_path):
    from tnt.detectors import build
    from tnt.detectors.redaction import redacted
    from tnt.detectors.running import find_flags

    (tmp_path / "list.txt").write_text("secret\n", encoding="utf-8")
    hiding = {"names": build("names", {"kind": "phrases", "list": str(tmp_path / "list.txt")})}
    rows = [completion("p/0", "My Secret is out", "What is the secret?")]
    flags = find_flags(hiding, rows)
    hidden = redacted(hiding, rows)
    pairs = examples.pair(hidden, hidden, flags, flags)
    shown = page_of(pairs, "r1", "base")
    shown.looked_for.append("names")
    site.write([shown], data([shown]), tmp_path / "report")
    for file in filter(Path.is_file, (tmp_path / "report").rglob("*")):
        text = file.read_text(encoding="utf-8")
        assert "secret" not in text.lower()
        assert (BLOT * 6 in text) == (file.stem == "r1")
