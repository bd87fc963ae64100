"""How a server that is not sim_eval's own is asked: a TOML or JSON file that says what it needs and what it means.

``openpi_libero.toml`` beside this module is one, and explains the fields; its name alone is enough for ``--keys``.
Our keys are those of :mod:`sim_eval.policies.remote.messages`; after ``|`` stands one of :data:`CHANGES`.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import CameraView, EpisodeKey, FloatArray, Observation, WorkspaceBox
from sim_eval.policies.policy import PolicyRequest, PolicySpec
from sim_eval.policies.remote.messages import from_request
from sim_eval.policies.remote.wire import Message

Array: TypeAlias = NDArray[Any]
NEEDED = ("name", "observation", "cameras", "proprio", "action")
OPTIONAL = ("robot", "answer")
SHIPPED = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}


def axis_angle(quaternion: FloatArray) -> FloatArray:
    """Rotation vector [3] of a quaternion [4] (x, y, z, w), of the length 2 acos(w) in [0, 2 pi], as LIBERO has it."""
    x, y, z, w = quaternion
    sine = float(np.linalg.norm([x, y, z]))
    return np.array([x, y, z]) * (2 * np.arctan2(sine, w) / sine if sine > 1e-8 else 0.0)


CHANGES: Mapping[str, Callable[[Array], Array]] = {
    "mirror": lambda picture: picture[:, ::-1],
    "rotate_180": lambda picture: picture[::-1, ::-1],
    "channels_first": lambda picture: np.moveaxis(picture, -1, 0),
    "millimetres": lambda depth: np.clip(np.round(depth * 1000), 0, 65535).astype(np.uint16),
    "axis_angle": axis_angle,
}


@dataclass(frozen=True)
class KeyMapping:
    """How a foreign server is asked.

    Attributes:
        spec: what it needs and what its actions mean; its digest is the file's.
        observation: its key -> ours, a list of ours, or a table of the same kind.
        answer: the entry of its answer that holds the actions.
    """

    spec: PolicySpec
    observation: Mapping[str, object]
    answer: str

    def message(self, request: PolicyRequest) -> Message:
        """The question in the server's words.

        Raises:
            SimEvalError: the file names a key that is not ours, or changes it in a way that it cannot be changed.
        """
        return _table(self.observation, from_request(request))

    def served_by(self, metadata: bytes) -> PolicySpec:
        """The spec for a server that introduces itself so: nothing else tells two of its policies apart."""
        return replace(self.spec, digest=hashlib.sha256(self.spec.digest.encode() + metadata).hexdigest())


def read_keys(file: Path) -> KeyMapping:
    """Reads a file of keys, and tries it on an empty observation.

    Args:
        file: of the user's, or the name of one in :data:`SHIPPED`.

    Raises:
        SimEvalError: it cannot be read, lacks something, or says something that cannot be.
    """
    try:
        text = (file if file.is_file() else SHIPPED.get(str(file), file)).read_text()
        data = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
        if not isinstance(data, dict):
            raise ValueError("not a table")
    except OSError as error:
        raise SimEvalError(
            f"--keys {file} cannot be read ({error.strerror}); known by name: {', '.join(SHIPPED)}"
        ) from error
    except ValueError as error:
        raise SimEvalError(f"--keys {file} is neither TOML nor JSON ({error})") from error
    try:
        return _mapping(data)
    except SimEvalError as error:
        raise SimEvalError(f"--keys {file}: {error}") from error


def _mapping(data: dict[str, Any]) -> KeyMapping:
    if missing := [name for name in NEEDED if data.get(name) is None]:
        raise SimEvalError(
            f"it lacks {', '.join(missing)}: a server that is not sim_eval's own must be told what it needs and what "
            "its actions mean"
        )
    if unknown := [name for name in data if name not in (*NEEDED, *OPTIONAL)]:
        raise SimEvalError(f"unknown field '{unknown[0]}': the fields are {', '.join((*NEEDED, *OPTIONAL))}")
    digest = hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()
    spec = PolicySpec.from_dict({"robot": None, "tasks": [], **data, "digest": digest})
    if not isinstance(data["observation"], dict):
        raise SimEvalError("observation must be a table: the server's key = ours")
    mapping = KeyMapping(spec, data["observation"], str(data.get("answer", "actions")))
    mapping.message(_blank(spec))
    return mapping


def _blank(spec: PolicySpec) -> PolicyRequest:
    """A question about an empty observation."""
    views = {
        name: CameraView(np.zeros((*size, 3), np.uint8), np.zeros(size, np.float32), np.eye(3), np.eye(4))
        for name, size in spec.cameras.items()
    }
    proprio = {name: np.zeros(length) for name, length in spec.proprio.items()}
    observation = Observation(views, proprio, "", WorkspaceBox((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    assert spec.action is not None
    return PolicyRequest(observation, EpisodeKey(spec.name, "test", 0), 0, spec.action)


def _table(keys: Mapping[str, object], ours: Message) -> Message:
    return {theirs: _entry(theirs, source, ours) for theirs, source in keys.items()}


def _entry(theirs: str, source: object, ours: Message) -> object:
    if isinstance(source, Mapping):
        return _table(source, ours)
    if not isinstance(source, list):
        return _source(theirs, source, ours)
    parts = [_source(theirs, part, ours) for part in source]
    if not parts or not all(isinstance(part, np.ndarray) and part.ndim == 1 for part in parts):
        raise SimEvalError(f"'{theirs}' joins {source}: only vectors can be joined")
    return np.concatenate(parts)


def _source(theirs: str, source: object, ours: Message) -> Any:
    name, *changes = (word.strip() for word in str(source).split("|"))
    if name not in ours:
        raise SimEvalError(f"'{theirs}' reads '{name}', which is none of {', '.join(ours)}")
    value = ours[name]
    for change in changes:
        if change not in CHANGES:
            raise SimEvalError(f"'{theirs}' is changed by '{change}', which is none of {', '.join(CHANGES)}")
        try:
            value = CHANGES[change](value)  # type: ignore[arg-type]
        except (TypeError, ValueError, IndexError) as error:
            raise SimEvalError(f"'{theirs}': '{name}' cannot be changed by {change} ({error})") from error
    return value
