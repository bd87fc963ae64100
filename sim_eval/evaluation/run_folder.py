"""A run on disk: the plan, the configuration, and the result of every episode.

``manifest.json`` (the keys; written first), ``run.json`` (configuration, policy, protocol, environments and machine),
``episodes.jsonl`` (one line an episode, as it ends; in the manifest's order once all have ended), ``trajectories/*.h5``
and ``videos/``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from sim_eval import __version__
from sim_eval.configs import RolloutConfig
from sim_eval.core import old_files
from sim_eval.core.decoding import decode, encode
from sim_eval.core.errors import SimEvalError
from sim_eval.core.files import PARTIAL, read_json, unwritable, write_json, write_text
from sim_eval.core.types import EnvironmentSpec, EpisodeKey
from sim_eval.core.versions import machine, versions
from sim_eval.envs.tasks import in_short
from sim_eval.evaluation.engine import EpisodeResult, RolloutProtocol
from sim_eval.evaluation.manifest import Manifest
from sim_eval.policies.policy import PolicySpec

MANIFEST, RUN, EPISODES, TRAJECTORIES, VIDEOS = "manifest.json", "run.json", "episodes.jsonl", "trajectories", "videos"
OUTCOMES = ("success", "failure")  # the ends of videos' names
SYNC_SECONDS = 0.1  # between two synchronisations of episodes.jsonl with the disk
MACHINE = ("platform", "processor", "instructions", "torch_threads")  # fields of run.json
TASK_PACKAGES = ("sim_eval", "mujoco", "robosuite", "metaworld", "rpent-libero")  # another version: another task


def to_line(result: EpisodeResult) -> str:
    """One line of ``episodes.jsonl``; the time comes last, everything before it is the same when run again."""
    values = asdict(result)
    return json.dumps({**values.pop("key"), **values})


def from_line(line: str) -> EpisodeResult:
    """Reads the output of :func:`to_line`.

    Raises:
        SimEvalError: the line is something else.
    """
    try:
        fields = old_files.episode(json.loads(line))
    except (ValueError, RecursionError) as error:
        raise SimEvalError(str(error)) from error
    if isinstance(fields, dict):
        key = {name: fields.pop(name) for name in ("task", "split", "index") if name in fields}
        fields = {"key": key, **fields}
    return decode(EpisodeResult, fields)


def identity(policy: PolicySpec, protocol: RolloutProtocol, versions: Mapping[str, object]) -> dict[str, object]:
    """All that decides the episode lines of a run, except its manifest."""
    return {
        "policy name": policy.name,
        "policy digest": policy.digest,
        "policy privileged": policy.privileged,
        "policy variant": policy.variant,
        **{f"protocol {name}": value for name, value in vars(protocol).items()},
        **{f"versions {package}": version for package, version in versions.items()},
    }


@dataclass(frozen=True)
class Run:
    """A run as read back.

    Attributes:
        config: options of sim_eval.rollout; None: another program made the run.
        spec: of the policy.
        machine: versions, processor and threads, as :func:`sim_eval.core.versions.machine` returns them.
        episodes: finished episodes, each once, in the manifest's order.
    """

    folder: Path
    manifest: Manifest
    config: RolloutConfig | None
    spec: PolicySpec
    protocol: RolloutProtocol
    machine: Mapping[str, Any]
    episodes: tuple[EpisodeResult, ...]

    @property
    def versions(self) -> Mapping[str, str]:
        """Package -> version, as far as they are known."""
        packages: Mapping[str, str] = self.machine["versions"]
        return packages

    @property
    def complete(self) -> bool:
        return len(self.episodes) == len(self.manifest.keys)


def read_run(folder: Path) -> Run:
    """Reads a run folder.

    Raises:
        SimEvalError: a file is missing, damaged, or of a later version; names file and line. A torn last line (the run
            was killed while writing it) is not an error.
    """
    manifest = _read_manifest(folder / MANIFEST)
    episodes = read_episodes(folder / EPISODES, manifest)
    path = folder / RUN
    data = old_files.run(read_json(path))
    try:
        config = data.get("config")
        return Run(
            folder,
            manifest,
            None if config is None else decode(RolloutConfig, config, "config"),
            PolicySpec.from_dict(data.get("policy", {})),
            decode(RolloutProtocol, data["protocol"], "protocol"),
            {name: data.get(name) for name in MACHINE} | {"versions": decode(dict[str, str], data.get("versions", {}))},
            episodes,
        )
    except SimEvalError as error:
        packages = data.get("versions")
        writer = packages.get("sim_eval", __version__) if isinstance(packages, dict) else __version__
        if writer != __version__:
            raise SimEvalError(f"{path} is of sim_eval {writer} ({error}): read it with that version") from error
        raise SimEvalError(f"{path} is damaged ({error}): run it again into a new folder") from error


def task_versions_apart(runs: Collection[Run]) -> str:
    """The packages that implement a task and whose versions differ among these runs, in words; empty: none."""
    used = {
        package: sorted({run.versions[package] for run in runs if package in run.versions}) for package in TASK_PACKAGES
    }
    return ", ".join(f"{package} {' and '.join(versions)}" for package, versions in used.items() if len(versions) > 1)


def _read_manifest(path: Path) -> Manifest:
    data = read_json(path)
    try:
        return Manifest.from_dict(data)
    except SimEvalError as error:
        raise SimEvalError(f"{path} is damaged ({error}): run it again into a new folder") from error


def read_episodes(path: Path, manifest: Manifest) -> tuple[EpisodeResult, ...]:
    """The finished episodes of a manifest, in its order.

    Raises:
        SimEvalError: a complete line is damaged, repeated, or not of this manifest.
    """
    try:
        text = path.read_text() if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise SimEvalError(f"{path} cannot be read ({error}): run it again into a new folder") from error
    planned, results = set(manifest.keys), dict[EpisodeKey, EpisodeResult]()
    for number, line in enumerate(text.split("\n")[:-1], start=1):  # the text after the last newline is torn
        where = f"{path}, line {number}"
        try:
            result = from_line(line)
        except SimEvalError as error:
            raise SimEvalError(f"{where} is damaged ({error}): delete the line and resume the run") from error
        if result.key not in planned:
            raise SimEvalError(f"{where}: episode {result.key} is not in the manifest: run it again into a new folder")
        if result.key in results:
            raise SimEvalError(f"{where}: episode {result.key} is there twice: delete one of the lines")
        results[result.key] = result
    return tuple(results[key] for key in manifest.keys if key in results)


class RunFolder:
    """A run being written. Made by :func:`open_run`; one process at a time.

    Attributes:
        results: of the finished episodes: earlier ones in the manifest's order, then as they were appended.
        torn: a kill had torn the last line of ``episodes.jsonl``; it was removed, and its episode runs again.
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
        self._synced = 0.0  # when the log was last synchronised with the disk; time.monotonic()
        self.discard(self.remaining)

    @property
    def remaining(self) -> list[EpisodeKey]:
        done = {result.key for result in self.results}
        return [key for key in self.manifest.keys if key not in done]

    def append(self, result: EpisodeResult) -> None:
        """Writes the result of one episode. It outlives this process; an episode that a power cut takes runs again."""
        try:
            self._log.write(to_line(result).encode() + b"\n")
            self._log.flush()
            last = len(self.results) + 1 == len(self.manifest.keys)
            if last or time.monotonic() - self._synced >= SYNC_SECONDS:  # a disk may take milliseconds
                os.fsync(self._log.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise unwritable(self.folder / EPISODES, error) from error
        self.results.append(result)

    def discard(self, keys: Iterable[EpisodeKey]) -> None:
        """Removes the trajectories and videos, complete or partial, of broken attempts at these episodes."""
        names = {key.stem for key in keys}
        for path in [*(self.folder / TRAJECTORIES).glob("*"), *(self.folder / VIDEOS).glob("*")]:
            stem = path.stem.removeprefix(PARTIAL)
            for outcome in OUTCOMES:
                stem = stem.removesuffix(f"_{outcome}")
            if stem in names:
                with suppress(FileNotFoundError):
                    path.unlink()

    def finish(self) -> None:
        """Sorts the lines of a complete run into the manifest's order."""
        if self.remaining:
            return
        place = {key: number for number, key in enumerate(self.manifest.keys)}
        ordered = sorted(self.results, key=lambda result: place[result.key])
        text = "".join(to_line(result) + "\n" for result in ordered)
        if (self.folder / EPISODES).read_text() != text:
            write_text(self.folder / EPISODES, text)
        self.results = ordered

    def kept(self) -> int:
        """The number of episodes in the file; after an interrupt ``results`` may lack the last one."""
        self._log.flush()
        return len(read_episodes(self.folder / EPISODES, self.manifest))


@contextmanager
def open_run(
    folder: Path,
    manifest: Manifest,
    policy: PolicySpec,
    protocol: RolloutProtocol,
    environments: Mapping[str, EnvironmentSpec],
    config: RolloutConfig | None = None,
) -> Iterator[RunFolder]:
    """Starts a run in a new or empty folder, or resumes the same run.

    Args:
        environments: task name -> its environment.
        config: options of sim_eval.rollout; None: another program makes the run.

    Raises:
        SimEvalError: the folder cannot be written, is in use, or holds another run; says what differs.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MANIFEST).exists() and any(not path.name.startswith(PARTIAL) for path in folder.iterdir()):
            raise SimEvalError(f"{folder} holds other files and no run: choose another --out")
        if (folder / MANIFEST).exists():
            _check_same(folder, manifest, identity(policy, protocol, versions()))
        if not (folder / RUN).exists():
            write_json(folder / MANIFEST, manifest.to_dict())
            write_json(
                folder / RUN,
                {
                    "created": datetime.now(UTC).isoformat(timespec="seconds"),
                    "config": encode(config or None),
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


def _check_same(folder: Path, manifest: Manifest, expected: Mapping[str, object]) -> None:
    """Refuses a folder that holds another run, or was killed before its ``run.json`` and holds another manifest."""
    existing = _read_manifest(folder / MANIFEST)
    differences = []
    if existing.digest != manifest.digest:
        differences.append(f"it has {_describe(existing)}, this command has {_describe(manifest)}")
    elif (folder / RUN).exists():
        run = read_run(folder)
        recorded = identity(run.spec, run.protocol, run.versions)
        differences = changes(recorded, expected)
    if differences:
        raise SimEvalError(f"{folder} holds another run ({'; '.join(differences)}): choose another --out")


def changes(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """The fields whose value is another now, in words."""
    return [
        f"{name} was {before.get(name) or 'none'}, is now {value or 'none'}"
        for name, value in now.items()
        if before.get(name) != value
    ]


def _describe(manifest: Manifest) -> str:
    splits = sorted({key.split for key in manifest.keys})
    first = min(key.index for key in manifest.keys)
    return f"{len(manifest.keys)} episodes of {in_short(manifest.tasks)}, {'/'.join(splits)} from {first}"


def fresh_folder(policy: str, root: Path = Path("runs")) -> Path:
    """A folder that does not exist yet, named by policy, date and time."""
    stem = f"{policy.replace('/', '-')}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
    names = [stem, *(f"{stem}-{number}" for number in range(2, 100))]
    return next(root / name for name in names if not (root / name).exists())
