"""Ray actors are workers like any other."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import closing
from pathlib import Path

import pytest
from faulty_workers import FaultyJob, alive, lines, play_alone, play_in_workers, trajectories

from sim_eval.configs import RolloutConfig
from sim_eval.core.errors import SimEvalError
from sim_eval.rollout import main


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is an extra: pip install 'sim_eval[ray]'")
def test_actors_write_what_one_process_writes_whoever_dies(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    from sim_eval.evaluation.ray_workers import Cluster

    (tmp_path / "notes").mkdir()
    play_alone(tmp_path / "alone")
    job = FaultyJob(tmp_path / "run", tmp_path / "notes", faults={1: ("kill", 1), 4: ("hang", 1)})
    with closing(Cluster(None, 2)) as cluster:
        play_in_workers(job, watchdog=2.0, start=cluster)
    assert lines(job.run) == lines(tmp_path / "alone")
    assert trajectories(job.run) == trajectories(tmp_path / "alone")
    told = capfd.readouterr().err
    assert "fake/Plane/test/00001: its actor died; try 1, tried again\n" in told
    assert "fake/Plane/test/00004: its worker hung: no control step in 2 s; try 1, tried again\n" in told
    assert len(job.workers) >= 3
    assert not any(alive(worker) for worker in job.workers)
    with pytest.raises(SimEvalError, match=r"no Ray at 127\.0\.0\.1:1 .*check --ray-address"):
        Cluster("127.0.0.1:1", 2)


def test_without_ray_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "sim_eval.evaluation.ray_workers", raising=False)
    with pytest.raises(SimEvalError, match=r"--backend ray needs Ray: pip install 'sim_eval\[ray\]'"):
        main(RolloutConfig(policy="zero", workers=2, backend="ray", out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
