"""The options of each program as a frozen dataclass.

The same dataclass is the command line, a file for ``--config``, and the ``config`` that the program saves beside its
results. Its annotations are its bounds; :mod:`sim_eval.core.decoding` checks them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import tyro
from annotated_types import Ge

from sim_eval.core.decoding import decode
from sim_eval.core.errors import SimEvalError
from sim_eval.policies.policy import Weights

Count: TypeAlias = Annotated[int, Ge(1)]
Size: TypeAlias = Annotated[int, Ge(0)]
Flag: TypeAlias = Annotated[bool, tyro.conf.FlagCreatePairsOff]


# --- rollout ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RolloutConfig:
    """Score a policy in simulation: success rate, interval, videos.

    Attributes:
        policy: deep_llama or another shipped checkpoint, a checkpoint folder, scripted, zero or random, another
            package's policy (NAME or NAME:ARGUMENT), or a server of openpi's protocol such as python -m sim_eval.serve.
        task: tasks and suites of tasks, separated by commas; by default those that the checkpoint was trained on, or
            robosuite/LiftWide.
        episodes: number of episodes of each task.
        split: train, val or test; final numbers come from test, which is never trained on.
        first: index of the first episode.
        video: the episodes that get a video; rendering every step takes most of the time, so say none for a long run.
        out: run folder; by default a new one under runs/. An interrupted run in it is continued.
        device: auto, cpu, cuda or another of torch's devices.
        json: print one JSON object instead of tables.
        render: fast (no shadows, lighter meshes) or faithful (the simulator's own look); by default that on which the
            checkpoint was trained, or faithful for LIBERO and fast for other tasks.
        n_action_steps: control steps of each action chunk that are executed before the policy is called again.
        euler_steps: steps of the sampler; by default those saved with the checkpoint.
        weights: precision of the network: float32, bfloat16, int8 or nf4 (4 bits); the last two need
            sim_eval[quantized].
        compile: run the network's Euler step through torch.compile.
        instruction_condition: correct, or counterfactual to give the policy the instruction of another goal than the
            one that is scored.
        hide_goal: leave out the marks by which some simulators show where the goal is.
        threads: torch's CPU threads a process; with 1 the result does not depend on the machine's number of cores.
        workers: number of processes that run episodes; 1 is this process, without watchdog and retries, and with 2 or
            more the run survives a simulator that crashes or hangs.
        batch: 0 gives each worker its own copy of the policy; otherwise one policy answers up to so many workers at
            once. By default 0 on a CPU, and on a GPU the number of workers.
        wait: milliseconds that a request to the shared policy waits for others.
        deterministic: no batch of more than 1, so that results are bit for bit those of one worker.
        watchdog: seconds without a control step after which a worker counts as hung.
        retries: attempts to repeat an episode whose worker died or hung, before it counts as failed.
        backend: where workers run: processes of this machine, or Ray actors, which needs sim_eval[ray].
        ray_address: host:port of a Ray cluster whose nodes share the run folder; by default one of this machine alone.
        keys: observation keys for a third-party server: a TOML or JSON file, or the shipped openpi_libero for openpi's
            LIBERO checkpoints.
    """

    policy: Annotated[str, tyro.conf.arg(metavar="NAME|DIR|ws://HOST:PORT")]
    task: Annotated[str, tyro.conf.arg(metavar="T[,T...]")] = ""
    episodes: Count = 20
    split: Literal["train", "val", "test"] = "test"
    first: Size = 0
    video: Literal["none", "failures", "all"] = "all"
    out: Path | None = None
    device: str = "auto"
    json: Flag = False
    render: Literal["fast", "faithful"] | None = None
    n_action_steps: Count = 4
    euler_steps: Count | None = None
    weights: Weights = "float32"
    compile: Flag = False
    instruction_condition: Literal["correct", "counterfactual"] = "correct"
    hide_goal: Flag = False
    threads: Count = 1
    workers: Count = 1
    batch: Size | None = None
    wait: Annotated[float, Ge(0)] = 10.0
    deterministic: Flag = False
    watchdog: Annotated[float, Ge(1)] = 300.0
    retries: Size = 2
    backend: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    keys: Path | None = None

    def checked(self) -> RolloutConfig:
        """This configuration.

        Raises:
            SimEvalError: an option is out of its bounds, or two options contradict each other.
        """
        decode(RolloutConfig, self)
        if self.deterministic and (self.batch or 0) > 1:
            raise SimEvalError(f"--deterministic allows no batch: leave --batch {self.batch} out")
        if self.ray_address and self.backend != "ray":
            raise SimEvalError("--ray-address is for --backend ray: add it")
        return self


# --- doctor -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DoctorConfig:
    """Examine machine, cameras, demonstrations and policy before anything is scored.

    Attributes:
        policy: deep_llama or another shipped checkpoint, a checkpoint folder, scripted, zero or random.
        task: tasks and suites of tasks, separated by commas; by default those of the data, or the policy's, or
            robosuite/LiftWide.
        data: folders of demonstrations, best those on which the policy was trained.
        episodes: number of demonstrations of each task that are replayed.
        render: fast or faithful, as in the evaluation; by default that on which the policy was trained, or the task's.
        hide_goal: leave out marks of the goal, if the evaluation will.
        device: auto, cpu, cuda or another of torch's devices.
        threads: torch's CPU threads, as in the evaluation.
        json: write the findings to this file as well.
    """

    policy: Annotated[str | None, tyro.conf.arg(metavar="NAME|DIR")] = None
    task: Annotated[str, tyro.conf.arg(metavar="T[,T...]")] = ""
    data: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="DIR [DIR ...]")] = ()
    episodes: Count = 3
    render: Literal["fast", "faithful"] | None = None
    hide_goal: Flag = False
    device: str = "auto"
    threads: Count = 1
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
