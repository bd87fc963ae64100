"""A run on disk: what was planned, how it was run, and what came of every episode.

``manifest.json`` (the keys; written first), ``run.json`` (what is needed to run it again), ``episodes.jsonl`` (one line
an episode, as it ends; in the manifest's order once all have), ``trajectories/*.h5`` and ``videos/``.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import UnionType
from typing import IO, Any, cast

import numpy as np

from sim_eval import __version__
from sim_eval.envs.contract import EnvironmentSpec, EpisodeKey, SimEvalError, SimulatorOptions
from sim_eval.envs.tasks import in_short
from sim_eval.evaluation.engine import EpisodeResult, RolloutProtocol
from sim_eval.evaluation.manifest import Manifest
from sim_eval.policies.policy import PolicySpec

PARTIAL = ".partial-"
RESULT_TYPES: dict[str, type | UnionType] = {
    "instruction": str,
    "success": bool,
    "success_end": bool,
    "steps": int,
    "first_success": int | None,
    "phase": str,
    "replans": int,
    "error": str | None,
    "seconds": float,
}
MANIFEST, RUN, EPISODES, TRAJECTORIES, VIDEOS = "manifest.json", "run.json", "episodes.jsonl", "trajectories", "videos"
OUTCOMES = ("success", "failure")  # the ends of videos' names
PACKAGES = (
    "numpy",
    "mujoco",
    "robosuite",
    "metaworld",
    "rpent-libero",
    "torch",
    "transformers",
    "tokenizers",
    "h5py",
    "imageio-ffmpeg",
    "pillow",
)
TASK_PACKAGES = ("sim_eval", "mujoco", "robosuite", "metaworld", "rpent-libero")  # of another version: another task


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to; it takes the name of ``path`` when the block ends well, and goes otherwise.

    Raises:
        SimEvalError: the disk refuses.
    """
    partial = path.with_name(PARTIAL + path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):  # gone already, or could never be made
            partial.unlink()


def unwritable(path: Path, error: OSError) -> SimEvalError:
    return SimEvalError(f"cannot write {path} ({error.strerror or error}): choose another --out or free some space")


def write_json(path: Path, value: object) -> None:
    with atomic(path) as partial, partial.open("w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a run.

    Raises:
        SimEvalError: there is no such file, or it holds something else.
    """
    try:
        value = json.loads(path.read_text())
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
    except OSError as error:
        raise SimEvalError(f"{path} cannot be read ({error.strerror}): is {path.parent} a run folder?") from error
    except ValueError as error:
        raise SimEvalError(f"{path} is damaged ({error}): run it again into a new folder") from error
    return value


def episode_name(key: EpisodeKey) -> str:
    """The stem of an episode's files: task, split, index."""
    return f"{key.task.replace('/', '-')}_{key.split}_{key.index:05d}"


def to_line(result: EpisodeResult) -> str:
    """One line of ``episodes.jsonl``; the time comes last, everything before it is the same when run again."""
    values = asdict(result)
    return json.dumps({**values.pop("key"), **values})


def from_line(line: str) -> EpisodeResult:
    """Reads what :func:`to_line` wrote.

    Raises:
        ValueError, KeyError, TypeError, SimEvalError: it is something else.
    """
    entry = json.loads(line)
    result = EpisodeResult(
        key=EpisodeKey(*(entry.pop(name) for name in ("task", "split", "index"))),
        **entry,
    )
    for name, kind in RESULT_TYPES.items():
        if not isinstance(getattr(result, name), kind):
            raise ValueError(f"{name} is {getattr(result, name)!r}")
    return result


def identity(policy: PolicySpec, protocol: RolloutProtocol) -> dict[str, dict[str, object]]:
    """What else than the manifest decides the episode lines of a run. The number of workers does not."""
    return {
        "policy": {
            "name": policy.name,
            "digest": policy.digest,
            "privileged": policy.privileged,
            "variant": policy.variant,
        },
        "protocol": asdict(protocol),
        "versions": versions(),
    }


def versions() -> dict[str, object]:
    """Of what may change the last bit of a result: package -> version."""
    found: dict[str, object] = {"sim_eval": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def machine() -> dict[str, object]:
    """Versions, processor and threads: what may change the last bit of a result."""
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "processor": _processor(),
        "instructions": _instructions(),
        "torch_threads": torch_threads(),
    }


def torch_threads() -> int | None:
    """Of this process; None: a policy without a network does not load torch."""
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch else None


def _processor() -> str:
    """Name and stepping: several generations of a processor may share their name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    parts = [told.get("model name", platform.machine())]
    parts += [f"{name} {told[name]}" for name in ("cpu family", "model", "stepping") if name in told]
    return ", ".join(parts)


def _instructions() -> str:
    """The processor's vector instructions, as NumPy sees them: libraries choose their kernels by them."""
    found = cast(Any, np).show_config(mode="dicts")  # its stub knows no mode
    return " ".join(found["SIMD Extensions"].get("found", ()))


@dataclass(frozen=True)
class Run:
    """A run as read back.

    Attributes:
        versions: package -> version, as far as it is known.
        episodes: finished episodes, each once, in the manifest's order.
    """

    folder: Path
    manifest: Manifest
    policy: str
    digest: str
    privileged: bool
    variant: str
    protocol: RolloutProtocol
    versions: Mapping[str, str]
    episodes: tuple[EpisodeResult, ...]

    @property
    def complete(self) -> bool:
        return len(self.episodes) == len(self.manifest.keys)


def read_run(folder: Path) -> Run:
    """Reads a run folder.

    Raises:
        SimEvalError: a file is missing or damaged; names file and line. A torn last line (the run was killed while
            writing it) is no damage.
    """
    manifest = _read_manifest(folder / MANIFEST)
    path = folder / RUN
    data = read_json(path)
    try:
        protocol = _protocol(data["protocol"])
        name, digest, privileged = (data["policy"][part] for part in ("name", "digest", "privileged"))
        variant = data["policy"].get("variant", "")  # runs of earlier versions have none
        packages = {str(package): str(version) for package, version in data.get("versions", {}).items()}
    except (AttributeError, KeyError, TypeError, SimEvalError) as error:
        raise SimEvalError(f"{path} is damaged ({error!r}): run it again into a new folder") from error
    episodes = read_episodes(folder / EPISODES, manifest)
    return Run(folder, manifest, name, digest, privileged, variant, protocol, packages, episodes)


def task_versions_apart(runs: Collection[Run]) -> str:
    """Packages that make a task what it is and were not of one version in these runs, in words; empty: none."""
    found = {
        package: sorted({run.versions[package] for run in runs if package in run.versions}) for package in TASK_PACKAGES
    }
    return ", ".join(f"{package} {' and '.join(versions)}" for package, versions in found.items() if len(versions) > 1)


def _protocol(raw: Mapping[str, Any]) -> RolloutProtocol:
    """Reads what asdict made; what an earlier version did not know has its default.

    Raises:
        KeyError, TypeError, SimEvalError: it is something else.
    """
    return RolloutProtocol(**{**raw, "simulator": SimulatorOptions(**raw["simulator"])})


def _read_manifest(path: Path) -> Manifest:
    data = read_json(path)
    try:
        return Manifest.from_dict(data)
    except SimEvalError as error:
        raise SimEvalError(f"{path}: {error}") from error


def read_episodes(path: Path, manifest: Manifest) -> tuple[EpisodeResult, ...]:
    """The finished episodes of a manifest, in its order.

    Raises:
        SimEvalError: a whole line is damaged, stands twice, or is not of this manifest.
    """
    try:
        text = path.read_text() if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise SimEvalError(f"{path} cannot be read ({error}): run it again into a new folder") from error
    planned, found = set(manifest.keys), dict[EpisodeKey, EpisodeResult]()
    for number, line in enumerate(text.split("\n")[:-1], start=1):  # what follows the last newline is torn
        where = f"{path}, line {number}"
        try:
            result = from_line(line)
        except (KeyError, TypeError, ValueError, SimEvalError) as error:
            raise SimEvalError(f"{where} is damaged ({error!r}): delete the line and resume the run") from error
        if result.key not in planned:
            raise SimEvalError(f"{where}: episode {result.key} is not in the manifest: run it again into a new folder")
        if result.key in found:
            raise SimEvalError(f"{where}: episode {result.key} stands there twice: delete one of the lines")
        found[result.key] = result
    return tuple(found[key] for key in manifest.keys if key in found)


class RunFolder:
    """A run being written. Made by :func:`open_run`; one process at a time.

    Attributes:
        results: of the finished episodes: at first in the manifest's order, then as they were appended.
        torn: ``episodes.jsonl`` ended in a line that a kill had torn; it is gone, and its episode runs again.
    """

    def __init__(self, folder: Path, manifest: Manifest, log: IO[bytes]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.results = list(read_episodes(folder / EPISODES, manifest))
        content = (folder / EPISODES).read_bytes()
        whole = content.rfind(b"\n") + 1
        self.torn = whole < len(content)
        log.truncate(whole)  # a torn line would spoil the next one
        self._log = log
        self.discard(self.remaining)

    @property
    def remaining(self) -> list[EpisodeKey]:
        done = {result.key for result in self.results}
        return [key for key in self.manifest.keys if key not in done]

    def append(self, result: EpisodeResult) -> None:
        """Keeps one episode; on return it is on the disk."""
        try:
            self._log.write(to_line(result).encode() + b"\n")
            self._log.flush()
            os.fsync(self._log.fileno())
        except OSError as error:
            raise unwritable(self.folder / EPISODES, error) from error
        self.results.append(result)

    def discard(self, keys: Iterable[EpisodeKey]) -> None:
        """Removes the trajectories and videos, whole or partial, that broken tries of these episodes have left."""
        names = {episode_name(key) for key in keys}
        for path in [*(self.folder / TRAJECTORIES).glob("*"), *(self.folder / VIDEOS).glob("*")]:
            stem = path.stem.removeprefix(PARTIAL)
            for outcome in OUTCOMES:
                stem = stem.removesuffix(f"_{outcome}")
            if stem in names:
                with suppress(FileNotFoundError):
                    path.unlink()

    def finish(self) -> None:
        """Puts the lines of a complete run into the manifest's order, whatever order they came in."""
        if self.remaining:
            return
        place = {key: number for number, key in enumerate(self.manifest.keys)}
        ordered = sorted(self.results, key=lambda result: place[result.key])
        text = "".join(to_line(result) + "\n" for result in ordered)
        if (self.folder / EPISODES).read_text() != text:
            with atomic(self.folder / EPISODES) as partial, partial.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        self.results = ordered

    def kept(self) -> int:
        """How many episodes the file holds; after an interrupt ``results`` may lack the one just written."""
        self._log.flush()
        return len(read_episodes(self.folder / EPISODES, self.manifest))


@contextmanager
def open_run(
    folder: Path,
    manifest: Manifest,
    policy: PolicySpec,
    protocol: RolloutProtocol,
    environments: Mapping[str, EnvironmentSpec],
    command: Sequence[str],
) -> Iterator[RunFolder]:
    """Starts a run in a new or empty folder, or resumes the same run where it was left.

    Args:
        environments: task name -> what its environment offers.
        command: the arguments that run it again.

    Raises:
        SimEvalError: the folder cannot be written, is in use, or holds another run; says what differs.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MANIFEST).exists() and any(not path.name.startswith(PARTIAL) for path in folder.iterdir()):
            raise SimEvalError(f"{folder} holds other files and no run: choose another --out")
        if (folder / RUN).exists():
            _check_same(folder, manifest, identity(policy, protocol))
        else:
            _check_same_manifest(folder, manifest)
            write_json(folder / MANIFEST, manifest.to_dict())
            write_json(
                folder / RUN,
                {
                    "created": datetime.now(UTC).isoformat(timespec="seconds"),
                    "command": list(command),
                    "policy": asdict(policy),
                    "protocol": asdict(protocol),
                    "environments": {task: asdict(spec) for task, spec in environments.items()},
                    **machine(),
                },
            )
        log = (folder / EPISODES).open("ab")
    except OSError as error:
        raise unwritable(folder, error) from error
    with log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SimEvalError(f"{folder} is being written by another process: wait or choose another --out") from error
        yield RunFolder(folder, manifest, log)


def _check_same_manifest(folder: Path, manifest: Manifest) -> None:
    if (folder / MANIFEST).exists():
        found = _read_manifest(folder / MANIFEST)
        if found.digest != manifest.digest:
            raise SimEvalError(f"{folder} holds another run ({_difference(found, manifest)}): choose another --out")


def _check_same(folder: Path, manifest: Manifest, expected: Mapping[str, Mapping[str, object]]) -> None:
    _check_same_manifest(folder, manifest)
    recorded = read_json(folder / RUN)
    with suppress(KeyError, TypeError, SimEvalError):
        recorded["protocol"] = asdict(_protocol(recorded["protocol"]))
    found = []
    for part, values in expected.items():
        for name, value in values.items():
            there = recorded.get(part, {}).get(name, "")
            if there != value:
                found.append(f"{part} {name}: {_shown(there)} there, {_shown(value)} now")
    if found:
        raise SimEvalError(f"{folder} holds another run ({'; '.join(found)}): choose another --out")


def _shown(value: object) -> object:
    return "none" if value == "" else value


def _difference(there: Manifest, now: Manifest) -> str:
    def describe(manifest: Manifest) -> str:
        splits = sorted({key.split for key in manifest.keys})
        first = min(key.index for key in manifest.keys)
        return f"{len(manifest.keys)} episodes of {in_short(manifest.tasks)}, {'/'.join(splits)} from {first}"

    return f"{describe(there)} there, {describe(now)} now"


def fresh_folder(policy: str, root: Path = Path("runs")) -> Path:
    """A folder name that does not exist yet: policy, date and time."""
    stem = f"{policy.replace('/', '-')}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
    names = [stem, *(f"{stem}-{number}" for number in range(2, 100))]
    return next(root / name for name in names if not (root / name).exists())
