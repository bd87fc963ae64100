"""What each program is asked: frozen dataclasses that are command lines, and that are saved as JSON with the results.

Bounds stand in the annotations; :func:`sim_eval.core.decoding.decode` checks them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from annotated_types import Ge


@dataclass(frozen=True)
class CollectConfig:
    """Collect demonstrations with a policy.

    Attributes:
        task: tasks and suites to demonstrate, separated by commas, for example robosuite/LiftWide.
        out: folder for the episode files of all tasks; a folder that already holds some of them is continued.
        policy: the demonstrator: scripted, the name of a shipped checkpoint, or a checkpoint folder.
        episodes: number of episodes of each task that the folder holds in the end.
        split: train or val; test episodes are never collected.
        keep_failures: also keep failed episodes.
        disturb: push the demonstrator off its path but record clean labels (DART), so that a learner sees recoveries.
        dry_run_first: run each episode without recording first, and record it only if it succeeds; faster where
            simulation is cheap compared with rendering and the demonstrator sometimes fails.
        post_success_steps: control steps recorded after the first success. Where success is a small enough distance, a
            policy may learn to stop just short of it if there are few.
        render: fast, or faithful for the simulator's own look; default: faithful for LIBERO, fast for all others.
        hide_goal: leave out the marks by which some simulators show the goal.
        size: height and width of every camera in pixels.
        cameras: cameras to record, separated by commas; default: all.
        device: for a learned policy: auto, cpu or cuda.
        workers: processes that run episodes; 1 is this process. With 2 or more, a crash of a simulator is survived.
    """

    task: Annotated[str, tyro.conf.arg(metavar="T[,T...]")]
    out: Path
    policy: str = "scripted"
    episodes: Annotated[int, Ge(1)] = 100
    split: Literal["train", "val"] = "train"
    keep_failures: bool = False
    disturb: bool = True
    dry_run_first: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    post_success_steps: Annotated[int, Ge(0)] = 10
    render: Literal["fast", "faithful"] | None = None
    hide_goal: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    size: Annotated[int, Ge(16)] = 128
    cameras: Annotated[str, tyro.conf.arg(metavar="C[,C...]")] = ""
    device: str = "auto"
    workers: Annotated[int, Ge(1)] = 1
