"""LoRA training of the expert, resumable and warm-started, with held-out scores before and after.

Knows the training loop's folder and an earlier adapter's; nothing about the store or what the text means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ssd_diffusion.errors import InvalidModel, TrainingError
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.training import lora
from ssd_diffusion.training.data import Batch, PackedRows, Rows
from ssd_diffusion.training.evaluate import anchor_losses, next_token_losses, s2
from ssd_diffusion.training.loop import Evaluation, Progress, TrainOptions, TrainReport, train
from ssd_diffusion.training.objective import LOOK_AHEAD, ObjectiveOptions
from ssd_kernels.types import I32

from ssd_client.personalize.options import PersonalizeOptions

SELECT_ROWS, REPORT_ROWS = 4, 6
_EVALUATION_LENGTH = 128


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Scores on one half of the held-out text, nats a token, lower is better (S1 and next token as losses)."""

    s2: float
    s1: float
    next_token: float

    def as_json(self) -> dict[str, float]:
        """Plain values, rounded."""
        return {"s2": round(self.s2, 4), "s1": round(self.s1, 4), "next_token": round(self.next_token, 4)}


def held_out_batches(stream: I32, block: int, rows: int) -> list[Batch]:
    """A few fixed rows of held-out text; none where there is too little for one."""
    if len(stream) < 2 * block + 1:
        return []
    packed = PackedRows(stream, length=_EVALUATION_LENGTH, block=block, rows=1, seed=7)
    return [packed.batch(i) for i in range(min(rows, packed.per_epoch))]


def held_out_scores(model: Ssd2Model, batches: Sequence[Batch]) -> HeldOut | None:
    """S2, S1 and the next-token loss on fixed rows; None where there are none."""
    if not batches:
        return None
    model.eval()
    first = torch.cat([anchor_losses(model, b.tokens).flatten() for b in batches])
    plain = torch.cat([next_token_losses(model, b.tokens).flatten() for b in batches])
    return HeldOut(s2(model, batches), float(first.mean()), float(plain.mean()))


def attach(model: Ssd2Model, options: PersonalizeOptions, earlier: Path | None) -> tuple[Any, bool]:
    """A LoRA on the model, filled from an earlier adapter when that fits; returns (wrapped, warm)."""
    import peft

    wrapped = lora.attach(model, lora.LoraOptions(rank=options.rank, alpha=2 * options.rank), seed=options.seed)
    if earlier is None:
        return wrapped, False
    try:
        state = lora.read_tensors(earlier / lora.ADAPTER_FILES[0])
        own = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
        if state.keys() != own.keys() or any(state[k].shape != own[k].shape for k in own):
            return wrapped, False
        lora.load_diffusion(model, earlier / lora.DIFFUSION_FILE)
    except InvalidModel:
        return wrapped, False
    peft.set_peft_model_state_dict(wrapped, {k: v.float() for k, v in state.items()})
    return wrapped, True


def learn(
    model: Ssd2Model,
    rows: Rows,
    select: Sequence[Batch],
    options: PersonalizeOptions,
    *,
    minutes: float,
    folder: Path,
    on_progress: Callable[[Progress], None],
    on_eval: Callable[[Evaluation], None],
) -> TrainReport:
    """Train what `attach` left trainable, with early stop on held-out S1; goes on from a checkpoint in the folder.

    Raises:
        TrainingError: a loss that is not finite, no space, or a foreign checkpoint.
    """

    def evaluate(current: Ssd2Model) -> float:
        found = float(torch.cat([anchor_losses(current, b.tokens).flatten() for b in select]).mean())
        if not math.isfinite(found):
            raise TrainingError("the held-out loss is not finite; use a lower learning rate")
        return found

    return train(
        model,
        rows,
        TrainOptions(
            max_minutes=minutes,
            learning_rate=options.learning_rate,
            warmup_steps=10,
            checkpoint_dir=folder,
            checkpoint_minutes=min(0.5, minutes / 4),
            eval_minutes=max(minutes / 7, 1e-3),
            patience=options.patience,
            # A base that drafts goes on learning to, on the person's own words.
            objective=replace(LOOK_AHEAD if model.transition is not None else ObjectiveOptions(), kept=options.kept),
            seed=options.seed,
        ),
        on_progress=on_progress,
        evaluate=evaluate if select else None,
        on_eval=on_eval,
    )
