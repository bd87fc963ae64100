"""The programs of sim_eval, and how the user calls them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

SCRIPT = "sim-eval"


@dataclass(frozen=True)
class Program:
    """A module of sim_eval that is a command line.

    Attributes:
        name: of the module, and of the subcommand.
        group: the heading under which it is listed.
        summary: what it does, in a line.
    """

    name: str
    group: str
    summary: str


PROGRAMS = (
    Program("rollout", "score a policy", "success rate with its interval, and videos"),
    Program("leaderboard", "score a policy", "rank finished runs"),
    Program("video", "score a policy", "make videos of a finished run, also in a grid"),
    Program("compare", "score a policy", "compare runs episode by episode"),
    Program("collect", "train a policy", "collect demonstrations with a scripted demonstrator or a policy"),
    Program("train", "train a policy", "train an action expert on demonstrations"),
    Program("results", "train a policy", "report trainings: tables and figures of their test runs"),
    Program("verify", "check", "replay a run and compare it with the recording"),
    Program("doctor", "check", "examine machine, cameras, demonstrations and policy before a score"),
    Program("serve", "connect", "serve a policy by openpi's websocket protocol"),
)


def command(name: str) -> str:
    """How the user calls a program of ours: ``sim-eval NAME`` or ``python -m sim_eval.NAME``, as for this process."""
    called = Path(sys.argv[0])
    if called.stem == SCRIPT:
        return f"{SCRIPT} {name}".rstrip()
    if called.parts[-2:] == ("sim_eval", "__main__.py"):
        return f"python -m sim_eval {name}".rstrip()
    return f"python -m sim_eval.{name}".rstrip(".")
