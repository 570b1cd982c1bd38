"""`python -m ssd_bench SUITE`: the one entry point of the benchmarks.

Exit codes: 0 ok, 1 could not be done, 2 bad input, 130 interrupted. Knows options and files, not measurements.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from ssd_client.errors import ClientError
from ssd_cloud.errors import NodeError
from ssd_diffusion.errors import DiffusionError
from ssd_diffusion.home import home as default_home
from ssd_kernels.errors import KernelError

from ssd_bench.console import console, progress
from ssd_bench.results import merge, write_json

app = typer.Typer(
    help="Benchmarks: what is measured, against what, on this machine.",
    no_args_is_help=True,
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


@app.callback()
def _main() -> None:
    """Benchmarks of ssd2."""


@app.command()
def ensemble(
    home: Home = None,
    expert: Expert = None,
    core: Core = "packaged",
    examples: Examples = Path("examples"),
    limit: Limit = None,
    documents: Annotated[int, typer.Option(min=0, help="Held-out documents at most.")] = 40,
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
    held_out = read_documents(examples, pair.held_out)[:documents]
    settings = suite.Settings(seed=seed, max_tokens=max_tokens)
    chosen = {"about": pair.about, "seed": seed, "max_tokens": max_tokens}
    kept = RecordFile(records or root / "bench" / f"ensemble-{pair.name}.jsonl", chosen)
    until = float("inf") if max_minutes is None else started + 60 * max_minutes
    with progress("ensemble", 2 * (len(questions) + len(held_out))) as advance:
        suite.measure(pair, questions, held_out, settings, kept, advance=advance, until=until)
    wanted = {q.id for q in questions} | {d.path for d in held_out}
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
