"""The machine: Python, packages, OpenGL, torch, cores, memory, ffmpeg."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from sim_eval.core.errors import SimEvalError
from sim_eval.core.resources import GIGABYTE, available_cores, available_memory
from sim_eval.core.versions import installed
from sim_eval.diagnosis.findings import Finding, Level, examine, graded

ROOT = Path(__file__).resolve().parents[2]  # of a clone; a wheel has no lock and no pyproject.toml there
# Another version of these packages changes pictures, physics or floating-point sums, and so may change a score.
DECIDING = ("numpy", "mujoco", "robosuite", "metaworld", "torch", "transformers", "tokenizers", "h5py")
SOFTWARE_RENDERERS = ("llvmpipe", "softpipe", "swrast", "osmesa", "software")
LEAST_MEMORY = 2e9  # bytes of a simulator and a tiny policy together


def machine_findings(device: str) -> Iterator[Finding]:
    """All checks that need neither task nor policy."""
    checks: Mapping[str, Callable[[], Iterable[Finding]]] = {
        "Python": python_finding,
        "packages": package_findings,
        "OpenGL": opengl_finding,
        "torch": lambda: torch_finding(device),
        "cores and memory": resource_finding,
        "ffmpeg": ffmpeg_finding,
    }
    for name, check in checks.items():
        yield from examine(name, check)


def python_finding() -> Iterator[Finding]:
    version = platform.python_version()
    level: Level = "ok" if (3, 11) <= sys.version_info[:2] <= (3, 13) else "warning"
    measured = f"{version} on {platform.platform(terse=True)}"
    yield graded("Python", level, measured, "use Python 3.11, 3.12 or 3.13, which are tested")


def package_findings() -> Iterator[Finding]:
    """Installed versions against what the package requires, and against the lock where there is one."""
    unmet = unmet_requirements(requirements(), version)
    yield graded(
        "required packages",
        "fault" if unmet else "ok",
        "; ".join(unmet) or "all installed",
        "install them: make setup, or pip install sim_eval",
    )
    lock = ROOT / "requirements.lock"
    if lock.is_file():
        other = other_versions(locked(lock.read_text()), version)
        deciding = [difference for name, difference in other.items() if name in DECIDING]
        yield graded(
            "locked packages",
            "warning" if deciding else "ok",
            "; ".join(deciding) or f"the lock's versions of {', '.join(DECIDING)}",
            "scores may differ from published ones: make setup installs the lock's versions",
        )


def version(package: str) -> str | None:
    """Of an installed package; None: it is not installed."""
    return installed([package]).get(package)


def requirements() -> list[str]:
    """The requirements of sim_eval, from a clone or an installed package, without extras."""
    import tomllib

    project = ROOT / "pyproject.toml"
    if project.is_file():
        return list(tomllib.loads(project.read_text())["project"]["dependencies"])
    return [entry for entry in metadata.requires("sim_eval") or [] if "extra ==" not in entry]


def unmet_requirements(required: Sequence[str], version_of: Callable[[str], str | None]) -> list[str]:
    """One clause for each requirement that the installed versions violate."""
    from packaging.requirements import Requirement

    unmet = []
    for entry in map(Requirement, required):
        version = version_of(entry.name)
        if version is None or not entry.specifier.contains(version, prereleases=True):
            unmet.append(f"{entry} needed, {version or 'none'} installed")
    return unmet


def locked(text: str) -> dict[str, str]:
    """Package -> version of a lock's lines ``name==version``."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return dict(line.split("==") for line in lines if "==" in line)


def other_versions(lock: Mapping[str, str], version_of: Callable[[str], str | None]) -> dict[str, str]:
    """Package -> one clause, where the installed version is not the lock's; the suffix of a build is ignored."""
    others = {}
    for name, wanted in lock.items():
        version = version_of(name)
        if version is not None and version.split("+")[0] != wanted:
            others[name] = f"{name} {version}, locked {wanted}"
    return others


def opengl_finding() -> Iterator[Finding]:
    """The OpenGL renderer, as a new context reports it."""
    from sim_eval.envs.opengl import choose_backend, new_context

    backend = choose_backend()
    context = new_context(16, 16)
    from OpenGL import GL

    context.make_current()
    try:
        renderer = GL.glGetString(GL.GL_RENDERER).decode()
    finally:
        context.free()
    kind = "on the CPU" if any(name in renderer.lower() for name in SOFTWARE_RENDERERS) else "on a GPU"
    yield Finding("OpenGL", "ok", f"{backend}, {renderer}, {kind}")


def torch_finding(device: str) -> Iterator[Finding]:
    import torch

    from sim_eval.policies.devices import resolve_device

    place = resolve_device(device)
    threads = f", {torch.get_num_threads()} threads" if place.type == "cpu" else ""
    yield Finding("torch", "ok", f"{torch.__version__} on {place}{threads}")


def resource_finding() -> Iterator[Finding]:
    cores, memory = available_cores(), available_memory()
    yield graded(
        "cores and memory",
        "ok" if memory >= LEAST_MEMORY else "warning",
        f"{cores} cores, {memory / GIGABYTE:.1f} GB free",
        f"free some memory: a worker takes up to {LEAST_MEMORY / GIGABYTE:.0f} GB",
    )


def ffmpeg_finding() -> Iterator[Finding]:
    import imageio_ffmpeg

    try:
        measured = imageio_ffmpeg.get_ffmpeg_version()
    except RuntimeError as error:
        raise SimEvalError(f"no ffmpeg ({error}): pip install imageio-ffmpeg, or roll out with --video none") from error
    yield Finding("ffmpeg", "ok", measured)
