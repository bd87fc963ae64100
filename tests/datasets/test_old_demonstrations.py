"""Demonstrations that version 0.1 wrote still read, train and collect; ``tests/old_files`` holds one of them."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey, RenderConfig
from sim_eval.datasets import old_demonstrations
from sim_eval.datasets.attempts import AttemptsLog
from sim_eval.datasets.checks import check_episode
from sim_eval.datasets.episode_file import Episode, file_name, read_episode, read_header, write_episode
from sim_eval.datasets.windows import EpisodeWindows

Make = Callable[..., Episode]

FOLDER = Path(__file__).parents[1] / "old_files" / "demonstrations"
FILE = FOLDER / "robosuite-Lift_train_00000.hdf5"
SETTINGS = {"policy": "scripted", "disturb": True, "post_success_steps": 10, "render": "fast 32x32"}


@pytest.fixture(scope="module")
def plain() -> dict[str, np.ndarray]:
    """The arrays as h5py reads them, which knows gzip itself."""
    arrays: dict[str, np.ndarray] = {}
    with h5py.File(FILE) as file:
        file["data/demo_0"].visititems(
            lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
        )
    return arrays


def test_it_reads_as_it_was_recorded(plain: dict[str, np.ndarray]) -> None:
    episode = read_episode(FILE)
    assert episode.key == EpisodeKey("robosuite/Lift", "train", 0)
    assert episode.render_config == RenderConfig("fast", 32, 32)
    assert (episode.action.dim, episode.action.control_hz) == (7, 20)
    for name in ("actions", "executed_actions", "states", "phases"):
        assert getattr(episode, name).tobytes() == plain[name].tobytes()
    assert np.array_equal(episode.success, plain["rewards"] > 0)
    for step, seen in enumerate(episode.observations):
        for name, view in seen.views.items():
            assert np.array_equal(view.rgb, plain[f"obs/{name}_image"][step])
            assert np.array_equal(view.depth, plain[f"obs/{name}_depth"][step, ..., 0])
            assert np.array_equal(view.intrinsics, plain[f"obs/{name}_intrinsics"][step])
            assert np.array_equal(view.camera_to_world, plain[f"obs/{name}_camera_to_world"][step])
        for name, values in seen.proprio.items():
            assert np.array_equal(values, plain[f"obs/robot0_{name}"][step])
    assert read_header(FILE).success
    assert check_episode(FILE) == []


def test_it_trains(plain: dict[str, np.ndarray]) -> None:
    windows = EpisodeWindows(FOLDER, 8)
    assert len(windows) == len(plain["actions"])
    for step in (0, 20, len(windows) - 1):
        window = windows[step]
        assert np.array_equal(window.actions[window.valid], plain["actions"][step : step + 8])
        for name, view in window.observation.views.items():
            assert np.array_equal(view.rgb, plain[f"obs/{name}_image"][step])
            assert np.array_equal(view.depth, plain[f"obs/{name}_depth"][step, ..., 0])
        assert np.array_equal(window.observation.proprio["eef_pos"], plain["obs/robot0_eef_pos"][step])


def test_rewritten_it_is_the_same_and_mixes_with_the_old(tmp_path: Path, plain: dict[str, np.ndarray]) -> None:
    old = read_episode(FILE)
    key = replace(old.key, index=1)
    write_episode(tmp_path / file_name(key), replace(old, key=key))
    shutil.copy(FILE, tmp_path)
    assert replace(read_header(tmp_path / file_name(key)), key=old.key, depth_range={}) == read_header(FILE)
    windows = EpisodeWindows(tmp_path, 8)
    steps = len(plain["actions"])
    assert len(windows) == 2 * steps
    for step in (0, steps - 1):
        mine, theirs = (windows[number].observation.views["wrist"] for number in (step, steps + step))
        assert np.array_equal(mine.rgb, theirs.rgb)
        assert np.array_equal(mine.depth, theirs.depth)


def test_damage_is_noticed(tmp_path: Path) -> None:
    sound = FILE.read_bytes()
    path = tmp_path / FILE.name
    for offset in (30, 300, 511, 5000, len(sound) - 100):
        path.write_bytes(sound[:offset] + bytes([sound[offset] ^ 8]) + sound[offset + 1 :])
        with pytest.raises(SimEvalError, match="delete it and collect it again"):
            EpisodeWindows(path, 8)
    path.write_bytes(sound)
    windows = EpisodeWindows(path, 8)
    position = int(windows.episodes[0].pictures.table[7, 0, 0, 0])
    path.write_bytes(sound[:position] + bytes([sound[position] ^ 8]) + sound[position + 1 :])
    with pytest.raises(SimEvalError, match="'agentview' at step 7 is damaged"):
        windows[7].observation.views["agentview"]
    os.truncate(path, 3000)
    with pytest.raises(SimEvalError, match="truncated or damaged"):
        read_header(path)


def test_depth_that_would_poison_training_is_refused() -> None:
    depth = np.ones((4, 4), dtype=np.float32)
    depth[1, 2] = np.inf
    compressed = old_demonstrations.zlib.compress(old_demonstrations.Shuffle(4).encode(depth))
    with pytest.raises(ValueError, match="finite and above 0 m"):
        old_demonstrations.CODECS[1].decode(compressed, np.empty((4, 4), dtype=np.float32))


def test_the_first_files_said_in_env_args_how_they_were_rendered() -> None:
    with h5py.File(FILE) as old, h5py.File("first", "w", driver="core", backing_store=False) as file:
        meta = json.loads(old["data/demo_0"].attrs["ep_meta"])
        del meta["shown"]
        demo = file.create_group("data/demo_0")
        demo.attrs["ep_meta"] = json.dumps(meta)
        file["data"].attrs["env_args"] = json.dumps({"render": "faithful"})
        assert old_demonstrations.meta(file["data"])["render_config"] == {
            "mode": "faithful",
            "height": 32,
            "width": 32,
            "hide_goal": False,
        }


def _old_log(folder: Path, *lines: str) -> None:
    settings = (FOLDER / "robosuite-Lift_train.tries.jsonl").read_text()
    (folder / "robosuite-Lift_train.tries.jsonl").write_text(settings + "".join(lines))


def test_a_collection_goes_on_with_its_log(tmp_path: Path) -> None:
    _old_log(tmp_path, '{"failed": 3}\n', '{"failed": 5}\n', '{"fai')  # a kill tore the last line
    log = AttemptsLog(tmp_path, "robosuite/Lift", "train")
    assert (log.is_new, log.failed) == (False, {3, 5})
    with pytest.raises(SimEvalError, match="post_success_steps was 10, is now 25"):
        log.begin({}, {**SETTINGS, "post_success_steps": 25})
    log.begin({"task": "robosuite/Lift"}, SETTINGS)
    log.fail(7)
    log.close()
    again = AttemptsLog(tmp_path, "robosuite/Lift", "train")
    assert again.failed == {3, 5, 7}
    with pytest.raises(SimEvalError, match="render was fast 32x32, is now faithful 32x32"):
        again.begin({}, {**SETTINGS, "render": "faithful 32x32"})
    again.close()


@pytest.mark.parametrize("content", ["nonsense\n", "[]\n", "[" * 100_000 + "\n", '{"settle": 10}\n{"field": 3}\n'])
def test_a_damaged_log_is_one_clear_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "robosuite-Lift_train.tries.jsonl").write_text(content)
    with pytest.raises(SimEvalError, match=r"tries\.jsonl is damaged .*delete it") as caught:
        AttemptsLog(tmp_path, "robosuite/Lift", "train")
    assert "\n" not in str(caught.value)
