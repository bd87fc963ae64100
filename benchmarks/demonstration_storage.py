"""What storing demonstrations costs: ``python benchmarks/demonstration_storage.py --data data/lift_wide``.

Compares ways to compress the pictures of real demonstrations: bytes on the disk, writing, and reading windows in random
order, which is what training does. All are timed in turns on the same pictures, as CPU time. ``--steps`` also times
training steps on the files as they are and on the same episodes written anew: give it files of version 0.1 to compare
their form with today's.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim_eval.console import run

if TYPE_CHECKING:
    from sim_eval.datasets.windows import EpisodeWindows

BATCH = 32


@dataclass(frozen=True)
class StorageArguments:
    """Compare ways to store demonstrations.

    Attributes:
        data: a folder of demonstrations that sim_eval.collect filled.
        episodes: how many of its files to use.
        rounds: times that each measurement is repeated; the median counts.
        batches: batches of 32 windows in a measurement of random reads.
        steps: training steps to time on each form of the files; 0: none.
    """

    data: Path
    episodes: int = 5
    rounds: int = 5
    batches: int = 10
    steps: int = 0


@dataclass(frozen=True)
class Form:
    """A way to store pictures: compresses one, and decompresses it into an array."""

    encode: Callable[[NDArray[Any]], bytes]
    decode: Callable[[bytes, NDArray[Any]], object]


def forms() -> dict[str, tuple[Form, Form]]:
    """Name -> forms of rgb and of depth. Those of numcodecs have no own threads, as in the package."""
    import hdf5plugin
    from numcodecs.blosc import BITSHUFFLE, NOSHUFFLE, SHUFFLE, Blosc

    from sim_eval.datasets import old_demonstrations, stored_pictures

    def blosc(*codecs: Blosc) -> tuple[Form, ...]:
        return tuple(Form(codec.encode, codec.decode) for codec in codecs)

    def gzip(itemsize: int) -> Form:
        shuffle = old_demonstrations.Shuffle(itemsize)
        codec = old_demonstrations.Gzip(itemsize)
        return Form(lambda picture: zlib.compress(bytes(shuffle.encode(picture)), 1), codec.decode)

    found: dict[str, tuple[Form, ...]] = {
        "gzip-1, shuffled (version 0.1)": (gzip(1), gzip(4)),
        "LZ4 (today)": blosc(stored_pictures.RGB, stored_pictures.DEPTH),
    }
    for name, codec, level in (
        ("LZ4-1", "lz4", 1),
        ("LZ4HC-5", "lz4hc", 5),
        ("zstd-1", "zstd", 1),
        ("zstd-3", "zstd", 3),
    ):
        found[name] = blosc(Blosc(codec, level, NOSHUFFLE), Blosc(codec, level, SHUFFLE))
    found["LZ4HC-1, bitshuffled"] = blosc(Blosc("lz4hc", 1, BITSHUFFLE), Blosc("lz4hc", 1, BITSHUFFLE))
    for name, options in (
        ("Blosc2 zstd-1 by h5py", hdf5plugin.Blosc2(cname="zstd", clevel=1)),
        ("Bitshuffle LZ4 by h5py", hdf5plugin.Bitshuffle()),
    ):
        found[name] = (through_hdf5(options),) * 2
    return found  # type: ignore[return-value]


def through_hdf5(options: Mapping[str, Any]) -> Form:
    """A filter that only HDF5 offers; each picture is a dataset of a file in memory."""
    import h5py

    file = h5py.File(f"pictures of {options}", "w", driver="core", backing_store=False)

    def encode(picture: NDArray[Any]) -> bytes:
        name = f"{len(file)}"
        dataset = file.create_dataset(name, data=picture, chunks=picture.shape, **options)
        return name.encode().ljust(dataset.id.get_storage_size(), b"\0")

    return Form(encode, lambda content, out: file[content.rstrip(b"\0").decode()].read_direct(out))


def timed(function: Callable[..., Any], *arguments: object) -> tuple[Any, float]:
    """What a call returns, and the CPU time that it took in milliseconds: others on the machine change it least."""
    began = time.process_time()
    result = function(*arguments)
    return result, 1e3 * (time.process_time() - began)


def pictures(files: Sequence[Path]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """The rgb and depth of every view."""
    from sim_eval.datasets.episode_file import read_episode

    for file in files:
        for seen in read_episode(file).observations:
            yield from ((view.rgb, view.depth) for view in seen.views.values())


def compare(files: Sequence[Path], arguments: StorageArguments) -> dict[str, dict[str, float]]:
    """Name of a form -> what one view (rgb and depth) costs.

    Every form must give the pictures back bit for bit.
    """
    views = [tuple(map(np.ascontiguousarray, view)) for view in pictures(files)]
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(views), size=2 * BATCH).tolist() for _ in range(arguments.batches)]
    candidates = forms()
    contents: dict[str, list[list[bytes]]] = {}
    taken: dict[str, dict[str, list[float]]] = {name: {"write": [], "read": []} for name in candidates}
    outputs = [np.empty_like(picture) for picture in views[0]]

    def write(pair: tuple[Form, Form]) -> list[list[bytes]]:
        return [[bytes(form.encode(part)) for form, part in zip(pair, view, strict=True)] for view in views]

    def read(pair: tuple[Form, Form], stored: Sequence[Sequence[bytes]]) -> None:
        for number in (number for batch in drawn for number in batch):
            for form, content, output in zip(pair, stored[number], outputs, strict=True):
                form.decode(content, output)

    for name, pair in candidates.items():
        contents[name], duration = timed(write, pair)
        taken[name]["write"].append(duration)
        for view, stored in zip(views, contents[name], strict=True):
            for form, picture, content, output in zip(pair, view, stored, outputs, strict=True):
                form.decode(content, output)
                assert output.tobytes() == picture.tobytes(), name
    for _ in range(arguments.rounds):
        for name, pair in candidates.items():
            taken[name]["read"].append(timed(read, pair, contents[name])[1])
    return {
        name: {
            "bytes": statistics.mean(sum(map(len, stored)) for stored in contents[name]),
            "write": statistics.median(times["write"]) / len(views),
            "batch": statistics.median(times["read"]) / arguments.batches,
        }
        for name, times in taken.items()
    }


def training_steps(files: Sequence[Path], folder: Path, arguments: StorageArguments) -> dict[str, dict[str, float]]:
    """Name of a form of files -> milliseconds to open an episode, to prepare a batch and for a whole step."""
    import torch

    from sim_eval.configs import TrainConfig
    from sim_eval.datasets.episode_file import read_episode, write_episode
    from sim_eval.datasets.windows import EpisodeWindows, TaskBalancedBatchSampler
    from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration
    from sim_eval.policies.spatialvla.trainer import Trainer, TrainingConfig
    from sim_eval.training.preparation import make_processor

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    for file in files:
        write_episode(folder / file.name, read_episode(file))
    sources = {"as they are": list(files), "written anew": [folder / file.name for file in files]}
    taken: dict[str, dict[str, list[float]]] = {name: {"open": [], "prepare": [], "step": []} for name in sources}
    kinds: dict[str, EpisodeWindows] = {}
    for _ in range(arguments.rounds):
        for name, paths in sources.items():
            kinds[name], opening = timed(EpisodeWindows, paths, 8)
            taken[name]["open"].append(opening / len(files))
    processor = make_processor(kinds["as they are"], TrainConfig(data=(arguments.data,)))
    torch.manual_seed(0)
    trainer = Trainer(SpatialVLAForConditionalGeneration(processor.config), TrainingConfig(), seed=0)
    batches = iter(TaskBalancedBatchSampler(kinds["as they are"], BATCH, seed=0))
    for _ in range(arguments.steps):
        indices = next(batches)
        for name, windows in kinds.items():
            ready, prepare = timed(
                lambda numbers, of: processor.training_batch([of[n] for n in numbers]), indices, windows
            )
            taken[name]["prepare"].append(prepare)
            taken[name]["step"].append(prepare + timed(trainer.train_step, ready, 0.0)[1])
    return {name: {kind: statistics.median(times) for kind, times in of.items()} for name, of in taken.items()}


def main(arguments: StorageArguments) -> int:
    """Prints the comparison; returns the exit code."""
    from sim_eval.datasets.episode_file import episode_files
    from sim_eval.reporting.tables import Table

    files = episode_files(arguments.data)[: arguments.episodes]
    costs = compare(files, arguments)
    rows = [
        (name, f"{cost['bytes'] / 1e3:.1f}", f"{cost['write']:.2f}", f"{cost['batch']:.1f}")
        for name, cost in costs.items()
    ]
    print(Table(("one view's rgb and depth", "kB", "write, ms", f"read {BATCH} windows of 2 views, ms"), rows))
    if arguments.steps:
        with tempfile.TemporaryDirectory() as folder:
            steps = training_steps(files, Path(folder), arguments)
        rows = [(name, *(f"{cost[kind]:.1f}" for kind in ("open", "prepare", "step"))) for name, cost in steps.items()]
        print()
        print(Table(("files", "open an episode, ms", f"prepare {BATCH} windows, ms", "training step, ms"), rows))
    return 0


if __name__ == "__main__":
    run(main, StorageArguments, "python benchmarks/demonstration_storage.py")
