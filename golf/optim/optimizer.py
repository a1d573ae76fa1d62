"""One optimizer step over all parameters: average over ranks, clip, Muon, AdamW."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from golf.distributed import World
from golf.errors import require
from golf.optim.clip import Clip, sum_of_squares
from golf.optim.groups import Groups, split_parameters
from golf.optim.muon import Muon
from golf.optim.polar import coefficients
from golf.optim.replicated import Replicated
from golf.training_config import OptimConfig

_ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")


class Optimizer:
    """Muon for matrices and AdamW (Loshchilov and Hutter 2019) for the rest, with one global-norm clip.

    The clip "global" acts on the averaged gradient, so the step is the same for any number of ranks; "local" is that of
    the published scripts: each rank shortens its own gradient, the mean of its micro-batches, and then they average.
    Raises UsageError for a setting that this model or clip cannot use.
    """

    def __init__(
        self,
        model: nn.Module,
        config: OptimConfig,
        *,
        dtype: torch.dtype,
        world: World,
        clip: Literal["global", "local"] = "global",
    ) -> None:
        self.config, self.world = config, world
        self.groups = split_parameters(model)
        _check(config, self.groups, clip)
        self.muon = Muon(
            self.groups.matrix,
            form=config.muon,
            nesterov=config.nesterov,
            iterations=coefficients(config.newton_schulz, config.newton_schulz_steps),
            row_normalize=config.row_normalize,
            weight_decay=config.matrix_weight_decay,
            dtype=dtype,
            world=world,
        )
        self.adam = torch.optim.AdamW(
            _adam_groups(self.groups, config), betas=(config.beta1, config.beta2), eps=config.adam_eps, fused=True
        )
        self.base_lrs: list[float] = [group["lr"] for group in self.adam.param_groups]
        self.named = {**self.groups.embed, **self.groups.head, **self.groups.scalar}  # AdamW's parameters
        self.replicated = Replicated(self.named.values(), world)
        self.clips_locally = clip == "local"
        self.clip = Clip(config.grad_clip_norm, window=config.lyapunov_window, device=world.device)

    @torch.no_grad()
    def step(self, *, lr_multiplier: float, momentum: float) -> Tensor:
        """Update all parameters from their `.grad`, then drop the gradients; return the norm before clipping ().

        It is that of the averaged gradient, under the local clip the mean of the ranks' own.
        """
        matrix_gradients, norm = self._clip_then_average() if self.clips_locally else self._average_then_clip()
        for group, base_lr in zip(self.adam.param_groups, self.base_lrs, strict=True):
            group["lr"] = base_lr * lr_multiplier
        matrix_lr = self.config.matrix_lr * lr_multiplier
        self.muon.step(matrix_gradients, lr=matrix_lr, momentum=momentum, meanwhile=self.adam.step)
        for parameter in [*self.groups.matrix.values(), *self.named.values()]:
            parameter.grad = None
        return norm

    def state(self) -> dict[str, Tensor]:
        """Return all state on the CPU under names that no world size shows in. A collective."""
        tensors = {f"muon/{name}": tensor for name, tensor in self.muon.state().items()}
        tensors |= {f"clip/{name}": tensor for name, tensor in self.clip.state().items()}
        for name, parameter in self.named.items():
            for key, value in self.adam.state[parameter].items():
                tensors[f"adam/{name}/{key}"] = value.detach().to("cpu", copy=True)
        return tensors

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned, on any number of ranks."""
        self.muon.load_state({key[5:]: value for key, value in state.items() if key.startswith("muon/")})
        self.clip.load_state({key[5:]: value for key, value in state.items() if key.startswith("clip/")})
        for name, parameter in self.named.items():
            if f"adam/{name}/step" not in state:
                self.adam.state.pop(parameter, None)  # saved before the first step
                continue
            saved = {key: state[f"adam/{name}/{key}"] for key in _ADAM_STATE}
            self.adam.state[parameter] = {
                key: value.to(torch.float32 if key == "step" else parameter.dtype).to(parameter.device, copy=True)
                for key, value in saved.items()
            }

    def _average_then_clip(self) -> tuple[list[Tensor], Tensor]:
        """Return this rank's slices of the averaged and shortened matrix gradients, and the norm ()."""
        matrices, others = self.muon.start_averaging(), self.replicated.start_averaging()
        gradients, squares = {}, {}
        for index in self.muon.order:  # they arrive in
            gradients[index] = matrices[index].wait()
            squares[index] = sum_of_squares([gradients[index]])
        matrix_gradients = [gradients[index] for index in range(len(matrices))]
        total = self.world.start_sum_(torch.stack([squares[index] for index in range(len(matrices))]).sum())
        replicated = self.replicated.finish_averaging(others)
        squares_of_others = sum_of_squares(self.replicated.gradients())
        norm = (total.wait() + squares_of_others).sqrt()
        self.clip.shorten_([*matrix_gradients, *replicated], norm)
        return matrix_gradients, norm

    def _clip_then_average(self) -> tuple[list[Tensor], Tensor]:
        """Return this rank's slices of the averaged matrix gradients that each rank had shortened, and the norm ()."""
        parameters = [*self.groups.matrix.values(), *self.named.values()]
        own = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = sum_of_squares(own).sqrt()
        self.clip.shorten_(own, norm)
        matrices, others = self.muon.start_averaging(), self.replicated.start_averaging()
        norm_of_all = self.world.start_mean_(norm)
        self.replicated.finish_averaging(others)
        return [pending.wait() for pending in matrices], norm_of_all.wait()


def _check(config: OptimConfig, groups: Groups, clip: Literal["global", "local"]) -> None:
    """Refuse what acts on nothing in this model, or contradicts the clip."""
    has_head, has_rate = bool(groups.head), config.head_lr is not None
    require(has_rate or not has_head, "the model has a head of its own: set optim.head_lr (0.008 as published)")
    require(has_head or not has_rate, "optim.head_lr acts on nothing: the embedding is the head; leave it out")
    one_history = config.lyapunov_window == 0 or clip == "global"
    require(one_history, "optim.lyapunov_window needs the global clip: ranks that clip locally have norms of their own")


def _adam_groups(groups: Groups, config: OptimConfig) -> list[dict[str, Any]]:
    """Name the parameters, rate and decay of each of AdamW's groups."""
    settings = [
        (groups.embed, config.embed_lr, config.embed_weight_decay),
        (groups.scalar, config.scalar_lr, config.scalar_weight_decay),
    ]
    if config.head_lr is not None:
        settings.append((groups.head, config.head_lr, config.embed_weight_decay))
    return [
        {"params": list(group.values()), "lr": lr, "weight_decay": weight_decay} for group, lr, weight_decay in settings
    ]
