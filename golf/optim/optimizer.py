"""One optimizer step over all parameters: average over ranks, clip, Muon, AdamW."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from golf.config import OptimConfig
from golf.distributed import World
from golf.optim.groups import split_parameters
from golf.optim.muon import Muon
from golf.optim.polar import coefficients

_ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")


class Optimizer:
    """Muon for matrices and AdamW (Loshchilov and Hutter 2019) for the rest, with one global-norm clip.

    The clip acts on the averaged gradient, so the step is the same for any number of ranks.
    """

    def __init__(self, model: nn.Module, config: OptimConfig, *, dtype: torch.dtype, world: World) -> None:
        self.config, self.world = config, world
        self.groups = split_parameters(model)
        self.muon = Muon(
            self.groups.matrix,
            iterations=coefficients(config.newton_schulz, config.newton_schulz_steps),
            row_normalize=config.row_normalize,
            weight_decay=config.matrix_weight_decay,
            dtype=dtype,
            world=world,
        )
        self.base_lrs = [config.embed_lr, config.scalar_lr]
        embed, scalar = list(self.groups.embed.values()), list(self.groups.scalar.values())
        self.adam = torch.optim.AdamW(
            [
                {"params": embed, "lr": config.embed_lr, "weight_decay": config.embed_weight_decay},
                {"params": scalar, "lr": config.scalar_lr, "weight_decay": config.scalar_weight_decay},
            ],
            betas=(config.beta1, config.beta2),
            eps=config.adam_eps,
            fused=True,
        )
        self.named = {**self.groups.embed, **self.groups.scalar}  # AdamW's parameters

    @torch.no_grad()
    def step(self, *, lr_multiplier: float, momentum: float) -> Tensor:
        """Update all parameters from their `.grad`, then drop the gradients; return the norm before clipping ()."""
        matrix_gradients = self.muon.reduced_gradients()
        self._average_replicated()
        norm = self._clip_(matrix_gradients)
        self.muon.step(matrix_gradients, lr=self.config.matrix_lr * lr_multiplier, momentum=momentum)
        for group, base_lr in zip(self.adam.param_groups, self.base_lrs, strict=True):
            group["lr"] = base_lr * lr_multiplier
        self.adam.step()
        for parameter in [*self.groups.matrix.values(), *self.named.values()]:
            parameter.grad = None
        return norm

    def state(self) -> dict[str, Tensor]:
        """Return all state on the CPU under names that no world size shows in. A collective."""
        tensors = {f"muon/{name}": tensor for name, tensor in self.muon.state().items()}
        for name, parameter in self.named.items():
            for key, value in self.adam.state[parameter].items():
                tensors[f"adam/{name}/{key}"] = value.detach().to("cpu", copy=True)
        return tensors

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned, on any number of ranks."""
        self.muon.load_state({key[5:]: value for key, value in state.items() if key.startswith("muon/")})
        for name, parameter in self.named.items():
            if f"adam/{name}/step" not in state:
                continue  # saved before the first step
            saved = {key: state[f"adam/{name}/{key}"] for key in _ADAM_STATE}
            self.adam.state[parameter] = {
                key: value.to(torch.float32 if key == "step" else parameter.dtype).to(parameter.device, copy=True)
                for key, value in saved.items()
            }

    def _average_replicated(self) -> None:
        """All-reduce the gradients that every rank updates, packed into one buffer a dtype."""
        packs: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for parameter in self.named.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            packs[parameter.dtype].append(parameter.grad)
        if self.world.size == 1:
            return
        for gradients in packs.values():
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            self.world.mean_(flat)
            for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(mean.view_as(gradient))

    def _clip_(self, matrix_gradients: list[Tensor]) -> Tensor:
        """Scale all gradients by min(1, limit / (norm + 1e-6)); return the norm over all of them."""
        squares = torch.stack([gradient.float().square().sum() for gradient in matrix_gradients]).sum()
        self.world.sum_(squares)  # every matrix gradient is owned by one rank
        replicated = [parameter.grad for parameter in self.named.values() if parameter.grad is not None]
        norm = (squares + torch.stack([g.float().square().sum() for g in replicated]).sum()).sqrt()
        if self.config.grad_clip_norm > 0:
            factor = (self.config.grad_clip_norm / (norm + 1e-6)).clamp(max=1.0)
            for gradient in [*matrix_gradients, *replicated]:
                gradient.mul_(factor.to(gradient.dtype))
        return norm
