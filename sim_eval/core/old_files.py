"""Reads files from before 0.2: the old names of fields become today's.

Each function takes a table of a file, or a part of it, and returns it with today's names; a table that has them already
comes back as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

Table = dict[str, Any]

CONDITIONS = {"right": "correct", "wrong": "counterfactual"}


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
    options: Table = {"render": None}
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
