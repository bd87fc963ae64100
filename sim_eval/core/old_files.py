"""Reads files from before 0.2: the old names of fields become today's.

Each function takes a table of a file, or a part of it, and returns it with today's names; a table that has them already
comes back as it is.
"""

from __future__ import annotations

import json
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


def renamed(table: Any, names: Mapping[str, str]) -> Any:
    """The table with new names of fields. Anything else comes back as it is, for decoding to refuse."""
    return {names.get(name, name): value for name, value in table.items()} if isinstance(table, Mapping) else table


def render_config(table: Any) -> Any:
    """How an episode was rendered."""
    return renamed(table, {"render": "mode"})


PROTOCOL = {
    "replan": "n_action_steps",
    "settle_steps": "post_success_steps",
    "telling": "instruction_condition",
    "simulator": "render",
}


def protocol(table: Any) -> Any:
    """``protocol`` of ``run.json``."""
    now = renamed(table, PROTOCOL)
    if isinstance(now, Mapping):
        condition = now.get("instruction_condition", "correct")
        condition = CONDITIONS.get(str(condition), condition)
        now = {**now, "render": render_config(now.get("render", {})), "instruction_condition": condition}
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


def run(table: Table) -> Table:
    """``run.json``; before 0.2 it held a command line in place of ``config``."""
    now = {**table, "protocol": protocol(table.get("protocol"))}
    return now if "config" in table else {**now, "config": rollout_config(table.get("command"))}


NUMBERS = {"episodes", "first", "n_action_steps", "euler_steps", "threads", "workers", "batch", "wait"}
NUMBERS |= {"watchdog", "retries"}
FLAGS = ("json", "compile", "hide_goal", "deterministic")


def rollout_config(command: object) -> Table | None:
    """The options of a command line that ``sim_eval.rollout`` saved before 0.2; None: it is of another program."""
    program = ["python", "-m", "sim_eval.rollout"]
    if not isinstance(command, list) or command[: len(program)] != program:
        return None
    options: Table = {"render": None, "episodes": "20", "video": "all", "workers": "1"}  # the defaults of that time
    words = iter(map(str, command[len(program) :]))
    for word in words:
        name = word.removeprefix("--").replace("-", "_")
        options[name] = True if name in FLAGS else next(words, "")
    options = protocol(options)
    for name in NUMBERS & options.keys():
        with suppress(ValueError):  # decoding refuses what is no number
            options[name] = json.loads(options[name])
    return options


def episode(table: Any) -> Any:
    """A line of ``episodes.jsonl``."""
    return renamed(table, {"replans": "policy_calls"})


def network(table: Mapping[str, Any]) -> Table:
    """The network's configuration in ``config.json``."""
    expert = table.get("expert")
    return {**table, "expert": renamed(expert, {"horizon": "chunk_size"})} if isinstance(expert, Mapping) else {**table}


def training(table: Mapping[str, Any]) -> Table:
    """``training.json``."""
    return {**renamed(table, {"draws": "flow_samples", "every": "frame_stride"})}
