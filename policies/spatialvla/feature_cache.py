"""The features that a frozen VLM computes from each training window, computed once and kept on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from sim_eval.core.errors import SimEvalError
from sim_eval.policies.spatialvla.modeling_llava3d import Context, LLaVA3DModel, SpatialVLAInputs

IDENTITY = "identity.json"


class FeatureCache:
    """A folder with one file per window: its hidden states without padding.

    Args:
        folder: created if it does not exist.
        vlm: frozen.
        identity: what the features depend on (weights, configuration, episodes), as JSON.

    Raises:
        SimEvalError: the folder holds features of another identity, or cannot be written.
    """

    def __init__(self, folder: Path, vlm: LLaVA3DModel, identity: dict[str, object]) -> None:
        self._folder, self._vlm = folder, vlm
        path = folder / IDENTITY
        text = json.dumps(identity, sort_keys=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                partial = path.with_name(f".{IDENTITY}.{os.getpid()}.partial")
                partial.write_text(text)
                os.replace(partial, path)
            if path.read_text() != text:
                raise SimEvalError(f"{folder} holds features of other weights or demonstrations: choose another folder")
        except OSError as error:
            raise SimEvalError(f"{folder}: features cannot be kept here ({error.strerror})") from error

    def context(self, windows: Sequence[int], inputs: SpatialVLAInputs) -> Context:
        """The VLM's context of a batch.

        Args:
            windows: the numbers of the batch's windows.
            inputs: the batch, on the VLM's device.
        """
        missing = [row for row, window in enumerate(windows) if not self._file(window).exists()]
        if missing:
            with torch.no_grad():
                made = self._vlm(inputs.changed(lambda tensor: tensor[missing]))
            late = self._vlm.config.action_expert_type == "late_gemma"
            read = made.hidden_states[-1:] if late else made.hidden_states
            for place, row in enumerate(missing):
                self._keep(windows[row], torch.stack([hidden[place, made.valid[place]] for hidden in read]))
        device = inputs.state.device
        rows = [self._read(window).to(device) for window in windows]
        length = max(row.shape[1] for row in rows)
        hidden = torch.stack([F.pad(row, (0, 0, 0, length - row.shape[1])) for row in rows], dim=1)
        count = torch.tensor([row.shape[1] for row in rows], device=device)
        valid = torch.arange(length, device=device) < count[:, None]
        return Context(tuple(hidden), valid, (valid.cumsum(1) - 1).clamp(min=0))

    def _file(self, window: int) -> Path:
        return self._folder / f"{window:08d}.safetensors"

    def _keep(self, window: int, hidden_states: Tensor) -> None:
        partial = self._folder / f".{window:08d}.{os.getpid()}.partial"
        try:
            save_file({"hidden_states": hidden_states.cpu().contiguous()}, partial)
            os.replace(partial, self._file(window))
        except (OSError, SafetensorError) as error:
            raise SimEvalError(f"{self._folder}: features cannot be kept ({error}): free some space") from error

    def _read(self, window: int) -> Tensor:
        try:
            return load_file(self._file(window))["hidden_states"]
        except (OSError, SafetensorError, KeyError) as error:
            raise SimEvalError(f"{self._file(window)} is damaged: delete it, and it will be computed again") from error
