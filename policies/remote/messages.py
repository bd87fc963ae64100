"""The messages of sim_eval's own server, as flat tables; units and frames are those of :mod:`sim_eval.core.types`.

Metadata, once per connection: ``sim_eval`` {``protocol``, ``policy``: the policy's spec}.

Request: ``views/<camera>/rgb``, ``.../depth``, ``.../intrinsics``, ``.../camera_to_world``, ``proprio/<field>``,
``workspace`` [2, 3] (lower, upper), ``prompt``, ``episode`` {task, split, index}, ``policy_call``, ``action`` (the
environment's :class:`ActionSpec`; optional if the policy's spec has one) and ``privileged/<field>``.

Answer: ``actions`` [steps, action dim] and ``server_timing`` {infer_ms}; if the policy gives a disturbance, also
``disturbance`` [action dim] and ``disturbed_share``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sim_eval.core.decoding import decode
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import ActionChunk, ActionSpec, CameraView, EpisodeKey, Observation, WorkspaceBox
from sim_eval.policies.policy import PolicyRequest, PolicySpec
from sim_eval.policies.remote.wire import Message

PROTOCOL = 2
Value = TypeVar("Value")
ANY = -1  # of a shape: any length


def to_metadata(spec: PolicySpec) -> Message:
    return {"sim_eval": {"protocol": PROTOCOL, "policy": asdict(spec)}}


def from_metadata(metadata: Mapping[str, object]) -> PolicySpec | None:
    """The served policy's spec; None: the server is not sim_eval's own.

    Raises:
        SimEvalError: the server speaks another version of the protocol, or the spec is damaged.
    """
    if "sim_eval" not in metadata:
        return None
    table = _get(metadata, "sim_eval", dict)
    if (version := _get(table, "protocol", int)) != PROTOCOL:
        raise SimEvalError(
            f"it speaks version {version} of sim_eval's messages, this is {PROTOCOL}: install the same sim_eval on "
            "both sides"
        )
    return PolicySpec.from_dict(_get(table, "policy", dict))


def from_request(request: PolicyRequest) -> Message:
    """The request as a message."""
    seen, box = request.observation, request.observation.workspace
    return {
        **{f"views/{name}/{part}": array for name, view in seen.views.items() for part, array in vars(view).items()},
        **{f"proprio/{name}": vector for name, vector in seen.proprio.items()},
        "workspace": np.array([box.lower, box.upper]),
        "prompt": seen.instruction,
        "episode": asdict(request.key),
        "policy_call": request.policy_call,
        "action": asdict(request.action),
        **{f"privileged/{name}": array for name, array in (request.privileged or {}).items()},
    }


def to_request(message: Message, spec: PolicySpec) -> PolicyRequest:
    """Reads the output of :func:`from_request`, or another client's message of that layout.

    Raises:
        SimEvalError: an entry is missing, has a wrong type or shape, or does not fit the policy's spec; names it.
    """
    views = {name: _view(message, name) for name in _names(message, "views/", "/rgb")}
    for name, size in spec.cameras.items():
        _array(message, f"views/{name}/rgb", np.uint8, *size, 3)
    proprio = {name: _array(message, f"proprio/{name}", np.float64, ANY) for name in _names(message, "proprio/")}
    for name, length in {"eef_pos": 3, **spec.proprio}.items():
        _array(message, f"proprio/{name}", np.float64, length)
    lower, upper = _array(message, "workspace", np.float64, 2, 3)
    action, privileged = spec.action, _names(message, "privileged/")
    if "action" in message or action is None:
        action = decode(ActionSpec, _get(message, "action", dict), "'action'")
    return PolicyRequest(
        observation=Observation(
            views, proprio, _get(message, "prompt", str), WorkspaceBox(tuple(lower.tolist()), tuple(upper.tolist()))
        ),
        key=decode(EpisodeKey, _get(message, "episode", dict), "'episode'"),
        policy_call=_get(message, "policy_call", int),
        action=action,
        privileged={name: _get(message, f"privileged/{name}", np.ndarray) for name in privileged} or None,
    )


def from_chunk(chunk: ActionChunk, milliseconds: float) -> Message:
    """The chunk as a message, with the time that it took."""
    answer: Message = {
        "actions": np.asarray(chunk.actions, np.float64),
        "server_timing": {"infer_ms": milliseconds},
    }
    if chunk.disturbance is not None:
        answer["disturbance"] = np.asarray(chunk.disturbance, np.float64)
        answer["disturbed_share"] = float(chunk.disturbed_share)
    return answer


def to_chunk(answer: Message, name: str = "actions") -> ActionChunk:
    """Reads the output of :func:`from_chunk`, or another server's answer.

    Args:
        name: the entry with the actions [steps, action dim].

    Raises:
        SimEvalError: an entry is missing or has a wrong type, shape or value; names it.
    """
    actions = _array(answer, name, np.float64, ANY, ANY)
    if "disturbance" not in answer:
        return ActionChunk(actions)
    share = _get(answer, "disturbed_share", float)
    if not 0 <= share <= 1:
        raise SimEvalError(f"'disturbed_share' must be between 0 and 1, not {share}")
    return ActionChunk(actions, _array(answer, "disturbance", np.float64, ANY), share)


def _names(message: Message, prefix: str, suffix: str = "") -> list[str]:
    return [
        key[len(prefix) : len(key) - len(suffix)]
        for key in message
        if key.startswith(prefix) and key.endswith(suffix) and len(key) > len(prefix) + len(suffix)
    ]


def _view(message: Message, name: str) -> CameraView:
    rgb = _array(message, f"views/{name}/rgb", np.uint8, ANY, ANY, 3)
    return CameraView(
        rgb=rgb,
        depth=_array(message, f"views/{name}/depth", np.float32, *rgb.shape[:2]),
        intrinsics=_array(message, f"views/{name}/intrinsics", np.float64, 3, 3),
        camera_to_world=_array(message, f"views/{name}/camera_to_world", np.float64, 4, 4),
    )


def _array(message: Message, name: str, dtype: type[np.generic], *shape: int) -> NDArray[Any]:
    """The array of this name and shape, converted to dtype; a conversion may lose float precision, but no more."""
    value = _get(message, name, np.ndarray)
    fits = len(value.shape) == len(shape) and all(
        want in (ANY, have) for want, have in zip(shape, value.shape, strict=True)
    )
    if not fits or not np.can_cast(value.dtype, dtype, "safe" if dtype is np.uint8 else "same_kind"):
        wanted = ", ".join("any" if length == ANY else str(length) for length in shape)
        raise SimEvalError(f"'{name}' must be {np.dtype(dtype)} [{wanted}], not {value.dtype} {list(value.shape)}")
    return value.astype(dtype, copy=False)


def _get(message: Mapping[str, object], name: str, kind: type[Value]) -> Value:
    if name not in message:
        raise SimEvalError(f"the message lacks '{name}'; it has {', '.join(message)[:500] or 'nothing'}")
    value = message[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise SimEvalError(f"'{name}' must be of type {kind.__name__}, not {type(value).__name__}")
    return value
