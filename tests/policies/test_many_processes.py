"""Two processes take the steps that one process takes with both shares, whether they copy or divide the network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests/policies/scripts/train_steps.py"
# Of which the loss does not depend: a key's shift moves all of a softmax's scores alike. AdamW makes steps of rounding.
FREE = "k_proj.bias"


def run(out: Path, expert: str, kind: str, processes: int) -> dict[str, object]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(SCRIPT), str(out), expert, kind]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, object] = torch.load(out, weights_only=True)
    return found


@pytest.mark.parametrize(
    ("expert", "kind"),
    [
        ("deep_llama", "shard"),
        pytest.param("late_gemma", "shard", marks=pytest.mark.slow),
        pytest.param("deep_llama", "copy", marks=pytest.mark.slow),  # test_train_at_size.py has one by command line
    ],
)
def test_two_processes_equal_one(expert: str, kind: str, tmp_path: Path) -> None:
    one, two = run(tmp_path / "one", expert, kind, 1), run(tmp_path / "two", expert, kind, 2)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["divided"] == (kind == "shard")
    torch.testing.assert_close(torch.tensor(two["curve"]), torch.tensor(one["curve"]), atol=1e-5, rtol=1e-5)
    expected, found = one["weights"], two["weights"]
    assert isinstance(expected, dict)
    assert isinstance(found, dict)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert isinstance(tensor, Tensor)
        if not name.endswith(FREE):
            torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-4, msg=name)
