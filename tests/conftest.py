"""One thread for each process: tests run in several processes, and some start more of them."""

import os

import pytest

# Read when torch and Mesa are loaded, which is later than here.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("LP_NUM_THREADS", "0")


@pytest.fixture(autouse=True)
def _one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """``--workers auto`` is one in this process, whatever the machine: a test that wants more says so."""
    monkeypatch.setattr("sim_eval.evaluation.workers.available_cores", lambda: 1)
