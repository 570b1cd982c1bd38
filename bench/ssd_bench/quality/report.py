"""The report of the quality suite: tables from figures, rows of results, everything as JSON.

Knows the figures' names and what they mean in words; nothing about how they were measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ssd_diffusion.training.evaluate import LEVELS

from ssd_bench import machine
from ssd_bench.quality.calibration import BLOCK, FIRST, STRIDE, SURE
from ssd_bench.quality.denoising import PLACES, RIGHT, SPAN
from ssd_bench.quality.plots import LEAST_POSITIONS
from ssd_bench.quality.summary import MATCHED, Figures
from ssd_bench.report import origin, table
from ssd_bench.results import Row
from ssd_bench.stats import Interval

SUITE = "quality"
JUDGES = {"ar": "base", "ngram": "5-gram"}
_COLUMNS = {
    "perplexity ar": "perplexity, base", "perplexity ngram": "perplexity, 5-gram", "entropy": "unigram nats",
    "distinct-1": "distinct-1", "distinct-2": "distinct-2", "distinct-3": "distinct-3", "zipf": "Zipf",
    "repeated-4": "repeated 4-grams", "mauve": "MAUVE-like", "tokens a pass": "tokens a pass",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found; parts that were not measured are empty.

    Attributes:
        about: models, data and settings in a sentence or two.
        seconds: how long the run took.
        denoising: by "LEVEL PLACE[ conditioned]", and the paired gain as "LEVEL PLACE gain".
        calibration: figures of certainty by place.
        likelihood: nats a byte of S1 and base, and their difference.
        infill: nats a token, and differences.
        generation: figures by setting; the human continuations are among them.
        ratios: perplexity over the base's at the same temperature, by setting and judge; distinct-2 less the base's.
        matched: perplexity over the base's at equal diversity, by setting, then "JUDGE at MEASURE"; None out of reach.
        one_a_pass: the same over the core's own, one token a pass, for what looks ahead.
        few_steps: figures by setting, of `--few-steps`.
        answers: token F1 and nats of the reference, by writer, and differences.
        plots: file names by part.
    """

    about: str
    seconds: float
    denoising: Figures = field(default_factory=dict)
    calibration: Mapping[str, Figures] = field(default_factory=dict)
    likelihood: Figures = field(default_factory=dict)
    infill: Figures = field(default_factory=dict)
    generation: Mapping[str, Figures] = field(default_factory=dict)
    ratios: Mapping[str, Mapping[str, Interval | None]] = field(default_factory=dict)
    matched: Mapping[str, Mapping[str, Interval | None]] = field(default_factory=dict)
    one_a_pass: Mapping[str, Mapping[str, Interval | None]] = field(default_factory=dict)
    few_steps: Mapping[str, Figures] = field(default_factory=dict)
    answers: Figures = field(default_factory=dict)
    plots: Mapping[str, str] = field(default_factory=dict)


def markdown(report: Report) -> str:
    """The page."""
    head = "# Quality of the text\n\n" + origin(
        machine.command(), machine.describe(), seconds=report.seconds, note=report.about
    )
    intro = (
        "One core against its autoregressive base, the packaged decoder without the adapter. Intervals are 95% over "
        "documents, seeds fixed: paired bootstrap, and the jackknife for what counts differences between texts. A run "
        "goes on from the records of earlier ones with the same settings; its time is then not that of the whole."
    )
    parts = [
        head, intro, _denoising(report.denoising), _calibration(report), _likelihood(report.likelihood),
        _infill(report.infill), _generation(report), _few_steps(report), _answers(report.answers),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _denoising(found: Figures) -> str:
    if not found:
        return ""
    rows = []
    for level in LEVELS:
        for place in PLACES:
            name = f"{level:g} {place}"
            rows.append([f"u = {level:g}, {place}", found[name], found[f"{name} conditioned"], found[f"{name} gain"]])
    n = found[f"{LEVELS[0]:g} all"].n
    return "\n\n".join([
        "## Denoising cross-entropy",
        f"Nats a token on {n} held-out documents, true tokens under the noise: all positions of a block at the level, "
        "its first position, and position 8 with the seven before it accepted. Self-conditioning comes from a pass at "
        "the next higher level. At u = 1 a position shows nothing, so there is nothing to condition. This is no "
        "likelihood of a text.",
        table(["", "without self-conditioning", "with", "gained"], rows),
    ])  # fmt: skip


def _calibration(report: Report) -> str:
    if not report.calibration:
        return ""
    first = report.calibration[FIRST]
    columns = {
        "confidence": "certainty", "right": "right", "over": "certainty - right", "error": "calibration error",
        "sure": f"certainty {SURE:g} or more", "right when sure": "right of these", "granted": "the floor grants",
        "overlap": "shared with the floor",
    }  # fmt: skip
    rows = [[place, *(_cell(found.get(name)) for name in columns)] for place, found in report.calibration.items()]
    return "\n\n".join([
        "## Certain only when right",
        f"Every {STRIDE} tokens of {first['right'].n} held-out documents a window of {BLOCK}, true tokens to its left. "
        "Certainty is the probability of the most probable token, `right` how often the true token is that one. The "
        "calibration error is the mean distance between the two over ten bins of certainty (it is never quite 0: bins "
        "are small). Drafts are read through the transition from the true tokens before them. The floor is the row "
        "that has read all before the position, by which drafts are judged: the probability that it grants the draft, "
        "and what both distributions share. `own guesses`: all positions of the window hold the model's own draws "
        "(temperature 1) under noise, which is what acceptance by entropy reads below u = 1. The picture leaves out "
        f"bins of fewer than {LEAST_POSITIONS} positions.",
        f"![Certainty against how often it is right]({report.plots['calibration']})",
        table(["", *columns.values()], rows),
    ])  # fmt: skip


def _likelihood(found: Figures) -> str:
    if not found:
        return ""
    return "\n\n".join([
        "## S1 against the base",
        f"Nats a byte of {found['S1'].n} held-out spans; see [the floor](floor.md) for what S1 is.",
        table(["", "nats a byte"], [[name, value] for name, value in found.items()]),
    ])  # fmt: skip


def _infill(found: Figures) -> str:
    if not found:
        return ""
    return "\n\n".join([
        "## Infilling (S3)",
        f"A span of {SPAN} tokens at u = 1, {RIGHT} true tokens after it in the window as accepted positions; nats a "
        f"token over {found['base'].n} documents. One pass reads every position of the span given both sides and none "
        "of the span's others. The chain commits the span token by token, a normalised distribution over spans like "
        "that of the base, which reads from left to right. `left` hides the right side and changes nothing else.",
        table(["", "nats a token"], [[name, value] for name, value in found.items()]),
    ])  # fmt: skip


def _generation(report: Report) -> str:
    if not report.generation:
        return ""
    parts = [
        "## Continuations",
        "Every setting continues the same prefixes with the same keys to the same length; end tokens are never drawn. "
        "Perplexity is that of the continuation under a judge: the base itself, which favours texts that it would have "
        "written, and an interpolated Kneser-Ney 5-gram model counted on the training half of the corpora. It is low "
        "for dull and repetitive text, so the columns of diversity belong to it. `tokens a pass` counts every forward "
        "pass, that over the prompt included. The MAUVE-like score compares the texts' sentence vectors with those of "
        "the human continuations; a few dozen texts leave it coarse, fewer than 32 say nothing and have no score, and "
        "`human, other texts` are continuations from "
        "as many other documents, the score that independent human text reaches here. Settings that take long have "
        "fewer texts (n): compare their diversity with rows of the same n. Texts are written in bfloat16 where the "
        "processor has it, so two settings that write the same text in exact arithmetic differ here by chance.",
        _texts_table(report.generation),
    ]  # fmt: skip
    if "generation" in report.plots:
        parts.insert(1, f"![Perplexity against passes and against entropy]({report.plots['generation']})")
    if report.ratios:
        parts += [
            "### Against the base at the same temperature",
            "Perplexity over that of the base at the same temperature and nucleus on the same prefixes, paired; below "
            "1 is better, if diversity is the same: distinct-2 less the base's stands beside it.",
            table(["", *(f"{name} judges" for name in JUDGES.values()), "distinct-2 less the base's"],
                  [[name, *(_cell(found.get(column)) for column in (*JUDGES, "distinct-2"))]
                   for name, found in report.ratios.items()]),
        ]  # fmt: skip
    if report.matched:
        parts += [
            "### Against the base at equal diversity",
            "Perplexity over that of the base at the temperature where the base has the same unigram entropy, or the "
            "same distinct-2, on the same prefixes; read between the measured temperatures. Below 1 the setting writes "
            "more likely text than the base can at that diversity. A dash: the base is never so diverse, or so "
            "uniform, between its temperatures.",
            _matched_table(report.matched),
        ]  # fmt: skip
    if report.one_a_pass:
        parts += [
            "### More tokens a pass, at equal diversity",
            "Perplexity over that of the core one token a pass, over the core's own temperatures (0.5 to 1) and read "
            "as above: what the saved passes cost. Drafts without leniency write the text of one token a pass.",
            _matched_table(report.one_a_pass),
        ]  # fmt: skip
    return "\n\n".join(parts)


def _matched_table(matched: Mapping[str, Mapping[str, Interval | None]]) -> str:
    columns = [f"{judge} at {measure}" for judge in JUDGES for measure in MATCHED]
    return table(
        ["", *(f"{JUDGES[judge]} judges, equal {measure}" for judge in JUDGES for measure in MATCHED)],
        [[name, *(_cell(found.get(c)) for c in columns)] for name, found in matched.items()],
    )


def _texts_table(generation: Mapping[str, Figures]) -> str:
    rows = [
        [name, next(iter(found.values())).n, *(_cell(found.get(column)) for column in _COLUMNS)]
        for name, found in generation.items()
    ]
    return table(["", "n", *_COLUMNS.values()], rows)


def _few_steps(report: Report) -> str:
    if not report.few_steps:
        return ""
    parts = [
        "## Fewer passes",
        "Fixed blocks of 16 as SSD-LM decodes them, from many uniform steps to few, then with self-conditioning, then "
        "on the model's own grid; and the sliding window with all four ingredients and with each taken away. `own "
        "grid` falls fast where the state says nothing yet; `budget` accepts positions while their entropies sum to at "
        "most 0.5 nats a pass; `exit` accepts a position whose most probable token has stood for two passes.",
        _texts_table(report.few_steps),
    ]
    if "few steps" in report.plots:
        parts.insert(2, f"![Perplexity against passes a token]({report.plots['few steps']})")
    return "\n\n".join(parts)


def _answers(found: Figures) -> str:
    if not found:
        return ""
    n = found["F1, core"].n
    return "\n\n".join([
        "## Answers",
        f"{n} held-out requests, greedy answers of at most 64 tokens. F1 of words against the reference, and what the "
        "reference costs in nats a token: S1 under the core, next-token under the base.",
        table(["", "value"], [[name, value] for name, value in found.items()]),
    ])  # fmt: skip


def _cell(value: Interval | None) -> str:
    if value is None:
        return "–"
    digits = 1 if value.value >= 20 else 2 if value.value >= 2 else 3
    return f"{value.value:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def result_rows(report: Report) -> list[Row]:
    """Ratios for the file of results; above 1 the core is better."""
    found: list[tuple[str, Interval, str]] = []
    for name, ratios in report.ratios.items():
        found += [
            (f"perplexity, base / {name}, {JUDGES[j]} judges", _inverse(ratio), "")
            for j, ratio in ratios.items() if j in JUDGES and ratio is not None
        ]  # fmt: skip
    for against, matched in (("base", report.matched), ("one token a pass", report.one_a_pass)):
        for name, cells in matched.items():
            found += [
                (f"perplexity at equal {key.split(' at ')[1]}, {against} / {name}, "
                 f"{JUDGES[key.split(' at ')[0]]} judges", _inverse(value), "")
                for key, value in cells.items() if value is not None
            ]  # fmt: skip
    if report.infill:
        gain = report.infill["chain, both / base"]
        found.append(("nats of an infilled span, base / chain with both sides", _inverse(gain), "nats over nats"))
    if report.likelihood:
        found.append(("nats a byte, base / S1", _inverse(report.likelihood["S1 / base"]), "nats over nats"))
    return [
        Row(
            suite=SUITE, name=name, ratio=value.value, target=1.0, low=value.low, high=value.high, n=value.n,
            note="; ".join(word for word in (note, "above 1 the core is better; 95% interval over documents") if word),
        )
        for name, value, note in found
    ]  # fmt: skip


def _inverse(value: Interval) -> Interval:
    return Interval(1 / value.value, 1 / value.high, 1 / value.low, value.n)


def to_json(report: Report, *, seed: int) -> dict[str, Any]:
    """Everything as JSON."""
    return {
        "suite": SUITE, "command": machine.command(), "machine": machine.describe(),
        "seconds": round(report.seconds, 1), "seed": seed, "about": report.about,
        **{
            part: _plain(getattr(report, part))
            for part in (
                "denoising", "calibration", "likelihood", "infill", "generation", "ratios", "matched", "one_a_pass",
                "few_steps",
                "answers",
            )
        },
    }  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return {"value": value.value, "low": value.low, "high": value.high, "n": value.n}
    return {name: _plain(one) for name, one in value.items()} if isinstance(value, Mapping) else value
