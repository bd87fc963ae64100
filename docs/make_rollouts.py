"""Makes docs/rollouts.gif, the README's moving picture: ``python docs/make_rollouts.py`` after ``make setup libero``.

It shows test episode 0 of six tasks, whatever its outcome, with the shipped checkpoints. Meta-World's episodes, which
last a second or two, are slowed to a third.
"""

from __future__ import annotations

import subprocess
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import imageio_ffmpeg

from sim_eval.core.types import EpisodeKey, RenderConfig
from sim_eval.envs.tasks import choose_render, get_task
from sim_eval.evaluation.engine import RolloutProtocol, run_episode
from sim_eval.policies.registry import load_policy
from sim_eval.reporting.episode_video import VideoRecorder, in_step, read_video, tiled, write_video
from sim_eval.reporting.video_layout import TileLayout

OUT = Path(__file__).parent / "rollouts.gif"
EPISODES = (
    ("deep_llama", "robosuite/Stack"),
    ("deep_llama", "robosuite/PickPlaceCan"),
    ("deep_llama_libero", "libero_object/0"),
    ("deep_llama_libero", "libero_spatial/0"),
    ("deep_llama_mt50", "metaworld/assembly-v3"),
    ("deep_llama_mt50", "metaworld/basketball-v3"),
)
COLUMNS, TILE, FPS, SLOWED = 3, 200, 8, 3
# ffmpeg: one palette for all frames; only the rectangle that changes is stored.
FILTER = "split[a][b];[a]palettegen=stats_mode=diff[p];[b][p]paletteuse=dither=sierra2_4a:diff_mode=rectangle"


def record(name: str, task: str, folder: Path) -> Path:
    """The tile of test episode 0 of a task."""
    policy = load_policy(name, "cpu")
    render = RenderConfig.for_cameras(choose_render(policy.spec.render, [task]), policy.spec.cameras)
    with closing(get_task(task).make(render)) as simulator:
        recorder = VideoRecorder(folder, policy.spec, size=TILE, layout=TileLayout)
        result = run_episode(simulator, policy, EpisodeKey(task, "test", 0), RolloutProtocol(render=render), recorder)
    print(f"{task}: {'success' if result.success else 'failure'} in {result.steps} steps")
    (video,) = folder.iterdir()
    return video


def main() -> None:
    with TemporaryDirectory() as scratch:
        folders = [Path(scratch) / str(number) for number in range(len(EPISODES))]
        videos = [record(*episode, folder) for episode, folder in zip(EPISODES, folders, strict=True)]
        rates, clips = zip(*map(read_video, videos), strict=True)
        slowed = [SLOWED if task.startswith("metaworld/") else 1 for _, task in EPISODES]
        shown = [rate / times for rate, times in zip(rates, slowed, strict=True)]
        grid = Path(scratch) / "grid.mp4"
        write_video(grid, (tiled(pictures, COLUMNS) for pictures in in_step(clips, shown, FPS)), FPS, TileLayout.CRF)
        ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
        subprocess.run([ffmpeg, "-loglevel", "error", "-y", "-i", grid, "-filter_complex", FILTER, OUT], check=True)
    print(f"{OUT}: {OUT.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
