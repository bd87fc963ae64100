"""Training batches in their order, prepared ahead of the step that takes them."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from sim_eval.core.errors import SimEvalError
from sim_eval.datasets.windows import EpisodeWindows
from sim_eval.policies.spatialvla.modeling_llava3d import TensorGroup
from sim_eval.policies.spatialvla.processing_spatialvla import SpatialVLAProcessor, TrainingBatch


@dataclass(frozen=True)
class NumberedBatch(TensorGroup):
    """A batch and the numbers of its windows."""

    windows: list[int]
    batch: TrainingBatch


class _Batches(Dataset[NumberedBatch | SimEvalError]):
    """A list of windows' numbers -> the batch of these windows, or what is wrong with one of them."""

    def __init__(self, windows: EpisodeWindows, processor: SpatialVLAProcessor) -> None:
        self._windows, self._processor = windows, processor

    def __getitem__(self, numbers: list[int]) -> NumberedBatch | SimEvalError:
        try:
            return NumberedBatch(numbers, self._processor.training_batch([self._windows[each] for each in numbers]))
        except SimEvalError as error:  # raised in another process, it would come with that one's traceback
            return error


def prepared(
    windows: EpisodeWindows,
    processor: SpatialVLAProcessor,
    numbers: Iterable[Sequence[int]],
    device: torch.device,
    workers: int,
) -> Generator[NumberedBatch, None, None]:
    """The batches on the device, in their order. They do not depend on how many processes prepare them.

    Args:
        numbers: of the windows of each batch.
        workers: processes that prepare batches, until the generator is closed; 0: this one does, when a batch is
            asked for.

    Raises:
        SimEvalError: a demonstration cannot be read, or a process that prepares batches died.
    """
    loader = DataLoader(
        _Batches(windows, processor),
        sampler=numbers,
        batch_size=None,  # each entry of the sampler is a whole batch
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # the loader would draw from the global one
    )
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if not workers:
                raise
            raise SimEvalError(
                f"a process that prepares batches died ({str(error).splitlines()[0]}): use --loader-workers 0, or give "
                "it more memory"
            ) from error
        if isinstance(batch, SimEvalError):
            raise batch
        yield batch.to(device, non_blocking=True)


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that trains
    torch.set_flush_denormal(True)
