"""Batch normalisation (Ioffe and Szegedy 2015) over the global batch, whatever the number of processes.

torch's own sees the images of its own process alone: the loss would depend on how many there are, and each would
keep running statistics of its own. Its SyncBatchNorm cures that on accelerators only; this one does on CPUs too,
and on every device in the same way.

    y = (x − μ) / σ · w + b,   μ, σ² over batch, y and x of all ranks (as many images on each)
    ∂L/∂x = w / σ · (g − mean(g) − x̂ · mean(g · x̂)),   g = ∂L/∂y, means over the same
"""

from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

_OVER = (0, 2, 3)


class BatchNorm(nn.BatchNorm2d):
    """As `torch.nn.BatchNorm2d`, whose weights it shares, but over the images of all ranks in training."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        assert self.running_mean is not None  # these three are None only where nobody asked for them
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        y, mean, var = _OverRanks.apply(x, self.weight, self.bias, self.eps)
        values = x.numel() // x.shape[1] * dist.get_world_size()
        momentum = 0.1 if self.momentum is None else self.momentum
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(var * (values / (values - 1)), momentum)
        normalised: Tensor = y
        return normalised


class _OverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
        own = torch.stack(torch.var_mean(x.float(), _OVER, correction=0))  # 2 (variance, mean), C
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        variances, means = torch.stack(parts, dim=1)
        mean, var = means.mean(0), variances.mean(0) + means.var(0, correction=0)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.epsilon = epsilon
        ctx.mark_non_differentiable(mean, var)
        y, _, _ = torch.ops.aten.native_batch_norm(x, weight, bias, mean, var, False, 0.0, epsilon)
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, var = ctx.saved_tensors
        gradient = gradients[0]
        # As if μ and σ were constants: g · w / σ, Σ g · x̂ and Σ g of this rank, in one pass of torch's own kernel.
        through, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, var, None, None, False, ctx.epsilon, [True, True, True]
        )
        sums = torch.stack([to_weight, to_bias])
        dist.all_reduce(sums)
        mean_of_product, mean_of_gradient = sums / (x.numel() // x.shape[1] * dist.get_world_size())
        inverse = torch.rsqrt(var + ctx.epsilon)
        slope = weight * inverse.square() * mean_of_product
        shift = weight * inverse * mean_of_gradient - slope * mean
        through -= (x * _channels(slope, x)).add_(_channels(shift, x))
        return through, to_weight, to_bias, None


def _channels(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype)[:, None, None]


def over_global_batch(module: nn.Module) -> nn.Module:
    """The module with each of its batch normalisations made one over the global batch; its weights stay."""
    if isinstance(module, nn.BatchNorm2d):
        whole = BatchNorm(module.num_features, module.eps, module.momentum)
        whole.load_state_dict(module.state_dict())
        whole.train(module.training)
        return nn.Sequential(whole, module.drop, module.act) if isinstance(module, BatchNormAct2d) else whole
    for name, child in module.named_children():
        setattr(module, name, over_global_batch(child))
    return module
