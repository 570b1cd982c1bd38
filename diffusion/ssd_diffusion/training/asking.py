"""Questions from plain sentences, by rule: a part of a sentence is asked for, and the sentence is the answer.

After the cloze translation of Lewis, Denoyer and Riedel (ACL 2019), without a parser: a sentence is asked about only
where its form leaves no doubt about what is subject, verb and rest. Knows nothing about notes or files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ssd_diffusion.training.words import words

_FEWEST, _MOST = 24, 210  # characters of a sentence
_WHOLE = re.compile(r"\A[A-Z].*\.\Z")
_UNCLEAR_WORDS = words(
    "He She It They We I You This That These Those There Here Such Some Many Most All Both Each One Its Their "
    "His Her However But And So Also Thus Then Or Another Other Others As Since Although While Note See For "
    "In On At If When Where What Within Neither Because After Before By From With Without To Under During "
    "Once No Not Nothing None Unlike Instead Of How Who Why Which Whether Until Only Even Just More Nor Yet "
    "Now Today Tomorrow Yesterday Nobody Somebody Everybody Anybody Everyone Someone Anyone Something "
    "Everything Whatever Whoever"
)
_UNCLEAR = re.compile(rf"\A(?:{'|'.join(_UNCLEAR_WORDS)})\b")
_MESS = re.compile(r"[<>{}\[\]|=\\_*;…#`]|:(?!\d)|\.\.|--| - |  |[“\"‘(]|https?:")
_AUX = r"(?:is|are|was|were|can|could|will|would|must|should|may|might|has|have|had)"
_CLAUSE = re.compile(rf"\A(?P<subject>[^,]{{2,60}}?) (?P<aux>{_AUX}) (?P<rest>[^,].+)\.\Z")
_NO_VERB = re.compile(rf"(?:{_AUX}|by|be|been)\b")  # "days returned are ...": what stands before is no verb
_BEFORE_VERB = re.compile(rf"\b(?:{_AUX}|that|which|who|whose|when|where|if|what|how|because|to|not|and|or)\b")
_MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_NUMBER = r"(?:\d[\d,.]*|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|fifty)"
_WHEN = re.compile(
    rf" (?:(?:on|in|since|until|by) (?:\d{{1,2}} )?(?:{_MONTH} )(?:\d{{1,2}}(?:, )?)?(?:1\d{{3}}|20\d\d)?|"
    r"in (?:early |late |about )?(?:1\d{3}|20\d\d)|(?:at|until|from) \d{1,2}[:.]\d\d)(?=[ ,.]|$)"
)
_WHERE = re.compile(r" (?:in|at|near|from) (?:the )?[A-Z][\w'-]+(?: (?:of (?:the )?)?[A-Z][\w'-]+){0,3}(?=[ ,.]|$)")
_WHOM = re.compile(r" by [A-Z][\w'.-]+(?: [A-Z][\w'.-]+){0,3}(?=[ ,.]|$)")
_COUNT = re.compile(
    rf" (?:the |all |all the )?(?:about |only |over |up to )?{_NUMBER} "
    r"(?P<things>(?!as |is |was |has |its |this )[a-z]+s)(?=[ ,.]|$)"
)
_TAIL = re.compile(r",| and | or ")
_WHY = re.compile(r" (?:because|so that|in order to) .+\Z")
_USED = re.compile(r"\Aused (?P<how>to|for|as|in) ")
_CALLED = re.compile(r"\A(?P<verb>called|named|known as) [^,]+\Z")
_KIND = re.compile(r"\A(?:a|an|the|one of the) [a-z]")
_TO_DO = re.compile(r"\ATo (?!be |have |it |this |that |put |sum )(?P<act>[a-z]+ [^,]{6,70}), .{20,}\Z")
_IF = re.compile(
    r"\A(?P<word>If|When) (?!it |this |that |these |they |those |so |for |in |not )(?P<case>[^,]{12,90}), .{15,}\Z"
)
_NAMED = re.compile(r"\A(?P<name>(?:The )?[A-Z][\w'-]*(?: [A-Z][\w'-]*){0,3}) (?P<verb>[a-z]+) (?P<rest>.+)\.\Z")

_FORMS = words(
    "allow/allows/allowed accept/accepts/accepted add/adds/added adopt/adopts/adopted affect/affects/affected "
    "become/becomes/became begin/begins/began belong/belongs/belonged build/builds/built buy/buys/bought "
    "call/calls/called carry/carries/carried cause/causes/caused change/changes/changed close/closes/closed "
    "come/comes/came consist/consists/consisted contain/contains/contained cost/costs "
    "control/controls/controlled cover/covers/covered create/creates/created define/defines/defined "
    "depend/depends/depended describe/describes/described die/dies/died discover/discovers/discovered "
    "eat/eats/ate end/ends/ended expect/expects/expected feed/feeds/fed find/finds/found "
    "follow/follows/followed form/forms/formed found/founds/founded get/gets/got give/gives/gave go/goes/went "
    "govern/governs/governed grow/grows/grew handle/handles/handled happen/happens/happened help/helps/helped "
    "hold/holds/held include/includes/included introduce/introduces/introduced invent/invents/invented "
    "join/joins/joined keep/keeps/kept know/knows/knew lead/leads/led leave/leaves/left lie/lies/lay "
    "live/lives/lived lose/loses/lost make/makes/made mean/means/meant measure/measures/measured "
    "meet/meets/met move/moves/moved need/needs/needed offer/offers/offered open/opens/opened own/owns/owned "
    "pay/pays/paid perform/performs/performed play/plays/played prevent/prevents/prevented "
    "produce/produces/produced propose/proposes/proposed protect/protects/protected provide/provides/provided "
    "publish/publishes/published reach/reaches/reached receive/receives/received refer/refers/referred "
    "remain/remains/remained remove/removes/removed replace/replaces/replaced require/requires/required "
    "return/returns/returned run/runs/ran say/says/said sell/sells/sold send/sends/sent serve/serves/served "
    "show/shows/showed specify/specifies/specified speak/speaks/spoke spend/spends/spent stand/stands/stood "
    "start/starts/started store/stores/stored study/studies/studied support/supports/supported "
    "take/takes/took teach/teaches/taught tell/tells/told travel/travels/travelled treat/treats/treated "
    "turn/turns/turned use/uses/used want/wants/wanted weigh/weighs/weighed win/wins/won work/works/worked "
    "write/writes/wrote"
)
_VERBS = {form: forms.split("/")[0] for forms in _FORMS for form in forms.split("/")[1:]}
_PLAIN = re.compile(
    r"\A(?P<subject>(?:(?:The|A|An|Every|Our|Your) (?:[a-z][\w'-]* ){1,3}|(?:[A-Z][\w'-]* ){1,3}))"
    rf"(?P<verb>{'|'.join(sorted(_VERBS))}) (?P<rest>.+)\.\Z"
)
_PAST = frozenset(form for form, lemma in _VERBS.items() if not form.endswith("s") and form != lemma)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, and the sentence that answers it."""

    question: str
    answer: str


def about(sentence: str, *, person: bool) -> Iterator[Asked]:
    """Questions that one sentence answers, each about another part of it.

    Args:
        sentence: with its end mark.
        person: whether names in its text are likely those of people.
    """
    if not _FEWEST <= len(sentence) <= _MOST or not _WHOLE.match(sentence) or _MESS.search(sentence):
        return
    for made in (*_steps(sentence), *_clause(sentence), *_plain(sentence), *_named(sentence, person=person)):
        question = " ".join(made.split()).strip(" ,.") + "?"
        if 14 <= len(question) <= 130 and len(question) < len(sentence) + 12:
            yield Asked(question[0].upper() + question[1:], sentence)


def _steps(sentence: str) -> Iterator[str]:
    """How to do what "To ..., do ..." tells, and what happens in the case that a sentence begins with."""
    if made := _TO_DO.match(sentence):
        yield f"how do I {made['act']}"
    elif made := _IF.match(sentence):
        yield f"what happens {made['word'].lower()} {made['case']}"


def _clause(sentence: str) -> Iterator[str]:
    """Of subject, auxiliary and rest: the auxiliary goes first, what is asked for goes out."""
    made = _CLAUSE.match(sentence)
    if made is None or _UNCLEAR.match(sentence) or _BEFORE_VERB.search(made["subject"]):
        return
    subject, aux, rest = _inside(made["subject"]), made["aux"], made["rest"]
    being = aux in ("is", "are", "was", "were")
    if being and (used := _USED.match(rest)):
        yield f"what {aux} {subject} used {used['how']}"
    elif being and (called := _CALLED.match(rest)):
        yield f"what {aux} {subject} {called['verb']}"
    elif being and _KIND.match(rest) and len(made["subject"].split()) <= 4:
        yield f"what {aux} {subject}"
    yield from (f"{word} {aux} {subject} {left}" for word, left in _without(rest))


def _plain(sentence: str) -> Iterator[str]:
    """Of subject, a known verb and rest, with do, does or did."""
    made = _PLAIN.match(sentence)
    if made is None or _UNCLEAR.match(sentence) or _BEFORE_VERB.search(made["subject"]) or _NO_VERB.match(made["rest"]):
        return
    subject, verb, rest = _inside(made["subject"].strip()), made["verb"], made["rest"]
    do = "did" if verb in _PAST else "does"
    yield from (f"{word} {do} {subject} {_VERBS[verb]} {left}" for word, left in _without(rest))
    if (
        "," not in rest
        and len(rest.split()) <= 12
        and re.match(r"(?:the|a|an|its|his|her|their|all|more) |[A-Z£$€\d]", rest)
    ):
        yield f"what {do} {subject} {_VERBS[verb]}"


def _without(rest: str) -> Iterator[tuple[str, str]]:
    """The rest of a sentence without a part of it, and the word that asks for that part.

    When and where end what is kept of it, as does a comma: behind them may stand what belongs to another verb.
    """
    padded = " " + rest
    for word, pattern in (("when", _WHEN), ("where", _WHERE), ("by whom", _WHOM), ("why", _WHY)):
        found = pattern.search(padded)
        if found and "," not in padded[: found.start()] and re.match(r"\Z|,| by ", padded[found.end() :]):
            yield word, padded[: found.start()]
    if (found := _COUNT.search(padded)) and "," not in padded[: found.start()]:
        yield f"how many {found['things']}", padded[: found.start()] + _TAIL.split(padded[found.end() :])[0]


def _named(sentence: str, *, person: bool) -> Iterator[str]:
    """Who or what does what a sentence says of a name at its beginning."""
    made = _NAMED.match(sentence)
    if made is None or _UNCLEAR.match(sentence) or "," in made["rest"] or _NO_VERB.match(made["rest"]):
        return
    if made["verb"] in _VERBS or re.fullmatch(_AUX, made["verb"]):
        few = len(made["name"].split()) <= 3 and not made["name"].startswith("The ")
        yield f"{'who' if person and few else 'what'} {made['verb']} {made['rest']}"


def _inside(subject: str) -> str:
    """A subject as it stands inside a sentence."""
    first, _, others = subject.partition(" ")
    return f"{first.lower()} {others}" if first in ("The", "A", "An", "Every", "Our", "Your") else subject
