"""`python -m ssd_bench SUITE`: the one entry point of the benchmarks.

Exit codes: 0 ok, 1 could not be done, 2 bad input, 130 interrupted. Knows options and files, not measurements.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from ssd_client.errors import ClientError
from ssd_cloud.errors import NodeError
from ssd_diffusion.errors import DiffusionError
from ssd_diffusion.home import home as default_home
from ssd_kernels.errors import KernelError

from ssd_bench.console import console, progress
from ssd_bench.results import merge, write_json

if TYPE_CHECKING:
    from ssd_bench.wire_report import Part as WirePart

WHOLE_MINUTES = 45.0
"""How long the ensemble suite may begin new questions when all suites run."""

app = typer.Typer(
    help="Benchmarks: what is measured, against what, on this machine.",
    pretty_exceptions_enable=False,
)

Home = Annotated[
    Path | None, typer.Option(help="Folder of experts and models; by default the user's.", envvar="SSD_HOME")
]
Expert = Annotated[str | None, typer.Option(help="Registered expert; may be left out where there is only one.")]
Core = Annotated[str, typer.Option(help="Model folder or name of the core.")]
Examples = Annotated[Path, typer.Option(help="The sample folder with questions.jsonl.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Questions at most.")]
Minutes = Annotated[float | None, typer.Option(min=0.0, help="Begin nothing new after so many minutes.")]
Out = Annotated[Path, typer.Option(help="Folder for the reports.")]
Results = Annotated[Path, typer.Option(help="File that all suites write their ratios into.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


@app.callback(invoke_without_command=True)
def _main(context: typer.Context) -> None:
    """Benchmarks of ssd2; without a suite, those that need nothing but an expert and the sample folder."""
    if context.invoked_subcommand is None:
        wire()
        acceptance()
        ensemble(max_minutes=WHOLE_MINUTES)


@app.command()
def ensemble(
    home: Home = None,
    expert: Expert = None,
    core: Core = "packaged",
    examples: Examples = Path("examples"),
    limit: Limit = None,
    stretches: Annotated[int, typer.Option(min=0, help="Stretches of held-out documents at most.")] = 60,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 24,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    max_minutes: Minutes = None,
    out: Out = Path("docs"),
    results: Results = Path("bench/results.json"),
    records: Annotated[Path | None, typer.Option(help="File of single measurements, continued if it fits.")] = None,
    as_json: AsJson = False,
) -> None:
    """Core alone, expert alone and both, by diffusion and autoregressively, on the sample folder's questions."""
    from ssd_bench import ensemble as suite
    from ssd_bench import ensemble_report as report
    from ssd_bench.folder import read_documents, read_questions
    from ssd_bench.pair import open_pair
    from ssd_bench.records import RecordFile

    started, root = time.monotonic(), home or default_home()
    questions = read_questions(examples / "questions.jsonl")[:limit]
    pair = open_pair(root, expert=expert, core=core)
    held_out = suite.stretches_of(pair.tokenizer, read_documents(examples, pair.held_out))[:stretches]
    settings = suite.Settings(seed=seed, max_tokens=max_tokens)
    chosen = {"about": pair.about, "seed": seed, "max_tokens": max_tokens}
    kept = RecordFile(records or root / "bench" / f"ensemble-{pair.name}.jsonl", chosen)
    until = float("inf") if max_minutes is None else started + 60 * max_minutes
    with progress("ensemble", 2 * (len(questions) + len(held_out))) as advance:
        suite.measure(pair, questions, held_out, settings, kept, advance=advance, until=until)
    wanted = {q.id for q in questions} | {s.id for s in held_out}
    found = [r for r in kept.records if r.item in wanted]
    if not found:
        raise ValueError("nothing was measured in the time given; raise --max-minutes")
    seconds = time.monotonic() - started
    summary = report.summarise(found)
    content = report.to_json(summary, found, about=pair.about, seconds=seconds, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    report.plot(summary, out / "ensemble.png")
    text = report.markdown(summary, found, about=pair.about, seconds=seconds, plot="ensemble.png")
    (out / "ensemble.md").write_text(text, encoding="utf-8")
    write_json(out / "ensemble.json", content)
    merge(results, report.result_rows(found))
    _finish(content, text, as_json)


@app.command()
def wire(
    home: Home = None,
    expert: Expert = None,
    core: Core = "packaged",
    examples: Examples = Path("examples"),
    limit: Limit = 12,
    codec: Annotated[str | None, typer.Option(help="The sparse codec; by default the client's.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 48,
    passes: Annotated[int, typer.Option(min=0, help="Synthetic passes; 0 leaves them out.")] = 24,
    seed: Annotated[int, typer.Option(help="Seed of noise, draws and synthetic logits.")] = 0,
    synthetic_only: Annotated[bool, typer.Option("--synthetic-only", help="Leave the models out.")] = False,
    max_minutes: Minutes = None,
    out: Out = Path("docs"),
    results: Results = Path("bench/results.json"),
    as_json: AsJson = False,
) -> None:
    """Bytes of every codec in a default decode, and what each costs in S1 and in draws."""
    from ssd_bench import wire_report as report

    started = time.monotonic()
    until = float("inf") if max_minutes is None else started + 60 * max_minutes
    if synthetic_only and not passes:
        raise ValueError("nothing is left to measure; raise --passes or leave --synthetic-only out")
    parts = []
    if not synthetic_only:
        parts.append(
            _wire_decode(home or default_home(), expert, core, examples, limit, codec, max_tokens, seed, until)
        )
    if passes:
        parts.append(_wire_synthetic(codec, passes, seed))
    seconds = time.monotonic() - started
    content, text = report.to_json(parts, seconds=seconds, seed=seed), report.markdown(parts, seconds=seconds)
    out.mkdir(parents=True, exist_ok=True)
    (out / "wire-bytes.md").write_text(text, encoding="utf-8")
    merge(results, report.result_rows(parts))
    _finish(content, text, as_json)


def _wire_decode(
    home: Path,
    expert: str | None,
    core: str,
    examples: Path,
    limit: int | None,
    codec: str | None,
    max_tokens: int,
    seed: int,
    until: float,
) -> WirePart:
    """The default decode of the sample folder's questions on the default pair."""
    from ssd_bench import wire as suite
    from ssd_bench.folder import read_questions
    from ssd_bench.pair import open_pair
    from ssd_bench.wire_report import Part

    pair = open_pair(home, expert=expert, core=core)
    spec = pair.core.spec
    chans = suite.channels(pair.weights, spec.vocab, default=codec)
    questions, tokens, asked = read_questions(examples / "questions.jsonl")[:limit], 0, 0
    with progress("decode", len(questions)) as advance:
        for i, question in enumerate(questions):
            if asked and time.monotonic() >= until:
                break
            contexts = pair.contexts(question.question, answer_room=max_tokens)
            ids = (contexts.core_ids, contexts.expert_ids)
            tokens += suite.decode_once(pair, *ids, chans, seed=seed + i, max_tokens=max_tokens)
            suite.reference_change(pair, *ids, pair.tokenizer.encode(question.answer), chans)
            asked += 1
            advance()
    about = f"{asked} questions about the sample folder, client defaults, {tokens} tokens in all. {pair.about}"
    block = pair.params("diffusion", max_tokens=max_tokens, projection="sample").block
    return Part("Default decode", about, block, spec.vocab, chans)


def _wire_synthetic(codec: str | None, passes: int, seed: int) -> WirePart:
    """Made-up logits at the sizes of the OPT vocabulary."""
    from ssd_diffusion.ensemble import Weights

    from ssd_bench import wire as suite
    from ssd_bench.wire_report import Part

    weights, sizes = Weights(lam=0.5), {"block": suite.SYNTHETIC_BLOCK, "vocab": suite.SYNTHETIC_VOCAB}
    chans = suite.channels(weights, suite.SYNTHETIC_VOCAB, default=codec)
    with progress("synthetic", passes) as advance:
        nats = suite.synthetic(chans, weights=weights, passes=passes, seed=seed, advance=advance, **sizes)
    about = f"Made-up logits of core and expert, lambda .5; the fused rows have {nats:.2f} nats of entropy on average."
    return Part("Synthetic logits", about, channels=chans, **sizes)


@app.command()
def floor(
    data: Annotated[Path, typer.Option(help="Folder of *-train.jsonl and *-heldout.jsonl; see ssd_cloud.data_public.")],
    home: Home = None,
    core: Core = "packaged",
    documents: Annotated[int, typer.Option(min=1, help="Held-out documents of each corpus.")] = 40,
    order: Annotated[int, typer.Option(min=1, max=7, help="Longest n-gram.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the choice of spans.")] = 0,
    out: Out = Path("docs"),
    results: Results = Path("bench/results.json"),
    as_json: AsJson = False,
) -> None:
    """Held-out nats a byte: an n-gram model on the same text, the autoregressive base, the adapted model's S1."""
    from ssd_cloud.models import load, resolve
    from ssd_diffusion.packaged import ensure
    from ssd_diffusion.tokenizer import Tokenizer

    from ssd_bench import floor as suite
    from ssd_bench import floor_report as report
    from ssd_bench.kneser_ney import KneserNey

    started, root = time.monotonic(), home or default_home()
    names = sorted(path.name.removesuffix("-heldout.jsonl") for path in data.glob("*-heldout.jsonl"))
    if not names:
        raise ValueError(f"{data} holds no *-heldout.jsonl; write them with: python -m ssd_cloud.data_public OUT")
    folder = resolve(core, root)
    tokenizer = Tokenizer.load(folder)
    console.print("counting n-grams ...")
    train = suite.stream(tokenizer, [t for n in names for t in suite.read_corpus(data / f"{n}-train.jsonl")])
    chosen = [
        span
        for name in names
        for span in suite.spans(
            tokenizer, name, suite.read_corpus(data / f"{name}-heldout.jsonl"), count=documents, seed=seed
        )
    ]
    ngram = KneserNey(train, vocab=tokenizer.vocab, order=order)
    base = suite.causal_scorer(ensure(root / "bench", weights=root / "bench" / "no-adapter"))
    engine = load(folder, slots=1, batch_width=1, threads=None)
    with progress("floor", len(chosen)) as advance:
        scores = suite.measure(chosen, ngram=ngram, base=base, adapted=engine, advance=advance)
    seconds, about = time.monotonic() - started, f"Model {engine.spec.model_id}."
    content = report.to_json(scores, about=about, seconds=seconds, seed=seed, train_tokens=len(train))
    text = report.markdown(scores, about=about, seconds=seconds, train_tokens=len(train))
    out.mkdir(parents=True, exist_ok=True)
    (out / "floor.md").write_text(text, encoding="utf-8")
    write_json(out / "floor.json", content)
    merge(results, report.result_rows(scores))
    _finish(content, text, as_json)


@app.command()
def acceptance(
    home: Home = None,
    core: Core = "packaged",
    steps: Annotated[list[int] | None, typer.Option(min=1, help="Points of the step grid; may be repeated.")] = None,
    budget: Annotated[
        list[float] | None, typer.Option(min=0.0, help="Nats a pass may accept; may be repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts at most.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest text.")] = 48,
    block: Annotated[int, typer.Option(min=1, help="Open positions.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of noise and draws.")] = 0,
    out: Out = Path("docs"),
    results: Results = Path("bench/results.json"),
    as_json: AsJson = False,
) -> None:
    """Tokens a pass against judged likelihood, for grids and entropy budgets; what the defaults are chosen by."""
    from ssd_cloud.models import load, resolve
    from ssd_diffusion.packaged import ensure
    from ssd_diffusion.sampler import DecodeParams
    from ssd_diffusion.tokenizer import Tokenizer

    from ssd_bench import acceptance as suite
    from ssd_bench.floor import causal_scorer
    from ssd_bench.machine import describe

    started, root = time.monotonic(), home or default_home()
    folder = resolve(core, root)
    engine = load(folder, slots=1, batch_width=1, threads=None)
    judge = causal_scorer(ensure(root / "bench", weights=root / "bench" / "no-adapter"))
    spec = engine.spec
    params = DecodeParams(
        block=min(block, spec.max_block), grid=spec.grid, max_tokens=max_tokens, temperature=0.7, eos_ids=spec.eos_ids
    )
    chosen = suite.settings(steps or (1, len(spec.grid)), budget or (0.05, 0.2, 0.5))
    prompts = suite.PROMPTS[:limit]
    with progress("acceptance", len(prompts) * len(chosen)) as advance:
        samples = suite.measure(
            engine, Tokenizer.load(folder), judge, chosen, prompts=prompts, params=params, seed=seed, advance=advance
        )
    rows, seconds = suite.summary(samples), time.monotonic() - started
    machine, about = (
        describe(),
        f"Model {spec.model_id}, temperature 0.7, top-p 0.9, block {params.block}, seed {seed}.",
    )
    text = suite.markdown(rows, about=about, machine=machine, seconds=seconds)
    out.mkdir(parents=True, exist_ok=True)
    (out / "acceptance.md").write_text(text, encoding="utf-8")
    merge(results, suite.result_rows(rows))
    _finish({"rows": rows, "about": about, "machine": machine, "seconds": seconds}, text, as_json)


def _finish(content: object, text: str, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(content, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(text)


def main() -> None:
    """Run the command line; what goes wrong is one sentence."""
    try:
        app()
    except (ClientError, NodeError, DiffusionError, KernelError, ValueError) as error:
        console.print(f"[bold]ssd_bench:[/bold] {error}", highlight=False)
        sys.exit(getattr(error, "exit_code", 2 if isinstance(error, ValueError) else 1))


if __name__ == "__main__":
    main()
