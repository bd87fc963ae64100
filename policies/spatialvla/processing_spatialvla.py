"""Converts observations to the network's inputs, and the network's chunks to the robot's actions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.utils.hub import cached_files
from wrapt import when_imported

from sim_eval.core.cameras import FARTHEST
from sim_eval.core.decoding import decode, encode
from sim_eval.core.errors import SimEvalError
from sim_eval.core.files import read_json, write_json, write_text
from sim_eval.core.normalization import NormalizationStats
from sim_eval.core.types import ActionSpec, CameraView, FloatArray, Observation, TrainingWindow
from sim_eval.policies.policy import PolicySpec
from sim_eval.policies.spatialvla.auto import SpatialVLAPreTrainedConfig
from sim_eval.policies.spatialvla.configuration_spatialvla import SpatialVLAConfig
from sim_eval.policies.spatialvla.image_processing_llava3d import square_view
from sim_eval.policies.spatialvla.modeling_llava3d import IMAGE_TOKEN, Geometry, SpatialVLAInputs, TensorGroup

CONFIG, PROCESSOR, TOKENIZER = "config.json", "processor.json", "tokenizer.json"
REMEDY = "restore the file or train the checkpoint again"
# The instruction precedes the scene, so that in the causal Llama each scene token depends on it. With the instruction
# after the scene, as in LLaVA, the small network never learnt to follow it (docs/results.md).
TINY_PROMPT = "USER: {instruction}\n<image> ASSISTANT:"
TOKEN_LENGTH = 16  # characters: long enough for "stack the green ", too short for a whole sentence
ACTION = "action"  # the name of the actions in the normalisation statistics
PAD = "<pad>"


def train_tokenizer(sentences: Iterable[str], vocab_size: int = 384, prompt: str = TINY_PROMPT) -> Tokenizer:
    """Trains a byte-level BPE on the project's own instructions, within the prompt.

    It knows every byte, so no instruction is out of its vocabulary. A token may span words (as in SuperBPE, Liu et al.
    2025), so that the same words in another order give other tokens. The order of the sentences does not matter.
    """
    corpus = [text for sentence in sorted(set(sentences)) for text in _split_prompt(prompt, sentence)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD],
        max_token_length=TOKEN_LENGTH,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def _split_prompt(prompt: str, instruction: str) -> tuple[str, str]:
    before, after = prompt.split("<image>")
    return before.replace("{instruction}", instruction), after.replace("{instruction}", instruction)


@dataclass(frozen=True)
class TrainingBatch(TensorGroup):
    """The inputs of the loss.

    Attributes:
        inputs: B observations.
        actions: normalised, float32 [B, H, A].
        valid: bool [B, H], False past the episode's end.
    """

    inputs: SpatialVLAInputs
    actions: Tensor
    valid: Tensor


class SpatialVLAProcessor:
    """Converts between the units of :mod:`sim_eval.core.types` and the network's.

    Args:
        config: the network's configuration.
        spec: cameras (in the order of the views), proprio fields (in the order of the state) and actions.
        stats: normalisation of the proprio fields and of "action".
        tokenizer: for the instructions.
        prompt: contains ``<image>`` and ``{instruction}`` once each.

    Raises:
        SimEvalError: the parts do not fit each other.
    """

    def __init__(
        self,
        config: SpatialVLAConfig,
        spec: PolicySpec,
        stats: NormalizationStats,
        tokenizer: Tokenizer,
        prompt: str = TINY_PROMPT,
    ) -> None:
        if spec.action is None:
            raise SimEvalError("a SpatialVLA policy must say what its actions mean: give its spec an action")
        if not spec.cameras:
            raise SimEvalError("a SpatialVLA policy needs at least one camera")
        if sum(spec.proprio.values()) != config.expert.state_dim:
            raise SimEvalError(
                f"proprio fields {', '.join(spec.proprio)} have {sum(spec.proprio.values())} numbers, "
                f"expert.state_dim is {config.expert.state_dim}: make them equal"
            )
        if spec.action.dim != config.expert.action_dim:
            raise SimEvalError(
                f"actions have {spec.action.dim} dimensions, expert.action_dim is {config.expert.action_dim}: "
                "make them equal"
            )
        for name, length in {**spec.proprio, ACTION: spec.action.dim}.items():
            parts = vars(stats.fields[name]).values() if name in stats.fields else [()]
            if any(len(part) != length for part in parts):
                raise SimEvalError(f"normalisation needs statistics of length {length} for '{name}'")
        if prompt.count("<image>") != 1 or prompt.count("{instruction}") != 1:
            raise SimEvalError(f"prompt must hold <image> and {{instruction}} once each, not {prompt!r}")
        if tokenizer.get_vocab_size() > config.text.vocab_size:
            raise SimEvalError(
                f"the tokenizer has {tokenizer.get_vocab_size()} tokens, text.vocab_size is only "
                f"{config.text.vocab_size}: raise it or train a smaller tokenizer"
            )
        self.config = config
        self.spec = spec
        self.action: ActionSpec = spec.action
        self.stats = stats
        self.tokenizer = tokenizer
        self.prompt = prompt
        # These are repeated for every pixel, because broadcasting over three channels is five times slower.
        mean, std = torch.tensor(OPENAI_CLIP_MEAN), torch.tensor(OPENAI_CLIP_STD)
        self._gain = (1 / (255 * std)).repeat(config.vision.image_size**2)
        self._offset = (mean / std).repeat(config.vision.image_size**2)
        self._tokens = lru_cache(maxsize=4096)(self._tokenize)

    def __call__(self, observations: Sequence[Observation]) -> SpatialVLAInputs:
        """B observations -> inputs on the CPU. One observation's inputs depend on the others in their padding only."""
        views = [[self._view(seen, camera) for camera in self.spec.cameras] for seen in observations]
        rgb = torch.from_numpy(np.stack([[view.rgb for view in row] for row in views]))
        pixels = rgb.flatten(2).to(torch.float32).mul_(self._gain).sub_(self._offset).view(rgb.shape)
        poses = np.stack([[view.camera_to_world for view in row] for row in views])
        workspace = np.array([[seen.workspace.lower, seen.workspace.upper] for seen in observations])
        if self.config.frame == "gripper":
            origin = np.stack([seen.proprio["eef_pos"] for seen in observations])
            poses[..., :3, 3] -= origin[:, None]
            workspace = workspace - origin[:, None]
        input_ids, attention_mask = self._prompts([seen.instruction for seen in observations])
        return SpatialVLAInputs(
            pixel_values=pixels.permute(0, 1, 4, 2, 3),
            geometry=Geometry(
                depths=torch.from_numpy(np.stack([[view.depth for view in row] for row in views])),
                intrinsics=_float32(np.stack([[view.intrinsics for view in row] for row in views])),
                poses=_float32(poses),
                workspace=_float32(workspace),
            ),
            input_ids=input_ids,
            attention_mask=attention_mask,
            state=_float32(np.stack([self._state(seen.proprio) for seen in observations])),
        )

    def training_batch(self, windows: Sequence[TrainingWindow]) -> TrainingBatch:
        """Windows of the configuration's chunk size -> inputs and normalised labels."""
        actions = np.stack([window.actions for window in windows])
        return TrainingBatch(
            self([window.observation for window in windows]),
            _float32(self.stats.normalize(ACTION, actions)),
            torch.from_numpy(np.stack([window.valid for window in windows])),
        )

    def actions(self, chunks: Tensor) -> FloatArray:
        """Normalised chunks [..., A] -> float64 actions in the environment's units, within their bounds."""
        return self.action.clip(self.stats.denormalize(ACTION, chunks.double().cpu().numpy()))

    def to_dict(self) -> dict[str, object]:
        """Everything but the network's configuration and the tokenizer, as JSON."""
        spec = asdict(self.spec)
        del spec["digest"], spec["privileged"], spec["variant"]
        return {**spec, "prompt": self.prompt, "normalization": encode(self.stats)}

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes ``processor.json`` and ``tokenizer.json``, and where there is none, the network's ``config.json``.

        Raises:
            SimEvalError: the folder cannot be written.
        """
        write_text(Path(folder, TOKENIZER), self.tokenizer.to_str(pretty=True))
        write_json(Path(folder, PROCESSOR), self.to_dict())
        if not Path(folder, CONFIG).exists():
            write_json(Path(folder, CONFIG), SpatialVLAPreTrainedConfig(network=self.config.to_dict()).to_diff_dict())

    @classmethod
    def from_pretrained(cls, reference: str | Path, **options: object) -> SpatialVLAProcessor:
        """Reads the processor of a checkpoint; it needs no weights, so its spec has no digest.

        Args:
            reference: a folder, or a repository of the Hugging Face hub.
            options: transformers' for finding files, such as ``revision``.

        Raises:
            SimEvalError: a file is missing, damaged or does not fit the others, or cannot be downloaded.
        """
        folder = Path(reference, str(options.get("subfolder") or ""))
        if not folder.is_dir():
            try:
                folder = Path(cached_files(str(reference), [CONFIG, PROCESSOR, TOKENIZER], **options)[0]).parent
            except Exception as error:  # network, name, permission
                raise SimEvalError(
                    f"'{reference}' is neither a folder nor a repository of a checkpoint ({type(error).__name__})"
                ) from error
        return read_processor(folder, read_network(folder))

    @classmethod
    def from_dict(
        cls, data: Mapping[str, object], config: SpatialVLAConfig, tokenizer: Tokenizer, digest: str
    ) -> SpatialVLAProcessor:
        """Reads what :meth:`to_dict` wrote.

        Args:
            digest: of the weights, for the spec.

        Raises:
            SimEvalError: a field is missing, unknown or invalid, or does not fit the config.
        """
        table = dict(data)
        prompt = decode(str, table.pop("prompt", None), "prompt")
        stats = decode(NormalizationStats, table.pop("normalization", None), "normalization")
        return cls(config, replace(PolicySpec.from_dict(table), digest=digest), stats, tokenizer, prompt)

    def _view(self, seen: Observation, camera: str) -> CameraView:
        if camera not in seen.views:
            raise SimEvalError(f"camera '{camera}' is needed, the observation has {', '.join(seen.views) or 'none'}")
        view = seen.views[camera]
        if view.depth.shape != self.spec.cameras[camera]:
            height, width = view.depth.shape
            wanted = self.spec.cameras[camera]
            raise SimEvalError(f"camera '{camera}' must be {wanted[0]}x{wanted[1]} pixels, not {height}x{width}")
        if (view.depth > FARTHEST).any() and _typical_depth(view.depth) > FARTHEST:
            raise SimEvalError(
                f"camera '{camera}' gives depths of typically {_typical_depth(view.depth):.0f}: metres expected, "
                "these look like millimetres; divide them by 1000"
            )
        return square_view(view, self.config.vision.image_size)

    def _state(self, proprio: Mapping[str, FloatArray]) -> FloatArray:
        if missing := [name for name in self.spec.proprio if name not in proprio]:
            raise SimEvalError(f"proprio {', '.join(missing)} needed, the observation has {', '.join(proprio)}")
        return np.concatenate([self.stats.normalize(name, proprio[name]) for name in self.spec.proprio])

    def _tokenize(self, instruction: str) -> tuple[int, ...]:
        before, after = _split_prompt(self.prompt, instruction)
        # As in LLaVA, the pieces are encoded separately, and only the first begins with the tokenizer's special tokens.
        rest = self.tokenizer.encode(after, add_special_tokens=False)
        return (*self.tokenizer.encode(before).ids, IMAGE_TOKEN, *rest.ids)

    def _prompts(self, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        rows = [self._tokens(instruction) for instruction in instructions]
        length = max(map(len, rows))
        pad = self.tokenizer.token_to_id(PAD) or 0
        ids = torch.tensor([row + (pad,) * (length - len(row)) for row in rows])
        mask = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows])
        return ids, mask


def _typical_depth(depth: NDArray[np.float32]) -> float:
    """The median depth of a grid of pixels [H, W] that have one; 0 if none has.

    The largest depth is left out: it may be the simulator's far plane, hundreds of metres away.
    """
    height, width = depth.shape
    grid = depth[:: max(1, height // 16), :: max(1, width // 16)]
    seen = grid[np.isfinite(grid) & (grid > 0)]
    if seen.size == 0:
        return 0.0
    near = seen[seen < seen.max()]
    return float(np.median(near if near.size else seen))


def load_tokenizer(text: str) -> Tokenizer:
    """The tokenizer in the text of a ``tokenizer.json``.

    Raises:
        SimEvalError: the text is damaged.
    """
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception
        raise SimEvalError(f"not a tokenizer ({error})") from error


@contextmanager
def blamed(file: Path) -> Iterator[None]:
    """Turns any failure to read the file into one line with its name and the remedy."""
    try:
        yield
    except SimEvalError as error:
        if str(error).startswith(str(file)):
            raise
        raise SimEvalError(f"{file}: {error}; {REMEDY}") from error
    except OSError as error:
        raise SimEvalError(f"{file}: {(error.strerror or 'unreadable').lower()}; {REMEDY}") from error
    except SafetensorError as error:
        raise SimEvalError(f"{file}: not whole ({error}); {REMEDY}") from error


def read_network(folder: Path) -> SpatialVLAConfig:
    """The network's configuration in a checkpoint folder."""
    with blamed(folder / CONFIG):
        data = read_json(folder / CONFIG, REMEDY)
        network = data.get("network", data)  # the first checkpoints hold the network's fields only
        if not isinstance(network, dict):
            raise SimEvalError("network: expected a table of fields")
        return SpatialVLAConfig.from_dict(network)


def read_processor(folder: Path, config: SpatialVLAConfig, digest: str = "") -> SpatialVLAProcessor:
    """The processor in a checkpoint folder; ``digest`` is that of the weights, for the spec."""
    with blamed(folder / TOKENIZER):
        tokenizer = load_tokenizer((folder / TOKENIZER).read_text(errors="replace"))
    with blamed(folder / PROCESSOR):
        return SpatialVLAProcessor.from_dict(read_json(folder / PROCESSOR, REMEDY), config, tokenizer, digest)


@when_imported("transformers.models.auto.processing_auto")  # which we do not import: it loads 1,400 modules
def _register(processing_auto: ModuleType) -> None:
    processing_auto.AutoProcessor.register(SpatialVLAPreTrainedConfig, SpatialVLAProcessor, exist_ok=True)


def _float32(values: FloatArray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
