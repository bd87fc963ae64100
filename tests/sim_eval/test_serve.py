"""The serve command, and the rollout command on what it serves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from sim_eval.configs import RolloutConfig
from sim_eval.console import run
from sim_eval.rollout import PROGRAM, main
from sim_eval.serve import PROGRAM as SERVE_PROGRAM
from sim_eval.serve import ServeArguments
from sim_eval.serve import main as serve

pytest.importorskip("websockets")
ROOT = Path(__file__).parents[2]


@contextmanager
def served(*arguments: str) -> Iterator[str]:
    """A server in a process of its own, stopped by Ctrl-C; its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sim_eval.serve", "--port", "0", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("serving "), line
        yield line.split()[-1]
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")


def episodes(folder: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_a_served_checkpoint_scores_bit_for_bit_as_the_local_one(tmp_path: Path) -> None:
    local = RolloutConfig("deep_llama", "robosuite/Lift", 2, video="none", out=tmp_path / "local")
    assert main(local) == 0
    with served("--policy", "deep_llama") as url:
        assert url.startswith("ws://127.0.0.1:")
        assert main(RolloutConfig(url, "robosuite/Lift", 2, video="none", out=tmp_path / "remote")) == 0
    assert episodes(tmp_path / "remote") == episodes(tmp_path / "local")
    assert [line["error"] for line in episodes(tmp_path / "remote")] == [None, None]
    for file in sorted((tmp_path / "local" / "trajectories").iterdir()):
        with h5py.File(file) as here, h5py.File(tmp_path / "remote" / "trajectories" / file.name) as there:
            for name in ("actions", "states", "seen"):
                assert np.array_equal(here[name][()], there[name][()])
    runs = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("local", "remote")]
    assert runs[0]["policy"] == runs[1]["policy"]  # so resume takes the one for the other


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy", "genius"], "unknown policy 'genius'"),
        (["--policy", "zero", "--port", "-1"], "--port: input should be greater than or equal to 0"),
        (["--policy", "zero", "--port", "70000"], "cannot listen on 127.0.0.1:70000"),
        (["--policy", "zero", "--host", "nowhere.invalid"], "cannot listen on nowhere.invalid:8000"),
        (["--policy", "zero", "--euler-steps", "2"], "policy 'zero' has no network: leave --euler-steps out"),
        ([], "--policy"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["serve", *arguments])
    with pytest.raises(SystemExit) as stop:
        run(serve, ServeArguments, SERVE_PROGRAM)
    assert stop.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy", "zero", "--keys", "keys.toml"], "policy 'zero' is not a server: leave --keys out"),
        (["--policy", "ws://127.0.0.1:9", "--keys", "keys.toml"], "--keys keys.toml cannot be read"),
        (["--policy", "ws://127.0.0.1:9", "--weights", "int8"], "is run by its server: leave --weights out"),
        (["--policy", "ws://"], "ws:// is no address of a server: write ws://host:port"),
    ],
)
def test_a_rollout_refuses_what_no_server_takes_in_one_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rollout", *arguments])
    with pytest.raises(SystemExit) as stop:
        run(main, RolloutConfig, PROGRAM)
    assert stop.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert words in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("program", "policy"), [("serve", "zero"), ("rollout", "ws://127.0.0.1:9")])
def test_without_the_extra_it_is_named(
    program: str, policy: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("client", "server"):
        monkeypatch.delitem(sys.modules, f"sim_eval.policies.remote.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "websockets.exceptions", None)
    monkeypatch.setattr(sys, "argv", [program, "--policy", policy])
    with pytest.raises(SystemExit):
        run(*((serve, ServeArguments, program) if program == "serve" else (main, RolloutConfig, program)))
    (line,) = capfd.readouterr().err.splitlines()
    assert line == "error: this needs websockets, which is missing: pip install 'sim_eval[serve]'"
