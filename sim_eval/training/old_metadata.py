"""Trainings of versions before 0.2, whose configuration stood in a command line."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sim_eval.configs import DEFAULT_MINUTES, TrainConfig
from sim_eval.core import old_files
from sim_eval.core.decoding import encode
from sim_eval.core.errors import SimEvalError

NAMES = {"draws": "flow_samples", "every": "frame_stride", "overrides": "set"}
RECORDED = ("expert", "seed", "batch_size", "draws", "balance", "every", "optimizer", "overrides")
VALUES = {"null": None, "true": True, "false": False}


def todays(table: Mapping[str, Any]) -> dict[str, Any]:
    """An old ``training.json`` in today's fields.

    Raises:
        SimEvalError: it is damaged.
    """
    try:
        options = _options(str(table.get("command", "")))
        if "data" not in options:  # another program called the training: what it gave stands nowhere but here
            options = {"minutes": max(table["minutes"], 0.01)}
        options.update({name: table[name] for name in RECORDED if name in table})
        kept = {name: value for name, value in table.items() if name not in (*RECORDED, "size", "command")}
        if table["size"] == "published":
            options.setdefault("llava3d", "published")
        else:
            options["size"] = table["size"]
        config = configuration(options)
    except KeyError as error:
        raise SimEvalError(f"missing field '{error.args[0]}'") from error
    return {**kept, "config": encode(config)}


def configuration(options: Mapping[str, Any]) -> TrainConfig:
    """Old options of ``train``, as text or as values, in today's form; those that are gone are left out.

    Raises:
        SimEvalError: an option has an impossible value.
    """
    options = old_files.renamed(options, NAMES)
    fields = TrainConfig.__dataclass_fields__
    values = {name: value for name, value in options.items() if name in fields and value is not None}
    if "balance" in options:
        values["sampling_temperature"] = old_files.temperature(options["balance"])
    try:
        config: TrainConfig = TypeAdapter(TrainConfig).validate_python({**values, "network": {}})
        network = encode(config.base_network())
        for assignment in options.get("set") or ():
            name, _, text = (part.strip() for part in str(assignment).partition("="))
            *parts, field = name.replace("expert.horizon", "expert.chunk_size").split(".")
            part = network[parts[0]] if parts else network
            if field not in part:
                raise KeyError(name)
            part[field] = VALUES.get(text, text)
        if config.steps is None and config.minutes is None:
            values["minutes"] = DEFAULT_MINUTES
        return TypeAdapter(TrainConfig).validate_python({**values, "network": network})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise SimEvalError(f"'{name}': {first['msg']}, not {str(first['input'])[:80]!r}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise SimEvalError(f"an option is damaged ({error})") from error


def _options(command: str) -> dict[str, Any]:
    """Option -> its words; one word is no list, unless the option takes several."""
    options: dict[str, list[str]] = {}
    last: list[str] = []
    try:
        for word in shlex.split(command):
            if word.startswith("--"):
                name, equals, value = word[2:].partition("=")
                last = options[name.replace("-", "_")] = [value] if equals else []
            else:
                last.append(word)
    except ValueError:  # quotation marks without an end
        return {}
    several = ("data", "cameras", "freeze", "lora", "set")
    return {name: words if name in several else " ".join(words) or True for name, words in options.items()}
