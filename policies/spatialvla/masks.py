"""Attention masks, always as floats that are added: eager attention would silently add a boolean mask as 0 and 1."""

from __future__ import annotations

import torch
from torch import Tensor


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible and a finite minimum elsewhere: bool [B, Q, K] -> float [B, 1, Q, K]."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    # float32's own minimum would become infinite where autocast makes it bfloat16.
    lowest = max(torch.finfo(dtype).min, torch.finfo(torch.bfloat16).min)
    return mask.masked_fill_(~visible, lowest).unsqueeze(1)


def causal_mask(valid: Tensor, dtype: torch.dtype) -> Tensor:
    """Each token sees itself and the valid tokens before it: valid [B, T] -> [B, 1, T, T]."""
    length = valid.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=valid.device).tril()
    return additive_mask(causal & valid[:, None, :], dtype)


def suffix_mask(context_valid: Tensor, blocks: Tensor, flow_samples: int, dtype: torch.dtype) -> Tensor:
    """Which tokens of [context | suffix of sample 1 | suffix of sample 2 | ...] each suffix token sees.

    A suffix token sees the valid context and, in its own flow sample, the tokens whose block number is not above its
    own (pi0's block-wise mask).

    Args:
        context_valid: bool [B, T].
        blocks: block number of each suffix token, [S].
        flow_samples: the number D of suffixes side by side.
        dtype: of the mask.

    Returns:
        [B, 1, D * S, T + D * S].
    """
    same_sample = torch.eye(flow_samples, dtype=torch.bool, device=blocks.device)
    suffix = torch.kron(same_sample, blocks[None, :] <= blocks[:, None])
    length = suffix.shape[0]
    batch = context_valid.shape[0]
    visible = torch.cat(
        [context_valid[:, None, :].expand(-1, length, -1), suffix.expand(batch, -1, -1)],
        dim=-1,
    )
    return additive_mask(visible, dtype)
