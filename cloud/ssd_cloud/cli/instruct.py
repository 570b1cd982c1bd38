"""`ssd-cloud instruct`: what sets it apart from the other training commands; the work is `ssd_cloud.instruct`."""

from __future__ import annotations

from ssd_cloud.cli.training_flags import training_command

instruct = training_command(
    "instruct", "Finetune a diffusion core on instructions (DOLLY's columns or chat JSONL).", learning_rate=2e-4
)
