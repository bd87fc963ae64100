"""Reads what versions before 0.2 wrote: their names of fields become today's.

Each function takes a table of a file, or of a part of it, and returns it in today's words; one that is in them already
comes back as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sim_eval.core.errors import SimEvalError

Table = dict[str, Any]

CONDITIONS = {"right": "correct", "wrong": "counterfactual"}


def temperature(balance: float | str) -> float:
    """The sampling temperature of an old ``balance``, with which a task of n windows had the share n ** (1 - balance).

    Raises:
        SimEvalError: it is no number between 0 and 1.
    """
    with suppress(ValueError):
        if 0 <= (number := float(balance)) <= 1:
            return math.inf if number == 1 else 1 / (1 - number)
    raise SimEvalError(f"balance must lie between 0 and 1, not {balance}")


def renamed(table: Mapping[str, Any], names: Mapping[str, str]) -> Table:
    return {names.get(name, name): value for name, value in table.items()}


def render_config(table: Mapping[str, Any]) -> Table:
    """How an episode was rendered."""
    return renamed(table, {"render": "mode"})


def protocol(table: Mapping[str, Any]) -> Table:
    """``protocol`` of ``run.json``."""
    names = {
        "replan": "n_action_steps",
        "settle_steps": "post_success_steps",
        "telling": "instruction_condition",
        "simulator": "render",
    }
    now = renamed(table, names)
    now["render"] = render_config(now["render"])
    if "instruction_condition" in now:
        now["instruction_condition"] = CONDITIONS.get(now["instruction_condition"], now["instruction_condition"])
    return now


# What the action's numbers meant was one sentence.
CONTROLLERS: Mapping[str, Mapping[str, object]] = {
    "OSC_POSE delta in the base frame, 1 = 0.05 m or 0.5 rad; gripper -1 opens, 1 closes": {
        "control_mode": "ee_delta_pose",
        "frame": "base",
        "metres_per_unit": 0.05,
        "radians_per_unit": 0.5,
        "rotation": "axis_angle",
        "gripper": "closes",
    },
    "delta of the hand's mocap target in the world frame, 1 = 0.01 m; gripper -1 opens, 1 closes": {
        "control_mode": "ee_target_delta_position",
        "frame": "world",
        "metres_per_unit": 0.01,
        "gripper": "closes",
    },
}


def action(table: object) -> object:
    """An ``ActionSpec`` in a checkpoint, a demonstration or a file of keys; an unknown sentence is its description."""
    if not isinstance(table, Mapping) or "controller" not in table:
        return table
    sentence = table["controller"]
    meaning = CONTROLLERS.get(str(sentence), {"control_mode": "other", "description": sentence})
    return {**{name: value for name, value in table.items() if name != "controller"}, **meaning}


def episode(table: Mapping[str, Any]) -> Table:
    """A line of ``episodes.jsonl``."""
    return renamed(table, {"replans": "policy_calls"})


def network(table: Mapping[str, Any]) -> Table:
    """The network's configuration in ``config.json``."""
    expert = table.get("expert")
    return {**table, "expert": renamed(expert, {"horizon": "chunk_size"})} if isinstance(expert, Mapping) else {**table}


def training(table: Mapping[str, Any]) -> Table:
    """``training.json``."""
    return renamed(table, {"draws": "flow_samples", "every": "frame_stride"})
