"""Training's options for large networks through the command line: a plan first, published weights, processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from sim_eval import collect, rollout, train
from sim_eval.configs import RolloutConfig, TrainConfig
from sim_eval.core.errors import SimEvalError
from sim_eval.training import memory
from sim_eval.training.metadata import read_metadata

GOLDEN = Path(__file__).parents[1] / "policies" / "golden" / "llava3d" / "square"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demonstrations")
    collect.main(collect.CollectConfig(task="robosuite/LiftWide", out=out, episodes=2, size=64))
    return out


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA-3D at small width with a tokenizer of Llama's kind."""
    folder = Path(shutil.copytree(GOLDEN, tmp_path_factory.mktemp("published") / "llava3d"))
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace()
    letters = [chr(number) for number in range(32, 127)]
    trainer = trainers.BpeTrainer(special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=letters, vocab_size=200)
    tokenizer.train_from_iterator(["USER: lift the cube ASSISTANT:"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def config(**changes: object) -> TrainConfig:
    options = {"steps": 3, "batch_size": 2, "val_episodes": 0, **changes}
    return TrainConfig(**options)  # type: ignore[arg-type]


def test_a_dry_run_prints_the_plan_and_makes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"size": "llava3d-7b", "expert": "late_gemma", "lora": ("vlm",), "freeze": ("vision",), "dry_run": True}
    plan = config(**options, precision="bfloat16", checkpointing=True, device="cpu")
    monkeypatch.setattr(memory, "available_memory", lambda: 100e9)
    assert train.main(plan) == 0
    render_config = capsys.readouterr().out
    assert "vision     290,909,184    0" in render_config
    assert "all        8,958,986,247  2,060,733,447 (23.0%)" in render_config
    monkeypatch.setattr(memory, "available_memory", lambda: 24e9)
    with pytest.raises(SimEvalError, match=r"training needs 5[67]\.\d GB and cpu has 24\.0 GB free: use a smaller"):
        train.main(plan)
    assert not list(tmp_path.iterdir())


def test_a_published_checkpoint_is_trained_and_rolled_out(data: Path, published: Path, tmp_path: Path) -> None:
    out = tmp_path / "checkpoint"
    options = {"data": (data,), "out": out, "llava3d": str(published), "freeze": ("vision",), "lora": ("vlm",)}
    network = replace(TrainConfig(llava3d=str(published)).network, voxel_size=0.05, frame="gripper")
    assert train.main(config(**options, network=network)) == 0
    assert read_metadata(out).size == "published"
    assert f"trained from `{published}` by sim_eval" in (out / "README.md").read_text()
    source, trained = load_file(published / "model.safetensors"), load_file(out / "model.safetensors")
    tower = load_file(published / "vision_tower" / "model.safetensors")
    same = [name for name in trained if name.startswith("vlm.vision_tower.encoder.")]
    assert same
    for name in same:
        inner = name.removeprefix("vlm.vision_tower.")
        assert torch.equal(trained[name], tower.get(f"vision_model.{inner}", tower.get(inner))), name
    query = "layers.0.self_attn.q_proj.weight"
    change = (trained[f"vlm.language_model.{query}"] - source[f"model.{query}"]).abs()
    assert 0 < change.max() < 0.1
    saved = json.loads((out / "config.json").read_text())["network"]
    assert (saved["voxel_size"], saved["frame"], saved["vision"]["image_size"]) == (0.05, "gripper", 112)
    played = RolloutConfig(policy=str(out), episodes=1, out=tmp_path / "run", video="none")
    assert rollout.main(played) == 0
    line = json.loads((tmp_path / "run" / "episodes.jsonl").read_text())
    assert line["error"] is None


# Notes which process writes which file of the watched folders.
WATCH = """
import os, sys
def note(event, arguments):
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if event in ("os.rename", "os.mkdir", "os.remove") or writes:
        path = str(arguments[1] if event == "os.rename" else arguments[0])
        if path.startswith(tuple(os.environ["WATCHED"].split(":"))):
            with open(__file__ + "." + os.environ.get("RANK", "0"), "a") as log:
                log.write(path + "\\n")
sys.addaudithook(note)
"""


def written(out: Path, rank: int) -> set[str]:
    """Names of files that this process wrote, or files and folders that it made."""
    log = out.with_name(f"site-{out.name}") / f"sitecustomize.py.{rank}"
    return {Path(line).name for line in log.read_text().splitlines()} if log.exists() else set()


def launch(processes: int, data: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Trains three steps in as many processes as asked."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if processes == 2 else []
    command = [sys.executable, *launcher, "-m", "sim_eval.train", "--data", str(data), "--out", str(out)]
    command += ["--steps", "3", "--batch-size", str(4 // processes), "--val-episodes", "0", "--device", "cpu", *options]
    site = out.with_name(f"site-{out.name}")
    site.mkdir()
    (site / "sitecustomize.py").write_text(WATCH)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(site), "WATCHED": f"{out}:{data}"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_two_processes_write_what_one_writes(data: Path, tmp_path: Path) -> None:
    weights = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        done = launch(processes, data, out)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("score it:") == 1, "one process speaks for all"
        weights.append(load_file(out / "model.safetensors"))
    assert read_metadata(tmp_path / "2").steps == 3
    assert written(tmp_path / "2", 0) >= {"model.safetensors", "training.pt", "training.json", "README.md"}
    assert written(tmp_path / "2", 1) <= {"2"}, "the others write nothing; each may make --out itself"
    for name, tensor in weights[0].items():
        if not name.endswith("k_proj.bias"):  # of which no loss depends: its steps are rounding's
            torch.testing.assert_close(weights[1][name], tensor, atol=1e-5, rtol=1e-4, msg=name)


def test_features_are_kept_of_a_frozen_vlm_only(data: Path, tmp_path: Path) -> None:
    kept = tmp_path / "features"
    with pytest.raises(SimEvalError, match="--cache-features needs a VLM that does not change: add --freeze vision"):
        train.main(config(data=(data,), out=tmp_path / "a", cache_features=kept))
    frozen = {"data": (data,), "freeze": ("vision", "position", "projector", "vlm")}
    assert train.main(config(**frozen, out=tmp_path / "b", cache_features=kept)) == 0
    assert train.main(config(**frozen, out=tmp_path / "c")) == 0
    cached, plain = (load_file(tmp_path / name / "model.safetensors") for name in "bc")
    for name, tensor in plain.items():
        torch.testing.assert_close(cached[name], tensor, atol=1e-6, rtol=1e-5, msg=name)
    assert list(kept.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"size": "llava3d-7b"}, "would start from random weights: start from published ones"),
        ({"shard": True, "val_episodes": 2}, "--shard leaves no process the whole network"),
        ({"lora": ("vlm",), "freeze": ("vlm",)}, "part 'vlm' is in --freeze and in --lora"),
        ({"freeze": ("head",)}, "unknown part 'head': choose among vision"),
        ({"lora": ("projector",)}, "'projector' cannot be adapted"),
        ({"lora": ("vlm",), "lora_rank": 0}, "'lora_rank': input should be greater than or equal to 1, not 0"),
        ({"llava3d": "no/such/folder"}, "neither a folder nor a repository"),
    ],
)
def test_bad_input_is_one_line(changes: dict[str, object], says: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(SimEvalError, match=says) as caught:
        train.main(config(**{"data": (data,), "out": tmp_path / "out", **changes}))
    assert "\n" not in str(caught.value)
