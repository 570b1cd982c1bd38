"""The learning curve: what the expert knew at some minutes of its one training, on kept documents and on hidden facts.

Every point reads the same stretches and spans, alone and without passages. Minute 0 is the base; the last point is the
expert as it is used, which keeps the best weights of its training. Knows records; nothing about plots.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from ssd_client.personalize import weights

from ssd_bench.lines import JsonRecord, LineFile
from ssd_bench.personal import recall
from ssd_bench.personal.cloze import Span
from ssd_bench.personal.experts import Model, Trio, open_mark
from ssd_bench.personal.heldout import CORE, Item
from ssd_bench.personal.reading import Reading

KEY = ("minutes", "kind", "item")


def points(trio: Trio) -> list[float]:
    """Minutes at which there are weights, the base's 0 and the end included."""
    kept = [minutes for minutes in sorted(trio.made.curve) if minutes < trio.made.minutes]
    return [0.0, *kept, round(trio.made.minutes, 2)]


def measure(
    trio: Trio,
    stretches: Sequence[Item],
    spans: Sequence[Span],
    records: LineFile,
    *,
    advance: Callable[[], None],
    until: float,
) -> None:
    """Measure what the records do not hold yet, point by point.

    A record is {minutes, kind: heldout or cloze, item, document, tokens, nats, filled}; `filled` only of a cloze.
    """
    for minutes in points(trio):
        opened: Model | None = None
        for kind, name, thing in _items(stretches, spans):
            if records.get(minutes, kind, name) is None:
                if time.monotonic() >= until:
                    return
                opened = opened or _model(trio, minutes)
                records.add([{"minutes": minutes, "kind": kind, "item": name, **_found(opened, thing)}])
            advance()


def found_of(trio: Trio, stretches: Sequence[Item], spans: Sequence[Span], records: LineFile) -> list[JsonRecord]:
    """The records of these points and items, as far as there are any."""
    rows = [records.get(minutes, kind, name) for minutes in points(trio) for kind, name, _ in _items(stretches, spans)]
    return [row for row in rows if row is not None]


def _items(stretches: Sequence[Item], spans: Sequence[Span]) -> Iterator[tuple[str, str, Item | Span]]:
    yield from (("heldout", item.stretch.id, item) for item in stretches)
    yield from (("cloze", span.id, span) for span in spans)


def _model(trio: Trio, minutes: float) -> Model:
    if minutes == 0:
        return trio.before
    path = trio.made.curve.get(minutes)
    return trio.after if path is None else open_mark(trio.made, path)


def _found(model: Model, thing: Item | Span) -> JsonRecord:
    if isinstance(thing, Span):
        nats, filled = recall.score(recall.read(model.reading, thing)["both"], thing)
        return {"document": thing.document, "tokens": len(thing.tokens), "nats": nats, "filled": filled}
    stretch = thing.stretch
    logits = Reading(model.reading, stretch.prompt, stretch.tokens).logits("s1")
    nats = -float(weights.of_truth(logits, logits, None, stretch.tokens, [CORE])[CORE].sum())
    return {"document": stretch.path, "tokens": len(stretch.tokens), "nats": nats, "filled": None}
