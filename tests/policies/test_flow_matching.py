"""The convention, the sampler and the loss, against what can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sim_eval.policies.spatialvla import flow_matching


def test_time_one_is_noise_and_zero_is_data() -> None:
    actions, noise = torch.randn(2, 3, 4, 7), torch.randn(2, 3, 4, 7)
    assert torch.equal(flow_matching.interpolate(actions, noise, torch.ones(2, 3)), noise)
    assert torch.equal(flow_matching.interpolate(actions, noise, torch.zeros(2, 3)), actions)


def test_target_is_the_derivative_of_the_path() -> None:
    actions, noise = torch.randn(1, 4, 7).double(), torch.randn(1, 4, 7).double()
    early, late = (flow_matching.interpolate(actions, noise, torch.tensor([t]).double()) for t in (0.3, 0.7))
    torch.testing.assert_close((late - early) / 0.4, flow_matching.target_velocity(actions, noise))


@pytest.mark.parametrize("steps", [1, 5])
def test_oracle_velocity_recovers_the_actions(steps: int) -> None:
    actions, noise = torch.randn(2, 4, 7), torch.randn(2, 4, 7)
    found = flow_matching.euler(lambda x, t: noise - actions, noise, steps)
    torch.testing.assert_close(found, actions, atol=1e-6, rtol=1e-5)


def test_euler_asks_at_the_start_of_each_step() -> None:
    asked = []
    flow_matching.euler(lambda x, t: asked.append(t.item()) or torch.zeros_like(x), torch.zeros(1, 2, 2), 4)
    assert asked == [1.0, 0.75, 0.5, 0.25]


def test_training_times_follow_the_beta_distribution() -> None:
    times = flow_matching.sample_time((200_000,), torch.Generator().manual_seed(0))
    assert times.min() >= 0.001
    assert times.max() <= 1.0
    beta = torch.distributions.Beta(1.5, 1.0)
    assert abs(times.mean() - (beta.mean * 0.999 + 0.001)) < 2e-3
    assert abs(times.var() - beta.variance * 0.999**2) < 1e-3


def test_time_embedding_has_the_stated_periods() -> None:
    start = flow_matching.time_embedding(torch.tensor([0.0]), 16)
    assert torch.equal(start, torch.tensor([[0.0] * 8 + [1.0] * 8]))
    shortest, longest = (flow_matching.time_embedding(torch.tensor([t]), 16) for t in (4e-3, 1.0))
    assert abs(shortest[0, 0]) < 1e-4  # a full period
    assert abs(longest[0, 7] - math.sin(math.pi / 2)) < 1e-6  # a quarter of it
    assert flow_matching.time_embedding(torch.tensor([0.5], dtype=torch.bfloat16), 16).dtype == torch.float32


def test_loss_ignores_padding_and_divides_by_what_is_left() -> None:
    prediction, target = torch.zeros(1, 2, 4, 7), torch.ones(1, 2, 4, 7)
    valid = torch.tensor([True, True, False, False])[None, None, :, None]
    target[:, :, 2:] = 1e6
    assert flow_matching.masked_mse(prediction, target, valid) == 1
    dimensions = torch.arange(7) < 3
    target[..., :2, 3:] = 1e6
    assert flow_matching.masked_mse(prediction, target, valid & dimensions) == 1
    assert flow_matching.masked_mse(prediction, target, torch.zeros_like(valid)) == 0
