"""Loads published weights into this network: LLaVA-3D, its CLIP tower, and Gemma for late fusion.

Names of LLaVA-3D's tensors are those of ZCMax/LLaVA-3D (Apache-2.0). Only tensors are unpickled. No tensor silently
keeps its random initial value: each one is loaded, is meant to be random, or is named in an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack

import torch
from safetensors.torch import load_file
from torch import Tensor

from sim_eval.core.decoding import decode
from sim_eval.core.errors import SimEvalError
from sim_eval.core.files import read_json
from sim_eval.policies.spatialvla.configuration_spatialvla import (
    LLAVA3D_7B,
    ActionExpertType,
    ExpertConfig,
    SpatialVLAConfig,
    TextConfig,
    VisionConfig,
)
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration

T = TypeVar("T")
REMEDY = "name the folder of a whole checkpoint, or download it again"
# One file, or many with an index of their tensors; safetensors are preferred to pickled tensors.
LAYOUTS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
VISION, TEXT = "vlm.vision_tower.", "vlm.language_model."
# Our names of sizes -> those that all published configurations share.
SHARED = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp": "intermediate_size",
}
# Prefixes of published names -> our prefixes; the first that matches counts.
PREFIXES = (
    ("model.vision_tower.vision_tower.vision_model.", VISION),
    ("model.vision_tower.vision_tower.", VISION),
    ("model.video_tower.video_tower.positional_embedding.", "vlm.position_embedding."),
    ("model.mm_projector.", "vlm.mm_projector."),
    ("model.", TEXT),
)
# The parts of a published checkpoint that no policy reads: the word head, and the encoder of clicked points.
UNREAD = ("lm_head.", "model.video_tower.prompt_encoder.")


class LoadingOptions(TypedDict, total=False):
    """Keyword arguments of :func:`from_llava3d`; :func:`llava3d_config` ignores ``dtype`` and ``config``."""

    gemma: str | Path | None
    clip: str | Path | None
    from_scratch: bool
    expert_config: ExpertConfig | None
    config: SpatialVLAConfig | None
    dtype: torch.dtype


def open_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder in Hugging Face's layout: one file or shards with an index, safetensors or ``bin``.

    They are mapped, so each is read from the disk when its numbers are needed.

    Raises:
        SimEvalError: there are none, a shard is missing, or a file is damaged.
    """
    for single, index in LAYOUTS:
        if (folder / index).exists():
            table = read_json(folder / index, REMEDY).get("weight_map", {})
            files = sorted(set(decode(dict[str, str], table, str(folder / index)).values()))
            if missing := [file for file in files if not (folder / file).exists()]:
                raise SimEvalError(f"{folder}: {', '.join(missing)} missing, which {index} names: download it again")
            break
        if (folder / single).exists():
            files = [single]
            break
    else:
        names = ", ".join(name for pair in LAYOUTS for name in pair)
        raise SimEvalError(f"{folder} holds no weights: none of {names}")
    tensors: dict[str, Tensor] = {}
    for path in (folder / file for file in files):
        try:
            if path.suffix == ".safetensors":
                tensors |= load_file(path)
            else:
                tensors |= torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:  # both libraries report damage in many ways
            raise SimEvalError(f"{path} is damaged ({type(error).__name__}): download it again") from error
    return tensors


def local_folder(reference: str | Path) -> Path:
    """The folder, or the local copy of a repository of the Hugging Face hub, which is downloaded if necessary.

    Raises:
        SimEvalError: there is no such folder, and no such repository can be downloaded.
    """
    if Path(reference).is_dir():
        return Path(reference)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(reference)))
    except Exception as error:  # network, name, permission
        raise SimEvalError(
            f"'{reference}' is neither a folder nor a repository that could be downloaded ({type(error).__name__})"
        ) from error


def from_llava3d(
    reference: str | Path, expert: ActionExpertType, **options: Unpack[LoadingOptions]
) -> SpatialVLAForConditionalGeneration:
    """A policy whose VLM is a published LLaVA-3D.

    Args:
        reference: folder or hub repository of LLaVA-3D, such as "ChaimZhu/LLaVA-3D-7B".
        expert: the kind of action expert.
        gemma: folder or repository of the Gemma that becomes the decoder of late fusion, such as "google/gemma-2b".
        clip: folder or repository of a vision tower that replaces the checkpoint's own. By default it is the
            checkpoint's own, or if it has none, the tower that it names.
        from_scratch: start the expert's decoder from random weights. Otherwise the decoder of deep fusion starts as a
            copy of the VLM's layers, and that of late fusion as ``gemma``.
        expert_config: sizes of state, actions and sampler, and of a decoder from scratch; a loaded decoder keeps its
            own sizes.
        config: the result of :func:`llava3d_config`, with changes that do not affect the shapes of weights, such as
            another ``voxel_size``; it replaces ``expert_config``.
        dtype: of the weights; the default is float32.

    Raises:
        SimEvalError: tensors are missing, unknown, of another shape, or not finite; names all of them.
    """
    clip, gemma, from_scratch = options.get("clip"), options.get("gemma"), options.get("from_scratch", False)
    folder = local_folder(reference)
    config = options.get("config") or llava3d_config(reference, expert, **options)
    tensors = open_tensors(folder)
    model = _random_model(config, options.get("dtype", torch.float32))
    has_tower = any(name.startswith(PREFIXES[1][0]) for name in tensors)
    if has_tower and clip is not None:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIXES[1][0])}
    sources = [_Source(folder, tensors, _llava3d_name)]
    if not has_tower or clip is not None:
        tower = vision_tower_folder(folder, clip)
        sources.append(_Source(tower, open_tensors(tower), _clip_name))
    loads_gemma = expert == "late_gemma" and not from_scratch
    if loads_gemma:
        sources.append(_Source(_gemma_folder(gemma), open_tensors(_gemma_folder(gemma)), _gemma_name))
    _fill(model, sources, ("vlm.", "action_expert.model.") if loads_gemma else ("vlm.",))
    if expert == "deep_llama" and not from_scratch:
        language, decoder = model.vlm.language_model, model.action_expert.model
        decoder.layers.load_state_dict(language.layers.state_dict())
        decoder.norm.load_state_dict(language.norm.state_dict())
    return model


def llava3d_config(
    reference: str | Path, expert: ActionExpertType, **options: Unpack[LoadingOptions]
) -> SpatialVLAConfig:
    """The configuration that :func:`from_llava3d` uses for the same arguments; reads no weights.

    Raises:
        SimEvalError: a ``config.json`` is missing, or belongs to another kind of model.
    """
    folder = local_folder(reference)
    published = read_json(folder / "config.json", REMEDY)
    tower = vision_tower_folder(folder, options.get("clip"))
    layer = published.get("mm_vision_select_layer", -2)
    vision, text = vision_config(read_json(tower / "config.json", REMEDY), layer), text_config(published)
    sizes = options.get("expert_config") or ExpertConfig()
    if expert == "deep_llama":
        sizes = replace(
            sizes,
            layers=text.layers,
            kv_heads=text.kv_heads,
            head_dim=text.head_dim,
            rope_theta=text.rope_theta,
            norm_eps=text.norm_eps,
        )
        if not options.get("from_scratch", False):
            sizes = replace(sizes, width=text.width, heads=text.heads, mlp=text.mlp)
    elif not options.get("from_scratch", False):
        sizes = gemma_config(read_json(_gemma_folder(options.get("gemma")) / "config.json", REMEDY), sizes)
    return replace(LLAVA3D_7B, vision=vision, text=text, expert=sizes, action_expert_type=expert)


def _gemma_folder(gemma: str | Path | None) -> Path:
    if gemma is None:
        raise SimEvalError("late_gemma starts from a Gemma: name one, such as google/gemma-2b, or start from scratch")
    return local_folder(gemma)


def vision_tower_folder(folder: Path, clip: str | Path | None = None) -> Path:
    """The CLIP of a LLaVA-3D: ``clip`` if given, else the one that ``config.json`` names, in the folder or on the hub.

    Raises:
        SimEvalError: ``config.json`` names none, or the CLIP cannot be downloaded.
    """
    if clip is not None:
        return local_folder(clip)
    llava = read_json(folder / "config.json", REMEDY)
    if "mm_vision_tower" not in llava:
        raise SimEvalError(f"{folder / 'config.json'} lacks mm_vision_tower: is it another kind of model?")
    named = str(llava["mm_vision_tower"])
    return folder / named if (folder / named).is_dir() else local_folder(named)


def vision_config(clip: Mapping[str, Any], feature_layer: object) -> VisionConfig:
    """The vision tower's configuration from the ``config.json`` of a CLIP, or of its vision tower alone."""
    own = {name: name for name in ("image_size", "patch_size")}
    fixed = {"feature_layer": feature_layer, "prune": False}
    return _sizes(VisionConfig, "the CLIP's config.json", clip.get("vision_config", clip), own, fixed)


def text_config(llava: Mapping[str, Any]) -> TextConfig:
    """The Llama's configuration from LLaVA-3D's ``config.json``."""
    own = {"norm_eps": "rms_norm_eps", "vocab_size": "vocab_size"}
    heads = llava.get("num_key_value_heads") or llava.get("num_attention_heads")
    fixed = {"rope_theta": _rope_theta(llava), "kv_heads": heads}
    return _sizes(TextConfig, "LLaVA-3D's config.json", llava, own, fixed)


def gemma_config(gemma: Mapping[str, Any], expert: ExpertConfig) -> ExpertConfig:
    """The expert's configuration, with the decoder's sizes from a Gemma's ``config.json``."""
    own = {"norm_eps": "rms_norm_eps", "kv_heads": "num_key_value_heads", "head_dim": "head_dim"}
    return _sizes(ExpertConfig, "Gemma's config.json", gemma, own, {**asdict(expert), "rope_theta": _rope_theta(gemma)})


def _sizes(kind: type[T], where: str, published: object, own: Mapping[str, str], fixed: Mapping[str, object]) -> T:
    """A configuration of ours from a published one.

    Args:
        own: our field -> the published one, besides :data:`SHARED`.
        fixed: fields that are not read.
    """
    if not isinstance(published, Mapping):
        raise SimEvalError(f"{where} is damaged: {REMEDY}")
    names = {**SHARED, **own}
    if missing := [name for name in names.values() if name not in published]:
        raise SimEvalError(f"{where} lacks {missing[0]}: is it another kind of model?")
    return decode(kind, {**fixed, **{ours: published[name] for ours, name in names.items()}}, where)


def _rope_theta(config: Mapping[str, Any]) -> object:
    """Since version 5, transformers writes it into ``rope_parameters``."""
    rope = config.get("rope_parameters")
    return config.get("rope_theta", rope.get("rope_theta", 10_000.0) if isinstance(rope, Mapping) else 10_000.0)


def _random_model(config: SpatialVLAConfig, dtype: torch.dtype) -> SpatialVLAForConditionalGeneration:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return SpatialVLAForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)


@dataclass(frozen=True)
class _Source:
    """The tensors of a folder, and a function from their names to ours; None: no policy reads the tensor."""

    folder: Path
    tensors: Mapping[str, Tensor]
    rename: Callable[[str], str | None]


def _llava3d_name(name: str) -> str | None:
    if name.startswith(UNREAD) or name.endswith("rotary_emb.inv_freq"):
        return None
    for published, ours in PREFIXES:
        if name.startswith(published):
            return ours + name.removeprefix(published)
    return name


def _clip_name(name: str) -> str | None:
    """Our name of a CLIP's tensor; only the vision tower is read."""
    if name.startswith(("text_model.", "text_projection.", "visual_projection.")) or name == "logit_scale":
        return None
    return VISION + name.removeprefix("vision_model.")


def _gemma_name(name: str) -> str | None:
    """Our name of a Gemma's tensor; the expert has no token embeddings."""
    inner = name.removeprefix("model.")
    return None if inner.startswith(("embed_tokens.", "lm_head.")) else f"action_expert.model.{inner}"


def _unbuilt(config: SpatialVLAConfig, name: str) -> bool:
    """Whether a tensor belongs to the part of the vision tower above the layer that is read; it is not built."""
    if not name.startswith(VISION):
        return False
    part = name.removeprefix(VISION).split(".")
    above = part[:2] == ["encoder", "layers"] and part[2].isdigit() and int(part[2]) >= config.vision.built_layers
    return above or part[0] == "post_layernorm" or part[-1] == "position_ids"


@torch.no_grad()
def _fill(model: SpatialVLAForConditionalGeneration, sources: Iterable[_Source], required: tuple[str, ...]) -> None:
    """Copies the tensors of all sources into the model.

    Args:
        required: prefixes of the tensors that may not keep their random values.

    Raises:
        SimEvalError: tensors are missing, unknown or of another shape; lists them.
    """
    wanted = model.state_dict()
    found: set[str] = set()
    faults: list[str] = []
    for source in sources:
        for name, tensor in source.tensors.items():
            ours = source.rename(name)
            if ours is None or _unbuilt(model.network, ours):
                continue
            if ours not in wanted:
                faults.append(f"unknown {name}")
                continue
            if not tensor.isfinite().all():
                raise SimEvalError(f"{source.folder}: {name} holds NaN or infinity: download it again")
            if tensor.shape != wanted[ours].shape:
                faults.append(f"{name} has shape {tuple(tensor.shape)}, not {tuple(wanted[ours].shape)}")
                continue
            wanted[ours].copy_(tensor)
            found.add(ours)
    faults += [f"missing {name}" for name in wanted if name.startswith(required) and name not in found]
    if faults:
        folders = ", ".join(str(source.folder) for source in sources)
        raise SimEvalError(f"{folders} do not make a {model.network.action_expert_type}: {'; '.join(faults)}")
