"""Tasks and policies of other packages: found by name, loaded when asked for, never in place of ours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import ActionSpec, EpisodeKey
from sim_eval.envs.tasks import get_task, task_names
from sim_eval.policies.policy import InferenceConfig, PolicyRequest
from sim_eval.policies.registry import load_policy

TASK = """
from sim_eval.core.types import Task, WorkspaceBox
PUSH = Task("acme/Push", (("push the block",),), 10, WorkspaceBox((0, 0, 0), (1, 1, 1)), ("push",), lambda t, o: t)
LIFT = Task("robosuite/Lift", (("lift",),), 10, PUSH.workspace, ("lift",), lambda task, options: task)
"""
POLICY = """
import numpy as np
from sim_eval.core.types import ActionChunk
from sim_eval.policies.policy import PolicySpec

class Constant:
    def __init__(self, argument, device):
        self.spec = PolicySpec(f"constant {argument} on {device}")
        self.value = float(argument or 0)

    def predict(self, requests):
        return [ActionChunk(np.full((4, request.action.dim), self.value)) for request in requests]

def refuse(argument, device):
    raise OSError("no weights\\nhere")
"""


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(tmp_path))
    get_task.cache_clear()
    yield
    get_task.cache_clear()


def install(folder: Path, package: str, entry_points: str, code: str) -> None:
    """What pip leaves in a folder of ``sys.path``: a module and a dist-info."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    (folder / f"{package}.py").write_text(code)


def test_a_task_of_another_package_is_found_and_loaded_when_asked_for(tmp_path: Path) -> None:
    install(tmp_path, "acme_tasks", "[sim_eval.tasks]\nacme/Push = acme_tasks:PUSH\n", TASK)
    assert {"acme/Push", "robosuite/Lift"} <= set(task_names())
    assert get_task("robosuite/Lift").max_episode_steps == 200
    assert "acme_tasks" not in sys.modules
    assert get_task("acme/Push").goals == (("push the block",),)
    with pytest.raises(SimEvalError, match="acme/Push"):
        get_task("acme/Fly")


def test_a_policy_of_another_package_is_given_its_argument(tmp_path: Path) -> None:
    install(tmp_path, "acme_policy", "[sim_eval.policies]\nconstant = acme_policy:Constant\n", POLICY)
    load_policy("zero")
    assert "acme_policy" not in sys.modules
    policy = load_policy("constant:0.5", "cpu")
    assert policy.spec.name == "constant 0.5 on cpu"
    action = ActionSpec(("dx", "dy"), (-1.0, -1.0), (1.0, 1.0), "ee_delta_position", 20.0)
    key = EpisodeKey("acme/Push", "test", 0)
    (chunk,) = policy.predict([PolicyRequest(None, key, 0, action)])  # type: ignore[arg-type]
    assert np.array_equal(chunk.actions, np.full((4, action.dim), 0.5))
    assert load_policy("constant").spec.name == f"constant  on {'cuda:0' if torch.cuda.is_available() else 'cpu'}"
    with pytest.raises(SimEvalError, match="run by its own package: leave --euler-steps out"):
        load_policy("constant", inference=InferenceConfig(euler_steps=2))
    with pytest.raises(SimEvalError, match="leave --keys out"):
        load_policy("constant", keys=tmp_path)
    with pytest.raises(SimEvalError, match=r"unknown policy 'genius'.*constant"):
        load_policy("genius")


def test_a_folder_of_the_same_name_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "acme_folder", "[sim_eval.policies]\nmine = acme_folder:Constant\n", POLICY)
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SimEvalError, match=r"package 'acme_folder' and a folder here: write \./mine"):
        load_policy("mine")


def test_what_bears_the_name_of_ours_is_refused_and_harms_nothing_else(tmp_path: Path) -> None:
    points = "[sim_eval.tasks]\nrobosuite/Lift = bold:LIFT\n[sim_eval.policies]\nzero = bold:LIFT\nws = bold:LIFT\n"
    install(tmp_path, "bold", points + "deep_llama = bold:LIFT\n", TASK)
    with pytest.raises(SimEvalError, match="claimed by the packages sim_eval and bold"):
        get_task("robosuite/Lift")
    for name in ("zero", "deep_llama", "deep_llama:x", "ws"):
        with pytest.raises(SimEvalError, match="claimed by the packages sim_eval and bold"):
            load_policy(name)
    assert get_task("robosuite/Stack")
    assert load_policy("random").spec.name == "random"
    assert "bold" not in sys.modules


def test_two_packages_with_one_name_are_both_named(tmp_path: Path) -> None:
    for package in ("first_one", "second_one"):
        install(tmp_path, package, f"[sim_eval.policies]\nsame = {package}:Constant\n", POLICY)
    with pytest.raises(SimEvalError, match=r"claimed by the packages (first_one and second|second_one and first)_one"):
        load_policy("same")


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ("broken:NOTHING", "AttributeError"),
        ("nowhere:Constant", "ModuleNotFoundError: No module named 'nowhere'"),
        ("broken:refuse", "OSError: no weights here"),
        ("broken:np", "TypeError: 'module' object is not callable"),
        ("broken:PolicySpec", "has no attribute 'spec'"),
        ("not a reference!", "cannot be loaded"),
    ],
)
def test_a_broken_policy_is_one_line_that_names_its_package(tmp_path: Path, point: str, words: str) -> None:
    install(tmp_path, "broken", f"[sim_eval.policies]\nbroken = {point}\n", POLICY)
    with pytest.raises(SimEvalError) as told:
        load_policy("broken", "cpu")
    sys.modules.pop("broken", None)
    assert words in str(told.value)
    assert "'broken' of package 'broken' cannot be loaded" in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import a_library_that_is_not_there", "ModuleNotFoundError"),
        ("def (", "SyntaxError"),
        ("PUSH = 3", "it is 3, not the Task of that name"),
        (TASK.replace("acme/Push", "acme/Pull"), "it is 'acme/Pull', not the Task of that name"),
    ],
)
def test_a_broken_task_is_one_line_and_sim_eval_still_imports(tmp_path: Path, code: str, words: str) -> None:
    install(tmp_path, "cracked", "[sim_eval.tasks]\nacme/Push = cracked:PUSH\n", code)
    with pytest.raises(SimEvalError) as told:
        get_task("acme/Push")
    sys.modules.pop("cracked", None)
    assert words in str(told.value)
    assert "package 'cracked'" in str(told.value)
    assert "\n" not in str(told.value)
    assert "acme/Push" in task_names()


def test_importing_sim_eval_loads_no_plugin(tmp_path: Path) -> None:
    install(tmp_path, "explosive", "[sim_eval.tasks]\nacme/Push = explosive:PUSH\n", "raise SystemExit('boom')")
    code = (
        f"import sys; sys.path.append({str(tmp_path)!r}); import sim_eval, gymnasium; print('explosive' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    answer = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
