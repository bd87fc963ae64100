"""Which OpenGL renders, whatever was imported before, and in forked processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sim_eval.core.errors import SimEvalError
from sim_eval.envs import opengl

CUBE_DEPTH = """
import sim_eval, numpy as np
from sim_eval.core.types import EpisodeKey
from sim_eval.envs.tasks import get_task
simulator = get_task("robosuite/LiftWide").make()
simulator.reset(EpisodeKey("robosuite/LiftWide", "val", 0))
view = simulator.observe(["agentview"]).views["agentview"]
cube = simulator.segmentation("agentview") == simulator._model.geom("cube_g0_vis").id
print(int(cube.sum()), float(view.depth[cube].mean()))
simulator.close()
"""


REACH = """
import sim_eval
from sim_eval.core.types import EpisodeKey, RenderConfig
from sim_eval.envs.tasks import get_task
KEY = EpisodeKey("metaworld/reach-v3", "val", 0)
def make():
    simulator = get_task("metaworld/reach-v3").make(RenderConfig(height=32, width=32))
    simulator.reset(KEY)
    return simulator
def rendered(simulator):
    view = simulator.observe(["agentview"]).views["agentview"]
    return view.rgb.tobytes() + view.depth.tobytes()
"""
NOTEBOOK = """
print(len(rendered(make())) == 32 * 32 * 7)
"""
FORKED = """
import multiprocessing, os
from sim_eval.core.errors import SimEvalError
kept = make()
expected = rendered(kept)
context = multiprocessing.get_context("fork")
def again(answers):
    try:
        answers.put(rendered(make()) == expected)
    except SimEvalError as error:
        answers.put(str(error))
def child(answers):
    answers.put(rendered(kept) == expected)  # the parent's simulator goes on here
    kept.close()
    again(answers)
    grandchild = context.Process(target=again, args=(answers,))
    grandchild.start()
    grandchild.join()
answers = context.SimpleQueue()
process = context.Process(target=TARGET, args=(answers,))
process.start()
for _ in range(COUNT):
    print(answers.get())
process.join()
print(rendered(make()) == rendered(kept) == expected)
"""


def run(code: str, **environment: str) -> list[str]:
    """What a new process prints; nobody has chosen OpenGL or the number of Mesa's threads for it."""
    unset = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "LP_NUM_THREADS")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**inherited, **environment}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


slow = pytest.mark.slow


@pytest.mark.parametrize(
    "first",
    [
        "import mujoco",
        pytest.param("import robosuite", marks=slow),
        pytest.param("import gymnasium.envs.mujoco.mujoco_rendering", marks=slow),
    ],
)
def test_a_notebook_may_import_others_first(first: str) -> None:
    assert run(f"{first}\n{REACH}{NOTEBOOK}")[-1] == "True"


def test_triton_is_imported_before_opengl(tmp_path: Path) -> None:
    """Imported after Mesa's LLVM is loaded, the real one ends the process with a segmentation fault."""
    (tmp_path / "triton.py").write_text("print('triton', 'libEGL' in open('/proc/self/maps').read())")
    assert run(CUBE_DEPTH, PYTHONPATH=str(tmp_path))[0] == "triton False"


@slow
def test_what_pyopengl_has_loaded_is_not_mistaken_for_a_missing_library() -> None:
    told = run(f"import OpenGL.GL\n{REACH}\ntry:\n    rendered(make())\nexcept Exception as error:\n    print(error)")
    assert told == ["PyOpenGL was imported before egl was chosen: set PYOPENGL_PLATFORM=egl, or import it later"]


def test_a_forked_process_renders_what_its_parent_renders() -> None:
    """And a process forked from that one, for which there is no third display, is told to be spawned."""
    if not opengl._egl_works():
        pytest.skip("needs EGL")
    inherited, new, grandchild, parent = run(REACH + FORKED.replace("TARGET", "child").replace("COUNT", "3"))
    assert (inherited, new, parent) == ("True", "True", "True")
    assert "forked from one that had rendered" in grandchild
    assert "spawn" in grandchild


def test_osmesa_in_a_forked_process_is_refused() -> None:
    if not opengl._osmesa_works():
        pytest.skip("needs OSMesa")
    code = REACH + FORKED.replace("TARGET", "again").replace("COUNT", "1")
    refusal, parent = run(code, MUJOCO_GL="osmesa")
    assert "its OpenGL (osmesa) cannot start again" in refusal
    assert parent == "True"


def test_osmesa_sees_what_egl_sees() -> None:
    def ask(backend: str) -> tuple[int, float]:
        environment = {**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
        answer = subprocess.run(
            [sys.executable, "-c", CUBE_DEPTH], env=environment, capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, answer.stderr[-500:]
        pixels, depth = answer.stdout.split()[-2:]
        return int(pixels), float(depth)

    if not (opengl._egl_works() and opengl._osmesa_works()):
        pytest.skip("needs both EGL and OSMesa")
    egl, osmesa = ask("egl"), ask("osmesa")
    assert abs(egl[0] - osmesa[0]) <= 2
    assert abs(egl[1] - osmesa[1]) < 1e-3


def test_no_opengl_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(opengl, "_egl_works", lambda: False)
    monkeypatch.setattr(opengl, "_osmesa_works", lambda: False)
    with pytest.raises(SimEvalError, match="apt-get install") as caught:
        opengl.choose_backend()
    assert "\n" not in str(caught.value)


def test_a_chosen_backend_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert opengl.choose_backend() == "osmesa"
