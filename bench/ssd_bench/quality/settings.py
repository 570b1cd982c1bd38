"""The ways of decoding that are compared, one line each, and what each means for a model.

A setting names a model (the core or its autoregressive base), one of the product's decoders and what differs from the
client's defaults. Whatever field `DecodeParams` has can stand in `changes`; a new way of decoding is a new line here.
Knows nothing about prompts, engines or judges.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from ssd_client.options import GenerateOptions, decode_params, draft_depth
from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.sampler import DecodeParams
from ssd_diffusion.schedule import uniform_grid

Kind = Literal["diffusion", "ar", "ssdlm", "lookahead"]
HUMAN = "human"
SSDLM_BLOCK = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One way of decoding.

    Attributes:
        name: in reports and records.
        decoder: the client's name of the decoder, or lookahead for one that drafts.
        base: True for the autoregressive base in place of the core.
        changes: fields of `DecodeParams` that differ from the client's defaults.
        levels: points of the step grid; None for the client's default.
        uniform: the uniform grid of SSD-LM instead of the model's own.
        conditioned: False takes the self-conditioning away.
        first_only: nothing but the first open position can be accepted and the others are hidden from it, so that a
            window of one position writes the same text with less work.
        share: of the prompts that are asked, where the setting takes long.
    """

    name: str
    decoder: Kind = "diffusion"
    base: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)
    levels: int | None = None
    uniform: bool = False
    conditioned: bool = True
    first_only: bool = False
    share: float = 1.0

    @property
    def how(self) -> str:
        """All that decides the text, as one line; records of a setting that has changed since do not count."""
        kept = asdict(self)
        for name in ("name", "share"):
            del kept[name]
        return json.dumps(kept, sort_keys=True)


def _base(temperature: float, **changes: float) -> Setting:
    name = ", ".join([f"base, T {temperature:g}", *(f"{k.replace('_', '-')} {v:g}" for k, v in changes.items())])
    return Setting(name=name, decoder="ar", base=True, changes={"temperature": temperature, **changes})


def _ssdlm(steps: int, share: float) -> Setting:
    """As its paper has it: no self-conditioning."""
    return Setting(
        name=f"SSD-LM, {steps} steps", decoder="ssdlm", levels=steps, uniform=True, conditioned=False,
        changes={"block": SSDLM_BLOCK}, share=share,
    )  # fmt: skip


CORE = Setting(name="core, default", first_only=True)


def _core(temperature: float) -> Setting:
    return Setting(name=f"core, T {temperature:g}", first_only=True, changes={"temperature": temperature})


ONE_A_PASS = (_core(0.5), CORE, _core(0.85), _core(1.0))
"""The core one token a pass over temperatures: what more tokens a pass are compared with at equal diversity."""
REFERENCE = (_base(0.5), _base(0.7), _base(0.85), _base(1.0), _base(1.0, top_p=1.0))
"""The autoregressive base over temperatures: the curve that others are compared with at equal diversity."""


def same_temperature(setting: Setting) -> Setting:
    """The base at a setting's own temperature, the client's where it sets none."""
    temperature = setting.changes.get("temperature", GenerateOptions(prompt="-").temperature)
    return next(s for s in REFERENCE if s.changes["temperature"] == temperature)


SAME_TEMPERATURE = same_temperature(CORE)
"""The base at the client's own temperature."""


def _ahead(drafts: int, leniency: float = 0.0, temperature: float | None = None) -> Setting:
    """Looking ahead: with no leniency the text is that of one token a pass, in fewer passes."""
    name = f"core, {drafts} draft{'s' if drafts > 1 else ''}" + (f", leniency {leniency:g}" if leniency else "")
    changes: dict[str, Any] = {"block": 1, "drafts": drafts, "depth": draft_depth(drafts), "leniency": leniency}
    if temperature is not None:
        name, changes = f"{name}, T {temperature:g}", {**changes, "temperature": temperature}
    return Setting(name=name, decoder="lookahead", changes=changes)


AHEAD = (
    _ahead(1),
    _ahead(2),
    _ahead(4),
    _ahead(6),
    _ahead(8),
    _ahead(16),
    _ahead(8, 0.9),
    _ahead(16, 0.3),
    _ahead(16, 0.6),
    _ahead(16, 0.9),
    _ahead(8, 0.9, 0.85),
    _ahead(16, 0.6, 0.85),
    _ahead(16, 0.9, 0.85),
    _ahead(16, 1.0, 0.85),
    _ahead(16, 0.6, 1.0),
    _ahead(16, 0.9, 1.0),
)
"""Several tokens a pass by drafts."""
SETTINGS = (
    CORE,
    *(setting for setting in ONE_A_PASS if setting is not CORE),
    *REFERENCE,
    *AHEAD,
    Setting(name="core, budget 0.5", changes={"entropy_budget": 0.5}),
    Setting(name="core, budget 2", changes={"entropy_budget": 2.0}),
    Setting(name="core, budget 8", changes={"entropy_budget": 8.0}),
    Setting(name="core, whole windows", changes={"entropy_budget": 1000.0}),
    Setting(name="core, 6 levels", levels=6),
    Setting(name="core, 6 levels, budget 0.5", levels=6, changes={"entropy_budget": 0.5}),
    _ssdlm(8, 1.0),
    _ssdlm(25, 0.5),
    _ssdlm(100, 0.2),
)
THOUSAND = _ssdlm(1000, 0.025)
"""Asked for by name: minutes a text."""


def few_steps(*, thousand: bool) -> tuple[Setting, ...]:
    """Quality against passes: fixed blocks from many uniform steps to few, then the ingredients, each taken away once.

    The names say what is in them: `conditioned` is self-conditioning, `own grid` the model's step grid, which falls
    fast where the state says nothing, `budget` and `exit` accept positions early.
    """
    shares = {8: 1.0, 25: 0.5, 100: 0.2} | ({1000: 0.025} if thousand else {})
    fixed = [
        Setting(
            name=f"blocks, {steps} {grid}{', conditioned' if conditioned else ''}", decoder="ssdlm", levels=steps,
            uniform=uniform, conditioned=conditioned, changes={"block": SSDLM_BLOCK}, share=share,
        )
        for steps, share in sorted(shares.items(), reverse=True)
        for grid, uniform, conditioned in (
            ("uniform", True, False), ("uniform", True, True), ("own grid", False, True),
        )
    ]  # fmt: skip
    all_four: dict[str, Any] = {"entropy_budget": 0.5, "stable_passes": 2, "stable_entropy": 0.3}
    window = Setting(name="window, all four", levels=8, changes=all_four, share=0.4)
    return (
        *fixed,
        window,
        replace(window, name="window, without self-conditioning", conditioned=False),
        replace(window, name="window, without own grid", uniform=True),
        replace(window, name="window, without budget", changes={**all_four, "entropy_budget": 0.0}),
        replace(window, name="window, without exit", changes={**all_four, "stable_passes": 0}),
    )


def own_grid(grid: tuple[float, ...], points: int) -> tuple[float, ...]:
    """The model's step grid with any number of points: read between its own by rank.

    Its neighbours are meant to lie equally far apart in information, so equal parts between two of them are again.
    """
    if points == 1:
        return grid[:1]
    at = np.linspace(0, len(grid) - 1, points)
    return tuple(float(u) for u in np.interp(at, np.arange(len(grid)), grid))


def params_of(setting: Setting, spec: ModelSpec, tokens: int) -> DecodeParams:
    """The client's defaults for a decoder with the setting's changes; texts have exactly `tokens` tokens.

    Raises:
        InvalidStep: values that no decoder takes.
    """
    decoder = "diffusion" if setting.decoder == "lookahead" else setting.decoder
    options = GenerateOptions(prompt="-", decoder=decoder, max_tokens=tokens)
    params = decode_params(options, spec, ())
    if setting.levels is not None:
        grid = uniform_grid(setting.levels) if setting.uniform else own_grid(spec.grid, setting.levels)
        params = replace(params, grid=grid)
    if setting.first_only:
        params = replace(params, block=1)
    params = replace(params, **setting.changes)
    return replace(params, block=min(params.block, spec.max_block))


def queries(setting: Setting, params: DecodeParams) -> int:
    """About how many positions the network computes for one text: what progress is counted in."""
    if setting.decoder == "ar":
        return params.max_tokens
    if setting.decoder == "ssdlm":
        blocks = -(-params.max_tokens // params.block)
        return blocks * len(params.grid) * (params.block + 1)
    ahead = (params.drafts + 1) * (params.depth + 1) if setting.decoder == "lookahead" else params.block
    return params.max_tokens * (ahead + 2)
