"""Numbers, dates and times in a text, compared by what they mean.

    [value] = find("the 58-year-old")
    supported(value, "the 58-year-old", given("Ann, 58, won £4 million"))    # True

A value needs one of its keys, such as `("money", "£", 4e6)`, to be given by the other text. A text
gives the keys of its values and of all that can be read off them, such as `("n", 4e6)`. A unit of
time, money, length, weight, ... is part of a key; a noun that is counted is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product

Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """Characters [start, end) of a text that say a number, a date, a time or an amount."""

    start: int
    end: int
    label: str
    """As spaCy calls them: CARDINAL, ORDINAL, PERCENT, MONEY, QUANTITY, DATE or TIME."""
    needs: frozenset[Key]
    """Any one of these supports it; none where the words are too vague to need support."""
    gives: frozenset[Key]
    """What it supports in another text."""
    number: float | None = None
    """The number of an amount."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a text supports: by meaning, and word for word."""

    keys: frozenset[Key]
    words: str


# --- words -------------------------------------------------------------------------------------

PLAIN = str.maketrans(
    "\u2018\u2019\u02bc\u2010\u2011\u2012\u2013\u2014\u2212\u00a0\u2009\u202f", "'''------   "
)
"""Typographic signs to plain ones, character for character, so that offsets stay what they are."""


def words(text: str) -> frozenset[str]:
    """Return the words of a list that is written as one string."""
    return frozenset(text.split())


def _numbered(text: str, start: int, step: int = 1) -> dict[str, int]:
    return {word: start + step * i for i, word in enumerate(text.split())}


_UNITS = _numbered("one two three four five six seven eight nine", 1)
_TEENS = _numbered(
    "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen", 10
)
_TENS = _numbered("twenty thirty forty fifty sixty seventy eighty ninety", 20, 10)
_SIGNS = {"½": 1 / 2, "¼": 1 / 4, "¾": 3 / 4, "⅓": 1 / 3, "⅔": 2 / 3}
_NUMBERS = {**_UNITS, **_TEENS, **_TENS, **_SIGNS, "half": 1 / 2, "quarter": 1 / 4}
_SCALES = {
    name: amount
    for names, amount in [
        ("dozen", 12.0),
        ("hundred", 1e2),
        ("thousand k", 1e3),
        ("lakh", 1e5),
        ("million m mn", 1e6),
        ("crore", 1e7),
        ("billion b bn", 1e9),
        ("trillion tn", 1e12),
    ]
    for name in names.split()
}
_ORDINALS = {
    **{f"{word}th": n for word, n in (_UNITS | _TEENS).items() if n not in (1, 2, 3, 5, 8, 9, 12)},
    **{f"{word[:-1]}ieth": n for word, n in _TENS.items()},
    **{"first": 1, "second": 2, "third": 3, "fifth": 5, "eighth": 8, "ninth": 9, "twelfth": 12},
    **{"hundredth": 100, "thousandth": 1000, "millionth": 1000000},
}
_MONTHS = _numbered(
    "january february march april may june july august september october november december", 1
)
_WEEKDAYS = _numbered("monday tuesday wednesday thursday friday saturday sunday", 0)
_WHEN = {
    word: rank
    for rank, words in enumerate(
        ["last previous past preceding", "this current", "next coming following upcoming"]
    )
    for word in words.split()
}
_MEASURES = {
    word: (dimension, factor)
    for words, dimension, factor in [
        ("second sec", "seconds", 1.0),
        ("minute min", "seconds", 60),
        ("hour hr h", "seconds", 3600),
        ("day", "seconds", 86400),
        ("week wk", "seconds", 604800),
        ("fortnight", "seconds", 1209600),
        ("month", "months", 1),
        ("year yr", "months", 12),
        ("decade", "months", 120),
        ("century centurie", "months", 1200),
        ("mm millimetre millimeter", "metres", 0.001),
        ("cm centimetre centimeter", "metres", 0.01),
        ("m metre meter", "metres", 1),
        ("km kilometre kilometer k", "metres", 1000),
        ("inch in", "inches", 1),
        ("foot feet ft", "inches", 12),
        ("yard yd", "inches", 36),
        ("mile", "miles", 1),
        ("mg milligram", "grams", 0.001),
        ("g gram gramme", "grams", 1),
        ("kg kilo kilogram kilogramme", "grams", 1000),
        ("tonne ton", "grams", 1e6),
        ("ounce oz", "ounces", 1),
        ("lb", "ounces", 16),
        ("ml millilitre milliliter", "litres", 0.001),
        ("litre liter l", "litres", 1),
        ("pint", "pints", 1),
        ("gallon", "pints", 8),
        ("acre", "acres", 1),
        ("hectare ha", "hectares", 1),
        ("mph", "miles an hour", 1),
        ("kph kmh", "metres an hour", 1000),
        ("knot", "knots", 1),
        ("kilowatt kw", "watts", 1e3),
        ("megawatt mw", "watts", 1e6),
        ("gigawatt gw", "watts", 1e9),
        ("kwh", "watt hours", 1e3),
        ("decibel db", "decibels", 1),
        ("calorie", "calories", 1),
        ("megabyte mb", "bytes", 1e6),
        ("gigabyte gb", "bytes", 1e9),
        ("° degree c f", "degrees", 1),
    ]
    for word in words.split()
}
_CURRENCIES = {
    sign: signs.split()[0]
    for signs in re.split(
        ";",
        "£ gbp quid pound sterling;$ us$ a$ c$ usd dollar buck;€ eur euro;¥ yen yuan;"
        "₹ rs rs. inr rupee;cent ¢;penny p pence;chf franc;krone krona kronor kroner;₩ won;"
        "rand;peso;rouble ruble;zloty;shekel;dirham;lira",
    )
    for sign in signs.split()
}


def _any(words: Iterable[str]) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


_BELOW_100 = rf"(?:(?:{_any(_TENS)})(?:[ -](?:{_any(_UNITS)})\b)?|{_any(_TEENS)}|{_any(_UNITS)})\b"
_BELOW_1000 = rf"(?:(?:{_BELOW_100}|a)[ -]hundred\b(?:[ -](?:and[ -])?{_BELOW_100})?|{_BELOW_100})"
_SCALE = r"(?:dozen|hundred|lakh|crore|thousand|million|billion|trillion)\b"
_WORDS = (
    rf"\b(?:(?:half an?|(?:a )?quarter of an?|an?|{_BELOW_1000})[ -]{_SCALE}"
    rf"(?: (?:and )?{_BELOW_1000}(?:[ -]{_SCALE})?)*|{_BELOW_1000})"
)
_DIGITS = (
    r"(?<!\w)(?<!\d[.,])(?:\d{1,3}(?:[, ]\d{3})+(?!\d)(?:\.\d+)?|\d{1,2}(?:,\d\d)+,\d{3}(?!\d)"
    rf"|\d+(?:\.\d+)?[{''.join(_SIGNS)}]?|[{''.join(_SIGNS)}])"
)
_NUMBER = (
    rf"(?:{_DIGITS}(?:[ -]?(?:{_SCALE}|(?:mn|bn|tn)\b))?|{_WORDS})"
    rf"(?:[ -]and[ -]a[ -](?:half|quarter)\b(?:[ -]{_SCALE})?)?"
)
_ORDINAL = (
    rf"(?:(?<![\w.,])\d{{1,3}}(?:,\d{{3}})*(?:st|nd|rd|th)\b"
    rf"|\b(?:{_WORDS}[ -](?:and[ -])?|thousand-and-)?(?:{_any(_ORDINALS)})\b)"
)
_DAY = rf"(?:(?<![\w.,:/])[0-3]?\d(?:st|nd|rd|th)?\b(?![.,]\d)|{_ORDINAL})"
_YEAR = r"(?:1\d{3}|20\d\d)\b(?!,\d)"
_MONTH = (
    rf"\b(?:{_any(m for m in _MONTHS if m not in ('march', 'may', 'august'))}"
    r"|(?-i:March|May|August|(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b\.?))(?![a-z])"
)
_LONG_UNIT = _any(word for word in _MEASURES if len(word) > 2)
_TIME_UNIT = "second|minute|hour|day|week|fortnight|month|year|decade|century"
_RANK = _any(_WHEN)


def number(words: str) -> float:
    """Return the number that digits or words say.

    `4,000` and `four thousand` are 4000, `two and a half million` 2.5 million, `half a dozen` 6.
    """
    total = current = 0.0
    for word in re.findall(rf"\d[\d, ]*(?:\.\d+)?|[{''.join(_SIGNS)}]|[a-z]+", words.lower()):
        if word[0].isdigit():
            current += float(re.sub("[, ]", "", word))
        elif word == "hundred":
            current = (current or 1) * 100
        elif word in _SCALES:
            total, current = total + (current or 1) * _SCALES[word], 0.0
        else:
            current += _NUMBERS.get(word, 0)
    return round(total + current, 6)


def _rank(words: str) -> int:
    """Return the number of an ordinal: 21 of `twenty-first` and of `21st`."""
    if words[0].isdigit():
        return int(re.sub(r"\D", "", words))
    *before, last = re.split("[ -]", words.lower())
    value, prefix = _ORDINALS[last], int(number(" ".join(before)))
    return value * (prefix or 1) if value >= 100 else value + prefix


# --- keys --------------------------------------------------------------------------------------


def _date(
    year: int | None, month: int | None = None, day: int | None = None
) -> tuple[set[Key], set[Key]]:
    """Return what a date needs and gives: all that is less specific, too."""
    parts = product((year, None), (month, None), (day, None))
    gives: set[Key] = {("date", *part) for part in parts if any(part)}
    if day:
        gives |= {("rank", day), ("n", day)}
    if year:
        gives |= {("n", year), ("tens", year // 10 * 10), ("tens", year % 100 // 10 * 10)}
        gives |= {("century", year // 100 + 1), ("century", (year - 1) // 100 + 1)}
    return {("date", year, month, day)}, gives


def _clock(minutes: int, half: str) -> tuple[set[Key], set[Key]]:
    """Return what a time of day needs and gives; `half` is `a`, `p` or empty if unknown."""
    time = minutes % 720
    some, unsure = ("some clock", time), ("unsure clock", time)
    sure = ("clock", time + 720 * (half == "p"))
    return ({sure, unsure}, {sure, some}) if half else ({some}, {unsure, some})


def _period(name: str, when: str | None) -> tuple[set[Key], set[Key]]:
    """Return what a weekday or season needs and gives: `last Monday` may be a plain `Monday`."""
    bare, some = ("period", name, "bare"), ("period", name, "some")
    if not when:
        return {some}, {bare, some}
    ranked = ("period", name, _WHEN[when.lower()])
    return {ranked, bare}, {ranked, some}


def _share(share: float) -> set[Key]:
    """Return the keys of a part of a whole: a third is 33 per cent, and 33.3."""
    cut = float(int(100 * share + 1e-9))
    return {("per cent", part) for part in (cut, *(round(100 * share, i) for i in range(3)))}


# --- rules: what a match of a pattern says -------------------------------------------------------

Found = Iterator[Value]


def _value(
    match: re.Match[str],
    label: str,
    needs: Iterable[Key],
    gives: Iterable[Key],
    number: float | None = None,
    group: str | int = 0,
) -> Value:
    return Value(*match.span(group), label, frozenset(needs), frozenset(gives), number)


def _before(match: re.Match[str], text: str) -> str:
    return text[max(match.start() - 40, 0) : match.start()]


def _nothing(match: re.Match[str], text: str) -> Found:
    yield _value(match, "", (), ())


def _time_of_day(match: re.Match[str], text: str) -> Found:
    part = match.groupdict()
    if not part.get("hour"):
        yield _value(
            match, "TIME", *_clock(0, "a" if match[0].lower().endswith("midnight") else "p")
        )
        return
    hour, minutes = int(number(part["hour"])), int(part.get("minute") or 0)
    if hour > 24:
        return
    half = (part.get("half") or "")[:1].lower()
    if half and half not in "ap":  # morning, evening, night
        half = "a" if half == "m" or (half == "n" and hour < 6) else "p"
    if not half and (hour > 12 or part["hour"].startswith("0")):
        half = "p" if hour >= 12 else "a"
    if past := part.get("past"):
        shift = int({"half": 30, "quarter": 15}.get(past.lower()) or number(past))
        minutes = shift if part["side"].lower() == "past" else -shift
    needs, gives = _clock(hour * 60 + minutes, half)
    yield _value(match, "TIME", needs, gives | {("n", hour)})


def _stopwatch(match: re.Match[str], text: str) -> Found:
    key: Key = ("stopwatch", match[0].lstrip("0"))
    yield _value(match, "TIME", {key}, {key})


def _calendar_date(match: re.Match[str], text: str) -> Found:
    part = match.groupdict()
    month = next(i for m, i in _MONTHS.items() if m[:3] == part["month"][:3].lower())
    year = int(part["year"]) if part.get("year") else None
    days = {name: _rank(part[name]) for name in ("first", "day") if part.get(name)}
    if not all(1 <= day <= 31 for day in days.values()):
        return
    if not (year or days) and part["month"] in ("May", "March"):
        before, after = _before(match, text).rstrip(" \"'(*-"), text[match.end() :][:1]
        if (not before or before[-1] in ".!?:\n") and after not in "',":  # `May I ...`
            return
    if "first" in days:
        yield _value(match, "DATE", *_date(year, month, days["first"]), group="first")
        yield _value(match, "DATE", *_date(year, month, days["day"]), group="rest")
    else:
        yield _value(match, "DATE", *_date(year, month, days.get("day")))


def _numeric_date(match: re.Match[str], text: str) -> Found:
    a, b, c = (int(n) if n else None for n in match.groups())
    assert a is not None
    assert b is not None
    year = c if c is None or c > 99 else c + (2000 if c < 50 else 1900)
    readings = [(a, b, c or 0)] if len(match[1]) == 4 else [(year, b, a), (year, a, b)]
    dates = [_date(*read) for read in readings if 0 < read[1] <= 12 and 0 < (read[2] or 1) <= 31]
    needs, gives = ({key for date in dates for key in date[i]} for i in range(2))
    if c is None and b:
        needs, gives = needs | _share(a / b), gives | _share(a / b) | {("n", a), ("n", b)}
    if needs:
        yield _value(match, "DATE", needs, gives)


def _years(match: re.Match[str], text: str) -> Found:
    first = int(match[1])
    last = int(match[2]) + (first // 100 * 100 if len(match[2]) == 2 else 0)
    if first < last < first + 100:
        yield _value(match, "DATE", *_date(first), group=1)
        yield _value(match, "DATE", *_date(last), group=2)


def _decade(match: re.Match[str], text: str) -> Found:
    words = (match["words"] or "").lower()
    ten = next((n for word, n in _TENS.items() if words and word[:-1] == words[:-3]), None)
    start = int(match["digits"]) if ten is None else ten
    if match["teen"]:
        start += 1900
    yield _value(match, "DATE", {("tens", start)}, {("tens", start), ("tens", start % 100)})


def _century(match: re.Match[str], text: str) -> Found:
    rank = _rank(match[1])
    yield _value(match, "DATE", {("century", rank)}, {("century", rank), ("rank", rank)})


def _money(match: re.Match[str], text: str) -> Found:
    part = match.groupdict()
    sign = (part.get("sign") or part["name"]).lower()
    sign = sign if sign in _CURRENCIES else sign.removesuffix("s")
    amount = number(part["amount"])
    currency = _CURRENCIES[sign]
    keys: set[Key] = {("money", currency, amount)}
    if currency in ("cent", "penny"):
        keys |= {("money", unit, round(amount / 100, 4)) for unit in "£$€"}
    if sign == "pound":
        keys.add(("ounces", amount * 16))
    yield _value(match, "MONEY", keys, keys | {("n", amount)}, amount)


def _percentage(match: re.Match[str], text: str) -> Found:
    amount = number(match[1])
    keys: set[Key] = {("per cent", amount)}
    yield _value(match, "PERCENT", keys, keys | {("n", amount)}, amount)


def _fraction(match: re.Match[str], text: str) -> Found:
    part = match.groupdict()
    keys: set[Key] = set()
    if not part.get("below"):
        share = 0.5
    else:
        below = 4 if part["below"].lower() == "quarter" else _ORDINALS[part["below"].lower()]
        share = (number(part["above"]) or 1) / below
        keys = {("rank", below)}
    if share < 1:
        keys |= _share(share) | {("n", round(share, 6))}
        yield _value(match, "CARDINAL", keys, keys)


def _age(match: re.Match[str], text: str) -> Found:
    age = number(match[1])
    years: Key = ("months", 12 * age)
    gives: set[Key] = {years, ("n", age), ("tens", age // 10 * 10)}
    yield _value(match, "DATE", {years, ("bare", age)}, gives, age)


def _measure(match: re.Match[str], text: str) -> Found:
    part = match.groupdict()
    unit = "°" if part["unit"][0] == "°" else part["unit"].lower()
    for ending in ("", "s", "es"):
        if (singular := unit.removesuffix(ending)) in _MEASURES:
            dimension, factor = _MEASURES[singular]
    if part.get("part"):
        words = part["part"].lower()
        amount = 0.5 if words.startswith("half") else 0.75 if words.startswith("three") else 0.25
    else:
        amount = number(part["amount"])
    if part.get("square"):
        dimension, factor = f"{part['square'].lower()[:2]} {unit[:3]}", 1.0
    if part.get("hourly"):
        dimension += " an hour"
    keys: set[Key] = {(dimension, round(amount * factor, 6))}
    if unit in ("m", "k"):  # millions and thousands, too
        keys.add(("n", amount * _SCALES[unit]))
    needs = keys | ({("bare", amount)} if dimension == "degrees" else set())
    if match[0].lower() == "one day":
        needs = set()
    clock = dimension == "seconds" and factor <= 3600
    label = "TIME" if clock else "DATE" if dimension in ("seconds", "months") else "QUANTITY"
    yield _value(match, label, needs, keys | {("n", amount)}, amount)


def _one_unit(match: re.Match[str], text: str) -> Found:
    """`a week ago` and `decade-long` need support; elsewhere `a week` only gives it."""
    part = match.groupdict()
    unit = part["unit"].lower()
    gives: set[Key] = {_MEASURES[unit]}
    side = (part.get("side") or "").lower()
    if side:
        gives.add(("when", 0 if side in ("ago", "earlier", "before") else 2, unit))
    needed = side or part.get("start") or part.get("long")
    group = "span" if "span" in part else 0
    yield _value(match, "DATE", {_MEASURES[unit]} if needed else (), gives, group=group)


def _relative(match: re.Match[str], text: str) -> Found:
    words = match[0].lower()
    if words in ("yesterday", "tomorrow"):
        key: Key = ("when", 0 if words == "yesterday" else 2, "day")
        yield _value(match, "DATE", {key}, {key})
        return
    rank, unit = _WHEN[match["when"].lower()], match["unit"].lower()
    gives: set[Key] = {("when", rank, unit)}
    if unit in _MEASURES:
        gives.add(_MEASURES[unit])
    if rank == 0 and unit in ("night", "evening"):
        gives.add(("when", 0, "day"))
    yield _value(match, "DATE", {("when", rank, unit)}, gives)


def _named_period(match: re.Match[str], text: str) -> Found:
    name = match["name"].lower()
    if not match["when"] and (name == "fall" or _before(match, text).lower().endswith("to ")):
        return
    name = "autumn" if name == "fall" else name
    name = next((day for day in _WEEKDAYS if day[:3] == name[:3]), name)
    yield _value(match, "DATE", *_period(name, match["when"]))


def _ordinal(match: re.Match[str], text: str) -> Found:
    rank = _rank(match[0])
    keys: set[Key] = {("rank", rank)} | ({("n", rank)} if rank > 3 else set())
    vague = bool(_VAGUE_AFTER.match(text, match.end()))
    if rank <= 5 and match[0][:1].isupper() and text.startswith(",", match.end()):
        vague = True  # `Second, write a letter.`
    if match[0].lower() == "first" and not text.startswith("-", match.end()):
        # `the first attempt` counts; `at first` and `will first repair` do not.
        vague = vague or not _RANKED_BEFORE.search(_before(match, text))
    yield _value(match, "ORDINAL", () if vague else keys, keys)


def _times_as_many(match: re.Match[str], text: str) -> Found:
    amount = number(match[1])
    yield _value(match, "CARDINAL", {("n", amount)}, {("n", amount)})


def _group(match: re.Match[str], text: str) -> Found:
    key: Key = ("n", _GROUPS[match[0].lower()])
    yield _value(match, "CARDINAL", {key}, {key})


def _count(match: re.Match[str], text: str) -> Found:
    if _NAME_BEFORE.search(_before(match, text)):  # `Covid-19`
        return
    amount = number(match[0])
    gives: set[Key] = {("n", amount)}
    label = "CARDINAL"
    if re.fullmatch(_YEAR, match[0]):
        gives |= _date(int(amount))[1]
        label = "DATE"
    bare = _BARE.match(text, match.end())
    if bare:
        gives |= {("bare", amount), ("tens", amount // 10 * 10)}
        gives |= {("months", 12 * amount)} if amount <= 120 else set()
    hour, minutes = int(amount), round(amount % 1 * 100)
    if 1 <= hour <= 23 and minutes < 60 and (bare or _AT.search(_before(match, text))):
        gives |= _clock(hour * 60 + minutes, "p" if hour > 12 else "")[1]
    if amount < 1:
        gives |= _share(amount)
    vague = match[0].lower() == "one"
    yield _value(match, label, () if vague else {("n", amount)}, gives, amount)


_GROUPS = {"duo": 2.0, "trio": 3.0, "quartet": 4.0, "quintet": 5.0}
_BARE = re.compile(
    r"\s*(?:[^\w\s'%°-]|$)|-(?!\w)|\s+(?:and|or|but|who|which|that|to|when|while|as|at|in|on|for"
    r"|by|with|from|before|after|until|till|than|is|was|are|were|be|has|had|have|will|would|can"
    r"|could|each|every|also|not|said|says|if|because|so|then|this|next|last|now|the|a|an)\b",
    re.IGNORECASE,
)
"""What follows a number that counts nothing, so may be an age or a time of day."""
_AT = re.compile(r"\b(?:at|by|until|till|past|before|after|from|to|since|around|about) $", re.I)
_NAME_BEFORE = re.compile(r"(?:\b[A-Z]\w*-|\w[#/_@])$")
_RANKED_BEFORE = re.compile(
    r"(?:\b(?:the|an?|his|her|its|their|our|my|your|whose|in|very|came|finished|won)|s'|'s) $", re.I
)
_VAGUE_AFTER = re.compile(r"[- ](?:of all|and foremost|aid|name|class|hand|thoughts?)\b", re.I)

_HOUR = rf"(?P<hour>\b(?:{_any([*_UNITS, 'ten', 'eleven', 'twelve'])})|(?<![\w.,:/-])[012]?\d)"
_TENTHS = "third|quarter|fifth|sixth|seventh|eighth|ninth|tenth"
_WHEN_PART = rf"(?:\b(?P<when>{_any(_WHEN)})[ -])?"
_CURRENCY_WORD = _any(s for s in _CURRENCIES if s[-1].isalpha() and s not in ("p", "rs", "a", "c"))
_CURRENCY_SIGN = _any(s for s in _CURRENCIES if not s.isalpha() or s in ("rs", "gbp", "usd", "eur"))

_RULES = [
    (re.compile(pattern, re.IGNORECASE | re.MULTILINE), read)
    for pattern, read in [
        (
            r"^[ \t*#>-]*\d{1,3}[.)](?=\s|$)|(?<![^\s(])\d{1,2}\)(?=\s)|(?<!\d)24/7(?!\d)"
            r"|\b(?:step|part|option|point|tip|question|example) \d{1,2}(?=[:.)])",
            _nothing,
        ),
        (r"(?<![\w.:])\d{1,2}:\d\d:\d\d(?:\.\d+)?(?!\d)", _stopwatch),
        (rf"{_HOUR}(?:[:.](?P<minute>[0-5]\d))? ?(?P<half>[ap])\.?m\b\.?", _time_of_day),
        (
            rf"{_HOUR}(?:[:.](?P<minute>[0-5]\d)| o'clock)?"
            r" (?:(?:in the|at|on \w+|this) )(?P<half>morning|afternoon|evening|night)\b",
            _time_of_day,
        ),
        (rf"{_HOUR} o'clock\b", _time_of_day),
        (r"(?<![\w.,:])(?P<hour>[01]?\d|2[0-4])[:](?P<minute>[0-5]\d)(?!\d)", _time_of_day),
        (rf"\b(?P<past>half|quarter|five|ten|twenty) (?P<side>past) {_HOUR}\b", _time_of_day),
        (rf"\b(?P<past>quarter) (?P<side>to) {_HOUR}\b", _time_of_day),
        (r"\b(?:12 )?(?:noon|midday|midnight)\b", _time_of_day),
        (r"(?<!\d)(\d{4})-(\d\d)-(\d\d)(?!\d)", _numeric_date),
        (r"(?<![\w/.])(\d{1,2})[/.](\d{1,2})[/.](\d{4}|\d\d)(?![\d/])", _numeric_date),
        (r"(?<![\w/.])(\d{1,2})/(\d{1,2})()(?![\d/])", _numeric_date),
        (
            rf"(?:(?P<first>{_DAY})(?: ?- ?| to | and | or |, ))?(?P<rest>(?P<day>{_DAY})"
            rf"(?: of)?[ -](?P<month>{_MONTH})(?:,?[ -](?P<year>{_YEAR}))?)",
            _calendar_date,
        ),
        (
            rf"(?P<month>{_MONTH}) (?:the )?(?P<day>{_DAY})(?:,? (?P<year>{_YEAR}))?",
            _calendar_date,
        ),
        (rf"(?P<month>{_MONTH})(?: of|,)? (?P<year>{_YEAR})", _calendar_date),
        (rf"(?P<month>{_MONTH})", _calendar_date),
        (rf"(?<![\w.,£$€])({_YEAR})[-/](\d\d|{_YEAR})(?![\w-])", _years),
        (
            rf"(?<![\w.,£$€])(?P<digits>[12]\d\d0|\d0)'?s\b"
            rf"|\b(?P<teen>nineteen[ -])?(?P<words>(?:{_any(t[:-1] for t in _TENS)})ies)\b",
            _decade,
        ),
        (rf"({_ORDINAL})[ -](?:century|centuries)\b", _century),
        (rf"(?<!\w)(?P<sign>{_CURRENCY_SIGN}) ?(?P<amount>{_NUMBER}(?:[mkb]\b)?)", _money),
        (
            rf"(?P<amount>{_NUMBER}(?:(?<=\d)[mkb](?= ))?)[ -]?(?P<name>(?:{_CURRENCY_WORD}|"
            r"(?<=\d)p|[€¢])s?)(?!\w)",
            _money,
        ),
        (
            rf"({_NUMBER})[ -]?(?:%|per ?cent\b|percent(?:age)?\b(?: points?)?|pct\b|pc\b)",
            _percentage,
        ),
        (
            r"\b(?P<part>half an?|(?:an? |three[ -])?quarters? of an?|half)[ -]"
            r"(?P<unit>minute|hour|day|month|year|decade|century|mile|metre|kilo|litre|pint)\b",
            _measure,
        ),
        (rf"({_NUMBER})[ -]years?[ -]olds?\b", _age),
        (
            rf"(?P<amount>{_NUMBER})[ -]?(?:(?:consecutive|successive|full|whole|more|long|extra"
            r"|additional|further|straight|short|calendar|working)[ -])?"
            rf"(?:(?P<square>square|cubic|sq)[ -])?(?P<unit>(?:{_LONG_UNIT})(?:e?s)?"
            r"|°(?: ?[CF]\b)?|km|cm|mm|kg|lbs?|ft|hrs?|yrs?|oz|yd)(?!\w)"
            r"(?P<hourly> (?:an|per) hour\b)?",
            _measure,
        ),
        (rf"(?P<amount>{_NUMBER})(?P<unit>m|h|g|k|l|c|f|in|ha|kw|mw|gw|db|ml|mg)(?!\w)", _measure),
        (rf"\b(?P<unit>{_TIME_UNIT})-?(?P<long>long)\b", _one_unit),
        (
            rf"\b(?P<start>(?:for|within|in|over|nearly|almost|than|after|just) )?(?P<span>an? "
            rf"(?P<unit>{_TIME_UNIT})\b)(?: (?P<side>ago|earlier|before|later|after)\b)?",
            _one_unit,
        ),
        (
            rf"\b(?P<when>{_any(_WHEN)})[ -](?P<unit>{_TIME_UNIT}|night|evening|morning|afternoon"
            r"|weekend|season)\b|\b(?:yesterday|tomorrow)\b",
            _relative,
        ),
        (
            rf"{_WHEN_PART}\b(?P<name>(?:{_any(_WEEKDAYS)})|spring|summer|autumn|winter|fall"
            r"|(?-i:Mon|Tues?|Wed|Thur?s?|Fri|Sat|Sun)(?=\.?,? \d))(?:s\b|\b)",
            _named_period,
        ),
        (
            rf"\b(?:(?P<above>an?|{_any(_UNITS)})[ -](?P<below>{_TENTHS})(?:s\b|\b)"
            rf"(?!-| past| of an? {_SCALE}| to (?:{_any(_UNITS)}|\d))"
            r"|(?<!first )(?<!second )(?<!other )"
            r"(?<!better )(?<!and a )half\b(?!-| past| ?time| term| marathon| way| price"
            rf"| back| brother| sister| (?:of )?the time| an? {_SCALE})|halves\b)",
            _fraction,
        ),
        (_ORDINAL, _ordinal),
        (rf"\b({_BELOW_100[:-2]}|\d+)-?fold\b", _times_as_many),
        (rf"\b(?:{_any(_GROUPS)})\b", _group),
        (rf"{_NUMBER}(?!\w)", _count),
    ]
]
_HINTS: list[tuple[re.Pattern[str], Key]] = [
    (re.compile(rf"\b(?:{words})\b", re.IGNORECASE), key)
    for words, key in [
        ("both|pair|couple|twins?|twice|doubl(?:e[ds]?|ing)|two(?:some)?", ("n", 2)),
        ("tripl(?:e[ds]?|ing)|triplets|thrice", ("n", 3)),
        ("halv(?:e[ds]?|ing)", ("per cent", 50)),
        ("no|none|nil|nobody|nothing|goalless|without|zero", ("n", 0)),
        ("goalless|nil-nil", ("pair", 0, 0)),
        ("centenary|hundreds", ("n", 100)),
        ("a fortnight|fortnight(?:ly|'s)?", ("seconds", 1209600)),
        ("daily|a day", ("seconds", 86400)),
    ]
]
_ONE_IN = re.compile(rf"({_NUMBER}) (?:in|of|out of)(?: every| the)? ({_NUMBER})", re.IGNORECASE)
_PAIR = re.compile(r"(?: \w+){0,2} to |-| - | and | or |, ")
_RANGE = re.compile(r"-| - | to | or | and ")


# --- texts -------------------------------------------------------------------------------------


def find(text: str) -> list[Value]:
    """Return the values of a text, in order.

    `Three of them paid £4m in May.` holds 3, four million pounds and the month of May.
    """
    plain = text.translate(PLAIN)
    rest, values = plain, []
    for pattern, read in _RULES:
        for match in pattern.finditer(rest):
            for value in read(match, plain):
                values.append(value)
                rest = rest[: value.start] + "\0" * (value.end - value.start) + rest[value.end :]
    return _related(sorted(values, key=lambda value: value.start), plain)


def _related(values: list[Value], text: str) -> list[Value]:
    """Return values in which `3-2` is one, and the 3 of `3 to 5 per cent` is per cent too."""
    related: list[Value] = []
    for value in values:
        before = related[-1] if related else None
        if before is None or before.number is None or value.number is None:
            related.append(value)
            continue
        between = text[before.end : value.start]
        a, b = before.number, value.number
        if _PAIR.fullmatch(between):
            pair: set[Key] = {("pair", a, b), ("pair", b, a)}
            if between == "-" and before.label == value.label == "CARDINAL" and max(a, b) < 100:
                gives = before.gives | value.gives | pair
                related[-1] = Value(before.start, value.end, "CARDINAL", frozenset(pair), gives)
                continue
            value = replace(value, gives=value.gives | pair)
        if _RANGE.fullmatch(between) and b:
            scale = re.search(rf"{_SCALE}$", text[value.start : value.end], re.IGNORECASE)
            if scale and a < 1000:  # `£1-2 million`
                related[-1] = before = _with_unit(before, before, _SCALES[scale[0].lower()])
            if before.label == "CARDINAL" != value.label:
                related[-1] = _with_unit(before, value, a / b)
            elif before.label == "MONEY" and value.label == "CARDINAL" and a:
                value = _with_unit(value, before, b / a)
        related.append(value)
    return related


def _with_unit(value: Value, other: Value, ratio: float) -> Value:
    """Return the value as one that may have the other's unit of measure."""
    keys = {
        (*key[:-1], round(key[-1] * ratio, 6))
        for key in other.needs
        if (key[0] != "n" or value is other) and isinstance(key[-1], int | float)
    }
    needs = value.needs | keys if value.needs else value.needs
    return replace(value, needs=needs, gives=value.gives | keys)


def given(text: str) -> Given:
    """Return what a text supports."""
    plain = text.translate(PLAIN)
    keys = {key for value in find(text) for key in value.gives}
    keys |= {key for pattern, key in _HINTS if pattern.search(plain)}
    for match in _ONE_IN.finditer(plain):
        keys |= _share(number(match[1]) / (number(match[2]) or 1))
    return Given(frozenset(keys), re.sub(r"\s+", " ", plain.lower()))


def supported(value: Value, text: str, given: Given) -> bool:
    """Return whether a value of a text is given: by meaning, or in the same words.

    At the very end of the text, where it may be cut off, the beginning of given words will do.
    """
    if not value.needs or value.needs & given.keys:
        return True
    words = re.escape(re.sub(r"\s+", " ", text[value.start : value.end].translate(PLAIN).lower()))
    rest = text[value.end :]
    end = re.escape(rest) if rest in ("", ",", ".") else r"(?!\w|[.,:]\d)"
    return bool(re.search(rf"(?<!\w)(?<!\d[.,:]){words}{end}", given.words))
