"""Evaluate 3-D vision-language-action policies in RGB-D simulation.

The rooms ``envs``, ``policies`` and ``datasets`` stand beside this folder in the source tree and are imported as
``sim_eval.envs`` and so on. A wheel places them so; from a clone the lines below do.
"""

import sys
from pathlib import Path

__version__ = "0.1.0"

_ROOT = Path(__file__).resolve().parent.parent
if not (Path(__file__).resolve().parent / "envs").is_dir() and (_ROOT / "envs" / "contract.py").is_file():
    if str(_ROOT) not in __path__:
        __path__.append(str(_ROOT))
    # A bare `import datasets` from the clone must find Hugging Face's library, not our folder.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _ROOT]

from sim_eval.envs.gym import register_all  # noqa: E402  (only found once the path above is set)

register_all()
