"""A run on disk: what was planned, how it was run, and what came of every episode.

``manifest.json`` (the keys; written first), ``run.json`` (what is needed to run it again), ``episodes.jsonl`` (one line
an episode, as it ends; in the manifest's order once all have), ``trajectories/*.h5`` and ``videos/``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import IO, Any

from sim_eval.core import old_files
from sim_eval.core.errors import SimEvalError
from sim_eval.core.files import PARTIAL, atomic, read_json, unwritable, write_json
from sim_eval.core.types import EnvironmentSpec, EpisodeKey, RenderConfig
from sim_eval.core.versions import machine, versions
from sim_eval.envs.tasks import in_short
from sim_eval.evaluation.engine import EpisodeResult, RolloutProtocol
from sim_eval.evaluation.manifest import Manifest
from sim_eval.policies.policy import PolicySpec

RESULT_TYPES: dict[str, type | UnionType] = {
    "instruction": str,
    "success": bool,
    "success_end": bool,
    "steps": int,
    "first_success": int | None,
    "phase": str,
    "policy_calls": int,
    "error": str | None,
    "seconds": float,
}
MANIFEST, RUN, EPISODES, TRAJECTORIES, VIDEOS = "manifest.json", "run.json", "episodes.jsonl", "trajectories", "videos"
OUTCOMES = ("success", "failure")  # the ends of videos' names
TASK_PACKAGES = ("sim_eval", "mujoco", "robosuite", "metaworld", "rpent-libero")  # of another version: another task


def to_line(result: EpisodeResult) -> str:
    """One line of ``episodes.jsonl``; the time comes last, everything before it is the same when run again."""
    values = asdict(result)
    return json.dumps({**values.pop("key"), **values})


def from_line(line: str) -> EpisodeResult:
    """Reads what :func:`to_line` wrote.

    Raises:
        ValueError, KeyError, TypeError, SimEvalError: it is something else.
    """
    entry = old_files.episode(json.loads(line))
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
    now = old_files.protocol(raw)
    return RolloutProtocol(**{**now, "render": RenderConfig(**now["render"])})


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
        names = {key.stem for key in keys}
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
