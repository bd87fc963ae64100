"""The device on which a network runs."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from sim_eval.core.errors import SimEvalError

if TYPE_CHECKING:
    import torch


def resolve_device(name: str) -> torch.device:
    """The torch device of that name; "auto" is CUDA when there is one, else the CPU.

    Raises:
        SimEvalError: the name is unknown, or this machine has no such device; says why.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = _why_no_cuda() if name.partition(":")[0] == "cuda" else "torch knows no such device here"
        raise SimEvalError(f"device '{name}' cannot be used: {reason}; or choose --device auto or cpu") from error
    return device


def resolved_name(name: str) -> str:
    """The device's whole name: ``cpu`` or ``cuda:0``, never ``auto`` or ``cuda``."""
    device = resolve_device(name)
    return str(device) if device.type == "cpu" or device.index is not None else f"{device.type}:0"


def _why_no_cuda() -> str:
    """Why CUDA, or one of its devices, is missing, and what to do."""
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return f"this torch, {torch.__version__}, is built for the CPU only: install a CUDA build (pytorch.org)"
    if count := torch.cuda.device_count():
        return f"there is only cuda:0 to cuda:{count - 1}" if count > 1 else "there is only cuda:0"
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver: install one, and in a container start it with its GPUs"
    return "the NVIDIA driver shows no GPU: look at nvidia-smi and at CUDA_VISIBLE_DEVICES"
