"""Score a policy: ``python -m sim_eval.rollout --policy deep_llama``.

Writes a run folder with the result and trajectory of every episode and videos of some, and prints the success rate with
its interval. The same command with ``--out`` of an interrupted run continues it, with any number of ``--workers``.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from sim_eval.configs import RolloutConfig
from sim_eval.console import named_tasks, run
from sim_eval.core.programs import command

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence
    from pathlib import Path

    from sim_eval.core.types import InstructionCondition
    from sim_eval.evaluation.engine import EpisodeResult
    from sim_eval.evaluation.jobs import RecorderFactory
    from sim_eval.evaluation.rollouts import Outcomes
    from sim_eval.evaluation.run_folder import RunFolder
    from sim_eval.policies.policy import PolicySpec

PROGRAM = command("rollout")
TEMPLATE = "template"  # of --keys


def main(config: RolloutConfig) -> int:
    """Runs the command; returns the exit code."""
    config = config.checked()
    if str(config.keys) == TEMPLATE:
        print(keys_template(config))
        return 0
    from sim_eval.evaluation.rollouts import open_rollout
    from sim_eval.reporting.run_report import print_run

    with open_rollout(config, partial(video_recorders, config)) as (run_folder, outcomes):
        play(run_folder, outcomes, config.instruction_condition)
    print_run(run_folder.folder, run_folder.results, config)
    return 0


def keys_template(config: RolloutConfig) -> str:
    """A file of observation keys to fill in, for the first task that is named."""
    from contextlib import closing

    from sim_eval.core.types import RenderConfig
    from sim_eval.envs.tasks import choose_render, get_task
    from sim_eval.evaluation.rollouts import DEFAULT_TASK
    from sim_eval.policies.remote.keys import template

    task, *_ = named_tasks(config.task) or [DEFAULT_TASK]
    render = RenderConfig(choose_render(config.render, [task]), hide_goal=config.hide_goal)
    with closing(get_task(task).make(render)) as simulator:
        return template(simulator.spec, task)


def video_recorders(config: RolloutConfig, policy: PolicySpec, folder: Path) -> Sequence[RecorderFactory]:
    """Makes the recorder of the episodes' videos, if any are wanted."""
    if config.video == "none":
        return ()
    from sim_eval.evaluation.run_folder import VIDEOS
    from sim_eval.reporting.episode_video import VideoRecorder

    videos = folder / VIDEOS
    return (partial(VideoRecorder, videos, policy, config.video, config.first, config.video_size, config.video_look),)


def play(run_folder: RunFolder, outcomes: Outcomes, instruction_condition: InstructionCondition) -> None:
    """Runs and keeps the remaining episodes, with a progress bar on stderr."""
    from tqdm import tqdm

    from sim_eval.evaluation.rollouts import keep_outcomes
    from sim_eval.evaluation.run_folder import EPISODES

    planned, earlier = len(run_folder.manifest.keys), len(run_folder.results)
    if run_folder.torn:
        print(f"{run_folder.folder / EPISODES}: removed a torn last line; its episode runs again", file=sys.stderr)

    class Bar(tqdm):  # type: ignore[type-arg]
        @property
        def format_dict(self) -> MutableMapping[str, Any]:
            """Counts successes when the bar is drawn, which is not at every episode."""
            values = super().format_dict
            if played := len(run_folder.results) - earlier:
                values["postfix"] = standing(run_folder.results, played, values["elapsed"])
            return values

    try:
        with Bar(
            total=planned,
            initial=earlier,
            bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
            smoothing=0,  # episodes end in bursts: the remaining time is estimated from all of them
            file=sys.stderr,
            dynamic_ncols=True,
        ) as bar:
            for _ in keep_outcomes(run_folder, outcomes, instruction_condition, partial(bar.write, file=sys.stderr)):
                bar.update()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted: {run_folder.kept()} of {planned} episodes kept in {run_folder.folder}; "
            f"the same command with --out {run_folder.folder} continues"
        ) from None


def standing(results: Sequence[EpisodeResult], played: int, seconds: float) -> str:
    """The state of a run: successes so far, their rate with its interval, and the pace."""
    from sim_eval.reporting.summary import tally

    score = tally(results)
    pace = f"{60 * played / max(seconds, 1e-9):.1f} episodes/min"
    return f"success {score.successes}/{score.episodes}: {score}, {pace}"


if __name__ == "__main__":
    run(main, RolloutConfig, PROGRAM)
