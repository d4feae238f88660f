"""Names in a text, and whether another text gives them.

Names are what spaCy finds, and what is written with capitals where no sentence starts. They are
compared by normalised words: without case, accents, possessives, articles and titles; by initials,
by parts of a full name, and by the common stem of a place and its people.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tnt.detectors.entities import values

VALUES = ("DATE", "TIME", "PERCENT", "MONEY", "QUANTITY", "ORDINAL", "CARDINAL")
"""spaCy's kinds that are no names."""

_WORD = re.compile(r"(?:[^\W\d_]\.){2,}|[^\W_]+(?:'[^\W_]+)*")
_HANDLE = re.compile(r"(?<![\w.])@\w+|\bhttps?://\S+|\bwww\.\S+")
_OPENING = "\"'\u201c\u2018("
_CLOSING = "\"'\u201d\u2019,."
_HOLE = re.compile(r"\[[^\]\n]{1,40}\]|<[^>\n]{1,40}>")
"""`[Your Name]`, which a person is to fill in."""
_HEADING_END = re.compile(r"[*\s]*:|\*\*|[ \t]*\n")
_LETTERS = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "æ": "ae", "œ": "oe", "ð": "d", "þ": "th"})
_SAME = {"saint": "st", "street": "st", "mount": "mt", "road": "rd", "avenue": "ave", "usa": "us"}
_SAME |= {"i": "1", "one": "1", "ii": "2", "two": "2", "iii": "3", "three": "3", "iv": "4"}
_SAME |= {"four": "4", "v": "5", "five": "5", "vi": "6", "six": "6", "viii": "8", "eight": "8"}
_UNIONS = {"united state": "us", "united kingdom": "uk", "great britain": "uk"}
_UNIONS |= {"european union": "eu"}
_LINKS = values.words(
    "of the and for a an in on at upon de la le du inc ltd plc corp co llc gmbh limited"
)
_BETWEEN = re.compile(
    r"(?:'s)? (?:(?:of|of the|on|upon|for|de|de la|la|von|van|der|du|bin|ap|ibn) )?"
    r"|[-&]| & |-the-|-on-the-"
)
"""What may stand between the words of one name."""
_TITLES = values.words(
    "mr mrs ms miss mx dr prof professor sir dame lord lady rev reverend father sister brother "
    "king queen prince princess duke duchess captain capt colonel col general gen major "
    "sergeant sgt lieutenant lt inspector constable detective officer pc president vice prime "
    "minister mp senator governor mayor mayoress councillor cllr chancellor secretary chief "
    "executive director chairman chairwoman chairperson chair manager head coach doctor nurse "
    "judge justice bishop archbishop pope saint uncle aunt auntie grandma grandpa master ceo "
    "spokesman spokeswoman pm dear hi hello hey thanks spokesperson farmer teacher headteacher "
    "deputy actor actress author singer"
)
_GENERIC = _TITLES | values.words(
    "i ai ok okay tv ceo diy id it pc cv dna gps faq phd bbq atm pdf url html ad bc am pm "
    "internet web council parliament government state city town county village district region "
    "board committee department ministry university college school hospital clinic church "
    "museum library theatre theater gallery society club team union company firm group agency "
    "service police army navy court house park hall bridge river lake street road centre center "
    "earth sun moon god bible dad mum mom grandad granny north south east west northern "
    "southern eastern western bot assistant news madam regards sincerely name step lol omg wtf "
    "haha fyi asap btw ps eg ie aka nb rip vat mot pr hr gp suv rsvp q a"
)
_NOBLE = values.words("king queen prince princess duke bishop saint")
_PLAIN = _GENERIC - _TITLES | {"'s", "\u2019s"}
_ASIDE = values.words("i i'm ps eg ie aka nb am pm ad bc")
_FEASTS = values.words(
    "christmas easter ramadan halloween diwali hanukkah thanksgiving eid passover hogmanay lent "
    "pentecost"
)
_DATES = values.words(
    "monday tuesday wednesday thursday friday saturday sunday january february march april may "
    "june july august september october november december"
)
_JOB = re.compile(r"(?:[^e]er|or|ist|man|woman|ian|ant|herd|smith|wright|worker)$")
"""How a word ends that may be somebody's job."""


def _norm(word: str) -> str:
    """Return a word without case, accents, possessive, plural and dots: `Café's` is `cafe`."""
    word = unicodedata.normalize("NFKD", word.casefold().translate(_LETTERS))
    word = "".join(letter for letter in word if not unicodedata.combining(letter))
    word = re.sub(r"'s$", "", word).replace("'", "").replace(".", "")
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = re.sub(r"(?:(?<=[cs]h)|(?<=[sxz]))es$|s$", "", re.sub(r"ies$", "ys", word))
    return _SAME.get(word, word)


def words_of(text: str) -> list[tuple[str, int, int]]:
    """Return the words of a name that carry its meaning, normalised, with their places."""
    found = ((match[0], *match.span()) for match in _WORD.finditer(text.translate(values.PLAIN)))
    words = [(_norm(word), start, end) for word, start, end in found if word.lower() not in _LINKS]
    for i in range(len(words) - 1, 0, -1):
        short = _UNIONS.get(f"{words[i - 1][0]} {words[i][0]}")
        if short:
            words[i - 1 : i + 1] = [(short, words[i - 1][1], words[i][2])]
    return words


def joined(words: Iterable[tuple[str, int, int]]) -> str:
    """Return normalised words as one, so that `Mac Donald` and `MacDonald` are the same."""
    return "".join(word for word, _, _ in words)


def dictionary(nlp: Any) -> frozenset[str]:
    """Return the English words that the model's lemmatizer knows."""
    words = set(nlp.Defaults.stop_words)
    if nlp.has_pipe("lemmatizer"):
        lookups = nlp.get_pipe("lemmatizer").lookups
        if lookups.has_table("lemma_index"):
            for known in lookups.get_table("lemma_index").values():
                words.update(known)
        nlp.remove_pipe("lemmatizer")
    return frozenset(words)


def _is_common(word: str, common: Collection[str]) -> bool:
    """Return whether a word, or what it is inflected from, is in the dictionary."""
    lower = word.lower()
    stems = {lower, re.sub(r"'s$", "", lower), re.sub(r"(?:e?s|ed|ing|ly|er|est)$", "", lower)}
    stems |= {re.sub(r"(?:d|ing|r|ies|ied)$", end, lower) for end in ("", "e", "y")}
    return any(stem in common for stem in stems)


@dataclass(frozen=True, slots=True)
class Name:
    """Characters [start, end) of a text that may be a name."""

    start: int
    end: int
    label: str
    core: int
    """Where it starts without a first word that may be none of it: `Plumber Ann Lee`."""


def candidates(doc: Any, common: Collection[str]) -> Iterator[Name]:
    """Yield the names of a text, with a label: what spaCy finds, then runs of capitals."""
    text = doc.text
    for match in _HANDLE.finditer(text):
        yield Name(*match.span(), "NAME", match.start())
    holes = [match.span() for match in _HOLE.finditer(text)]
    tokens = [
        token
        for token in doc
        if not token.is_space and not any(start <= token.idx < end for start, end in holes)
    ]
    kept = {token.i for token in tokens}
    starts = _sentence_starts(tokens)
    shouted = _in_capitals(tokens, starts)
    for ent in doc.ents:
        name = [token for token in ent if token.i in kept]
        if ent.label_ in VALUES and not any(t.lower_ in _FEASTS for t in name):
            continue
        name = _trimmed(name)
        if name and _is_name(name, ent.label_, starts, shouted, common):
            label = "EVENT" if ent.label_ in VALUES else ent.label_
            yield _named(name, label, starts, common)
    for run in _runs(tokens, starts, common):
        run = _trimmed(run)
        if run and _is_name(run, "", starts, shouted, common):
            label = "EVENT" if run[0].lower_ in _FEASTS else "NAME"
            yield _named(run, label, starts, common)


def _named(name: list[Any], label: str, starts: set[int], common: Collection[str]) -> Name:
    first = name[0]
    opening = first.i in starts and not (label and first.pos_ == "PROPN")
    loose = (opening or _JOB.search(first.lower_)) and _is_common(first.text, common)
    loose = len(name) > 1 and (loose or first.text[0].isdigit())
    start = first.idx
    end = name[-1].idx + len(name[-1])
    return Name(start, end, label, name[1].idx if loose else start)


def _sentence_starts(tokens: list[Any]) -> set[int]:
    """Return the indices of tokens whose capital may be due to where they stand."""
    starts, fresh, previous = set(), True, ""
    text = tokens[0].doc.text if tokens else ""
    for token in tokens:
        line_start = re.search(r"(?:^|\n)[^\w\n]*$", text[max(token.idx - 20, 0) : token.idx])
        if (fresh or line_start) and re.match(r"\w", token.text):
            starts.add(token.i)
            fresh = False
        elif re.fullmatch(r"[.!?:;…]+|\*\*|#+", token.text) or (
            token.text in _OPENING and (previous in ",:.!?" or not previous)
        ):
            fresh = True
        previous = token.text
    return starts


def _in_capitals(tokens: list[Any], starts: set[int]) -> set[int]:
    """Return the indices of tokens in headlines: sentences where capitals tell nothing."""
    shouted: set[int] = set()
    sentence: list[Any] = []
    for token in [*tokens, None]:
        if token is None or token.i in starts:
            words = [t for t in sentence[1:] if t.is_alpha and len(t) > 2]
            words = [t for t in words if t.is_upper or not t.ent_type_]
            capital = [t for t in words if t.text[0].isupper()]
            if len(words) >= 3 and len(capital) > 0.7 * len(words):
                shouted |= {t.i for t in sentence}
            sentence = []
        if token is not None:
            sentence.append(token)
    return shouted


def _has_capital(token: Any) -> bool:
    text = token.text
    return text[:1].isupper() or bool(
        re.fullmatch(r"(?=.*\d)(?=.*[^\W\d])\w+|[a-z]+[A-Z]\w*", text)
    )


def _runs(tokens: list[Any], starts: set[int], common: Collection[str]) -> Iterator[list[Any]]:
    """Yield the longest runs of words with capitals; `of`, `-`, `&` ... may stand in between."""
    run: list[Any] = []
    text = tokens[0].doc.text if tokens else ""
    for token in tokens:
        starting = token.i in starts
        ordinary = starting and token.pos_ not in ("PROPN", "NOUN", "ADJ", "VERB")
        value = token.lower_ in _DATES or (
            token.text[0].isdigit() and bool(values.find(token.text))
        )
        if not _has_capital(token) or value or token.lower_.replace(".", "") in _ASIDE:
            continue
        between = (
            text[run[-1].idx + len(run[-1]) : token.idx].translate(values.PLAIN) if run else ""
        )
        if run and (_BETWEEN.fullmatch(between) and not starting):
            run.append(token)
            continue
        if run:
            yield run
        run = [] if ordinary or (starting and token.is_stop) else [token]
    if run:
        yield run


def _trimmed(name: list[Any]) -> list[Any]:
    """Return a name without the article, titles and signs around it."""
    while name and (
        name[0].lower_ in _LINKS
        or not re.match(r"\w", name[0].text)
        or (name[0].lower_.rstrip(".") in _TITLES and any(t.lower_ not in _PLAIN for t in name[1:]))
        or name[0].lower_ in ("this", "that", "his", "her", "its", "their", "our", "my", "your")
    ):
        name = name[1:]
    while name and (not re.search(r"\w", name[-1].text) or name[-1].lower_ in ("'s", "\u2019s")):
        name = name[:-1]
    return name


def _before_colon(token: Any) -> bool:
    return bool(_HEADING_END.match(token.doc.text, token.idx + len(token)))


def _is_name(
    name: list[Any], label: str, starts: set[int], shouted: set[int], common: Collection[str]
) -> bool:
    """Return whether what looks like a name is one."""
    if not any(_has_capital(token) for token in name):
        return False
    words = [token for token in name if re.match(r"\w", token.text)]
    if any(token.lower_ in _FEASTS for token in words):
        return True
    unusual = [token for token in words if not _is_common(token.text, common)]
    if name[0].i in shouted:
        return bool(unusual if name[0].text.isupper() else label or unusual) and bool(label)
    if len(words) > 1:
        heading = name[0].i in starts and not (label or unusual) and _before_colon(name[-1])
        place = words[0].lower_ in _NOBLE and words[-1].lower_ not in _TITLES  # `King Street`
        if all(t.text.isupper() for t in words) and not (label or unusual):  # `NO WAY OUT`
            return False
        return (place or any(t.lower_ not in _GENERIC for t in words)) and not heading
    [word] = words
    lower = word.lower_.replace(".", "")
    if lower in _GENERIC or len(lower) == 1:
        return False
    if word.i in starts:
        if label == "NORP" and word.tag_ == "NNPS":
            return True
        proper = word.tag_ in ("NNP", "JJ") and label in (
            "PERSON",
            "GPE",
            "NORP",
            "LOC",
            "LANGUAGE",
        )
        return proper or bool(unusual and label and word.pos_ == "PROPN")
    if label:
        return True
    before, after = (word.nbor(i).text if 0 <= word.i + i < len(word.doc) else "" for i in (-1, 1))
    if before == "The":
        before = word.nbor(-2).text if word.i > 1 else ""
    quoted = before in _OPENING[:-1] and after in _CLOSING and bool(before and after)
    titled = before.lower().rstrip(".") in _TITLES and before[:1].isupper()
    acronym = word.text.isupper() and (1 < len(word) < 5 or bool(unusual))
    mixed = any(c.isdigit() for c in word.text)
    return bool(
        quoted
        or titled
        or acronym
        or mixed
        or (unusual and word.pos_ in ("PROPN", "NOUN", "ADJ", "X", "VERB"))
    )


# --- names that a text gives ---------------------------------------------------------------------

_PEOPLES = [
    *map(values.words, ["netherland dutch holland", "france french", "spain spanish spaniard"]),
    *map(values.words, ["ireland irish", "denmark danish dane", "switzerland swiss"]),
    *map(values.words, ["poland polish pole", "wale welsh", "greece greek", "philippine filipino"]),
    *map(values.words, ["us america american", "uk britain british briton", "eu europe european"]),
    *map(values.words, ["finland finnish finn", "rome roman", "peru peruvian", "turkey turk"]),
    *map(values.words, ["sweden swedish swede", "cyprus cypriot", "scotland scottish scot"]),
]
"""Places and their people that have fewer than four letters in common, normalised."""
_PLACE = {""} | values.words("a ia y ay land way e o um al en ey us and ain on ce ity istan")
_PEOPLE = {""} | values.words("is n an ian ean egian ese uese ish i er ic iot k tish")
"""How the names of places and of their people end."""


class Names:
    """The names that an input gives, in all the forms in which it supports them."""

    def __init__(self, doc: Any) -> None:
        """Index a parsed input."""
        text = doc.text.translate(values.PLAIN)
        words = words_of(text)
        self._text = text.lower()
        self._words = {word for word, _, _ in words}
        self._capitals = {word for word, start, _ in words if text[start].isupper()}
        self._phrases = {
            "".join(word for word, _, _ in words[i : i + n])
            for i in range(len(words))
            for n in range(1, 8)
        }
        self._initials = _initials(text)
        self._acronyms = {word for word, i, j in words if text[i:j].isupper() and j - i > 1}
        self._things = _things(doc, text, words)
        self._stems: dict[str, set[str]] = {}
        for word in self._words:
            self._stems.setdefault(word[:4], set()).add(word)

    def give(self, text: str, name: Name) -> bool:
        """Return whether the input gives a name of a text, as a whole."""
        words = text[name.start : name.end]
        if name.label == "NAME" and _HANDLE.fullmatch(words):
            return words.lower() in self._text
        parts = words_of(words)
        return not parts or self._gives(parts, words, name.label, name.end == len(text))

    def missing(self, text: str, candidate: Name) -> list[tuple[int, int]]:
        """Return the parts [start, end) of a name that the input does not give as a whole."""
        start, end, label = candidate.start, candidate.end, candidate.label
        cut_off = end == len(text)
        words = [(word, start + i, start + j) for word, i, j in words_of(text[start:end])]
        if candidate.core > start:
            rest = [word for word in words if word[1] >= candidate.core]
            if rest and self._gives(rest, text[candidate.core : end], label, cut_off):
                return []
        while len(words) > 1 and words[-1][0][0].isdigit():  # `Hull 1-0`: a value of its own
            words.pop()
            if self._gives(words, text[start : words[-1][2]], label, False):
                return []
        words = [(word, start + i, start + j) for word, i, j in words_of(text[start:end])]
        plain = text.translate(values.PLAIN)
        parts: list[list[tuple[str, int, int]]] = [[words[0]]]
        for before, word in pairwise(words):
            gap = plain[before[2] : word[1]]
            possessive = plain[before[1] : before[2]].endswith("'s") or gap.startswith("' ")
            if possessive or re.search(r"[,&/]| and ", gap):
                parts.append([])
            parts[-1].append(word)
        lacking = [
            part
            for part in parts
            if not self._gives(
                part, text[part[0][1] : part[-1][2]], label, cut_off and part is parts[-1]
            )
        ]
        if len(lacking) in (0, len(parts)):
            lacking = [words]
        return [(part[0][1], _without_possessive(text, part[-1][2])) for part in lacking]

    def _gives(
        self, words: list[tuple[str, int, int]], name: str, label: str, cut_off: bool
    ) -> bool:
        phrase = joined(words)
        if phrase in self._phrases or self._gives_acronym(name):
            return True
        if cut_off and any(known.startswith(phrase) for known in self._phrases):
            return True
        letters = [word for word, _, _ in words if len(word) == 1]
        whole = [word for word, _, _ in words if len(word) > 1]
        if letters and whole:  # `J. Smith`
            initials = {word[0] for word in self._capitals}
            return set(letters) <= initials and "".join(whole) in self._phrases
        if not all(self._knows(word, label) for word in whole):
            return False
        if len(whole) == 1 or all(word in self._capitals or self._relates(word) for word in whole):
            return True
        return any(whole[-1] in heads and set(whole) <= all_ for heads, all_ in self._things)

    def _gives_acronym(self, name: str) -> bool:
        letters = re.sub(r"[^A-Za-z]", "", name)
        if (
            sum(letter.isupper() for letter in letters) > 1
            and len(letters) <= 6
            and " " not in name
        ):
            return letters.lower() in self._initials
        words = [match[0] for match in _WORD.finditer(name)]
        content = [word for word in words if word.lower() not in _LINKS]
        return any(
            len(run) > 1 and "".join(word[0] for word in run).lower() in self._acronyms
            for run in (words, content)
        )

    def _knows(self, word: str, label: str) -> bool:
        return word in self._words or (
            label in ("NORP", "GPE", "LOC", "LANGUAGE", "NAME") and self._relates(word)
        )

    def _relates(self, word: str) -> bool:
        """Return whether the input has the country of a people, or the people of a country."""
        for forms in _PEOPLES:
            if word in forms and forms & self._words:
                return True
        return any(_same_stem(word, o) for o in self._stems.get(word[:4], ()) if o != word)


def _same_stem(a: str, b: str) -> bool:
    """Return whether one word is a place and the other its people: `norway`, `norwegian`."""
    common = next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    for i in range(4, common + 1):
        if (a[i:] in _PEOPLE and b[i:] in _PLACE) or (b[i:] in _PEOPLE and a[i:] in _PLACE):
            return True
    return False


def _initials(text: str) -> set[str]:
    """Return the initials of 2 to 6 words in a row, with and without `of`, `the` ...

    Two words count only if both have a capital, more only if one of them has.
    """
    found = set()
    words = [match[0] for match in re.finditer(r"[^\W\d_]+(?:'[^\W\d_]+)?", text)]
    for kept in (words, [word for word in words if word.lower() not in _LINKS]):
        for i in range(len(kept)):
            for n in range(2, 7):
                run = kept[i : i + n]
                capitals = sum(word[0].isupper() for word in run)
                if len(run) == n and capitals >= (2 if n == 2 else 1):
                    found.add("".join(word[0] for word in run).lower())
    return found


def _things(
    doc: Any, text: str, words: list[tuple[str, int, int]]
) -> list[tuple[set[str], set[str]]]:
    """Return, for every sentence, the words that modify no other, and all its words."""
    parts = {token.idx: token.pos_ for token in doc}
    things: list[tuple[set[str], set[str]]] = [(set(), set())]
    for i, (word, _, end) in enumerate(words):
        following = words[i + 1][1] if i + 1 < len(words) else len(text)
        gap = text[end:following]
        modifies = gap in (" ", "-") and parts.get(following) in ("NOUN", "PROPN")
        if not modifies:
            things[-1][0].add(word)
        things[-1][1].add(word)
        if re.search(r"[.!?]\W|\n", gap):
            things.append((set(), set()))
    return things


def _without_possessive(text: str, end: int) -> int:
    return end - 2 if re.search(r"['\u2019]s$", text[max(end - 2, 0) : end], re.I) else end
