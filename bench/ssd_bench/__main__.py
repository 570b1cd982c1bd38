"""`python -m ssd_bench SUITE`: the one entry point of the benchmarks.

Exit codes: 0 ok, 1 could not be done, 2 bad input, 130 interrupted. Knows options alone; what a suite
does with them is its run: `kernels_run`, `wire_run`, `step_run`, `decode_run`, `node_run`, `floor_run`,
`personalize_run`, `personal.run`, `quality.run`, `ablation.run`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from ssd_client.errors import ClientError
from ssd_cloud.errors import NodeError
from ssd_diffusion.errors import DiffusionError
from ssd_diffusion.home import home as default_home
from ssd_diffusion.openmp import wait_busily
from ssd_kernels.errors import KernelError

from ssd_bench.console import console

if TYPE_CHECKING:
    from ssd_bench.runs import Outcome

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
        kernels()
        wire()
        step()
        decode()
        node()


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
    from ssd_bench import wire_run as suite

    options = suite.Options(
        home=home, expert=expert, core=core, examples=examples, limit=limit, codec=codec,
        max_tokens=max_tokens, passes=passes, seed=seed, synthetic_only=synthetic_only, max_minutes=max_minutes,
        out=out, results=results,
    )  # fmt: skip
    _show(suite.run(options), as_json)


@app.command()
def kernels(
    rounds: Annotated[int, typer.Option(min=7, help="Rounds of every comparison.")] = 11,
    growth: Annotated[bool, typer.Option(help="Also how the times grow with V and B.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Seed of tables, rows and noise.")] = 0,
    out: Out = Path("docs"),
    results: Results = Path("bench/results.json"),
    as_json: AsJson = False,
) -> None:
    """The kernels against the plain compositions that they stand for; needs no model."""
    from ssd_bench import kernels_run as suite

    options = suite.Options(
        rounds=rounds, vocabs=suite.VOCABS if growth else (), blocks=suite.BLOCKS if growth else (), seed=seed,
        out=out, results=results,
    )  # fmt: skip
    _show(suite.run(options), as_json)


@app.command()
def step(
    home: Home = None,
    core: Core = "packaged",
    rounds: Annotated[int, typer.Option(min=7, help="Rounds of every comparison.")] = 11,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the context.")] = 0,
    out: Out = Path("docs"),
    results: Results = Path("bench/results.json"),
    as_json: AsJson = False,
) -> None:
    """One pass of the expert as the device runs it, against eager torch."""
    from ssd_bench import step_run as suite

    options = suite.Options(home=home or default_home(), core=core, rounds=rounds, seed=seed, out=out, results=results)
    _show(suite.run(options), as_json)


@app.command()
def decode(
    home: Home = None,
    expert: Expert = None,
    core: Core = "packaged",
    base: Annotated[str, typer.Option(help="The decoder that the core came from.")] = "packaged",
    examples: Examples = Path("examples"),
    limit: Annotated[int, typer.Option(min=7, max=100, help="Prompts, and questions.")] = 12,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of a text.")] = 48,
    seed: Annotated[int, typer.Option(min=0, help="Seed of noise and draws.")] = 0,
    out: Out = Path("docs"),
    results: Results = Path("bench/results.json"),
    as_json: AsJson = False,
) -> None:
    """Tokens a second of the core alone and of the ensemble, against what each replaces."""
    from ssd_bench import decode_run as suite

    options = suite.Options(
        home=home or default_home(), expert=expert, core=core, base=base, examples=examples, limit=limit,
        tokens=tokens, seed=seed, out=out, results=results,
    )  # fmt: skip
    _show(suite.run(options), as_json)


@app.command()
def node(
    home: Home = None,
    core: Core = "packaged",
    sessions: Annotated[int, typer.Option(min=2, max=64, help="At once, with the small core.")] = 16,
    passes: Annotated[int, typer.Option(min=2, max=200, help="Of every session.")] = 24,
    rounds: Annotated[int, typer.Option(min=7, help="Rounds of every comparison.")] = 7,
    growth: Annotated[bool, typer.Option(help="Also how it grows with the sessions.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the small core, prompts and tokens.")] = 0,
    out: Out = Path("docs"),
    results: Results = Path("bench/results.json"),
    as_json: AsJson = False,
) -> None:
    """Sessions on a real node, at once against one after the other."""
    from ssd_bench import node_run as suite

    options = suite.Options(
        home=home or default_home(), core=core, sessions=sessions, passes=passes, rounds=rounds,
        counts=suite.COUNTS if growth else (), seed=seed, out=out, results=results,
    )  # fmt: skip
    _show(suite.run(options), as_json)


@app.command()
def floor(
    data: Annotated[Path, typer.Option(help="Folder that `ssd-cloud data build` made.")],
    home: Home = None,
    core: Core = "packaged",
    documents: Annotated[int, typer.Option(min=1, help="Held-out documents of each source.")] = 8,
    order: Annotated[int, typer.Option(min=1, max=7, help="Longest n-gram.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the choice of spans.")] = 0,
    out: Out = Path("docs"),
    results: Results = Path("bench/results.json"),
    as_json: AsJson = False,
) -> None:
    """Held-out nats a byte: an n-gram model on the same text, the autoregressive base, the adapted model's S1."""
    from ssd_bench import floor_run as suite

    options = suite.Options(
        data=data, home=home or default_home(), core=core, documents=documents, order=order, seed=seed,
        out=out, results=results,
    )  # fmt: skip
    _show(suite.run(options), as_json)


@app.command()
def quality(
    data: Annotated[Path, typer.Option(help="Folder that `ssd-cloud data build` made.")],
    home: Home = None,
    core: Core = "packaged",
    base: Annotated[
        str | None, typer.Option(help="The decoder that the core came from; by default the packaged one, unadapted.")
    ] = None,
    pairs: Annotated[
        list[Path] | None,
        typer.Option(help="Held-out conversations, JSON lines with messages; by default those of --data."),
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(help="denoising, calibration, likelihood, infill, generation or answers; may be repeated."),
    ] = None,
    few_steps: Annotated[bool, typer.Option("--few-steps", help="Also quality against passes a token.")] = False,
    thousand: Annotated[bool, typer.Option("--thousand", help="Also 1000 steps a block, minutes a text.")] = False,
    limit: Annotated[int, typer.Option(min=2, help="Documents, prefixes and pairs at most.")] = 200,
    limit_read: Annotated[
        int | None, typer.Option(min=2, help="Documents of the parts that write nothing, if not --limit.")
    ] = None,
    prefix: Annotated[int, typer.Option(min=1, help="Tokens of a prefix.")] = 32,
    tokens: Annotated[int, typer.Option(min=4, help="Tokens of a continuation.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every choice, noise and draw.")] = 0,
    out: Out = Path("docs"),
    results: Results = Path("bench/results.json"),
    records: Annotated[Path | None, typer.Option(help="Folder of single measurements, continued if it fits.")] = None,
    as_json: AsJson = False,
) -> None:
    """Likelihood, generated text under two judges, and answers, of a core against its autoregressive base."""
    from ssd_bench.quality import run as suite

    options = suite.Options(
        data=data, home=home or default_home(), core=core, base=base, pairs=pairs or (), parts=part or (),
        few_steps=few_steps, thousand=thousand, limit=limit, limit_read=limit_read, prefix=prefix, tokens=tokens,
        seed=seed, records=records, out=out, results=results,
    )  # fmt: skip
    _show(suite.run(options), as_json)


@app.command()
def personalize(
    home: Home = None,
    core: Core = "packaged",
    examples: Annotated[Path, typer.Option(help="Folder of documents to learn from.")] = Path(
        "examples/harbour-and-pine"
    ),
    steps: Annotated[int, typer.Option(min=7, help="Training steps of each race.")] = 40,
    timed: Annotated[int, typer.Option(min=7, help="Steps that are timed in every way.")] = 9,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    out: Out = Path("docs"),
    results: Results = Path("bench/results.json"),
    as_json: AsJson = False,
) -> None:
    """Training against transformers' Trainer with peft, and what each part of its speed is worth."""
    wait_busily()  # it trains
    from ssd_bench import personalize_run as suite

    options = suite.Options(
        home=home or default_home(), core=core, examples=examples, steps=steps, timed=timed, seed=seed, out=out,
        results=results,
    )  # fmt: skip
    _show(suite.run(options), as_json)


@app.command()
def personal(
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=FOLDER", help="A document set; may be repeated.")
    ] = None,
    questions: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="Questions of a set, JSON lines; by default they are made by rule."),
    ] = None,
    whole: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A set of which nothing is kept out: hidden facts and answers alone."),
    ] = None,
    home: Home = None,
    core: Core = "packaged",
    base: Annotated[str, typer.Option(help="Model folder or name that experts start from.")] = "packaged",
    kilobytes: Annotated[int, typer.Option(min=1, help="Text of a set to learn from, at most.")] = 200,
    train_minutes: Annotated[float, typer.Option(min=0.01, help="Minutes of training of each expert.")] = 4.5,
    part: Annotated[
        list[str] | None,
        typer.Option(help="heldout, cloze, answers or curve; may be repeated; by default all."),
    ] = None,
    limit: Annotated[int, typer.Option(min=2, help="Stretches, hidden facts and questions of a set, at most.")] = 30,
    limit_questions: Annotated[
        int | None, typer.Option(min=1, help="Questions made by rule of a set, if not --limit.")
    ] = None,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 32,
    passages: Annotated[int, typer.Option(min=0, help="Passages of an answer, at most.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every choice and of the noise.")] = 0,
    max_minutes: Minutes = None,
    out: Out = Path("docs"),
    results: Results = Path("bench/results.json"),
    records: Annotated[
        Path | None, typer.Option(help="Folder of experts and single measurements, continued if it fits.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What an expert gains from documents, alone and with the core, on sets of documents of any kind."""
    wait_busily()  # it trains
    from ssd_bench.personal import run as suite

    options = suite.Options(
        sets=sets or (), questions=questions or (), whole=whole or (), home=home or default_home(), core=core,
        base=base,
        kilobytes=kilobytes, train_minutes=train_minutes, parts=part or (), limit=limit,
        limit_questions=limit_questions, tokens=answer_tokens, passages=passages, seed=seed, max_minutes=max_minutes,
        records=records, out=out, results=results,
    )  # fmt: skip
    _show(suite.run(options), as_json)


@app.command()
def ablation(
    data: Annotated[Path, typer.Option(help="Folder that `ssd-cloud data build` made.")],
    home: Home = None,
    base: Annotated[str, typer.Option(help="Decoder that every variant starts from.")] = "packaged",
    batches: Annotated[int, typer.Option(min=1, help="Batches of the usual variant.")] = 80,
    limit: Annotated[int, typer.Option(min=2, help="Held-out rows.")] = 34,
    variant: Annotated[list[str] | None, typer.Option(help="A variant by name; repeat it (default: all).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of order, noise and starts.")] = 0,
    max_minutes: Minutes = None,
    out: Out = Path("docs"),
    results: Results = Path("bench/results.json"),
    records: Annotated[Path | None, typer.Option(help="Folder of single measurements, continued if it fits.")] = None,
    as_json: AsJson = False,
) -> None:
    """What each part of the core's training is worth, at equal compute."""
    wait_busily()  # it trains
    from ssd_bench.ablation import run as suite

    options = suite.Options(
        data=data, home=home or default_home(), base=base, batches=batches, limit=limit, names=variant or (),
        seed=seed, max_minutes=max_minutes, records=records, out=out, results=results,
    )  # fmt: skip
    _show(suite.run(options), as_json)


def _show(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(outcome.content, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(outcome.text)


def main() -> None:
    """Run the command line; what goes wrong is one sentence."""
    try:
        app()
    except (ClientError, NodeError, DiffusionError, KernelError, ValueError) as error:
        console.print(f"[bold]ssd_bench:[/bold] {error}", highlight=False)
        sys.exit(getattr(error, "exit_code", 2 if isinstance(error, ValueError) else 1))


if __name__ == "__main__":
    main()
