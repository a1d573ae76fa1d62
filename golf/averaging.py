"""Averages of the weights kept during training: exponential, stochastic, and power-function shadows.

All are float32 copies of the whole state dict. EMA: e <- d e + (1 - d) w, started from the first weights. Tight SWA:
plain mean of snapshots taken while the learning rate is low (parameter-golf PR #374; of the EMA in #401). Shadows:
power-function averages from which any EMA length can be made afterwards (`golf.profiles`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from golf.profiles import gamma_of_width, power_decay
from golf.training_config import AverageConfig

Weights = dict[str, Tensor]

_LEAST_SNAPSHOTS = 2  # fewer are no mean


class Averages:
    """All averages of one run; `update` is called once after every optimizer step."""

    def __init__(self, model: nn.Module, config: AverageConfig) -> None:
        self.config = config
        self.live = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        self.ema: Weights = self._copies() if config.ema_decay else {}
        self.swa: Weights = self._zeros() if config.swa_every else {}
        self.swa_count = 0
        self.gammas = {width: gamma_of_width(width) for width in config.shadows}
        self.shadows: dict[float, Weights] = {width: self._zeros() for width in config.shadows}

    @torch.no_grad()
    def update(self, *, step: int, lr_multiplier: float) -> None:
        """Take in the weights after optimizer step number `step` (from 1), made at `lr_multiplier`."""
        live = [tensor.float() for tensor in self.live.values()]
        if self.ema:
            torch._foreach_lerp_(list(self.ema.values()), live, 1.0 - self.config.ema_decay)
        for width, shadow in self.shadows.items():
            torch._foreach_lerp_(list(shadow.values()), live, 1.0 - power_decay(self.gammas[width], step))
        config = self.config
        if config.swa_every and step % config.swa_every == 0 and lr_multiplier < config.swa_below:
            source = list(self.ema.values()) if config.swa_of == "ema" else live
            self.swa_count += 1
            torch._foreach_lerp_(list(self.swa.values()), source, 1.0 / self.swa_count)

    @property
    def falls_back(self) -> bool:
        """Whether the recipe's stochastic average has too few snapshots, so that `final` gives its source."""
        return self.config.use == "swa" and self.swa_count < _LEAST_SNAPSHOTS

    def final(self) -> Weights:
        """Return the weights the recipe uses at the end, cast to the model's dtypes.

        With fewer than two snapshots the stochastic average falls back to its source, as PR #401's script does;
        `describe` shows their count.
        """
        chosen: Mapping[str, Tensor] = {"raw": self.live, "ema": self.ema, "swa": self.swa}[self.config.use]
        if self.falls_back:
            chosen = self.ema if self.config.swa_of == "ema" else self.live
        return {name: chosen[name].to(tensor.dtype, copy=True) for name, tensor in self.live.items()}

    def state(self) -> dict[str, Tensor]:
        """Return copies of all averages under ema/, swa/ and shadow/<width>/, on the CPU."""
        return _on_cpu({"ema": self.ema, "swa": self.swa, **self.shadow_sections()})

    def shadow_state(self) -> dict[str, Tensor]:
        """Return copies of the shadows alone."""
        return _on_cpu(self.shadow_sections())

    def shadow_sections(self) -> dict[str, Weights]:
        """Name the shadows as a checkpoint does."""
        return {f"shadow/{width}": shadow for width, shadow in self.shadows.items()}

    def describe(self, step: int) -> dict[str, Any]:
        """Return each average's profile after `step` steps, for a checkpoint's manifest."""
        profiles: dict[str, Any] = {}
        if self.ema:
            profiles["ema"] = {"kind": "exponential", "decay": self.config.ema_decay, "step": step}
        if self.swa:
            profiles["swa"] = {"kind": "mean", "of": self.config.swa_of, "count": self.swa_count}
        for width, gamma in self.gammas.items():
            profiles[f"shadow/{width}"] = {"kind": "power", "width": width, "gamma": gamma, "origin": 0, "step": step}
        return profiles

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor], *, swa_count: int) -> None:
        """Continue from what `state` returned and the manifest's number of snapshots."""
        self.swa_count = swa_count
        for key, part in {"ema": self.ema, "swa": self.swa, **self.shadow_sections()}.items():
            for name, tensor in part.items():
                tensor.copy_(state[f"{key}/{name}"])

    def _copies(self) -> Weights:
        return {name: tensor.to(torch.float32, copy=True) for name, tensor in self.live.items()}

    def _zeros(self) -> Weights:
        return {name: torch.zeros_like(tensor, dtype=torch.float32) for name, tensor in self.live.items()}


def _on_cpu(sections: Mapping[str, Weights]) -> dict[str, Tensor]:
    return {f"{key}/{name}": t.to("cpu", copy=True) for key, part in sections.items() for name, t in part.items()}
