"""Who may import whom, under which names, and how soon a program's ``--help`` comes."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from sim_eval.core.programs import PROGRAMS

ROOT = Path(__file__).resolve().parent.parent
# What the modules of a folder may import of ours; folders that are not listed may import all.
ALLOWED = {
    "sim_eval.core": ("sim_eval.core",),
    "sim_eval.envs": ("sim_eval.core", "sim_eval.envs"),
    "sim_eval.policies": ("sim_eval.core", "sim_eval.policies"),
    "sim_eval.datasets": ("sim_eval.core", "sim_eval.datasets"),
    "sim_eval.evaluation": (
        "sim_eval.configs",
        "sim_eval.core",
        "sim_eval.configs",
        "sim_eval.envs",
        "sim_eval.policies",
        "sim_eval.datasets",
        "sim_eval.evaluation",
    ),
}
HEAVY = {"torch", "mujoco", "robosuite", "transformers", "h5py", "scipy", "PIL", "matplotlib"}


def name_of(file: Path) -> str:
    """The import name of a file under sim_eval; a package's is that of its folder."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    """Import name -> file. The linked folders are walked by their links, whose names are the import names."""
    folders = [folder for folder in (ROOT / "sim_eval").iterdir() if folder.is_dir()]
    files = [*(ROOT / "sim_eval").glob("*.py"), *(file for folder in folders for file in folder.rglob("*.py"))]
    return {name_of(file): file for file in files}


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports of a file, in functions too, but for those that only a type checker sees."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    for child in ast.iter_child_nodes(node):
        yield from statements(child)


def imports(name: str) -> set[str]:
    """The modules of ours that a module imports."""
    found = set()
    for statement in statements(ast.parse(modules()[name].read_text())):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        else:
            assert statement.module, f"{name} has a relative import"
            below = {f"{statement.module}.{alias.name}" for alias in statement.names}
            found |= {each if each in modules() else statement.module for each in below}
    return {each for each in found if each.split(".")[0] in ("sim_eval", "envs", "policies", "datasets")}


def inside(name: str, folder: str) -> bool:
    return name == folder or name.startswith(f"{folder}.")


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_go_one_way(folder: str) -> None:
    for name in modules():
        if inside(name, folder):
            wrong = {each for each in imports(name) if not any(inside(each, door) for door in ALLOWED[folder])}
            assert wrong <= {"sim_eval"}, f"{name} imports {wrong}"  # of which itself only the version is of use


def test_no_module_imports_itself_by_way_of_others() -> None:
    try:
        TopologicalSorter({name: imports(name) for name in modules()}).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_no_two_modules_have_one_name() -> None:
    def is_demonstrator(name: str) -> bool:
        """A task family's scripted policy has the family's name."""
        return f"sim_eval.envs.tasks.{name.removeprefix('sim_eval.policies.scripted.')}" in modules()

    names = [name.rpartition(".")[2] for name in modules() if not is_demonstrator(name)]
    assert sorted(names) == sorted(set(names))


def test_help_loads_no_heavy_library() -> None:
    """Of all programs in one process: what is loaded after one is blamed on it."""
    programs = [name for name, file in modules().items() if '__name__ == "__main__"' in file.read_text()]
    programs.remove("sim_eval.__main__")  # which has no options
    assert set(programs) == {f"sim_eval.{each.name}" for each in PROGRAMS}
    code = (
        "import contextlib, io, json, runpy, sys\n"
        "loaded, shown = {}, {}\n"
        f"for program in {programs}:\n"
        "    sys.argv, out = [program, '--help'], io.StringIO()\n"
        "    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):\n"
        "        runpy.run_module(program, run_name='__main__', alter_sys=True)\n"
        "    loaded[program], shown[program] = sorted(sys.modules), out.getvalue()\n"
        "json.dump([loaded, shown], sys.stdout)"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    loaded, shown = json.loads(answer.stdout)
    for program in programs:
        assert not HEAVY & set(loaded[program]), program
        assert f"usage: python -m {program}" in shown[program]


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
