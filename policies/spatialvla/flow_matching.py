"""Flow matching as pure functions, shared by every action expert.

The convention is openpi's: ``x_t = t * noise + (1 - t) * actions``, so t = 1 is noise and t = 0 is data (the pi0 paper,
Black et al. 2024, writes it the other way round).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

TIME_ALPHA = 1.5  # Beta(1.5, 1): more samples near the noise (pi0, appendix B)
TIME_FLOOR = 1e-3
PERIODS = (4e-3, 4.0)


def interpolate(actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """The point x_t on the straight line from actions to noise.

    Args:
        actions: [..., H, A]; may be broadcast.
        noise: [..., H, A].
        time: [...] in [0, 1].
    """
    t = time[..., None, None]
    return t * noise + (1 - t) * actions


def target_velocity(actions: Tensor, noise: Tensor) -> Tensor:
    """dx_t / dt, the same at every t."""
    return noise - actions


def sample_time(shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
    """Training times from Beta(1.5, 1) * 0.999 + 0.001, by the inverse of its distribution function."""
    uniform = torch.rand(shape, generator=generator)
    return uniform ** (1 / TIME_ALPHA) * (1 - TIME_FLOOR) + TIME_FLOOR


def time_embedding(time: Tensor, width: int) -> Tensor:
    """Sines and cosines with periods from 4e-3 to 4 in geometric steps, in float32: [...] -> [..., width]."""
    low, high = PERIODS
    fraction = torch.linspace(0.0, 1.0, width // 2, device=time.device)
    angles = time.float()[..., None] * (2 * math.pi / (low * (high / low) ** fraction))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def masked_mse(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error over the valid entries only.

    Division by the number of all entries would give the last steps of an episode less weight, and policies would stall
    there.

    Args:
        prediction, target: [..., H, A].
        valid: bool, broadcast against them.
    """
    weight = valid.expand_as(prediction).to(prediction.dtype)
    return ((prediction - target).square() * weight).sum() / weight.sum().clamp(min=1)


def euler(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Integrates from t = 1 to t = 0.

    Args:
        velocity: (x_t, t of shape x_t.shape[:-2]) -> dx / dt, shaped like x_t.
        noise: x at t = 1, [..., H, A].
        steps: the number of equal steps.
    """
    x = noise
    for step in range(steps):
        time = torch.full(x.shape[:-2], 1 - step / steps, dtype=x.dtype, device=x.device)
        x = x - velocity(x, time) / steps
    return x
