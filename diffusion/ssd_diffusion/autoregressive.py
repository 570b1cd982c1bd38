"""The autoregressive twin: the same ensemble formula over next-token distributions, one token at a time.

The baseline that the SSD-2 paper claims to beat, and a decoder users may choose. Same events as the diffusion sampler.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from ssd_kernels.combine import entropy, log_softmax
from ssd_kernels.types import Purpose, TokenSets

from ssd_diffusion.ensemble import Ensemble
from ssd_diffusion.sampler import Decision, DecodeParams, StepEvent, cut_at_end, event, project
from ssd_diffusion.window import StepRecord, Window


def decode(ensemble: Ensemble, params: DecodeParams, *, draw_key: int) -> Iterator[StepEvent]:
    """Decode one answer token by token; greedy or from the nucleus, by the same draw as the diffusion sampler."""
    if params.projection == "multi-hot":  # a committed token is one token
        params = replace(params, projection="sample")
    committed = np.zeros(0, np.int32)
    rows = np.zeros(1, np.int32)
    for index in range(params.max_tokens):
        step = ensemble.next(committed)
        window = Window(index, index, 0, np.ones(1, np.float32), TokenSets.empty(1), 0)
        tempered = step.fused
        if params.temperature not in (0.0, 1.0):
            tempered = log_softmax(step.fused / params.temperature)
        sets = project(step.fused, params, draw_key=draw_key, window=window, rows=rows, purpose=Purpose.DRAW)
        chosen = step.fused[[0], sets.ids].astype(np.float64)
        record = StepRecord(sets, np.ones(1, np.bool_))
        decision = Decision(record, sets.ids, entropy(tempered).astype(np.float64), chosen)
        committed, finish = cut_at_end(sets.ids, params, done=index + 1 == params.max_tokens)
        yield event(ensemble, step, window, decision, committed, finish)
        if finish is not None:
            return
