"""Observation keys for third-party servers: a TOML or JSON file says what such a server needs and how it is asked.

``rollout --keys template`` prints such a file for a task, made by :func:`template`.
``openpi_libero.toml`` beside this module is an example and explains the fields; ``--keys openpi_libero`` is enough to
use it. Our keys are those of :mod:`sim_eval.policies.remote.messages`; ``|`` and one of :data:`CHANGES` may follow.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sim_eval.core import old_files
from sim_eval.core.decoding import decode, encode
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import (
    ActionSpec,
    CameraView,
    EnvironmentSpec,
    EpisodeKey,
    FloatArray,
    Observation,
    WorkspaceBox,
)
from sim_eval.policies.policy import PolicyRequest, PolicySpec, Size
from sim_eval.policies.remote.messages import from_request
from sim_eval.policies.remote.wire import Message

Array: TypeAlias = NDArray[Any]
SHIPPED = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}


def axis_angle(quaternion: FloatArray) -> FloatArray:
    """Rotation vector [3] of a quaternion [4] (x, y, z, w); its length is 2 acos(w) in [0, 2 pi], as in LIBERO."""
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
    """The fields of a file of keys.

    Attributes:
        name: the policy's name in tables.
        observation: the server's key -> our key, a list of ours that are joined to one vector, or a nested table.
        cameras, proprio, action, robot: what the server needs, as in :class:`PolicySpec`.
        answer: the entry of the server's answer that holds the actions [steps, action dim].
    """

    name: str
    observation: Mapping[str, object]
    cameras: Mapping[str, tuple[Size, Size]]
    proprio: Mapping[str, Size]
    action: ActionSpec
    robot: str | None = None
    answer: str = "actions"

    def message(self, request: PolicyRequest) -> Message:
        """The request in the server's words.

        Raises:
            SimEvalError: ``observation`` names a key that is not ours, or a change that is impossible.
        """
        return _table(self.observation, from_request(request))

    def spec(self, metadata: bytes) -> PolicySpec:
        """The spec of the server's policy.

        Its digest is that of these fields and of the metadata that the server sends; nothing else distinguishes two
        policies of a third-party server.
        """
        digest = hashlib.sha256(json.dumps(encode(self), sort_keys=True).encode() + metadata).hexdigest()
        return PolicySpec(self.name, self.robot, self.cameras, self.proprio, self.action, digest=digest)


def read_keys(file: Path) -> KeyMapping:
    """Reads a file of keys, and tries it on an empty observation.

    Args:
        file: the user's file, or the name of one of :data:`SHIPPED`.

    Raises:
        SimEvalError: the file cannot be read, or a field is missing, unknown or invalid; names it.
    """
    where = f"--keys {file}"
    try:
        text = (file if file.is_file() else SHIPPED.get(str(file), file)).read_text()
        data = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise SimEvalError(
            f"{where} cannot be read ({error.strerror}); these names are known: {', '.join(SHIPPED)}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise SimEvalError(f"{where} is neither TOML nor JSON ({error})") from error
    if isinstance(data, dict) and "action" in data:
        data["action"] = old_files.action(data["action"])
    mapping = decode(KeyMapping, data, where)
    try:
        mapping.message(_blank(mapping))
    except SimEvalError as error:
        raise SimEvalError(f"{where}: {error}") from error
    return mapping


def template(environment: EnvironmentSpec, task: str) -> str:
    """A file of keys to fill in, which asks for everything that a task's environment has.

    Args:
        environment: of the task.
        task: its name, for the comments.
    """

    def entries(values: Mapping[str, object]) -> str:
        given = {name: value for name, value in values.items() if value not in (None, "")}
        return "\n".join(f"{_toml_key(name)} = {json.dumps(encode(value))}" for name, value in given.items())

    pictures = {f"observation/{name}": f"views/{name}/rgb" for name in environment.cameras}
    state = {"observation/state": [f"proprio/{name}" for name in environment.proprio]}
    return f"""\
# What a server of openpi's protocol needs to act in {task}. Change what differs from your server, delete what it does
# not need, and use the file: rollout --policy ws://HOST:PORT --task {task} --keys FILE

name = "my_policy"                    # the policy's name in tables
robot = {json.dumps(environment.robot)}                       # delete it if any robot will do
answer = "actions"                    # the entry of the server's answer with the actions [steps, action dim]

# The server's key = our key. A list is joined to one vector, a table is nested. Ours are views/CAMERA/rgb, .../depth,
# .../intrinsics and .../camera_to_world, proprio/FIELD, workspace and prompt.
# After | a conversion may follow: {", ".join(CHANGES)}.
[observation]
{entries({**pictures, **state, "prompt": "prompt"})}

[cameras]                             # height and width in pixels: the pictures are rendered in this size
{entries(environment.cameras)}

[proprio]                             # length of every field that is sent
{entries(environment.proprio)}

[action]                              # what the server's actions mean; a difference from the task's is refused
{entries(encode(environment.action))}
"""


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _blank(spec: KeyMapping) -> PolicyRequest:
    """A request with an empty observation."""
    views = {
        name: CameraView(np.zeros((*size, 3), np.uint8), np.zeros(size, np.float32), np.eye(3), np.eye(4))
        for name, size in spec.cameras.items()
    }
    proprio = {name: np.zeros(length) for name, length in spec.proprio.items()}
    observation = Observation(views, proprio, "", WorkspaceBox((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
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
