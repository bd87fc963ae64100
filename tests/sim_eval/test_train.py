"""Training through the command line: killed equals finished, what comes out runs, what does not fit is refused."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sim_eval import collect, rollout, train
from sim_eval.console import parse
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey, Simulator
from sim_eval.evaluation.engine import EpisodeResult, RolloutProtocol, run_episode
from sim_eval.policies.policy import Policy
from sim_eval.policies.registry import load_policy
from sim_eval.training import loop
from sim_eval.training.metadata import METADATA, read_metadata

TASK = "robosuite/LiftWide"
SIDE = 64


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demonstrations")
    collect.main(collect.CollectConfig(task=TASK, out=out, episodes=3, size=SIDE))
    return out


def arguments(data: Sequence[Path], out: Path, **changes: object) -> train.TrainArguments:
    options = {"data": tuple(data), "out": out, "steps": 8, "batch_size": 4, "val_episodes": 0, **changes}
    return train.TrainArguments(**options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "checkpoint"
    assert train.main(arguments([data], out)) == 0
    return out


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_interrupted_and_continued_equals_unbroken(
    optimizer: str, data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sim_eval.policies.spatialvla.trainer import Trainer

    original = Trainer.train_step

    def interrupting(self: Trainer, *batch: object) -> tuple[float, float]:
        if self.step == 5:
            raise KeyboardInterrupt
        return original(self, *batch)  # type: ignore[arg-type]

    out, unbroken = tmp_path / "checkpoint", trained
    if optimizer == "muon":
        unbroken = tmp_path / "unbroken"
        assert train.main(arguments([data], unbroken, optimizer=optimizer)) == 0
        assert weights(unbroken) != weights(trained)
    monkeypatch.setattr(Trainer, "train_step", interrupting)
    with pytest.raises(KeyboardInterrupt, match="5 steps kept"):
        train.main(arguments([data], out, optimizer=optimizer))
    half = read_metadata(out)
    assert (half.steps, half.finished, half.digest) == (5, False, "")
    monkeypatch.setattr(Trainer, "train_step", original)
    assert train.main(arguments([data], out, optimizer=optimizer)) == 0
    assert weights(out) == weights(unbroken)
    assert read_metadata(out).steps == 8
    assert read_metadata(out).finished


def test_killed_at_any_moment_it_can_be_continued(
    data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sim_eval.policies.spatialvla.trainer import Trainer

    def kill(self: Trainer, *batch: object) -> tuple[float, float]:
        raise SystemExit  # nothing is saved on the way out

    original = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", kill)
    with pytest.raises(SystemExit):
        train.main(arguments([data], tmp_path))
    monkeypatch.setattr(Trainer, "train_step", original)
    assert train.main(arguments([data], tmp_path)) == 0
    assert weights(tmp_path) == weights(trained)


def test_a_training_can_be_lengthened_but_not_shortened(data: Path, trained: Path, tmp_path: Path) -> None:
    assert train.main(arguments([data], tmp_path, steps=4)) == 0
    shorter = weights(tmp_path)
    assert train.main(arguments([data], tmp_path, steps=8)) == 0
    record = read_metadata(tmp_path)
    assert (record.steps, record.finished, record.earlier_budgets) == (8, True, (4.0,))
    assert len({shorter, weights(tmp_path), weights(trained)}) == 3  # its learning rate has fallen twice
    assert "8 steps of 4 observations" in (card := (tmp_path / "README.md").read_text())
    assert "a budget of 4 was lengthened" in card
    kept = weights(tmp_path)
    for changes, says in (({"steps": 6}, "--steps 8: it can only be made longer"), ({"minutes": 9.0}, "differ")):
        with pytest.raises(SimEvalError, match=says):
            train.main(arguments([data], tmp_path, **{"steps": None, **changes}))
    assert weights(tmp_path) == kept


def test_another_seed_gives_other_weights(data: Path, trained: Path, tmp_path: Path) -> None:
    train.main(arguments([data], tmp_path, seed=1, steps=2))
    assert weights(tmp_path) != weights(trained)


def test_the_folder_is_a_policy_with_a_card(trained: Path) -> None:
    spec = load_policy(str(trained), "cpu").spec
    assert (spec.tasks, spec.render) == ((TASK,), "fast")
    assert spec.cameras == {"agentview": (SIDE, SIDE), "wrist": (SIDE, SIDE)}
    card = (trained / "README.md").read_text()
    assert "8 steps of 4 observations" in card
    assert f"| {TASK} | 3 |" in card


def test_it_rolls_out_the_same_lines_twice(trained: Path, tmp_path: Path) -> None:
    def lines(name: str) -> list[dict[str, object]]:
        options = rollout.RolloutArguments(policy=str(trained), episodes=2, out=tmp_path / name, video="none")
        assert rollout.main(options) == 0
        found = [json.loads(line) for line in (tmp_path / name / "episodes.jsonl").read_text().splitlines()]
        return [{field: value for field, value in line.items() if field != "seconds"} for line in found]

    first = lines("first")
    assert [line["error"] for line in first] == [None, None]
    assert first == lines("second")


def test_the_record_says_what_was_done(trained: Path) -> None:
    record = read_metadata(trained)
    assert (record.expert, record.size, record.seed, record.steps) == ("deep_llama", "tiny", 0, 8)
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

    def scored(simulator: Simulator, policy: Policy, key: EpisodeKey, protocol: RolloutProtocol) -> EpisodeResult:
        """One real episode, whose result then stands for all with the success that the test wants."""
        if not ran:
            ran.append(run_episode(simulator, policy, key, protocol))
        assert (simulator.task.name, key.split, key.index) == (key.task, "val", 0)
        return replace(ran[0], key=key, success=bool(next(scores)))

    monkeypatch.setattr(loop, "run_episode", scored)
    assert train.main(arguments([data, other], out, steps=4, val_episodes=1)) == 0
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
    assert train.main(arguments([data, other], out, steps=8, val_episodes=1)) == 0
    longer = read_metadata(out)
    assert [entry.step for entry in longer.rounds] == [1, 2, 3, 4, 5, 7, 8]  # the shares above a half fell due again
    assert (longer.rounds[:4], longer.best) == (record.rounds, 4)
    assert longer.digest == hashlib.sha256(weights(out)).hexdigest() != record.digest


def test_a_validation_is_spread_over_the_tasks() -> None:
    tasks = tuple("abcde")

    def counted(episodes: int, total: int | None) -> list[int]:
        keys = loop.validation_keys(tasks, episodes, total)
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
    train.main(arguments([data], tmp_path, frame_stride=2, demonstrations=2, steps=2))
    some, whole = read_metadata(tmp_path), read_metadata(trained)
    assert (some.frame_stride, whole.frame_stride) == (2, 1)
    assert (some.demonstrations, whole.demonstrations) == ({TASK: 2}, {TASK: 3})
    assert 0 < some.windows[TASK] < whole.windows[TASK] / 2
    with pytest.raises(SimEvalError, match="frame_stride, demonstrations, episodes differ"):
        train.main(arguments([data], tmp_path, steps=2))


def test_a_policy_may_see_fewer_cameras_than_were_recorded(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "one"
    flat = ("position.kind=2d", "position.crop=false", "position.mask_depth=false")
    assert train.main(arguments([data], out, steps=1, cameras=("agentview",), overrides=flat)) == 0
    policy = load_policy(str(out), "cpu")
    assert dict(policy.spec.cameras) == {"agentview": (SIDE, SIDE)}
    with pytest.raises(SimEvalError, match="no camera 'front', it has agentview, wrist"):
        train.main(arguments([data], tmp_path / "none", cameras=("front",)))


def test_the_network_can_be_changed_and_says_so(data: Path, tmp_path: Path) -> None:
    changed, threads = ("expert.chunk_size=4", "frame=world"), torch.get_num_threads()
    assert (
        train.main(arguments([data], tmp_path, steps=1, overrides=changed, threads=threads, expert="late_gemma")) == 0
    )
    config = json.loads((tmp_path / "config.json").read_text())["network"]
    assert (config["expert"]["chunk_size"], config["frame"], config["action_expert_type"]) == (4, "world", "late_gemma")
    assert config["vision"]["image_size"] == SIDE
    assert (read_metadata(tmp_path).overrides, read_metadata(tmp_path).threads) == (changed, threads)
    assert "`frame=world`" in (tmp_path / "README.md").read_text()
    with pytest.raises(SimEvalError, match="overrides differ"):
        train.main(arguments([data], tmp_path, steps=1, expert="late_gemma"))
    for wrong, says in (("frame=wrong", "frame must be one of"), ("action_expert_type=late_gemma", "use --expert")):
        with pytest.raises(SimEvalError, match=says):
            train.main(arguments([data], tmp_path, overrides=(wrong,)))


def test_lists_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "train --data a b --set frame=world voxel_size=null --out c --expert late_gemma"
    monkeypatch.setattr(sys, "argv", line.split())
    found = parse(train.TrainArguments, train.PROGRAM)
    assert found.data == (Path("a"), Path("b"))
    assert found.overrides == ("frame=world", "voxel_size=null")


def test_a_policy_that_does_not_fit_is_refused_before_the_first_step(trained: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(trained, changed)
    processor = json.loads((changed / "processor.json").read_text())
    processor["robot"], processor["action"]["control_hz"] = "Sawyer", 10
    (changed / "processor.json").write_text(json.dumps(processor))
    with pytest.raises(SimEvalError, match=r"made for Sawyer.*control_hz") as caught:
        rollout.main(rollout.RolloutArguments(policy=str(changed), episodes=1, out=tmp_path / "run"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "episodes.jsonl").exists()


def test_another_training_is_not_overwritten(data: Path, trained: Path) -> None:
    before = weights(trained)
    with pytest.raises(SimEvalError, match="seed differ"):
        train.main(arguments([data], trained, seed=5))
    assert weights(trained) == before


def test_a_damaged_state_is_named(data: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "copy")
    state = tmp_path / "copy" / loop.STATE
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(SimEvalError, match=f"{loop.STATE} is damaged"):
        train.main(arguments([data], tmp_path / "copy"))


def test_only_the_train_split_is_trained_on(tmp_path: Path) -> None:
    folder = tmp_path / "val"
    collect.main(collect.CollectConfig(task=TASK, out=folder, episodes=1, size=32, split="val"))
    with pytest.raises(SimEvalError, match="train split"):
        train.main(arguments([folder], tmp_path / "out"))


def test_looks_are_not_mixed(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "faithful"
    task = "robosuite/Lift"
    collect.main(collect.CollectConfig(task=task, out=other, episodes=1, size=SIDE, render="faithful"))
    with pytest.raises(SimEvalError, match="faithful 64x64 and fast 64x64"):
        train.main(arguments([data, other], tmp_path / "out"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--expert", "early_bert"], "unknown expert 'early_bert': choose one of deep_llama"),
        (["--size", "huge"], "unknown size"),
        (["--balance", "2"], "--balance must lie between 0 and 1"),
        (["--threads", "0"], "--threads must be"),
        (["--frame-stride", "0"], "--frame-stride must be"),
        (["--demonstrations", "0"], "--demonstrations must be"),
        (["--data", "/nowhere"], "/nowhere"),
        (["--data", "docs"], "no demonstrations in docs"),
        (["--minutes", "-1"], "--minutes must be"),
        (["--seed", "99999999999"], "--seed must be below"),
        (["--steps", "0"], "--steps must be"),
        (["--steps", "3", "--minutes", "1"], "not both"),
        (["--out", "pyproject.toml/below"], "cannot be written"),
        (["--device", "tpu9"], "device 'tpu9'"),
        (["--shard", "--val-episodes", "0", "--optimizer", "muon"], "use --optimizer adamw"),
    ],
)
def test_bad_input_is_one_line(options: list[str], says: str, data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sim_eval.train", "--data", str(data), "--out", str(tmp_path / "out"), *options]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 2, answer.stderr
    lines = [line for line in answer.stderr.strip().splitlines() if not line.startswith(("packing", "opening"))]
    assert len(lines) == 1, answer.stderr
    assert lines[0].startswith("error: ")
    assert says in lines[0]
