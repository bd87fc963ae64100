"""Evaluate 3-D vision-language-action policies in RGB-D simulation.

The rooms ``envs``, ``policies`` and ``datasets`` stand at the top of the source tree; links in this folder make them
``sim_eval.envs`` and so on.
"""

__version__ = "0.2.0"

from wrapt import register_post_import_hook

from sim_eval.envs.gym import register_all

register_all()
register_post_import_hook("sim_eval.policies.spatialvla.auto:register", "transformers.models.auto.configuration_auto")
