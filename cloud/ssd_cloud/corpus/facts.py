"""Questions with full-sentence answers, made by rule: from articles with a known subject, and from invented notes.

From an article: sentences about its title that say when, where or by whom. Invented notes: small workplaces whose facts
no model has seen, so that an answer can only come from the notes. Everything follows from the random generator that is
passed in. Knows nothing about prompts or files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from ssd_diffusion.training.reading import sentences
from ssd_diffusion.training.words import words

from ssd_cloud.corpus.model import Question

_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
_MONTHS = _MONTH.split("|")
_WHEN = rf"(?:on (?:\d{{1,2}} )?(?:{_MONTH})(?: \d{{1,2}},)? ?(?:\d{{4}})?|in (?:(?:{_MONTH}) )?(?:1[0-9]|20)\d\d)"
_PAST = words(
    "founded established built opened released published born completed created launched introduced invented "
    "discovered adopted formed signed ratified abolished designed constructed produced recorded elected "
    "crowned assassinated"
)
_PEOPLE = frozenset(
    words(
        "actor actress singer songwriter musician guitarist drummer bassist pianist violinist rapper composer "
        "conductor dancer comedian entertainer presenter broadcaster filmmaker director producer screenwriter "
        "playwright dramatist poet writer novelist author journalist essayist critic biographer historian philosopher "
        "theologian logician polymath scholar linguist economist sociologist anthropologist archaeologist "
        "psychologist psychiatrist psychoanalyst scientist physicist chemist biologist biochemist botanist zoologist "
        "naturalist geologist geneticist mathematician statistician astronomer astrophysicist astronaut cosmonaut "
        "engineer inventor programmer architect designer painter sculptor illustrator photographer artist cartoonist "
        "animator model politician statesman diplomat president minister chancellor senator governor lawyer jurist "
        "judge activist revolutionary feminist abolitionist suffragette king queen emperor empress pharaoh sultan "
        "tsar prince princess duke duchess monarch ruler nobleman noblewoman aristocrat general admiral officer "
        "soldier commander warlord dictator leader physician surgeon nurse pope bishop priest monk friar nun saint "
        "preacher missionary mystic prophet rabbi footballer cricketer boxer wrestler swimmer cyclist sprinter "
        "athlete golfer player driver coach manager businessman businesswoman entrepreneur industrialist investor "
        "magnate philanthropist banker financier explorer navigator aviator pilot sailor pirate outlaw gangster "
        "criminal murderer killer spy noble socialite teacher educator professor man woman person"
    )
)
_PHRASE_END = re.compile(
    r"[,.;:(]| (?:of|by|who|whose|whom|which|that|in|for|from|and|or|with|on|at|to|best|known|active|during|as|under) "
)
_OF_A_PERSON = re.compile(r"\b(?:he|she|his|her|him|who|born)\b", re.IGNORECASE)
_PLACED = ["located", "situated", "based", "headquartered", "born", "buried", "spoken", "built", "founded", "held"]
_DONE = words("written directed founded designed composed invented discovered produced developed created painted built")


def about(title: str, text: str) -> Iterator[Question]:
    """Questions that an article answers in a sentence about its title.

    Args:
        title: of the article, as its text names the subject.
        text: of the article.
    """
    subject = re.sub(r"\s*\([^)]*\)$", "", title)
    for number, raw in enumerate(sentences(text)[:6]):
        sentence = re.sub(r"^(He|She|It|They)\b(?= (?:was|is|has|had)\b)", lambda _: subject, raw)
        if not sentence.startswith(subject + " ") or len(sentence) > 260:
            continue
        rest = sentence[len(subject) + 1 :]
        made = _of_rest(subject, rest)
        if made is None and number == 0 and re.match(r"(?:is|was|are|were) (?:a|an|the|one)\b", rest):
            word = asked_with(rest, text)
            made = f"{word} {rest.split()[0]} {_in_a_sentence(subject, text)}?" if word else None
        if made:
            yield Question(made, sentence, title, text)


def asked_with(rest: str, text: str) -> str:
    """Whether one asks "Who" or "What" a subject is; "" where the text leaves it open.

    Args:
        rest: the article's first sentence after the subject: "was an English naturalist and geologist".
        text: of the article.
    """
    what = re.sub(r"^(?:is|was|are|were) (?:an?|the|one)\b ?", "", rest)
    phrase = _PHRASE_END.split(what + " ", maxsplit=1)[0].split()
    if phrase and phrase[-1].lower() in _PEOPLE:
        return "Who"
    return "" if _OF_A_PERSON.search(text) else "What"


def _in_a_sentence(subject: str, text: str) -> str:
    """A subject as it is written within a sentence: with a small letter where the text has it so."""
    small = subject[0].lower() + subject[1:]
    return small if re.search(rf"\b{re.escape(small)}\b", text) else subject


def _of_rest(subject: str, rest: str) -> str | None:
    done = re.match(rf"(was|were) (?:\w+ly |first )?({'|'.join(_DONE)}) by ", rest)
    if done:
        return f"Who {done[2]} {subject}?" if done[2] not in ("written",) else f"Who wrote {subject}?"
    past = re.match(rf"(was|were) (?:\w+ly |first )?({'|'.join(_PAST)})\b.*?\b{_WHEN}", rest)
    if past:
        return f"When {past[1]} {subject} {past[2]}?"
    placed = re.match(rf"(is|was|are|were) ({'|'.join(_PLACED)}) (?:in|at|on|near) (?:the )?[A-Z]", rest)
    if placed:
        return f"Where {placed[1]} {subject} {placed[2]}?"
    people = re.match(r"(?:has|had) a population of ", rest)
    return f"What is the population of {subject}?" if people else None


@dataclass(frozen=True, slots=True)
class _Rule:
    """A fact: how notes say it, how people ask for it, and the answer; names in braces are drawn."""

    notes: tuple[str, ...]
    asked: tuple[str, ...]
    answer: str


_FIRST = words(
    "Amara Bilal Chiara Dmitri Elif Farid Greta Hiro Ines Joana Kwame Lena Mateo Nadia Oskar Pilar Quentin "
    "Rosa Samir Tove Umar Vera Wanda Ximena Yusuf Zofia Anton Bruna Cyrus Delia Emil Flora Goran Hedda Ivo "
    "Jette Karim Lotte Milan"
)
_LAST = words(
    "Abara Brandvold Castellan Dovlat Ekman Ferrante Grunwald Halloran Ishikawa Jankowski Kessler Lindqvist "
    "Moreau Novotny Okafor Petrosyan Quiroga Rasmussen Sokolov Takeda Ulrich Vasquez Wexford Yilmaz Zamora "
    "Achterberg Bellweather"
)
_DRAWN: dict[str, list[str]] = {
    "firm": words(
        "Alderbrook Foundry,Copper Lane Bakery,Dunmore Clinic,Eastgate Library,Fennel & Rye,Glasswork "
        "Studio,Hollow Hill Farm,Ironbridge Press,Juniper School,Kestrel Couriers,Lantern Theatre,Millrace "
        "Brewery,Northfold Museum,Orchard Veterinary Practice,Pinecrest Hostel,Quayside Laundry,Redwater "
        "Dairy,Silverbirch Nursery,Tallow Street Chandlery,Underhill Observatory,Violet Cab Company,Westmoor "
        "Cyclists",
        ",",
    ),
    "room": words(
        "the copper room,the east wing,the reading room,the cellar,the glass house,room 14,room 27,the "
        "annex,the old kitchen,the mezzanine,the long hall,the green office,hall B,the loft,the boiler room",
        ",",
    ),
    "day": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "colour": ["red", "blue", "green", "yellow", "white", "black", "orange", "grey", "purple", "brown", "silver"],
    "thing": words(
        "projector,kiln,delivery van,microscope,printing press,coffee "
        "grinder,freezer,ladder,telescope,server,forklift,piano,trailer,loom,drill,scanner,pump,oven,generator,camera",
        ",",
    ),
    "place": words(
        "Aldmouth,Brackwater,Corveth,Dunlow,Eskerby,Farrowdale,Greyholm,Hexley,Inverlune,Kirkham "
        "Moor,Larkspur Bay,Marrowby,Netherby,Ostrava Road,Penhallow,Ravenscar,Stourfield,Tarn End,Wick Abbas",
        ",",
    ),
    "job": words(
        "bookkeeping,the night shift,the front desk,first aid,the archive,deliveries,the garden,the web "
        "site,repairs,the safety inspections,ordering supplies,the newsletter,the payroll,the rota",
        ",",
    ),
    "form": words(
        "a blue slip,form K-7,an e-mail to the office,the red ledger,a note on the board,the online "
        "calendar,a signed card,form 22",
        ",",
    ),
    "item": words(
        "gloves,flour,envelopes,seed trays,toner,lamp oil,blankets,paint,bottles,bandages,copper wire,glass "
        "jars,firewood,batteries,clay",
        ",",
    ),
    "dish": words(
        "lentil soup,pea stew,pancakes,fish pie,potato salad,vegetable curry,noodles,onion tart",
        ",",
    ),
    "pet": ["cat", "dog", "parrot", "goat", "tortoise", "donkey"],
    "pet_name": words("Pickle Marzipan Bramble Domino Truffle Nutmeg Juno Waffles Sprocket Tansy Clover Figaro"),
    "code": words(
        "heron-42,blue lantern,7719,copper-fox,31-08-5,maple row,quiet river,5580,amber-gate,1264",
        ",",
    ),
    "instrument": words("cello,trumpet,bassoon,viola,clarinet,double bass,timpani,harp,oboe,accordion", ","),
    "food": words("rice,barley,cabbage,carrots,cheese,mushrooms,beans,spinach,butter,raisins", ","),
    "topic": words(
        "moths,tides,old maps,bread,bridges,the moon,sign language,beekeeping,volcanoes,clocks,fossils,dialects", ","
    ),
    "medicine": words("paracetamol,iron,ibuprofen,calcium,magnesium,zinc", ","),
    "reason": words(
        "the roof leaked,the boiler failed,the road was flooded,a pipe burst,the lift was being repaired,the "
        "electricians needed the floor,the harvest came early,the supplier went out of business",
        ",",
    ),
}
_RULES = (
    _Rule(("The office manager of {firm} is {person}.", "{person} manages the office of {firm}."),
          ("Who is the office manager of {firm}?", "Who manages the office of {firm}?"),
          "{person} is the office manager of {firm}."),
    _Rule(("{firm} was founded in {founded} by {founder}.", "In {founded}, {founder} founded {firm}."),
          ("When was {firm} founded?", "In which year was {firm} founded?"), "{firm} was founded in {founded}."),
    _Rule(("{firm} was started by {founder} in {founded}, with two helpers.",),
          ("Who started {firm}?", "By whom was {firm} started?"), "{firm} was started by {founder}."),
    _Rule(("The {thing} is kept in {room}.", "You will find the {thing} in {room}; put it back when you are done."),
          ("Where is the {thing} kept?", "Where do I find the {thing}?"), "The {thing} is kept in {room}."),
    _Rule(("The {thing} is serviced every {count} months, next in {month}.",
           "Every {count} months the {thing} is serviced. The next time is in {month}."),
          ("How often is the {thing} serviced?",), "The {thing} is serviced every {count} months."),
    _Rule(("The team meets every {day} at {time} in {room}.", "Team meeting: every {day}, {time}, {room}."),
          ("When does the team meet?", "On which day does the team meet, and at what time?"),
          "The team meets every {day} at {time}."),
    _Rule(("The shop at {firm} opens at {time} and shuts at {later}.",
           "Opening hours of the shop at {firm}: {time} to {later}."),
          ("When does the shop at {firm} open?", "At what time does the shop at {firm} open?"),
          "The shop at {firm} opens at {time}."),
    _Rule(("{person} looks after {job}.", "For {job}, ask {person}.", "{job_cap} is done by {person}."),
          ("Who looks after {job}?", "Whom do I ask about {job}?"), "{person} looks after {job}."),
    _Rule(("The {colour} bins are emptied on {day}s.", "Put the {colour} bin out: it is emptied every {day}."),
          ("When are the {colour} bins emptied?", "On which day is the {colour} bin emptied?"),
          "The {colour} bins are emptied on {day}s."),
    _Rule(("The code of the door to {room} is {code}.", "Door code for {room}: {code}."),
          ("What is the code of the door to {room}?", "Which code opens the door to {room}?"),
          "The code of the door to {room} is {code}."),
    _Rule(("Leave is asked for with {form}, at least {count} days before.",
           "Whoever wants leave hands in {form} {count} days ahead."),
          ("How is leave asked for?", "How do I ask for leave?"), "Leave is asked for with {form}."),
    _Rule(("A day's parking costs {price} for visitors.", "Visitors pay {price} a day for parking."),
          ("How much does parking cost for visitors?", "What do visitors pay for a day's parking?"),
          "Parking costs {price} a day for visitors."),
    _Rule(("We order {item} from a supplier in {place}; an order takes {count} days.",
           "The {item} come from {place} and take {count} days."),
          ("Where do we order {item} from?", "Where do the {item} come from?"), "The {item} come from {place}."),
    _Rule(("There are {number} boxes of {item} in store.", "Stock on hand: {number} boxes of {item}."),
          ("How many boxes of {item} are in store?", "How many boxes of {item} do we have?"),
          "There are {number} boxes of {item} in store."),
    _Rule(("On {day}s the kitchen serves {dish}.", "{day}: {dish} in the kitchen."),
          ("What does the kitchen serve on {day}s?", "What is there to eat on {day}s?"),
          "On {day}s the kitchen serves {dish}."),
    _Rule(("The {pet} of the house is called {pet_name}.", "{pet_name}, our {pet}, may go anywhere but the kitchen."),
          ("What is the {pet} called?", "What is the name of the {pet}?"), "The {pet} is called {pet_name}."),
    _Rule(("The meeting of {date} was put off because {reason}.",
           "Because {reason}, we put off the meeting of {date}."),
          ("Why was the meeting of {date} put off?",), "The meeting of {date} was put off because {reason}."),
    _Rule(("The new {thing} cost {price} and was bought in {month} {year}.",
           "In {month} {year} we bought a {thing} for {price}."),
          ("How much did the new {thing} cost?", "What was paid for the {thing}?"), "The {thing} cost {price}."),
    _Rule(("The contract with {firm} runs until {date} {year}.", "{firm} has a contract with us until {date} {year}."),
          ("Until when does the contract with {firm} run?", "When does the contract with {firm} end?"),
          "The contract with {firm} runs until {date} {year}."),
    _Rule(("{person} is away from {date} for {count} weeks; {other} stands in.",
           "While {person} is away, {other} stands in."),
          ("Who stands in for {person}?", "Who stands in while {person} is away?"), "{other} stands in for {person}."),
    _Rule(("{person} can be reached at extension {number}.", "Extension {number} is {person}'s."),
          ("What is {person}'s extension?", "At which extension can {person} be reached?"),
          "{person}'s extension is {number}."),
    _Rule(("The fire drill is on {date} at {time}.", "On {date}, at {time}, there is a fire drill."),
          ("When is the fire drill?", "On which date is the fire drill?"), "The fire drill is on {date} at {time}."),
    _Rule(("The {thing} may carry no more than {number} kilograms.",
           "Do not load the {thing} with more than {number} kilograms."),
          ("How much may the {thing} carry?", "What is the most that the {thing} may carry?"),
          "The {thing} may carry {number} kilograms at most."),
    _Rule(("The bus to {place} leaves at {time} from stop {count}.", "Stop {count}, {time}: bus to {place}."),
          ("When does the bus to {place} leave?", "At what time does the bus to {place} leave?"),
          "The bus to {place} leaves at {time}."),
    _Rule(("{person} plays the {instrument} in the band.", "On the {instrument}: {person}."),
          ("Who plays the {instrument}?", "Who plays the {instrument} in the band?"),
          "{person} plays the {instrument}."),
    _Rule(("For {dish}, take {number} grams of {food} and {count} spoons of oil.",),
          ("How much {food} does one take for {dish}?", "How many grams of {food} go into {dish}?"),
          "For {dish}, take {number} grams of {food}."),
    _Rule(("{person} was born in {place} in {year}.", "Born in {place} in {year}, {person} came to us late."),
          ("Where was {person} born?", "In which place was {person} born?"), "{person} was born in {place}."),
    _Rule(("{person} speaks about {topic} on {date}.", "On {date} there is a talk by {person} about {topic}."),
          ("What does {person} speak about?", "What is the talk by {person} about?"), "{person} speaks about {topic}."),
    _Rule(("The match against {place} ended {count} to {number}.", "Against {place} we played {count} to {number}."),
          ("How did the match against {place} end?", "What was the result against {place}?"),
          "The match against {place} ended {count} to {number}."),
    _Rule(("Bed {count} gets {number} milligrams of {medicine} at {time}.",
           "{medicine_cap} for bed {count}: {number} milligrams at {time}."),
          ("How much {medicine} does bed {count} get?",), "Bed {count} gets {number} milligrams of {medicine}."),
    _Rule(("The book about {topic} stands on shelf {count}.", "Shelf {count} has the book about {topic}."),
          ("Where does the book about {topic} stand?", "On which shelf is the book about {topic}?"),
          "The book about {topic} stands on shelf {count}."),
    _Rule(("{person} lives at {number} {place} Street.", "The address of {person} is {number} {place} Street."),
          ("Where does {person} live?", "What is the address of {person}?"),
          "{person} lives at {number} {place} Street."),
    _Rule(("The train through {place} is {count} minutes late because {reason}.",),
          ("How late is the train through {place}?", "By how much is the train through {place} late?"),
          "The train through {place} is {count} minutes late."),
    _Rule(("The {colour} folder holds the papers on {job}.", "Papers on {job} are in the {colour} folder."),
          ("Which folder holds the papers on {job}?", "Where are the papers on {job}?"),
          "The papers on {job} are in the {colour} folder."),
)  # fmt: skip
_HEADS = (
    "Notes", "Minutes", "House rules", "Handover", "Things to know", "Week plan", "Office", "For new people", "Rota",
    "Stock", "Facilities", "Contacts", "Reminders",
)  # fmt: skip
_ASIDES = (
    "Please tell the office when this changes.", "Ask before you change anything here.", "This was agreed by all.",
    "Everything else stays as it was last year.", "Please pass this on to those who were not there.",
    "Nobody had further questions.", "The list will be looked at again in spring.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Note:
    """An invented note.

    Attributes:
        head: its heading.
        text: its facts, as sentences or as a list.
        asked: for each fact, every way to ask for it, and the answer.
    """

    head: str
    text: str
    asked: tuple[tuple[tuple[str, ...], str], ...]


def invented_note(rng: np.random.Generator) -> Note:
    """A note of two to six facts that no model has seen; no two of one rule."""
    picked = rng.permutation(len(_RULES))[: int(rng.integers(2, 7))]
    lines, asked = [], []
    shared = {"firm": _draw(rng, _DRAWN["firm"]), "founder": _name(rng), "founded": str(rng.integers(1871, 2021))}
    for i in picked:
        rule = _RULES[int(i)]
        values = _values(rng) | shared
        lines.append(_draw(rng, rule.notes).format(**values))
        asked.append((tuple(q.format(**values) for q in rule.asked), rule.answer.format(**values)))
    firm = shared["firm"]
    if rng.random() < 0.4:
        lines.insert(int(rng.integers(0, len(lines) + 1)), _draw(rng, _ASIDES))
    lines = [line[0].upper() + line[1:] for line in lines]
    joined = "\n".join(f"- {line}" for line in lines) if rng.random() < 0.3 else " ".join(lines)
    head = f"{_draw(rng, _HEADS)}, {firm}" if rng.random() < 0.5 else _draw(rng, _HEADS)
    return Note(head, joined, tuple((q, a[0].upper() + a[1:]) for q, a in asked))


def _name(rng: np.random.Generator) -> str:
    return f"{_draw(rng, _FIRST)} {_draw(rng, _LAST)}"


def _values(rng: np.random.Generator) -> dict[str, str]:
    numbers: Iterator[int] = iter(
        rng.integers(0, 1 << 40, 50).tolist()
    )  # at once: one call for each number takes most of a build

    def pick(words: Sequence[str]) -> str:
        return words[next(numbers) % len(words)]

    def between(low: int, high: int) -> int:
        return low + next(numbers) % (high - low)

    values = {name: pick(words) for name, words in _DRAWN.items()}
    hour, minute, month = between(6, 13), pick(("00", "15", "30", "45")), pick(_MONTHS)
    values |= {
        "person": f"{pick(_FIRST)} {pick(_LAST)}", "other": f"{pick(_FIRST)} {pick(_LAST)}",
        "year": str(between(1871, 2031)), "time": f"{hour}:{minute}", "later": f"{hour + 8}:{minute}",
        "month": month, "medicine_cap": values["medicine"].capitalize(), "date": f"{between(1, 29)} {month}",
        "count": str(between(2, 19)),
        "number": str(between(11, 980)), "job_cap": values["job"][0].upper() + values["job"][1:],
        "price": f"{pick('$£€')}{between(2, 900)}{pick(('', '', '.50', '.80'))}",
    }  # fmt: skip
    return values


def _draw(rng: np.random.Generator, words: list[str] | tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]
