"""The processor of a published LLaVA-3D: its tokenizer, chat template and picture settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from sim_eval.core.errors import SimEvalError
from sim_eval.core.files import read_json
from sim_eval.core.normalization import NormalizationStats
from sim_eval.policies.policy import PolicySpec
from sim_eval.policies.spatialvla.configuration_spatialvla import SpatialVLAConfig
from sim_eval.policies.spatialvla.pretrained import REMEDY, local_folder, vision_tower_folder
from sim_eval.policies.spatialvla.processing_spatialvla import SpatialVLAProcessor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Vicuna's conversation, which LLaVA-3D was trained on. A checkpoint's own template takes precedence.
CHAT_TEMPLATE = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions. "
    "{% for message in messages %}{% if message.role == 'user' %}USER: {{ message.content }} "
    "{% else %}ASSISTANT: {{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
PICTURES = "preprocessor_config.json"


def llava3d_processor(
    reference: str | Path,
    spec: PolicySpec,
    stats: NormalizationStats,
    config: SpatialVLAConfig,
    clip: str | Path | None = None,
) -> SpatialVLAProcessor:
    """The processor of a policy that is based on a published LLaVA-3D.

    Args:
        reference: folder or hub repository of LLaVA-3D, such as "ChaimZhu/LLaVA-3D-7B".
        spec, stats: as for :class:`SpatialVLAProcessor`.
        config: the network's, from :func:`sim_eval.policies.spatialvla.pretrained.llava3d_config`.
        clip: folder or repository of the vision tower, if it replaces the checkpoint's own.

    Raises:
        SimEvalError: a file is missing or damaged, or demands pictures that :class:`SpatialVLAProcessor` cannot make.
    """
    folder = local_folder(reference)
    pictures = folder / PICTURES
    if clip is not None or not pictures.exists():
        pictures = vision_tower_folder(folder, clip) / PICTURES
    check_pictures(pictures, config.vision.image_size)
    tokenizer = published_tokenizer(folder)
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    return SpatialVLAProcessor(config, spec, stats, backend, published_prompt(tokenizer))


def published_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's Llama tokenizer, with the folder's own chat template or else :data:`CHAT_TEMPLATE`.

    Each text starts with BOS and has no EOS, whatever the folder's settings say: LLaVA-3D was trained on such prompts
    only, and transformers 5.23 omits BOS when it reads a bare ``tokenizer.model``.

    Raises:
        SimEvalError: the folder has no tokenizer, or it cannot be read.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).exists() for name in TOKENIZERS):
        raise SimEvalError(f"{folder} holds no tokenizer, neither {' nor '.join(TOKENIZERS)}: download it again")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer.add_bos_token, tokenizer.add_eos_token = True, False
    except Exception as error:  # each format reports damage in its own way
        raise SimEvalError(
            f"{folder}: the tokenizer cannot be read ({_first_line(error)}): download it again, "
            "and for a tokenizer.model install sentencepiece"
        ) from error
    if tokenizer.chat_template is None:
        settings = folder / "processor_config.json"
        own = read_json(settings, REMEDY).get("chat_template") if settings.exists() else None
        tokenizer.chat_template = own or CHAT_TEMPLATE
    return tokenizer


def published_prompt(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template's prompt for a picture and an instruction; contains ``<image>`` and ``{instruction}``.

    Raises:
        SimEvalError: the template gives no such prompt.
    """
    reason = "<image> and {instruction} must stand in it once each"
    parts = [{"type": "image"}, {"type": "text", "text": "{instruction}"}]
    for content in ("<image>\n{instruction}", parts):  # templates take messages in either form
        try:
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template can raise anything
            reason = _first_line(error)
            continue
        if prompt.count("<image>") == prompt.count("{instruction}") == 1:
            return cast(str, prompt.removeprefix(tokenizer.bos_token or ""))  # the tokenizer adds it
    raise SimEvalError(f"{tokenizer.name_or_path}: the chat template makes no prompt ({reason}): correct or remove it")


def check_pictures(file: Path, size: int) -> None:
    """Checks that a ``preprocessor_config.json`` demands the pictures that :class:`SpatialVLAProcessor` makes.

    Those are CLIP's: the shortest side is resized to ``size`` (bicubic), the middle is cropped, and CLIP's mean and
    deviation are used.

    Raises:
        SimEvalError: the file demands other pictures; names the settings.
    """
    settings: Mapping[str, object] = {"size": 224, "crop_size": 224, **read_json(file, REMEDY)}  # with CLIP's defaults
    made: Mapping[str, tuple[object, ...]] = {
        "do_resize": (True,),
        "size": (size, {"shortest_edge": size}),
        "resample": (3,),
        "do_center_crop": (True,),
        "crop_size": (size, {"height": size, "width": size}),
        "do_rescale": (True,),
        "rescale_factor": (1 / 255,),
        "do_normalize": (True,),
        "image_mean": (list(OPENAI_CLIP_MEAN),),
        "image_std": (list(OPENAI_CLIP_STD),),
    }
    if others := [name for name, values in made.items() if settings.get(name, values[0]) not in values]:
        found = ", ".join(f"{name} {settings[name]} instead of {made[name][0]}" for name in others)
        raise SimEvalError(f"{file}: {found}: only CLIP's pictures are supported; choose a CLIP or another checkpoint")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
