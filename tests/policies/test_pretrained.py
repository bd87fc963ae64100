"""Published layouts are read whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, CLIPConfig, CLIPModel, GemmaConfig, GemmaForCausalLM

from sim_eval.core.errors import SimEvalError
from sim_eval.policies.registry import CHECKPOINTS, load_policy
from sim_eval.policies.spatialvla.checkpoint import SpatialVLAPolicy, load_checkpoint, save_checkpoint
from sim_eval.policies.spatialvla.configuration_spatialvla import ACTION_EXPERTS, ExpertConfig
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration
from sim_eval.policies.spatialvla.pretrained import from_llava3d
from sim_eval.policies.spatialvla.processing_spatialvla import SpatialVLAProcessor

GOLDEN = Path(__file__).parent / "golden" / "llava3d" / "square"
TOWER = "model.vision_tower.vision_tower."


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A LLaVA-3D as it is published, at small width."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "llava3d"))


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma")
    torch.manual_seed(0)
    sizes = {"hidden_size": 40, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    GemmaForCausalLM(GemmaConfig(**sizes, num_key_value_heads=1, head_dim=16, vocab_size=60)).save_pretrained(folder)
    return folder


def rewrite(folder: Path, change: dict[str, Tensor | None]) -> None:
    """Changes tensors of ``model.safetensors``; None takes one out."""
    path = folder / "model.safetensors"
    tensors = {**load_file(path), **change}
    save_file({name: value for name, value in tensors.items() if value is not None}, path)


def shard(folder: Path, kind: str) -> list[str]:
    """Spreads the weights over three files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    files = [f"{stem}-{number:05d}-of-00003.{suffix}" for number in (1, 2, 3)]
    places = {name: files[number % 3] for number, name in enumerate(sorted(tensors))}
    for file in files:
        part = {name: value for name, value in tensors.items() if places[name] == file}
        if kind == "safetensors":
            save_file(part, folder / file)
        else:
            torch.save(part, folder / file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return files


def same(one: SpatialVLAForConditionalGeneration, other: SpatialVLAForConditionalGeneration, prefix: str = "") -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    return all(torch.equal(value, theirs[name]) for name, value in mine.items() if name.startswith(prefix))


def test_the_deep_expert_starts_as_the_vlms_layers(published: Path) -> None:
    model = from_llava3d(published, "deep_llama")
    state = model.state_dict()
    for name, value in load_file(published / "model.safetensors").items():
        if name.startswith(("model.layers.", "model.norm.")):
            inner = name.removeprefix("model.")
            assert torch.equal(state[f"vlm.language_model.{inner}"], value)
            assert torch.equal(state[f"action_expert.model.{inner}"], value)
    assert model.network.expert.width == model.network.text.width
    fresh = from_llava3d(
        published, "deep_llama", from_scratch=True, expert_config=ExpertConfig(width=24, heads=4, mlp=40)
    )
    assert fresh.network.expert.width == 24
    assert same(
        fresh, from_llava3d(published, "deep_llama", from_scratch=True, expert_config=fresh.network.expert), "vlm."
    )


def test_the_late_expert_starts_as_gemma(published: Path, gemma: Path) -> None:
    state = from_llava3d(published, "late_gemma", gemma=gemma).state_dict()
    read = 0
    for name, value in load_file(gemma / "model.safetensors").items():
        if not name.startswith("model.embed_tokens."):
            assert torch.equal(state[f"action_expert.{name}"], value)
            read += 1
    assert read == sum(name.startswith("action_expert.model.") for name in state)
    with pytest.raises(SimEvalError, match="name one, such as google/gemma-2b"):
        from_llava3d(published, "late_gemma")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_are_one_file(published: Path, kind: str) -> None:
    whole = from_llava3d(published, "deep_llama")
    files = shard(published, kind)
    assert same(whole, from_llava3d(published, "deep_llama"), "vlm.")
    (published / files[1]).unlink()
    with pytest.raises(SimEvalError, match=f"{files[1]} missing"):
        from_llava3d(published, "deep_llama")


def test_the_tower_may_lack_or_have_the_vision_model_level_or_come_from_a_whole_clip(
    published: Path, tmp_path: Path
) -> None:
    whole = from_llava3d(published, "deep_llama")
    tower = {
        name: value for name, value in load_file(published / "model.safetensors").items() if name.startswith(TOWER)
    }
    older = {name.replace(TOWER, TOWER + "vision_model."): value for name, value in tower.items()}
    rewrite(published, {**dict.fromkeys(tower), **older})
    assert same(whole, from_llava3d(published, "deep_llama"), "vlm.")
    rewrite(published, dict.fromkeys(older))
    assert same(whole, from_llava3d(published, "deep_llama"), "vlm."), "the tower is taken from vision_tower/"
    vision = json.loads((published / "vision_tower" / "config.json").read_text())
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text)).save_pretrained(tmp_path / "clip")
    other = from_llava3d(published, "deep_llama", clip=tmp_path / "clip")
    assert same(whole, other, "vlm.language_model.")
    assert not same(whole, other, "vlm.vision_tower.")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.norm.weight": None}, "missing vlm.language_model.norm.weight"),
        ({"model.layers.9.mlp.up_proj.weight": torch.zeros(2)}, "unknown model.layers.9.mlp.up_proj.weight"),
        ({"model.mm_projector.2.bias": torch.zeros(47)}, r"mm_projector.2.bias has shape \(47,\), not \(48,\)"),
        ({"model.mm_projector.2.bias": torch.full((48,), torch.nan)}, "mm_projector.2.bias holds NaN"),
    ],
)
def test_what_does_not_fit_is_named(published: Path, change: dict[str, Tensor | None], words: str) -> None:
    rewrite(published, change)
    with pytest.raises(SimEvalError, match=words):
        from_llava3d(published, "deep_llama")


@pytest.mark.parametrize("change", [{"hidden_size": 64}, {"intermediate_size": 97}, {"hidden_size": 50}])
def test_another_width_than_the_weights_is_named(published: Path, change: dict[str, int]) -> None:
    config = json.loads((published / "config.json").read_text())
    (published / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(SimEvalError, match=r"has shape|must be a multiple") as caught:
        from_llava3d(published, "deep_llama")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (
            "config.json",
            {"hidden_size": "64"},
            "LLaVA-3D's config.json: 'width': input should be a valid integer, not '64'",
        ),
        ("config.json", {"rope_parameters": 3, "rope_theta": None}, "LLaVA-3D's config.json: 'rope_theta'"),
        ("config.json", {"mm_vision_select_layer": "last"}, "the CLIP's config.json: 'feature_layer'"),
        ("vision_tower/config.json", {"vision_config": [1]}, "the CLIP's config.json is damaged"),
        ("model.safetensors.index.json", {"weight_map": ["model.safetensors"]}, "index.json: input should be"),
        ("model.safetensors.index.json", {"weight_map": {"x": 3}}, "index.json: 'x': input should be a valid string"),
    ],
)
def test_forged_settings_are_one_line(published: Path, file: str, change: dict[str, object], words: str) -> None:
    path = published / file
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **change}))
    with pytest.raises(SimEvalError) as told:
        from_llava3d(published, "deep_llama")
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_damage_and_absence_are_named(published: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SimEvalError, match=r"config\.json cannot be read \(No such file"):
        from_llava3d(tmp_path / "empty", "deep_llama")
    weights = published / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(SimEvalError, match=r"model\.safetensors is damaged"):
        from_llava3d(published, "deep_llama")
    weights.unlink()
    with pytest.raises(SimEvalError, match="holds no weights"):
        from_llava3d(published, "deep_llama")


def test_transformers_own_ways_to_save_and_load_change_no_bit(
    each_model: SpatialVLAForConditionalGeneration, tmp_path: Path
) -> None:
    each_model.save_pretrained(tmp_path)
    for loader in (SpatialVLAForConditionalGeneration, AutoModel):
        loaded = loader.from_pretrained(tmp_path)
        assert isinstance(loaded, SpatialVLAForConditionalGeneration)
        assert loaded.network == each_model.network
        assert same(each_model, loaded)
        for (name, buffer), other in zip(each_model.named_buffers(), loaded.buffers(), strict=True):
            assert torch.equal(buffer, other), name
        frozen = [name for name, parameter in loaded.named_parameters() if not parameter.requires_grad]
        assert frozen == [name for name, parameter in each_model.named_parameters() if not parameter.requires_grad]


@pytest.mark.parametrize("name", ACTION_EXPERTS)
def test_transformers_reads_what_is_shipped(name: str) -> None:
    policy = load_policy(name, "cpu")
    assert isinstance(policy, SpatialVLAPolicy)
    assert same(policy.model, AutoModel.from_pretrained(CHECKPOINTS / name))


@pytest.mark.parametrize("loader", [SpatialVLAForConditionalGeneration, AutoModel, load_checkpoint])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"action_expert.time_mlp.0.weight": None},
            r"1 tensors are missing, among them action_expert\.time_mlp\.0\.weight",
        ),
        ({"vlm.lens.weight": torch.zeros(3)}, r"1 tensors do not belong to the model, among them vlm\.lens\.weight"),
        ({"action_expert.state_in_proj.bias": torch.zeros(5)}, r"state_in_proj\.bias has shape \(5,\), .* \(24,\)"),
    ],
)
def test_weights_that_are_not_exactly_the_networks_are_refused(
    model: SpatialVLAForConditionalGeneration,
    processor: SpatialVLAProcessor,
    tmp_path: Path,
    loader: Any,
    change: dict[str, Tensor | None],
    words: str,
) -> None:
    """Transformers would leave a tensor that is missing as whatever the memory held before, and log a line."""
    save_checkpoint(tmp_path, model, processor)
    rewrite(tmp_path, change)
    with pytest.raises(SimEvalError, match=words) as told:
        loader(tmp_path) if loader is load_checkpoint else loader.from_pretrained(tmp_path)
    assert str(told.value).startswith(str(tmp_path))
    assert "\n" not in str(told.value)


def test_loading_still_tells_what_it_did_when_asked(model: SpatialVLAForConditionalGeneration, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded, info = SpatialVLAForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)  # type: ignore[misc]
    assert same(model, loaded)
    assert not any(info.values())


def test_weights_in_shards_are_read_whole_or_refused(model: SpatialVLAForConditionalGeneration, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert same(model, AutoModel.from_pretrained(tmp_path))
    index = tmp_path / "model.safetensors.index.json"
    places = json.loads(index.read_text())
    lost = next(iter(places["weight_map"]))
    del places["weight_map"][lost]
    file = tmp_path / next(iter(places["weight_map"].values()))
    index.write_text(json.dumps(places))
    tensors = {name: value for name, value in load_file(file).items() if name != lost}
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(SimEvalError, match="tensors are missing, among them"):
        AutoModel.from_pretrained(tmp_path)
