"""`ssd-client generate`: one answer, live on the terminal or as JSON.

The answer goes to stdout; the live view, remarks and the table of numbers go to stderr. Knows nothing about how an
answer is made.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssd_client.cli.flags import JSON, flag

if TYPE_CHECKING:
    from ssd_client.options import GenerateOptions


def generate(
    prompt: Annotated[
        str,
        typer.Argument(help="What you want to know; [[...]] marks words that only the expert sees; - reads stdin."),
    ],
    expert: Annotated[str | None, flag("--expert", "Which expert; not needed where there is only one.")] = None,
    node: Annotated[str | None, flag("--node", "HOST[:PORT] of the node that hosts the core.")] = None,
    offline: Annotated[bool, flag("--offline", "Use no node: the expert writes alone.")] = False,
    token: Annotated[str | None, flag("--token", "The node's access token.")] = None,
    seed: Annotated[int | None, flag("--seed", "Same seed, same text on this device.")] = None,
    steps: Annotated[int | None, flag("--steps", "Most noise levels a position passes.")] = None,
    max_tokens: Annotated[int, flag("--max-tokens", "Longest answer in tokens.")] = 128,
    privacy: Annotated[str, flag("--privacy", "open: the node reads along; one-way: it never learns the answer.")] = (
        "open"
    ),
    lam: Annotated[float | None, flag("--lam", "The expert's share, 0 to 1 (default: as tuned).")] = None,
    alpha: Annotated[float | None, flag("--alpha", "Weight of what private context changes (default: as tuned).")] = (
        None
    ),
    codec: Annotated[str, flag("--codec", "dense-f32, dense-f16, top-k, top-k:K or top-k:K:RESIDUAL.")] = "top-k",
    decoder: Annotated[str, flag("--decoder", "diffusion, ar (token by token) or ssdlm (fixed blocks).")] = "diffusion",
    projection: Annotated[str, flag("--projection", "sample, greedy or multi-hot.")] = "sample",
    block: Annotated[int, flag("--block", "Positions denoised together.")] = 8,
    temperature: Annotated[float, flag("--temperature", "Of the draws; 0 takes the most probable.")] = 0.7,
    top_p: Annotated[float, flag("--top-p", "Draw from the most probable tokens of this mass.")] = 0.9,
    entropy_budget: Annotated[
        float, flag("--entropy-budget", "Nats of doubt a step may accept beyond its first token: more is faster.")
    ] = 0.0,
    drafts: Annotated[
        int | None,
        flag("--drafts", "Drafts a step, 0 for none: the same text in fewer steps (open only; default: as fits)."),
    ] = None,
    core_drafts: Annotated[
        bool, flag("--core-drafts", "The core drafts too: fewer steps where it has much to say, more bytes a step.")
    ] = False,
    leniency: Annotated[
        float, flag("--leniency", "0 to 1: keep drafts that are nearly as probable as the best token too.")
    ] = 0.0,
    core_every: Annotated[int, flag("--core-every", "Ask the core at every m-th step only (faster, open only).")] = 1,
    show_context: Annotated[bool, flag("--show-context", "Show the passages that the expert was given.")] = False,
    private: Annotated[
        list[str] | None, flag("--private", "TEXT, or @FILE, for the expert alone; may be repeated.")
    ] = None,
    passages: Annotated[int, flag("--passages", "Most passages of your documents for the expert.")] = 4,
    dry_run: Annotated[bool, flag("--dry-run", "Show what would leave this device, and send nothing.")] = False,
    yes: Annotated[bool, flag("--yes", "Agree to send what --dry-run shows.")] = False,
    deadline: Annotated[
        float, flag("--deadline", "Seconds a node may be silent or away before the expert goes on alone.")
    ] = 30.0,
    tv_limit: Annotated[
        float, flag("--tv-limit", "Ask for a wider answer where a sparse codec's error bound is over this.")
    ] = 0.5,
    wire: Annotated[str, flag("--wire", "stream or unary.")] = "stream",
    ca: Annotated[Path | None, flag("--ca", "PEM file to check the node's certificate against.")] = None,
    insecure: Annotated[bool, flag("--insecure", "Allow plaintext to another machine.")] = False,
    json: Annotated[bool, JSON] = False,
) -> None:
    """Write one answer, expert and core together."""
    from ssd_diffusion.home import home

    from ssd_client.options import GenerateOptions

    options = GenerateOptions(
        prompt=sys.stdin.read() if prompt == "-" else prompt, expert=expert, node=node, offline=offline, token=token,
        seed=seed, steps=steps, max_tokens=max_tokens, privacy=privacy, lam=lam, alpha=alpha,  # type: ignore[arg-type]
        codec=codec, decoder=decoder, projection=projection, block=block,  # type: ignore[arg-type]
        temperature=temperature, top_p=top_p, entropy_budget=entropy_budget, core_every=core_every,
        drafts=drafts, core_drafts=core_drafts, leniency=leniency,
        private=tuple(private or ()),
        passages=passages, deadline_s=deadline, wire=wire, ca=ca, insecure=insecure,  # type: ignore[arg-type]
        tv_limit=tv_limit, yes=yes,
    )  # fmt: skip
    if dry_run:
        _dry_run(options, home(), json=json)
    else:
        _generate(options, home(), json=json, show_context=show_context)


def _dry_run(options: GenerateOptions, home: Path, *, json: bool) -> None:
    from ssd_client.answer import preview
    from ssd_client.cli import answer_view
    from ssd_client.cli.screen import print_json

    disclosure, contexts = preview(options, home=home)
    if json:
        print_json(answer_view.preview_json(disclosure, contexts))
    else:
        answer_view.show_preview(disclosure, contexts)


def _generate(options: GenerateOptions, home: Path, *, json: bool, show_context: bool) -> None:
    from ssd_client.answer import generate as write
    from ssd_client.cli import answer_view
    from ssd_client.cli.screen import ERR, OUT, print_json, say

    can_ask = sys.stdin.isatty() and ERR.is_terminal
    with answer_view.Live(enabled=ERR.is_terminal) as live:
        answer = write(
            options,
            home=home,
            on_progress=live.progress,
            on_stage=live.stage,
            ask=live.pausing(answer_view.ask) if can_ask else None,
        )
    if json:
        print_json(answer.to_json(with_text=show_context))
        return
    OUT.print(answer.text, markup=False, soft_wrap=True)
    for note in answer.notes:
        say(note)
    answer_view.show_numbers(answer, show_context=show_context)
