"""Questions about typed parts of a sentence (amounts, times, numbers, dates, names), whatever its form.

`asking` asks only where grammar leaves no doubt, which of the sample folder's sentences is one in twelve. Here the
part goes out of its clause and the words that ask for it go in front: the identity cloze of Lewis, Denoyer and Riedel
(ACL 2019), put right where the clause has an auxiliary or ends in a verb like "costs". Such questions are clumsy, but
ask for what a person would ask for. Knows nothing about notes or files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ssd_diffusion.training.asking import Asked
from ssd_diffusion.training.words import words

_SHORTEST, _LONGEST = 18, 260  # characters of a sentence
_FEWEST_WORDS, _MOST_CHARS = 2, 121  # of a question; the words without those that ask
_MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_DAY = "(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)days?"
_COUNT = (
    r"(?:\d[\d,]*(?:\.\d+)?|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|"
    r"sixteen|eighteen|twenty|thirty|forty|fifty)"
)
_THINGS = r"(?:[a-z]{2,}s|people|[mck]?m|k?g|litres?)"
_TITLE = r"(?:(?:Mr|Mrs|Ms|Dr)\.? )?"
_NAME = rf"{_TITLE}[A-Z][\w'-]+(?:(?: & | of | )[A-Z][\w'-]+)"
_SPANS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("how much", re.compile(r"[£$€]\d[\d,.]*\d|[£$€]\d")),
    ("what percentage", re.compile(r"\d[\d.]*(?: ?%| per cent\b)")),
    ("at what time", re.compile(r"(?:(?:at|by|until|from|about) )?\b\d{1,2}[:.]\d\d\b(?! ?(?:m|mm|cm|kg|l)\b)")),
    ("when", re.compile(rf"(?:(?:on|by|until|from|since|in) )?\b\d{{1,2}} {_MONTH}\b(?: \d{{4}})?")),
    ("when", re.compile(rf"(?:(?:in|since|until|of) )?\b(?:{_MONTH} )?(?:1[5-9]|20)\d\d\b(?![-:#])")),
    ("on which day", re.compile(rf"(?:on )?\b{_DAY}(?: and {_DAY})?\b")),
    ("how many", re.compile(rf"\b(?P<count>{_COUNT}) (?P<things>{_THINGS})\b")),
    ("who or what", re.compile(rf"(?<=[a-z,;] ){_NAME}{{1,3}}")),
    ("who or what", re.compile(rf"(?:(?<= by )|(?<= is )|(?<=called )|(?<=named )|(?<=from )){_TITLE}[A-Z][\w'-]+")),
    ("who or what", re.compile(rf"\A(?:The [A-Z][\w'-]+|{_NAME}{{1,2}})(?= [a-z])")),
)
_OPENING = frozenset(
    words(
        "The A An We You They It He She This That There If In On At For From By Each Every All Our Your Their His Her "
        "And But So When Where What Who How To As Up No Not Then Leave Keep Put"
    )
)
_BREAK = re.compile(r"[,:](?!\d)|[;()—–]|\.(?= [A-Z])| - ")
_BEING = re.compile(
    r"\A(?P<subject>(?:[^\s]+ ){1,6}?)(?P<verb>is|are|was|were|can|may|must|will|would|has|have|had)(?P<rest> .*|)\Z"
)
_COSTING = re.compile(r"\A(?P<subject>(?:[^\s]+ ){1,7})(?P<verb>cost|weigh|need|take|hold|carr(?:ie)?|use)s\Z")
_MESS = re.compile(r"\|.*\||@|=|[<>{}]")  # tables, heads of mails, code


def about(sentence: str, *, person: bool) -> Iterator[Asked]:
    """Questions about every typed part of a sentence; the answer says the part's clause again, with the part in it.

    Args:
        sentence: of any form; marks of emphasis are passed over.
        person: whether names are likely those of people.
    """
    plain = " ".join(sentence.replace("*", "").replace("`", "").split())
    if not _SHORTEST <= len(plain) <= _LONGEST or _MESS.search(plain):
        return
    taken: list[tuple[int, int]] = []
    for asks, pattern in _SPANS:
        for found in pattern.finditer(plain):
            first, end = found.span()
            if any(first < other and begin < end for begin, other in taken):
                continue
            if asks == "who or what" and found.group().split()[0] in _OPENING and not found.group().startswith("The "):
                continue
            taken.append((first, end))
            clause = _clause(plain, first, end)
            if clause is not None:
                begin, stop = clause
                before, after = _trimmed(plain[begin:first]), _trimmed(plain[end:stop])
                question = _question(before, after, _asking_words(asks, found, person))
                answer = _stated(plain[begin:stop])
                if len(question) <= _MOST_CHARS and answer.count("(") == answer.count(")"):
                    yield Asked(question, answer)


def _asking_words(asks: str, found: re.Match[str], person: bool) -> str:
    if asks == "how many":
        return f"how many {found['things']}"
    if asks != "who or what":
        return asks
    name = found.group()
    several = 2 <= len(name.split()) <= 3 and not name.startswith("The ") and " of " not in name and "&" not in name
    return "who" if person and several else "what"


def _clause(sentence: str, first: int, end: int) -> tuple[int, int] | None:
    """Where the clause of a part begins and ends; with its neighbours where it says too little by itself."""
    breaks = [0, *(found.end() for found in _BREAK.finditer(sentence)), len(sentence)]
    begin = max(place for place in breaks if place <= first)
    stop = min(place for place in breaks if place >= end)
    while len(f"{_trimmed(sentence[begin:first])} {_trimmed(sentence[end:stop])}".split()) <= _FEWEST_WORDS:
        if begin > 0:
            begin = max(place for place in breaks if place < begin)
        elif stop < len(sentence):
            stop = min(place for place in breaks if place > stop)
        else:
            return None
    return begin, stop


def _question(before: str, after: str, asks: str) -> str:
    """A clause without a part, behind the words that ask for the part."""
    made = " ".join(f"{_turned(asks, _small(before))} {after}".split()).strip(" ,;:.!?—–-")
    return f"{made[0].upper()}{made[1:]}?"


def _stated(clause: str) -> str:
    """A clause as a sentence."""
    made = clause.strip(" ,;:—–-.!?()")
    return f"{made[0].upper()}{made[1:]}."


def _turned(asks: str, before: str) -> str:
    """What asks, and what stood before the part, in the order of a question where that is plain."""
    if being := _BEING.match(before):
        return f"{asks} {being['verb']} {being['subject'].strip()}{being['rest']}"
    if costing := _COSTING.match(before):
        return f"{asks} does {costing['subject'].strip()} {costing['verb']}"
    return f"{asks} {before}"


def _small(text: str) -> str:
    """A beginning as it stands inside a sentence."""
    head, _, rest = text.partition(" ")
    return f"{head.lower()} {rest}".strip() if head in _OPENING else text


def _trimmed(text: str) -> str:
    return text.strip(" ,;:()—–-.!?\"“”'")
