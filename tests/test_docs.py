"""The examples of docs/extending do what their pages say, as packages that somebody installed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sim_eval.policies.remote.keys import read_keys

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "extending"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (PAGES / page).read_text(), flags=re.S | re.M)


def install(page: str, folder: Path) -> None:
    """What pip leaves of the page's package: its module and a dist-info."""
    (points,), (code,) = blocks(page, "toml"), blocks(page, "python")
    groups = tomllib.loads(points)["project"]["entry-points"]
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in each.items())
        for group, each in groups.items()
    ]
    (value,) = [value for each in groups.values() for value in each.values()]
    module = value.partition(":")[0]
    assert f"`{module}.py`" in (PAGES / page).read_text()
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(lines))


def roll(words: list[str], folder: Path) -> list[dict[str, object]]:
    """Runs the page's command with these packages; the episodes' lines."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{folder}", "OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}
    command = [sys.executable, *words, "--out", str(folder / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (folder / "run" / "episodes.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("page", ["policy.md", "task.md", "simulator.md"])
def test_each_example_runs(page: str, tmp_path: Path) -> None:
    install(page, tmp_path)
    (command,) = blocks(page, "sh")
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "sim_eval.rollout"]
    episodes = roll(words[1:], tmp_path)
    assert [episode["error"] for episode in episodes] == [None, None]


def test_the_policy_solves_the_task_from_what_it_sees(tmp_path: Path) -> None:
    install("policy.md", tmp_path)
    install("task.md", tmp_path)
    words = [
        "-m",
        "sim_eval.rollout",
        "--policy",
        "seeker:0.5",
        "--task",
        "acme/Reach",
        "--episodes",
        "3",
        "--video",
        "none",
    ]
    assert [episode["success"] for episode in roll(words, tmp_path)] == [True] * 3


def test_the_key_file_is_read(tmp_path: Path) -> None:
    (text,) = blocks("server.md", "toml")
    (tmp_path / "keys.toml").write_text(text)
    assert read_keys(tmp_path / "keys.toml").cameras == {"agentview": (224, 224), "wrist": (224, 224)}
