"""Plain sentences from the figures: yes, no, or not shown, by how much, with the interval. Knows figures by name.

Yes and no need an interval that is clear of zero, enough units behind it, and for shares McNemar's p below .05 as well;
everything else is not shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from ssd_bench.personal import answers
from ssd_bench.personal.results import Result
from ssd_bench.stats import Interval

YES, NO, OPEN = "yes", "no", "not shown"
LEAST_UNITS = 8
"""A bootstrap of fewer is too narrow to conclude from."""
_MOST_P = 0.05
_NOTICED = 0.005
"""Nats a token; a difference below that nobody notices, however sure it is."""


def verdict(gap: Interval, *, lower_is_better: bool, p_value: float = 0.0) -> str:
    """What a difference says about its first term being the better one."""
    if gap.n < LEAST_UNITS or not gap.clear_of_zero or p_value >= _MOST_P:
        return OPEN
    return YES if (gap.high < 0) == lower_is_better else NO


def sentences(results: Sequence[Result], pooled: Interval | None) -> list[str]:
    """The conclusions that the figures allow, one sentence or two each."""
    found = [
        _learned(results), _recalled(results), _beats_members(results), _collaboration(results, pooled),
        _right_side(results), _answers(results),
    ]  # fmt: skip
    return [one for one in found if one]


def _per_set(
    results: Sequence[Result], gap_of: Callable[[Result], Interval | None], *, lower: bool, p_name: str = ""
) -> list[tuple[str, str, Interval]]:
    """(set, verdict, interval) where the figure was measured; `p_name` is that of its p-value, if it has one."""
    found = ((one, gap_of(one)) for one in results)
    return [
        (one.name, verdict(gap, lower_is_better=lower, p_value=one.p_values.get(p_name, 0.0)), gap)
        for one, gap in found
        if gap is not None
    ]


def _list(found: Sequence[tuple[str, str, Interval]]) -> str:
    return "; ".join(f"{name} {word}, {gap}" for name, word, gap in found)


def _learned(results: Sequence[Result]) -> str:
    found = _per_set(results, lambda one: one.heldout.get("s1 after - before"), lower=True)
    if not found:
        return ""
    return (
        "**Does personalization show on documents that the expert has not seen?** S1 after less before, nats a token, "
        f"both with passages: {_list(found)}."
    )


def _recalled(results: Sequence[Result]) -> str:
    name = "both after - both before"
    found = _per_set(results, lambda one: one.cloze.get(f"{name} filled"), lower=False, p_name=f"cloze {name}")
    nats = _per_set(results, lambda one: one.cloze.get(name), lower=True)
    if not found:
        return ""
    return (
        "**Does it recall facts of the documents that it learned from?** Share of hidden facts that it fills exactly, "
        f"after less before: {_list(found)}. What the true fact costs, nats a token, after less before: {_list(nats)}."
    )


def _beats_members(results: Sequence[Result]) -> str:
    known = [one for one in results if "s1 ensemble - core" in one.heldout]
    if not known:
        return ""
    words: dict[str, list[str]] = {YES: [], NO: [], OPEN: []}
    for one in known:
        gaps = [one.heldout[f"s1 ensemble - {member}"] for member in ("core", "after")]
        each = {verdict(gap, lower_is_better=True) for gap in gaps}
        word = YES if each == {YES} else NO if NO in each else OPEN
        words[word].append(f"{one.name} (less core {gaps[0]}, less expert {gaps[1]})")
    told = {
        YES: "It beats both members, the intervals clear of zero, on", NO: "It is worse than one of them on",
        OPEN: "It is not shown to beat both, nor to be worse, on",
    }  # fmt: skip
    parts = [f"{told[word]}: {'; '.join(names)}." for word, names in words.items() if names]
    return "**Does the ensemble beat both of its members?** By S1 on kept documents, nats a token. " + " ".join(parts)


def _collaboration(results: Sequence[Result], pooled: Interval | None) -> str:
    found = _per_set(results, lambda one: one.beyond, lower=True)
    if not found or pooled is None:
        return ""
    word = verdict(pooled, lower_is_better=True)
    if word != OPEN and abs(pooled.value) < _NOTICED:
        word = f"{word}, by too little to matter"
    return (
        f"**Does diffusion collaborate better than autoregression here? {word.capitalize()}.** What the ensemble adds "
        "to its better member by diffusion, less what it adds by the autoregressive twin, nats a token, below zero is "
        f"better for diffusion: {_fine(pooled)} over the documents of all sets. By set: "
        + "; ".join(f"{name} {each}, {_fine(gap)}" for name, each, gap in found) + "."
    )  # fmt: skip


def _fine(value: Interval) -> str:
    return f"{value.value:.4f} [{value.low:.4f}, {value.high:.4f}]"


def _right_side(results: Sequence[Result]) -> str:
    found = _per_set(results, lambda one: one.cloze.get("both after - next after"), lower=True)
    if not found:
        return ""
    return (
        "**Does seeing both sides help to fill in a fact?** The expert with both sides less its autoregressive twin, "
        f"which has the left one, nats a token of the true fact: {_list(found)}."
    )


_OTHERS = {
    answers.EXPERT: "the expert alone", answers.CORE: "the core alone", answers.BASE: "the base with passages",
    answers.TWIN: "the autoregressive pair", answers.SENTENCE: "the best sentence",
}  # fmt: skip


def _ahead(other: str, one: Result) -> Interval | None:
    return one.answers.get(f"ahead of {other}")


def _answers(results: Sequence[Result]) -> str:
    parts = []
    for other, words in _OTHERS.items():
        found = _per_set(results, partial(_ahead, other), lower=False, p_name=f"answers {other}")
        if found:
            parts.append(f"of {words}: {_list(found)}")
    if not parts:
        return ""
    told = ". Ahead ".join(parts)
    return f"**Are the answers of expert and core ahead?** Share of right answers, expert + core ahead {told}."
