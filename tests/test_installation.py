"""sim_eval is found from its clone, installed editable, from a wheel and from a source archive; in new processes too.

Each way has a virtual environment of its own, which sees the packages of this one. The module ``probe`` and a package
that is named ``datasets``, as Hugging Face's is, are installed in it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

import sim_eval
from sim_eval.core.errors import SimEvalError
from sim_eval.core.programs import PROGRAMS
from sim_eval.envs.tasks import get_task

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("sim_eval", "envs", "policies", "datasets", "pyproject.toml", "README.md", "LICENSE")
WAYS = ("clone", "editable", "wheel", "source archive")

PROBE = '''
"""Prints where three kinds of processes find sim_eval and the package datasets."""

import json
from contextlib import closing, contextmanager
from multiprocessing import get_context


def places():
    import datasets

    import sim_eval.datasets.episode_file
    import sim_eval.envs.tasks

    return [module.__file__ for module in (sim_eval, sim_eval.envs.tasks, sim_eval.datasets.episode_file, datasets)]


@contextmanager
def job(link):
    yield lambda key: places()


if __name__ == "__main__":
    import probe
    from sim_eval.core.types import EpisodeKey
    from sim_eval.evaluation.workers import Supervision, WorkerPool

    with get_context("spawn").Pool(1) as pool:
        spawned = pool.apply(probe.places)
    with closing(WorkerPool(probe.job, 1, Supervision())) as workers:
        (worked,) = workers.run([EpisodeKey("any", "test", 0)])
    print(json.dumps({"here": places(), "spawned": spawned, "our worker": worked}))
'''


@dataclass(frozen=True)
class Installation:
    """A virtual environment in which sim_eval can be imported.

    Attributes:
        python: its interpreter.
        folder: where programs are started.
        package: where ``sim_eval`` should be found.
    """

    python: Path
    folder: Path
    package: Path

    def run(self, *words: str, program: str = "python") -> str:
        """What ``python WORDS``, or another program of the environment, prints."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [str(self.python.parent / program), *words]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


def site_packages(environment: Path) -> Path:
    return Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, links as links, so that building leaves nothing behind here."""
    copy = tmp_path_factory.mktemp("installation") / "clone"
    copy.mkdir()
    for name in SOURCES:
        if (source := ROOT / name).is_dir():
            shutil.copytree(source, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    return copy


def build(clone: Path, what: str) -> Path:
    """The ``wheel`` or ``sdist`` that setuptools makes of the clone."""
    dist = clone.parent / "dist"
    code = f"from setuptools import build_meta as b; print(b.build_{what}({str(dist)!r}))"
    dist.mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dist / done.stdout.splitlines()[-1]


def install(way: str, clone: Path, environment: Path) -> Installation:
    venv.create(environment, symlinks=True)
    packages, python = site_packages(environment), environment / "bin" / "python"
    (packages / "other.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    (packages / "probe.py").write_text(PROBE)
    if way == "clone":
        return Installation(python, clone, clone / "sim_eval")
    if way == "editable":
        what, package = ["--editable", str(clone)], clone / "sim_eval"
    else:
        built = build(clone, "wheel" if way == "wheel" else "sdist")
        what, package = [str(built)], packages / "sim_eval"
    options = ["--quiet", "--ignore-installed", "--no-index", "--no-deps", "--no-build-isolation", "--no-compile"]
    elsewhere = environment / "elsewhere"
    elsewhere.mkdir()
    installation = Installation(python, elsewhere, package)
    installation.run("-m", "pip", "install", *options, *what)
    return installation


@pytest.fixture(scope="module", params=WAYS)
def installation(request: pytest.FixtureRequest, clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return install(request.param, clone, tmp_path_factory.mktemp("environment"))


def test_every_process_finds_our_package_and_hugging_faces_datasets(installation: Installation) -> None:
    theirs = site_packages(installation.python.parent.parent) / "datasets" / "__init__.py"
    theirs.parent.mkdir(exist_ok=True)
    theirs.touch()
    modules = ("__init__.py", "envs/tasks/__init__.py", "datasets/episode_file.py")
    expected = [*(str(installation.package / module) for module in modules), str(theirs)]
    answer = json.loads(installation.run("-m", "probe"))
    assert answer == {"here": expected, "spawned": expected, "our worker": expected}


def test_the_console_script_runs_every_program(installation: Installation) -> None:
    if installation.folder == installation.package.parent:
        return  # a clone has no script
    assert installation.run("--version", program="sim-eval") == f"sim_eval {sim_eval.__version__}\n"
    assert all(each.name in installation.run("--help", program="sim-eval") for each in PROGRAMS)
    assert installation.run("rollout", "--help", program="sim-eval").startswith("usage: sim-eval rollout --policy ")


def test_every_file_is_there(installation: Installation) -> None:
    def files(package: Path) -> set[str]:
        links = ("envs", "policies", "datasets")  # rglob does not follow them
        found = [file for folder in (package, *(package / link for link in links)) for file in folder.rglob("*")]
        return {str(file.relative_to(package)) for file in found if file.is_file() and "__pycache__" not in file.parts}

    assert files(installation.package) == files(ROOT / "sim_eval")
    assert "policies/checkpoints/deep_llama/model.safetensors" in files(installation.package)


def test_without_robosuite_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ["robosuite", *(name for name in sys.modules if name.startswith("robosuite."))]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "sim_eval.envs.osc_pose", raising=False)  # imports it
    (pinned,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["robosuite"]
    with pytest.raises(SimEvalError, match=f"needs robosuite, which is missing: pip install --no-deps {pinned}$"):
        get_task("robosuite/Lift").make()


@pytest.mark.slow
@pytest.mark.parametrize("installation", ["wheel"], indirect=True)
def test_episodes_run_in_workers(installation: Installation, tmp_path: Path) -> None:
    words = "-m sim_eval.rollout --policy deep_llama --task robosuite/Lift --episodes 2 --workers 2 --video none --out"
    installation.run(*words.split(), str(tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "episodes.jsonl").read_text().splitlines()]
    assert [line["error"] for line in lines] == [None, None]


@pytest.mark.slow
def test_the_real_datasets_package_works_from_the_clone(clone: Path, tmp_path: Path) -> None:
    installation = install("clone", clone, tmp_path)
    command = [str(installation.python), "-m", "pip", "install", "--quiet", "datasets==4.4.1", "pyarrow==22.0.0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot install datasets: {done.stderr.splitlines()[-1]}")
    answer = json.loads(installation.run("-m", "probe"))
    theirs = str(site_packages(tmp_path) / "datasets" / "__init__.py")
    assert {process: places[-1] for process, places in answer.items()} == dict.fromkeys(answer, theirs)
    code = "import datasets, sim_eval.datasets.windows; print(datasets.Dataset.from_dict({'a': [1, 2]})['a'][1])"
    assert installation.run("-c", code) == "2\n"


OTHERS = {
    "beside lerobot": ("3.12", "lerobot[dataset,training]>=0.6"),
    "lower ends": ("3.11", "numpy<2", "torch<2.8", "transformers<5.5"),
    "newest": ("3.13",),
}


@pytest.mark.peers
@pytest.mark.parametrize("other", OTHERS)
def test_other_packages_give_the_same_episodes(other: str, clone: Path, tmp_path: Path) -> None:
    python, *packages = OTHERS[other]
    uv, programs = str(Path(sys.executable).parent / "uv"), tmp_path / "bin"
    subprocess.run([uv, "venv", "--quiet", "--no-python-downloads", "--python", python, tmp_path], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", programs / "python"]
    subprocess.run([*install, ".[robosuite,metaworld,serve]", *packages], cwd=clone, check=True)
    rollout = ["-m", "sim_eval.rollout", "--policy", "deep_llama", "--episodes", "2", "--video", "none", "--out"]
    for interpreter, folder, run in ((programs / "python", tmp_path, "there"), (sys.executable, ROOT, "here")):
        subprocess.run([interpreter, *rollout, tmp_path / run], cwd=folder, check=True)
    there, here = (
        [json.loads(line) | {"seconds": None} for line in (tmp_path / run / "episodes.jsonl").read_text().splitlines()]
        for run in ("there", "here")
    )
    assert there == here
