"""`ssd-cloud own-text`: its flags, and what came out. The work is in `ssd_cloud.own_text`, imported when it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ssd_cloud.cli.training import watching
from ssd_cloud.cli.training_flags import Data, Json, Seed

Out = Annotated[Path, typer.Argument(metavar="OUT", help="The JSONL file to write or go on with.", show_default=False)]
Model = Annotated[
    str, typer.Option(help="A model folder, a name that `models` lists, or 'packaged'.", envvar="SSD_MODEL")
]
Tokens = Annotated[int, typer.Option(min=1, help="Tokens of the file in the end.", envvar="SSD_OWN_TOKENS")]
Longest = Annotated[int, typer.Option("--length", min=1, max=4096, help="Most tokens of a text.")]
AtOnce = Annotated[int, typer.Option("--batch", min=1, max=4096, help="Texts at once.")]
ChatShare = Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of batches that are answers to chats.")]
Temperature = Annotated[float, typer.Option(min=0.05, max=5.0, help="Of the draws.")]
TopP = Annotated[float, typer.Option(min=0.01, max=1.0, help="Nucleus of the draws.")]


def own_text(
    out: Out,
    data: Data,
    model: Model = "packaged",
    tokens: Tokens = 300_000,
    length: Longest = 112,
    batch: AtOnce = 64,
    chat_share: ChatShare = 0.4,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.9,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Let a model write text to learn drafts from (`adapt --look-ahead --own OUT`)."""
    with watching() as bar:
        from ssd_diffusion.home import home

        from ssd_cloud.models import resolve
        from ssd_cloud.own_text import OwnTextOptions, write_own

        bar.stage("reading the model and the text")
        options = OwnTextOptions(
            model=resolve(model, home()), data=tuple(data), out=out, tokens=tokens, length=length, batch=batch,
            chat_share=chat_share, temperature=temperature, top_p=top_p, seed=seed,
        )  # fmt: skip
        held = write_own(options, bar.fraction)
    if as_json:
        print(json.dumps({"file": str(out), "tokens": held}), flush=True)  # noqa: T201 - output for programs
        return
    Console(soft_wrap=True).print(f"{out}: {held:,} tokens")
