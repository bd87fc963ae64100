"""The walls of the house: who may import whom, under which names, and how fast the door opens."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "envs": {"sim_eval.core", "sim_eval.envs"},
    "policies": {"sim_eval.core", "sim_eval.policies"},
    "datasets": {"sim_eval.core", "sim_eval.datasets"},
}
PROGRAMS = ("collect", "train", "rollout", "leaderboard", "results", "compare", "verify", "serve", "doctor")


def imports(file: Path) -> set[str]:
    """Modules of ours that a file names, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("sim_eval", *ALLOWED)}


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_go_one_way(room: str) -> None:
    for file in (ROOT / room).rglob("*.py"):
        for name in imports(file):
            allowed = any(name == door or name.startswith(f"{door}.") for door in ALLOWED[room])
            assert allowed, f"{file.relative_to(ROOT)} imports {name}"


def test_evaluation_does_not_import_reporting() -> None:
    for file in (ROOT / "sim_eval" / "evaluation").glob("*.py"):
        assert not [name for name in imports(file) if name.startswith("sim_eval.reporting")], file.name


def test_evaluation_has_no_circular_imports() -> None:
    modules = {}
    for room in (*ALLOWED, "sim_eval"):
        for file in (ROOT / room).rglob("*.py"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            modules[".".join(parts if room == "sim_eval" else ("sim_eval", *parts))] = imports(file)
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done and not name.startswith("sim_eval.policies."):
            for needed in sorted(modules[name] & modules.keys()):
                visit(needed, (*path, name))
            done.add(name)

    for name in modules:
        if name.startswith(("sim_eval.evaluation.", "sim_eval.envs.")):
            visit(name, ())


def test_no_two_modules_bear_one_name() -> None:
    files = [file for room in (*ALLOWED, "sim_eval") for file in (ROOT / room).rglob("*.py")]
    # A task family's expert bears the family's name, by design.
    tasks = {file.stem for file in (ROOT / "envs" / "tasks").glob("*.py")}
    experts = [file for file in (ROOT / "policies" / "scripted").glob("*.py") if file.stem in tasks]
    names = [file.stem for file in files if file.stem != "__init__" and file not in experts]
    assert sorted(names) == sorted(set(names))


def test_hugging_faces_datasets_is_not_shadowed() -> None:
    code = "import sim_eval, sim_eval.datasets, importlib.util as u; s = u.find_spec('datasets'); print(s and s.origin)"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert str(ROOT) not in answer.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_loads_no_heavy_library(program: str) -> None:
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['{program}', '--help']\n"
        "try: runpy.run_module('sim_eval." + program + "', run_name='__main__', alter_sys=True)\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'mujoco', 'robosuite', 'transformers', 'h5py'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "usage:" in answer.stdout


def test_every_shipped_checkpoint_loads_and_has_a_card() -> None:
    from sim_eval.envs.tasks import suite_tasks, task_names
    from sim_eval.policies.registry import CHECKPOINTS, load_policy, shipped_checkpoints
    from sim_eval.policies.spatialvla.configuration_spatialvla import ACTION_EXPERTS

    scenes = {
        "": {task for task in task_names() if task.startswith("robosuite/")},
        "_mt50": set(suite_tasks("metaworld/MT50")),
        "_libero": {f"{suite}/{number}" for suite in ("libero_object", "libero_spatial") for number in range(10)},
    }
    assert set(ACTION_EXPERTS) <= set(shipped_checkpoints())
    for name in shipped_checkpoints():
        spec = load_policy(name, "cpu").spec
        assert set(spec.tasks) == scenes[name.removeprefix(spec.name)]
        folder = CHECKPOINTS / name
        assert sum(file.stat().st_size for file in folder.iterdir()) < 16e6
        assert "seed" in (folder / "README.md").read_text()
