"""From the wire suite's tallies to a table and rows of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssd_bench import machine
from ssd_bench.report import origin, table
from ssd_bench.results import Row
from ssd_bench.stats import wilson
from ssd_bench.wire import Channel, Tally

SUITE = "wire"
DOWN_BYTES, UP_BYTES, S1_NATS, SAME, NAIVE = 30_000, 200, 0.01, 0.99, 500.0


@dataclass(frozen=True, slots=True)
class Part:
    """One setting: its name, what it is, its sizes and channels."""

    name: str
    about: str
    vocab: int
    channels: Sequence[Channel]


def numbers(tally: Tally) -> dict[str, float]:
    """The figures of one codec."""
    share = wilson(tally.same, tally.rows)
    return {
        "passes": len(tally.down),
        "rows_mean": float(np.mean(tally.carried)),
        "rows_worst": float(tally.carried[int(np.argmax(tally.down))]),
        "down_mean": float(np.mean(tally.down)),
        "deflated_mean": float(np.mean(tally.deflated)),
        "down_worst": float(np.max(tally.down)),
        "up_mean": float(np.mean(tally.up)),
        "up_worst": float(np.max(tally.up)),
        "draws": tally.rows,
        "same": share.value,
        "same_low": share.low,
        "kl_mean": float(np.mean(tally.kl)),
        "kl_worst": float(np.max(tally.kl)),
        "s1_mean": float(np.mean(tally.s1)) if tally.s1 else float("nan"),
        "s1_tokens": len(tally.s1),
        "asked_again": tally.asked_again,
    }


def markdown(parts: Sequence[Part], *, seconds: float) -> str:
    """The report."""
    head = "# Bytes on the wire\n\n" + origin(machine.command(), machine.describe(), seconds=seconds)
    intro = (
        "Bytes of one denoising pass, as the protocol's own messages have them, with gRPC's frame of 5 bytes. Up goes "
        "the estimate and what was accepted, down the core's logits. All codecs carry the same passes of one decode "
        "that runs on exact logits. **S1 change**: nats a token that the received logits cost the reference answers "
        "(mean; signed). **KL**: what they cost on average if the text follows the ensemble itself, over the rows that "
        "tokens were chosen from. **Same draws**: such rows whose draw, with the same key, is the one of exact logits. "
        "Where the bound on the fused error is over the limit at the first position, the device asks for a wider "
        "answer; those bytes are counted. **Deflated**: the mean bytes down if zlib compressed every message; where it "
        "saves next to nothing, no general compressor does, since a row's bits are near their entropy. The naive "
        "exchange sends the same rows as dense float32 down, and as many up."
    )
    return "\n\n".join([head, intro, *(_part(part) for part in parts), _naive(parts)]) + "\n"


def _part(part: Part) -> str:
    header = [
        "codec", "down, mean", "deflated", "down, worst", "up, mean", "up, worst", "S1 change", "KL, mean",
        "same draws", "asked again",
    ]  # fmt: skip
    rows = []
    for channel in part.channels:
        n = numbers(channel.tally)
        s1 = f"{n['s1_mean']:+.5f}" if n["s1_tokens"] else "-"
        rows.append([
            f"`{channel.codec}`", f"{n['down_mean']:,.0f} B", f"{n['deflated_mean']:,.0f} B",
            f"{n['down_worst']:,.0f} B", f"{n['up_mean']:.0f} B", f"{n['up_worst']:.0f} B", s1, f"{n['kl_mean']:.5f}",
            f"{100 * n['same']:.2f}%", f"{n['asked_again']:.0f}",
        ])  # fmt: skip
    passes = len(part.channels[0].tally.down)
    rows_mean = numbers(part.channels[0].tally)["rows_mean"]
    size = f"V {part.vocab:,}, {passes} passes of {rows_mean:.1f} rows on average."
    return f"## {part.name}\n\n{part.about} {size}\n\n" + table(header, rows)


def _naive(parts: Sequence[Part]) -> str:
    rows = []
    for part in parts:
        naive, both, mean, worst = _sizes(part)
        rows.append([part.name, f"{naive:,.0f} B", f"{both:,.0f} B", f"{mean:,.0f}x", f"{worst:,.0f}x"])
    header = ["", "dense float32 both ways", "default, both ways", "smaller by (mean)", "smaller by (largest pass)"]
    return "## Against the naive exchange\n\n" + table(header, rows)


def _sizes(part: Part) -> tuple[float, float, float, float]:
    """Bytes of a pass exchanged naively and by the last codec, means; how many times less, on average and at worst."""
    n, row = numbers(part.channels[-1].tally), 2.0 * 4 * part.vocab
    naive, both = row * n["rows_mean"], n["down_mean"] + n["up_mean"]
    return naive, both, naive / both, row * n["rows_worst"] / (n["down_worst"] + n["up_worst"])


def result_rows(parts: Sequence[Part]) -> list[Row]:
    """Ratios for the file of results; above their target is good."""
    rows = []
    for part in parts:
        channel = part.channels[-1]
        n, label = numbers(channel.tally), f"{part.name}: "
        count = int(n["passes"])
        shared: dict[str, Any] = {"suite": SUITE, "n": count}
        _, _, mean, worst = _sizes(part)
        bounds = (("30 KB / bytes down", DOWN_BYTES, "down"), ("200 B / bytes up", UP_BYTES, "up"))
        name, note = label + "dense float32 both ways / default", "mean pass; low is the largest pass"
        rows.append(Row(**shared, name=name, ratio=mean, low=worst, target=NAIVE, note=note))
        for name, most, way in bounds:
            low = most / n[f"{way}_worst"]
            rows.append(Row(**shared, name=label + name, ratio=most / n[f"{way}_mean"], target=1.0, low=low, note=note))
        name, note = label + "draws as with exact logits", "share; low end of Wilson's 95% interval"
        draws = int(n["draws"])
        rows.append(Row(suite=SUITE, name=name, ratio=n["same"], target=SAME, low=n["same_low"], n=draws, note=note))
        loss, tokens = (n["s1_mean"], n["s1_tokens"]) if n["s1_tokens"] else (n["kl_mean"], n["draws"])
        name, note = label + ".01 nat / change of S1", "mean over tokens; KL of the rows where there is no reference"
        ratio = S1_NATS / max(abs(loss), 1e-9)
        rows.append(Row(suite=SUITE, name=name, ratio=ratio, target=1.0, n=int(tokens), note=note))
    return rows


def to_json(parts: Sequence[Part], *, seconds: float, seed: int) -> Mapping[str, Any]:
    """Everything as JSON."""
    return {
        "suite": SUITE, "command": machine.command(), "machine": machine.describe(), "seconds": round(seconds, 1),
        "seed": seed,
        "parts": [
            {"name": p.name, "about": p.about, "vocab": p.vocab,
             "codecs": {str(c.codec): numbers(c.tally) for c in p.channels}}
            for p in parts
        ],
    }  # fmt: skip
