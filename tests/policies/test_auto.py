"""transformers' Auto classes know a checkpoint folder, and all of its releases read and write the same one."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.models.clip.configuration_clip import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPVisionModel

from sim_eval.core.errors import SimEvalError
from sim_eval.policies.registry import CHECKPOINTS, load_policy, shipped_checkpoints
from sim_eval.policies.spatialvla import modeling_llava3d
from sim_eval.policies.spatialvla.checkpoint import SpatialVLAPolicy, load_checkpoint, save_checkpoint
from sim_eval.policies.spatialvla.modeling_llava3d import SpatialVLAInputs
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration
from sim_eval.policies.spatialvla.processing_spatialvla import SpatialVLAProcessor

ROOT = Path(__file__).resolve().parents[2]
KINDS = ["SpatialVLAPreTrainedConfig", "SpatialVLAForConditionalGeneration", "SpatialVLAProcessor"]

# The parent imports transformers' classes before sim_eval, its spawned child after.
ORDERS = """
import sys
from multiprocessing import get_context

if __name__ == "__main__":
    from transformers import AutoProcessor

import sim_eval

known = "transformers" in sys.modules


def kinds(folder):
    from transformers import AutoConfig, AutoModel, AutoProcessor

    found = [type(auto.from_pretrained(folder)).__name__ for auto in (AutoConfig, AutoModel, AutoProcessor)]
    return known, found


if __name__ == "__main__":
    print(*kinds(sys.argv[1]))
    with get_context("spawn").Pool(1) as pool:
        print(*pool.apply(kinds, sys.argv[1:]))
"""


def test_the_order_of_imports_and_the_process_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "orders.py").write_text(ORDERS)
    answer = subprocess.run(
        [sys.executable, "orders.py", str(CHECKPOINTS / "deep_llama")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.stdout.splitlines() == [f"True {KINDS}", f"False {KINDS}"], answer.stderr


@pytest.mark.parametrize("name", shipped_checkpoints())
def test_a_shipped_folder_gives_its_own_processor(name: str) -> None:
    found = AutoProcessor.from_pretrained(CHECKPOINTS / name)
    own = load_policy(name, "cpu")
    assert isinstance(own, SpatialVLAPolicy)
    assert isinstance(found, SpatialVLAProcessor)
    assert found.to_dict() == own.processor.to_dict()
    assert found.config == own.processor.config
    assert found.tokenizer.to_str() == own.processor.tokenizer.to_str()
    assert found.spec.digest == "", "it has seen no weights"


def test_what_the_classes_save_they_load(
    each_model: SpatialVLAForConditionalGeneration,
    processor: SpatialVLAProcessor,
    inputs: SpatialVLAInputs,
    tmp_path: Path,
) -> None:
    each_model.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_bytes()
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_bytes() == config, "the network's own configuration stays"
    model, again = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    policy = load_checkpoint(tmp_path, "cpu")
    expected = chunks(each_model, inputs)
    assert torch.equal(chunks(model, inputs), expected)
    assert torch.equal(chunks(policy.model, inputs), expected)
    config = AutoConfig.from_pretrained(tmp_path)
    assert AutoModel.from_config(config).network == each_model.network


def test_a_processor_alone_is_known(processor: SpatialVLAProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path / "new")
    again = AutoProcessor.from_pretrained(tmp_path, subfolder="new")
    assert isinstance(again, SpatialVLAProcessor)
    assert (again.to_dict(), again.config) == (processor.to_dict(), processor.config)


@pytest.mark.parametrize("name", ["processor.json", "tokenizer.json"])
def test_a_damaged_folder_gives_no_other_processor(processor: SpatialVLAProcessor, tmp_path: Path, name: str) -> None:
    processor.save_pretrained(tmp_path)
    for damage in ("{}", None):
        (tmp_path / name).unlink() if damage is None else (tmp_path / name).write_text(damage)
        with pytest.raises(SimEvalError, match=name):
            AutoProcessor.from_pretrained(tmp_path)
    with pytest.raises(SimEvalError, match="neither a folder nor a repository"):
        SpatialVLAProcessor.from_pretrained("nobody/nothing", local_files_only=True)


def test_tensors_have_one_name_each_whether_clip_has_a_level_more_or_not(
    processor: SpatialVLAProcessor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The level was there up to transformers 5.5."""

    class Wrapped(nn.Module):
        def __init__(self, config: CLIPVisionConfig) -> None:
            super().__init__()
            tower = CLIPVisionModel(config)
            self.vision_model = getattr(tower, "vision_model", tower)

    monkeypatch.setattr(modeling_llava3d, "CLIPVisionModel", Wrapped)
    policy = load_policy("deep_llama", "cpu")
    assert isinstance(policy, SpatialVLAPolicy)
    spec = save_checkpoint(tmp_path, policy.model, policy.processor)
    assert spec == policy.spec
    monkeypatch.undo()
    assert AutoModel.from_pretrained(tmp_path).state_dict().keys() == policy.model.state_dict().keys()


def noise(model: SpatialVLAForConditionalGeneration, inputs: SpatialVLAInputs) -> Tensor:
    expert = model.network.expert
    shape = (len(inputs.state), expert.chunk_size, expert.action_dim)
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape, np.float32))


def chunks(model: SpatialVLAForConditionalGeneration, inputs: SpatialVLAInputs) -> Tensor:
    """The actions from one and the same noise."""
    return model.eval().predict_action(inputs, noise(model, inputs))


# Reads both folders that this release wrote, and writes what it has read in both ways.
OTHER = """
import sys
from pathlib import Path

import torch
import transformers

import sim_eval
from sim_eval.policies.spatialvla.checkpoint import load_checkpoint, save_checkpoint

folder = Path(sys.argv[1])
model = transformers.AutoModel.from_pretrained(folder / "transformers")
policy = load_checkpoint(folder / "ours", "cpu")
assert all(torch.equal(tensor, policy.model.state_dict()[name]) for name, tensor in model.state_dict().items())
inputs, noise = torch.load(folder / "inputs.pt", weights_only=False)
torch.save(model.eval().predict_action(inputs, noise), folder / "chunks.pt")
model.save_pretrained(folder / "transformers again")
save_checkpoint(folder / "ours again", model, policy.processor)
print(transformers.__version__)
"""


@pytest.fixture(scope="module", params=["5.4.0", "5.5.4", "5.24.0"])
def other_python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with that release of transformers, and all else from this environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    kept = [f"{package}=={version(package)}" for package in ("numpy", "safetensors")]
    subprocess.run([*pip, f"transformers=={request.param}", *kept], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib"))
    return python


@pytest.mark.peers
def test_another_release_reads_writes_and_computes_the_same(
    each_model: SpatialVLAForConditionalGeneration,
    processor: SpatialVLAProcessor,
    inputs: SpatialVLAInputs,
    other_python: Path,
    tmp_path: Path,
) -> None:
    each_model.save_pretrained(tmp_path / "transformers")
    save_checkpoint(tmp_path / "ours", each_model, processor)
    torch.save((inputs, noise(each_model, inputs)), tmp_path / "inputs.pt")
    subprocess.run([other_python, "-c", OTHER, tmp_path], cwd=ROOT, check=True)
    expected = chunks(each_model, inputs)
    assert torch.equal(torch.load(tmp_path / "chunks.pt"), expected)
    for folder in ("transformers again", "ours again"):
        assert torch.equal(chunks(AutoModel.from_pretrained(tmp_path / folder), inputs), expected)
    before, after = ((tmp_path / folder / "model.safetensors").read_bytes() for folder in ("ours", "ours again"))
    assert before == after


@pytest.mark.peers
def test_another_release_passes_the_tests_of_published_and_own_checkpoints(other_python: Path) -> None:
    files = ["test_llava3d_golden.py", "test_pretrained.py", "test_spatialvla_checkpoint.py", "test_auto.py"]
    command = [other_python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/policies/{f}" for f in files)]
    subprocess.run(command, cwd=ROOT, check=True)
