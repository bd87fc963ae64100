"""Training through the command line: killed equals finished, what comes out runs, what does not fit is refused."""

import functools
import hashlib
import itertools
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sim_eval import collect, rollout, train
from sim_eval.configs import RolloutConfig, TrainConfig
from sim_eval.console import parse
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey, RenderConfig, Simulator
from sim_eval.datasets.episode_file import episode_files, file_name, read_episode, write_episode
from sim_eval.datasets.windows import EpisodeWindows
from sim_eval.envs.tasks import get_task
from sim_eval.evaluation.engine import EpisodeResult, RolloutProtocol, run_episode
from sim_eval.evaluation.jobs import OneSimulator
from sim_eval.policies.policy import Policy
from sim_eval.policies.registry import load_policy
from sim_eval.policies.spatialvla.configuration_spatialvla import PositionConfig, SpatialVLAConfig
from sim_eval.policies.spatialvla.trainer import Trainer
from sim_eval.training import loop as train_loop
from sim_eval.training import validation
from sim_eval.training.batches import prepared
from sim_eval.training.metadata import METADATA, read_metadata
from sim_eval.training.preparation import make_processor, open_windows
from sim_eval.training.state import STATE

TASK = "robosuite/LiftWide"
SIDE = 64


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demonstrations")
    collect.main(collect.CollectConfig(task=TASK, out=out, episodes=3, size=SIDE))
    return out


def config(data: Sequence[Path], out: Path, **changes: object) -> TrainConfig:
    options = {"data": tuple(data), "out": out, "steps": 8, "batch_size": 4, "val_episodes": 0, **changes}
    return TrainConfig(**options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "checkpoint"
    assert train.main(config([data], out)) == 0
    return out


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def muon(data: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained by two optimizers."""
    out = tmp_path_factory.mktemp("muon") / "checkpoint"
    assert train.main(config([data], out, optimizer="muon")) == 0
    assert weights(out) != weights(trained)
    return out


def counts(folder: Path) -> dict[int, int]:
    """The training's count of its steps, and the optimizer's own, which must be one number for all parameters."""
    state = torch.load(folder / STATE, weights_only=True)["trainer"]
    (count,) = {int(each["step"]) for each in state["optimizer"]["state"].values() if "step" in each}
    return {state["step"]: count}


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (Trainer, "train_step"),
        (torch.optim.Muon, "step"),  # the first of the two optimizers
        (torch.optim.AdamW, "step"),
        (Trainer, "_update_averages"),
    ],
)
@pytest.mark.parametrize("after", [False, True])
def test_ctrl_c_at_any_point_of_a_step_ends_after_it(
    target: type, name: str, after: bool, data: Path, muon: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = getattr(target, name), itertools.count(1)

    def interrupted(*arguments: Any, **named: Any) -> Any:
        if (number := next(calls)) == 5 and not after:
            signal.raise_signal(signal.SIGINT)
        result = original(*arguments, **named)
        if number == 5 and after:
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(target, name, interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"[45] steps kept"):
        train.main(config([data], tmp_path, optimizer="muon"))
    monkeypatch.setattr(target, name, original)
    half = read_metadata(tmp_path)
    assert (half.finished, half.digest) == (False, "")
    assert counts(tmp_path) == {half.steps: half.steps + 1}, "torch counts the making of its state, too"
    assert counts(muon) == {8: 9}
    assert train.main(config([data], tmp_path, optimizer="muon")) == 0
    assert weights(tmp_path) == weights(muon)
    assert (read_metadata(tmp_path).steps, read_metadata(tmp_path).finished) == (8, True)


def test_a_second_ctrl_c_stops_at_once_and_the_last_save_stands(
    data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer._update_averages

    def interrupted(self: Trainer) -> None:
        if self.step == 5:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        original(self)

    usual = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Trainer, "_update_averages", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.main(config([data], tmp_path))
    monkeypatch.setattr(Trainer, "_update_averages", original)
    assert signal.getsignal(signal.SIGINT) is usual
    assert read_metadata(tmp_path).steps == 0
    assert train.main(config([data], tmp_path)) == 0
    assert weights(tmp_path) == weights(trained)


@pytest.mark.parametrize("episodes", [1, 2])
def test_ctrl_c_during_a_validation_gives_it_up_unless_it_is_complete(
    episodes: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> EpisodeResult:
        signal.raise_signal(signal.SIGINT)
        return EpisodeResult(EpisodeKey(TASK, "val", 0), "lift", True, True, 1, 1, "none", 1, None, 0.1)

    monkeypatch.setattr(validation, "run_episode", interrupted)
    with pytest.raises(KeyboardInterrupt, match="1 steps kept"):
        train.main(config([data], tmp_path, steps=4, val_episodes=episodes))
    complete = episodes == 1
    assert (len(read_metadata(tmp_path).rounds), read_metadata(tmp_path).steps) == (complete, 1)
    state = torch.load(tmp_path / STATE, weights_only=True)
    assert state["progress"]["due"] == complete, "what was given up is due again, and nothing else"


def test_batches_do_not_depend_on_who_prepares_them(data: Path, trained: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        out = tmp_path / str(workers)
        assert train.main(config([data], out, loader_workers=workers)) == 0
        assert weights(out) == weights(trained)


def test_what_is_wrong_with_a_demonstration_is_one_line_from_a_worker_too(data: Path, tmp_path: Path) -> None:
    windows = open_windows(config([data], tmp_path))
    processor = make_processor(windows, config([data], tmp_path))
    for workers in (0, 1):
        batches = prepared(_Damaged(windows), processor, iter([[0], [1]]), torch.device("cpu"), workers)  # type: ignore[arg-type]
        assert next(batches).windows == [0]
        with pytest.raises(SimEvalError, match=r"^demonstration 1 is damaged$"):
            next(batches)


class _Damaged:
    """Windows of which only the first can be read."""

    def __init__(self, windows: EpisodeWindows) -> None:
        self._windows = windows

    def __getitem__(self, number: int) -> object:
        if number:
            raise SimEvalError(f"demonstration {number} is damaged")
        return self._windows[number]


def test_killed_at_any_moment_it_can_be_continued(
    data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(self: Trainer, *batch: object) -> tuple[float, float]:
        raise SystemExit  # nothing is saved on the way out

    original = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", kill)
    with pytest.raises(SystemExit):
        train.main(config([data], tmp_path))
    monkeypatch.setattr(Trainer, "train_step", original)
    assert train.main(config([data], tmp_path)) == 0
    assert weights(tmp_path) == weights(trained)


def test_a_training_can_be_lengthened_but_not_shortened(data: Path, trained: Path, tmp_path: Path) -> None:
    assert train.main(config([data], tmp_path, steps=4)) == 0
    shorter = weights(tmp_path)
    assert train.main(config([data], tmp_path, steps=8)) == 0
    record = read_metadata(tmp_path)
    assert (record.steps, record.finished, record.earlier_budgets) == (8, True, (4.0,))
    assert len({shorter, weights(tmp_path), weights(trained)}) == 3  # its learning rate has fallen twice
    assert "8 steps of 4 observations" in (card := (tmp_path / "README.md").read_text())
    assert "a budget of 4 was lengthened" in card
    kept = weights(tmp_path)
    for changes, says in (({"steps": 6}, "--steps 8: it can only be made longer"), ({"minutes": 9.0}, "differ")):
        with pytest.raises(SimEvalError, match=says):
            train.main(config([data], tmp_path, **{"steps": None, **changes}))
    assert weights(tmp_path) == kept


OLD_TRAINING = Path(__file__).parents[1] / "old_files" / "training"  # three steps, by sim_eval 0.1


def test_a_training_of_an_old_version_is_lengthened(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    collect.main(collect.CollectConfig(task="robosuite/Lift", out=data, episodes=1, size=32))
    old = read_metadata(OLD_TRAINING).config
    options = {"sampling_temperature": 1.25, "flow_samples": 2, "frame_stride": 2, "batch_size": 2}
    asked = config([data], out, **options, network=old.network, steps=3, threads=1)
    assert old == replace(asked, data=old.data, out=old.out)
    assert train.main(asked) == 0
    shutil.copytree(OLD_TRAINING, tmp_path / "old")
    for folder in (out, tmp_path / "old"):
        assert train.main(replace(asked, out=folder, steps=5)) == 0
        assert (read_metadata(folder).steps, read_metadata(folder).earlier_budgets) == (5, (3,))
    expected, found = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "old"))
    for name, tensor in expected.items():  # the first three steps may have been rounded on another machine
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-3, msg=name)
    shutil.copytree(OLD_TRAINING, tmp_path / "other")
    with pytest.raises(SimEvalError, match=r"holds another training \(seed differ\)"):
        train.main(replace(asked, out=tmp_path / "other", steps=3, seed=1))


def test_another_seed_gives_other_weights(data: Path, trained: Path, tmp_path: Path) -> None:
    train.main(config([data], tmp_path, seed=1, steps=2))
    assert weights(tmp_path) != weights(trained)


def test_the_folder_is_a_policy_with_a_card(trained: Path) -> None:
    spec = load_policy(str(trained), "cpu").spec
    assert (spec.tasks, spec.render) == ((TASK,), "fast")
    assert spec.cameras == {"agentview": (SIDE, SIDE), "wrist": (SIDE, SIDE)}
    card = (trained / "README.md").read_text()
    assert "8 steps of 4 observations" in card
    assert f"| {TASK} | 3 |" in card


def test_it_rolls_out_the_same_lines_twice(trained: Path, tmp_path: Path) -> None:
    def lines(name: str, first: int, episodes: int) -> list[dict[str, object]]:
        options = RolloutConfig(policy=str(trained), first=first, episodes=episodes, out=tmp_path / name, video="none")
        assert rollout.main(options) == 0
        found = [json.loads(line) for line in (tmp_path / name / "episodes.jsonl").read_text().splitlines()]
        return [{field: value for field, value in line.items() if field != "seconds"} for line in found]

    both = lines("both", 0, 2)
    assert [line["error"] for line in both] == [None, None]
    assert both[1:] == lines("second alone", 1, 1)


def test_the_record_says_what_was_done(trained: Path) -> None:
    record = read_metadata(trained)
    assert record.config == config([Path(record.config.data[0])], trained).checked()
    assert (record.config.expert, record.size, record.config.seed, record.steps) == ("deep_llama", "tiny", 0, 8)
    assert record.demonstrations == {TASK: 3}
    assert record.windows[TASK] > 60
    assert record.digest == hashlib.sha256(weights(trained)).hexdigest()
    assert record.digest == load_policy(str(trained), "cpu").spec.digest
    assert (record.rounds, record.best) == ((), None)
    assert 0 < record.trainable <= record.parameters


def test_a_checkpoint_without_a_record_is_a_policy_all_the_same(trained: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(trained, old)
    (old / METADATA).unlink()
    assert load_policy(str(old), "cpu").spec.tasks == (TASK,)


def test_several_tasks_are_validated_each_and_the_best_weights_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, out = tmp_path / "lift", tmp_path / "out"
    collect.main(collect.CollectConfig(task="robosuite/Lift", out=other, episodes=1, size=SIDE))
    scores = iter([0, 1, 1, 1, 1, 1, 0, 0])  # Lift's and LiftWide's success, round for round
    ran: list[EpisodeResult] = []
    # Building a simulator takes a second, and each round goes from one task to the other: here they stay open.
    simulator_of = functools.cache(lambda task: get_task(task).make(RenderConfig(height=SIDE, width=SIDE)))
    monkeypatch.setattr(OneSimulator, "of", lambda _, task: simulator_of(task))

    def scored(simulator: Simulator, policy: Policy, key: EpisodeKey, protocol: RolloutProtocol) -> EpisodeResult:
        """One real episode, whose result then stands for all with the success that the test wants."""
        if not ran:
            ran.append(run_episode(simulator, policy, key, protocol))
        assert (simulator.task.name, key.split, key.index) == (key.task, "val", 0)
        return replace(ran[0], key=key, success=bool(next(scores)))

    monkeypatch.setattr(validation, "run_episode", scored)
    assert train.main(config([data, other], out, steps=4, val_episodes=1)) == 0
    record = read_metadata(out)
    # Step 4 stands for the shares 0.8 and 1.0: no two rounds for one share's worth.
    assert [entry.step for entry in record.rounds] == [1, 2, 3, 4]
    assert record.rounds[0].success == {"robosuite/Lift": (0, 1), TASK: (1, 1)}
    assert [entry.rate for entry in record.rounds] == [0.5, 1.0, 1.0, 0.0]
    assert record.best == 2  # the later one on a tie
    assert record.digest == hashlib.sha256(weights(out)).hexdigest()
    assert record.demonstrations == {"robosuite/Lift": 1, TASK: 3}
    card = (out / "README.md").read_text()
    for line in (f"| {TASK} | 3 | {record.windows[TASK]} |", "| 1/1 | 1/1 | best |"):
        assert line in card
    scores = iter([1, 1, 0, 0, 0, 0])
    assert train.main(config([data, other], out, steps=8, val_episodes=1)) == 0
    longer = read_metadata(out)
    assert [entry.step for entry in longer.rounds] == [1, 2, 3, 4, 5, 7, 8]  # the shares above a half fell due again
    assert (longer.rounds[:4], longer.best) == (record.rounds, 4)
    assert longer.digest == hashlib.sha256(weights(out)).hexdigest() != record.digest


def test_a_validation_is_spread_over_the_tasks() -> None:
    tasks = tuple("abcde")

    def counted(episodes: int, total: int | None) -> list[int]:
        keys = validation.validation_keys(tasks, episodes, total)
        assert len(set(keys)) == len(keys)
        assert {key.split for key in keys} <= {"val"}
        groups = {task: [key.index for key in keys if key.task == task] for task in tasks}
        assert keys == [EpisodeKey(task, "val", index) for task in tasks for index in groups[task]]
        assert all(found == list(range(len(found))) for found in groups.values())
        return [len(groups[task]) for task in tasks]

    assert counted(3, None) == counted(3, 15) == counted(3, 99) == [3] * 5
    assert counted(3, 5) == [1] * 5
    assert counted(3, 7) == [1, 1, 2, 1, 2]
    assert counted(3, 2) == [0, 0, 1, 0, 1]
    assert counted(0, None) == [0] * 5


def test_part_of_the_steps_and_of_the_demonstrations(data: Path, trained: Path, tmp_path: Path) -> None:
    train.main(config([data], tmp_path, frame_stride=2, demonstrations=2, steps=2))
    some, whole = read_metadata(tmp_path), read_metadata(trained)
    assert (some.config.frame_stride, whole.config.frame_stride) == (2, 1)
    assert (some.demonstrations, whole.demonstrations) == ({TASK: 2}, {TASK: 3})
    assert 0 < some.windows[TASK] < whole.windows[TASK] / 2
    with pytest.raises(SimEvalError, match="frame_stride, demonstrations, episodes differ"):
        train.main(config([data], tmp_path, steps=2))


def test_a_policy_may_see_fewer_cameras_than_were_recorded(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "one"
    flat = SpatialVLAConfig(position=PositionConfig(kind="2d", crop=False, mask_depth=False))
    assert train.main(config([data], out, steps=1, cameras=("agentview",), network=unfitted(flat))) == 0
    policy = load_policy(str(out), "cpu")
    assert dict(policy.spec.cameras) == {"agentview": (SIDE, SIDE)}
    with pytest.raises(SimEvalError, match="no camera 'front', it has agentview, wrist"):
        train.main(config([data], tmp_path / "none", cameras=("front",)))


def test_a_policy_may_read_a_state_that_all_arms_share(data: Path, tmp_path: Path) -> None:
    plain = config([data], tmp_path, network=unfitted(SpatialVLAConfig()))
    windows = open_windows(plain)
    assert dict(make_processor(windows, plain).spec.proprio) == {"eef_pos": 3, "eef_rot6d": 6, "gripper_qpos": 2}
    shared = replace(plain, state=("eef_pos", "eef_rot6d", "gripper_opening"))
    processor = make_processor(windows, shared)
    assert dict(processor.spec.proprio) == {"eef_pos": 3, "eef_rot6d": 6, "gripper_opening": 1}
    assert processor.config.expert.state_dim == 10
    assert "--state eef_pos eef_rot6d gripper_opening" in shared.command
    with pytest.raises(
        SimEvalError, match=r"--state: the data has no field 'elbow', it has eef_pos, .*gripper_opening"
    ):
        make_processor(windows, replace(plain, state=("elbow",)))


def unfitted(network: SpatialVLAConfig) -> SpatialVLAConfig:
    """The network with the numbers open that the demonstrations decide."""
    vision, expert = replace(network.vision, image_size=0), replace(network.expert, state_dim=0, action_dim=0)
    return replace(network, vision=vision, expert=expert)


def test_the_network_can_be_changed_and_says_so(data: Path, tmp_path: Path) -> None:
    options = ["--data", str(data), "--out", str(tmp_path), "--steps", "1", "--batch-size", "4", "--val-episodes", "0"]
    options += ["--expert", "late_gemma", "--threads", str(torch.get_num_threads())]
    changed = ["--network.expert.chunk-size", "4", "--network.frame", "world"]
    assert train.main(parse(TrainConfig, train.PROGRAM, options + changed)) == 0
    network = json.loads((tmp_path / "config.json").read_text())["network"]
    assert (network["expert"]["chunk_size"], network["frame"], network["action_expert_type"]) == (
        4,
        "world",
        "late_gemma",
    )
    assert network["vision"]["image_size"] == SIDE
    record = read_metadata(tmp_path)
    assert record.threads == record.config.threads == torch.get_num_threads()
    assert record.config.changes().keys() >= {"expert", "network.expert.chunk_size", "network.frame"}
    assert "| network | `expert.chunk_size=4`, `frame=world` |" in (tmp_path / "README.md").read_text()
    assert "--network.frame world" in record.config.command
    assert parse(TrainConfig, train.PROGRAM, shlex.split(record.config.command)[3:]).checked() == record.config
    with pytest.raises(SimEvalError, match=r"network\.expert\.chunk_size, network\.frame differ"):
        train.main(parse(TrainConfig, train.PROGRAM, options))
    with pytest.raises(SimEvalError, match=r"network\.action_expert_type is late_gemma and --expert deep_llama"):
        train.main(replace(record.config, expert="deep_llama"))


def test_a_saved_configuration_trains_again_to_the_bit(data: Path, trained: Path, tmp_path: Path) -> None:
    again = parse(TrainConfig, train.PROGRAM, ["--config", str(trained / METADATA), "--out", str(tmp_path)])
    assert again == replace(read_metadata(trained).config, out=tmp_path)
    assert train.main(again) == 0
    assert weights(tmp_path) == weights(trained)


def test_a_picture_size_that_was_asked_for_is_kept(data: Path, tmp_path: Path) -> None:
    asked = config([data], tmp_path)
    windows = open_windows(asked)
    assert make_processor(windows, asked).config.vision.image_size == SIDE
    for side in (32, SpatialVLAConfig().vision.image_size):
        other = replace(asked, network=replace(asked.network, vision=replace(asked.network.vision, image_size=side)))
        processor = make_processor(windows, other)
        assert processor.config.vision.image_size == side
        assert processor([windows[0].observation]).pixel_values.shape[-2:] == (side, side)
    with pytest.raises(SimEvalError, match=r"actions have 7 dimensions, expert\.action_dim is 5"):
        make_processor(
            windows, replace(asked, network=replace(asked.network, expert=replace(asked.network.expert, action_dim=5)))
        )


def test_a_policy_that_does_not_fit_is_refused_before_the_first_step(trained: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(trained, changed)
    processor = json.loads((changed / "processor.json").read_text())
    processor["robot"], processor["action"]["control_hz"] = "Sawyer", 10
    (changed / "processor.json").write_text(json.dumps(processor))
    with pytest.raises(SimEvalError, match=r"trained for Sawyer.*control_hz") as caught:
        rollout.main(RolloutConfig(policy=str(changed), episodes=1, out=tmp_path / "run"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "episodes.jsonl").exists()


def test_another_training_is_not_overwritten(data: Path, trained: Path) -> None:
    before = weights(trained)
    with pytest.raises(SimEvalError, match="seed differ"):
        train.main(config([data], trained, seed=5))
    assert weights(trained) == before


def test_a_damaged_state_is_named(data: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "copy")
    state = tmp_path / "copy" / STATE
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(SimEvalError, match=f"{STATE} is damaged"):
        train.main(config([data], tmp_path / "copy"))


def test_only_the_train_split_is_trained_on(tmp_path: Path) -> None:
    folder = tmp_path / "val"
    collect.main(collect.CollectConfig(task=TASK, out=folder, episodes=1, size=32, split="val"))
    with pytest.raises(SimEvalError, match="train split"):
        train.main(config([folder], tmp_path / "out"))


def test_looks_are_not_mixed(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "faithful"
    other.mkdir()
    episode = read_episode(episode_files(data)[0])
    key, render = replace(episode.key, task="robosuite/Lift"), replace(episode.render_config, mode="faithful")
    write_episode(other / file_name(key), replace(episode, key=key, render_config=render))
    with pytest.raises(SimEvalError, match="faithful 64x64 and fast 64x64"):
        train.main(config([data, other], tmp_path / "out"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--expert", "early_bert"], "give --expert {deep_llama,late_gemma}, not 'early_bert'"),
        (["--size", "huge"], "give --size {tiny,llava3d-7b}, not 'huge'"),
        (["--sampling-temperature", "0.5"], "--sampling-temperature: input should be greater than or equal to 1, not"),
        (["--threads", "0"], "--threads: input should be"),
        (["--frame-stride", "0"], "--frame-stride: input should be"),
        (["--demonstrations", "0"], "--demonstrations: input should be"),
        (["--learning-rate", "nan"], "--learning-rate: input should be"),
        (["--data", "/nowhere"], "/nowhere"),
        (["--data", "docs"], "no demonstrations in docs"),
        (["--data"], "--data needs at least one folder"),
        (["--minutes", "-1"], "--minutes: input should be"),
        (["--seed", "99999999999"], "--seed: input should be less than 2147483648"),
        (["--steps", "0"], "--steps: input should be"),
        (["--steps", "3", "--minutes", "1"], "not both"),
        (["--out", "pyproject.toml/below"], "cannot be written"),
        (["--device", "tpu9"], "device 'tpu9'"),
        (["--shard", "--val-episodes", "0", "--optimizer", "muon"], "use --optimizer adamw"),
        (["--gemma", "google/gemma-2b"], "give --llava3d too"),
        (["--network.text.layers", "3"], "expert.layers 2 must equal text.layers 3 for deep fusion"),
    ],
)
def test_bad_input_is_one_line(
    options: list[str], says: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    typed = ["--data", str(data), "--out", str(tmp_path / "out"), *options]
    with pytest.raises(SimEvalError, match=re.escape(says)) as caught:
        train.main(parse(TrainConfig, train.PROGRAM, typed))
    assert "\n" not in str(caught.value)


def test_a_training_without_any_success_says_how_to_go_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rate = 0
    monkeypatch.setattr(train_loop, "validate", lambda policy, keys, *_: {TASK: (rate, len(keys))})
    asked = config([data], tmp_path / "out", val_episodes=2, seed=3)
    assert train.main(asked) == 0
    *_, says, passes, command = capsys.readouterr().out.splitlines()
    windows = read_metadata(tmp_path / "out").windows[TASK]
    assert "has not learnt the task yet: no validation episode succeeded after 8 steps" in says + passes
    assert f"{8 * 4 / windows:.1f} passes over the data" in says + passes
    # The command that it prints goes on with the same training.
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "sim_eval.train"]
    longer = parse(TrainConfig, "train", words[3:])
    assert (longer.steps, replace(longer, steps=8)) == (32, asked)
    rate = 1
    assert train.main(replace(longer, steps=9)) == 0
    assert read_metadata(tmp_path / "out").earlier_budgets == (8.0,)
    assert "score it: python -m sim_eval.rollout" in capsys.readouterr().out
    assert train.lengthened(replace(asked, steps=None, minutes=10.0)).minutes == 60
    assert train.lengthened(replace(asked, steps=None, minutes=50.0)).minutes == 200


def test_json_and_csv_have_the_rounds(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = iter([0, 1, 2, 2, 0])
    monkeypatch.setattr(train_loop, "validate", lambda policy, keys, *_: {TASK: (next(scores), len(keys))})
    asked = config([data], tmp_path / "out", val_episodes=2)
    assert train.main(replace(asked, json=True)) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(each["step"], each["rate"], each["kept"]) for each in told["rounds"]] == [
        *((2, 0.0, False), (4, 0.5, False), (5, 1.0, False), (7, 1.0, True), (8, 0.0, False))
    ]
    assert told["rounds"][1]["tasks"] == {TASK: {"successes": 1, "episodes": 2}}
    assert train.main(replace(asked, csv=True)) == 0  # finished: it reports again
    header, *rows = capsys.readouterr().out.splitlines()
    assert header == f"step,minutes,rate,kept,tasks.{TASK}.successes,tasks.{TASK}.episodes"
    assert len(rows) == 5


def test_the_program_prints_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sim_eval.train", "--data", "docs", "--out", str(tmp_path / "out")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 2, answer.stderr
    (line,) = answer.stderr.strip().splitlines()
    assert line.startswith("error: no demonstrations in docs")
