"""Instruction finetuning: `adapt` on prompts whose responses alone are supervised (DOLLY's columns, chat JSONL)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ssd_diffusion.errors import TrainingError
from ssd_diffusion.training import data
from ssd_diffusion.training.loop import Progress

from ssd_cloud.adapt import Adapted, adapt
from ssd_cloud.adapt_options import AdaptOptions


def instruct(
    options: AdaptOptions,
    home: Path,
    *,
    on_stage: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Adapted:
    """Finetune a diffusion core on conversations; the arguments are those of `adapt`, `chat_share` counts as 1.

    Raises:
        TrainingError: the data hold no conversation.
        InvalidModel: the base cannot be read.
    """
    if not any(not isinstance(item, str) for item in data.read_items(options.data)):
        raise TrainingError("the data hold no conversations; give JSONL with instruction and response, or messages")
    return adapt(replace(options, chat_share=1.0), home, on_stage=on_stage, on_progress=on_progress)
