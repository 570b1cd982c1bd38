"""`ssd-cloud adapt`: what sets it apart from the other training commands; the work is `ssd_cloud.adapt`."""

from __future__ import annotations

from ssd_cloud.cli.training_flags import training_command

adapt = training_command("adapt", "Turn a pretrained decoder into a diffusion core.", learning_rate=5e-4)
