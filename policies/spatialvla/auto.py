"""What transformers' Auto classes know of a checkpoint folder after ``import sim_eval``.

transformers loads torch, so ``import sim_eval`` does not import it. It leaves a hook, which registers the configuration
when somebody imports the Auto classes, or at once if they are imported already. Network and processor register
themselves when a configuration is made of a folder: whoever loads other models pays nothing.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from transformers import PreTrainedConfig


class SpatialVLAPreTrainedConfig(PreTrainedConfig):  # type: ignore[misc]
    """A network's configuration in transformers' form, so that its Auto classes recognise a checkpoint folder.

    Attributes:
        network: :meth:`SpatialVLAConfig.to_dict`; None: the defaults.
    """

    model_type = "spatialvla"
    network: dict[str, object] | None = None

    def __post_init__(self, **fields: object) -> None:
        super().__post_init__(**fields)
        # By name, as transformers finds its own classes: both modules import this one.
        for module in ("modeling_spatialvla", "processing_spatialvla"):
            import_module(f"sim_eval.policies.spatialvla.{module}")


def register(configuration_auto: ModuleType) -> None:
    """Makes ``AutoConfig`` know the configuration; called with transformers' module of that class."""
    known = SpatialVLAPreTrainedConfig
    configuration_auto.AutoConfig.register(known.model_type, known, exist_ok=True)
