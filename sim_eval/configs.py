"""The options of each program as a frozen dataclass.

The same dataclass is the command line, a file for ``--config``, and the ``config`` that the program saves beside its
results. Its annotations are its bounds; :mod:`sim_eval.core.decoding` checks them.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, cast

import tyro
from annotated_types import Ge, Gt, Le, Lt
from pydantic import AllowInfNan, PlainValidator
from pydantic_core import PydanticCustomError

from sim_eval.core.decoding import decode, encode
from sim_eval.core.errors import SimEvalError
from sim_eval.core.normalization import NormalizationMode
from sim_eval.policies.policy import Weights
from sim_eval.policies.spatialvla.configuration_spatialvla import SIZES, ActionExpertType, Count, Size, SpatialVLAConfig

DEFAULT_MINUTES = 10.0
UNSET = cast(SpatialVLAConfig, None)  # until __post_init__
Flag: TypeAlias = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Device: TypeAlias = Annotated[str, tyro.conf.arg(metavar="auto|cpu|cuda|...")]
PrintJson: TypeAlias = Annotated[
    bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="print all numbers as one JSON object instead of text.")
]
PrintCsv: TypeAlias = Annotated[
    bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="print the numbers as CSV instead of text.")
]


def _or_count(*words: str) -> PlainValidator:
    """Accepts the words and whole numbers from 1 on."""

    def check(value: object) -> object:
        if value not in words and (type(value) is not int or value < 1):
            raise PydanticCustomError("choice", f"Input should be {', '.join(words)} or a whole number from 1 on")
        return value

    return PlainValidator(check)


# "auto": see :func:`sim_eval.evaluation.workers.worker_count`.
Workers: TypeAlias = Annotated[Literal["auto"] | int, _or_count("auto")]
VideoChoice: TypeAlias = Annotated[Literal["none", "failures", "all"] | int, _or_count("none", "failures", "all")]
VideoSize: TypeAlias = Annotated[int, Ge(128), Le(2160)]


def flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every field of nested tables."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


# --- train ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainConfig:
    """Train an action expert on LLaVA-3D from demonstrations.

    Attributes:
        data: folders of demonstrations that sim_eval.collect made.
        out: checkpoint folder. An interrupted training in it is continued; with more minutes or steps than it was
            first given, it is lengthened.
        expert: which of the two action experts.
        minutes: training time, validation included. By default 10, which is enough to try it; the shipped checkpoint of
            four tasks took 50 on one core.
        steps: number of optimizer steps, instead of minutes.
        seed: seed of the initial weights, the order of the data and the noise.
        device: where the network runs: auto takes a GPU if there is one.
        size: size of a network that starts from random weights.
        llava3d: published LLaVA-3D to start from, a folder or a repository such as ChaimZhu/LLaVA-3D-7B.
        gemma: published Gemma for late_gemma's expert to start from, such as google/gemma-2b; needs --llava3d.
        batch_size: number of observations in a step of each process.
        flow_samples: number of (time, noise) samples of each observation.
        frame_stride: train on every N-th observation of a demonstration; the actions keep their rate.
        demonstrations: use only the first N demonstrations of each task; by default all.
        cameras: the recorded cameras that the policy sees; by default all.
        state: the recorded proprioception fields that the policy reads; by default eef_pos, eef_rot6d and
            gripper_qpos. With gripper_opening in place of gripper_qpos it has the same state on every arm.
        loader_workers: processes that prepare batches ahead; 0: batches are prepared between the steps.
        sampling_temperature: balances tasks of different size: a task with n windows is drawn in proportion to
            n ** (1 / X). 1 draws every window equally often, inf every task.
        learning_rate: peak of the learning rate, which follows a cosine.
        optimizer: adamw, or muon for the layers' matrices, which learns in fewer steps from random weights.
        normalization: how states and actions are normalised: mean_std, or quantile (1 % and 99 % become -1 and 1).
        val_episodes: number of validation rollouts of each task in each of the five rounds. With 0 the last weights are
            kept; otherwise those that did best.
        val_total: limit of a round's rollouts, spread evenly over the tasks; by default there is none.
        threads: torch's threads on the CPU; by default all.
        freeze: parts that are not trained: vision, position, projector, vlm, expert.
        lora: parts that get LoRA adapters instead of being trained: vision, vlm, expert.
        lora_rank: rank of the LoRA adapters.
        precision: with bfloat16 the network computes in it and frozen parts are kept in it; trained parts stay float32.
        checkpointing: keep only each layer's input and run the layer again for the gradient: less memory, more time.
        shard: divide the network among the processes that accelerate or torchrun has started (FSDP).
        cache_features: folder that keeps the output of a frozen VLM for each window, so that it runs once on each.
        dry_run: print the network's parts, what is trained and the memory that it takes, and stop; needs no --data.
        network: the network; by default that of --expert and --size, or of --llava3d.
    """

    # Another value of these changes no weight: paths, speed, output, and where it runs.
    FREE: ClassVar = ("data", "out", "device", "threads", "loader_workers", "cache_features", "dry_run", "json", "csv")
    BUDGETS: ClassVar = ("minutes", "steps")
    # The default of `network` depends on these.
    PRESETS: ClassVar = ("expert", "size", "llava3d", "gemma")
    SECTIONS: ClassVar = {
        "data and result": ("data", "out", "demonstrations", "frame_stride", "cameras", "state", "json", "csv"),
        "how long": ("minutes", "steps"),
        "the network": ("expert", "size", "llava3d", "gemma", "freeze", "lora", "lora_rank", "dry_run"),
        "learning": (
            *("batch_size", "flow_samples", "sampling_temperature", "learning_rate", "optimizer", "normalization"),
            "seed",
        ),
        "validation": ("val_episodes", "val_total"),
        "machine": (*("device", "threads", "loader_workers", "precision", "checkpointing", "shard", "cache_features"),),
    }

    data: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="DIR [DIR ...]")] = ()
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/train/mine")
    expert: ActionExpertType = "deep_llama"
    minutes: Annotated[float, Ge(0.01), AllowInfNan(False)] | None = None
    steps: Count | None = None
    seed: Annotated[int, Ge(0), Lt(2**31)] = 0  # a step's draws are seeded by seed and step together, in 64 bits
    device: Device = "auto"
    size: Literal["tiny", "llava3d-7b"] = "tiny"
    llava3d: Annotated[str | None, tyro.conf.arg(metavar="DIR|REPOSITORY")] = None
    gemma: Annotated[str | None, tyro.conf.arg(metavar="DIR|REPOSITORY")] = None
    batch_size: Count = 32
    flow_samples: Count = 4
    frame_stride: Count = 1
    demonstrations: Count | None = None
    cameras: Annotated[tuple[str, ...], tyro.conf.arg(metavar="C [...]")] = ()
    state: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD [...]")] = ()
    loader_workers: Size = 1
    sampling_temperature: Annotated[float, Ge(1)] = 2.0
    learning_rate: Annotated[float, Gt(0), AllowInfNan(False)] = 1e-3
    optimizer: Literal["adamw", "muon"] = "adamw"
    normalization: NormalizationMode = "mean_std"
    val_episodes: Size = 20
    val_total: Count | None = None
    threads: Count | None = None
    freeze: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PART [...]")] = ()
    lora: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PART [...]")] = ()
    lora_rank: Count = 16
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpointing: Flag = False
    shard: Flag = False
    cache_features: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    dry_run: Flag = False
    network: Annotated[SpatialVLAConfig, tyro.conf.FlagConversionOff] = UNSET
    json: PrintJson = False
    csv: PrintCsv = False

    def __post_init__(self) -> None:
        if self.network is UNSET:
            object.__setattr__(self, "network", self.base_network(published=True))

    def base_network(self, published: bool = False) -> SpatialVLAConfig:
        """The network that these presets stand for, before the demonstrations are known.

        Args:
            published: read the configuration of ``llava3d``; otherwise LLaVA-3D-7B's stands for it.

        Raises:
            SimEvalError: ``llava3d`` or ``gemma`` cannot be read.
        """
        if self.llava3d is None or not published:
            base = SIZES[self.size if self.llava3d is None else "llava3d-7b"][self.expert]
        else:
            from sim_eval.policies.spatialvla.pretrained import llava3d_config

            base = llava3d_config(self.llava3d, self.expert, gemma=self.gemma)
        # A published vision tower has a size of its own, and pictures are made to fit it.
        vision = replace(base.vision, image_size=0) if self.llava3d is None else base.vision
        return replace(base, vision=vision, expert=replace(base.expert, state_dim=0, action_dim=0))

    def identity(self) -> dict[str, Any]:
        """Dotted name -> value of all that decides the weights."""
        return {name: value for name, value in flat(encode(self)) if name.partition(".")[0] not in self.FREE}

    def changes(self) -> dict[str, Any]:
        """Dotted name -> value of the fields that are not at their defaults."""
        usual = dict(flat(encode(TrainConfig(network=self.base_network()))))
        return {name: value for name, value in flat(encode(self)) if usual.get(name) != value}

    @property
    def command(self) -> str:
        """A command that trains like this."""
        return f"python -m sim_eval.train {self.options}".rstrip()

    @property
    def options(self) -> str:
        """The options of that command."""
        words = []
        for name, value in self.changes().items():
            words.append(f"--{name.replace('_', '-')}")
            if isinstance(value, list):
                words += map(str, value)
            elif value is not True or "." in name:  # the network's flags take a value
                words.append(str(int(value) if isinstance(value, float) and value.is_integer() else value))
        return shlex.join(words)

    def checked(self) -> TrainConfig:
        """This configuration with its budget filled in.

        Raises:
            SimEvalError: a field is out of its bounds, or fields do not fit each other.
        """
        decode(TrainConfig, self)
        if self.network.action_expert_type != self.expert:
            raise SimEvalError(
                f"network.action_expert_type is {self.network.action_expert_type} and --expert {self.expert}: "
                "make them equal"
            )
        if self.minutes is not None and self.steps is not None:
            raise SimEvalError("give --minutes or --steps, not both (None counts as not given)")
        if self.gemma is not None and self.llava3d is None:
            raise SimEvalError("--gemma starts from published weights: give --llava3d too")
        if self.shard and self.val_episodes:
            raise SimEvalError(
                "--shard leaves no process the whole network: use --val-episodes 0 and score with rollout"
            )
        if self.shard and self.optimizer == "muon":
            raise SimEvalError("--shard leaves no process a whole matrix, and muon needs them: use --optimizer adamw")
        if both := set(self.freeze) & set(self.lora):
            raise SimEvalError(f"part '{min(both)}' is in --freeze and in --lora: --lora freezes it too")
        if not self.dry_run:
            if self.size != "tiny":
                raise SimEvalError(
                    f"--size {self.size} would start from random weights: start from published ones, "
                    "--llava3d ChaimZhu/LLaVA-3D-7B, or look with --dry-run"
                )
            if not self.data:
                raise SimEvalError("--data needs at least one folder of episodes; sim_eval.collect makes one")
        return self if self.steps is not None else replace(self, minutes=self.minutes or DEFAULT_MINUTES)


# --- rollout ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RolloutConfig:
    """Score a policy in simulation: success rate, interval, videos.

    Attributes:
        policy: deep_llama or another shipped checkpoint, a checkpoint folder, scripted, zero or random, another
            package's policy (NAME or NAME:ARGUMENT), or the address of a server that speaks openpi's protocol.
        task: tasks and suites of tasks, separated by commas; by default those that the checkpoint was trained on, or
            robosuite/LiftWide.
        episodes: number of episodes of each task.
        split: the set from which episodes come; final numbers come from test, which is never trained on.
        first: index of the first episode in the split.
        video: the episodes that get a video: none, failures, all, or a number N for the first N of each task. A video
            takes longer than its episode; sim_eval.video makes videos of a finished run.
        video_size: height in pixels of the large picture in videos.
        video_look: rendering of that picture, which the policy does not see; faithful is the simulator's own look.
        out: run folder; by default a new one under runs/. An interrupted run in it is continued.
        device: where the network runs: auto takes a GPU if there is one.
        render: fast (no shadows, lighter meshes) or faithful (the simulator's own look); by default the one that the
            checkpoint was trained on, or faithful for LIBERO and fast for other tasks.
        n_action_steps: number of actions of each chunk that are executed before the policy is called again.
        euler_steps: steps of the flow-matching sampler; by default those saved with the checkpoint.
        weights: precision of the network's weights; int8 and nf4 (4 bits) need sim_eval[quantized].
        compile: run the network's Euler step through torch.compile.
        instruction_condition: the instruction that the policy is given: the correct one, or with counterfactual that of
            another goal than the one that is scored.
        hide_goal: leave out the marks by which some simulators show where the goal is.
        other_robot: allow a policy that was trained for another robot, if all else that it needs is there; such a run
            is ranked apart.
        threads: torch's CPU threads of each process; with 1 the result does not depend on the number of cores.
        workers: number of processes that run episodes; auto: as many as cores, free memory and the number of episodes
            make worthwhile. 1 is this process, without watchdog and retries. With 2 or more the run survives a
            simulator that crashes or hangs. The results do not depend on it.
        batch: with 0 each worker has its own copy of the policy; with N one policy answers up to N workers at
            once. By default 0 on a CPU, and on a GPU the number of workers, or 1 with --workers auto.
        wait: milliseconds that the shared policy waits for requests of other workers.
        deterministic: let the shared policy answer one request at a time, so that results are bit for bit those of one
            worker.
        watchdog: seconds without a control step after which a worker counts as hung.
        retries: how often an episode is repeated whose worker died or hung, before it counts as failed.
        backend: where workers run: processes of this machine, or Ray actors, which needs sim_eval[ray].
        ray_address: host:port of a Ray cluster whose nodes share the run folder; by default one of this machine alone.
        keys: for a server that is not sim_eval's: a TOML or JSON file that says which observations it wants under which
            keys. template prints such a file to fill in; openpi_libero fits openpi's LIBERO checkpoints.
    """

    SECTIONS: ClassVar = {
        "what is scored": (
            *("policy", "task", "episodes", "split", "first", "instruction_condition", "hide_goal", "other_robot"),
        ),
        "how the policy runs": ("n_action_steps", "euler_steps", "weights", "compile", "render", "keys"),
        "result": ("out", "json", "csv", "video", "video_size", "video_look"),
        "machine": ("device", "threads"),
        "workers": (*("workers", "batch", "wait", "deterministic", "watchdog", "retries", "backend", "ray_address"),),
    }

    policy: Annotated[str, tyro.conf.arg(metavar="NAME|DIR|ws://HOST:PORT")]
    task: Annotated[str, tyro.conf.arg(metavar="T[,T...]")] = ""
    episodes: Count = 5
    split: Literal["train", "val", "test"] = "test"
    first: Size = 0
    video: Annotated[VideoChoice, tyro.conf.arg(metavar="none|failures|all|N")] = 1
    video_size: VideoSize = 512
    video_look: Literal["fast", "faithful"] = "faithful"
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    device: Device = "auto"
    json: PrintJson = False
    render: Literal["fast", "faithful"] | None = None
    n_action_steps: Count = 4
    euler_steps: Count | None = None
    weights: Weights = "float32"
    compile: Flag = False
    instruction_condition: Literal["correct", "counterfactual"] = "correct"
    hide_goal: Flag = False
    other_robot: Flag = False
    threads: Count = 1
    workers: Workers = "auto"
    batch: Size | None = None
    wait: Annotated[float, Ge(0)] = 10.0
    deterministic: Flag = False
    watchdog: Annotated[float, Ge(1)] = 300.0
    retries: Size = 2
    backend: Literal["local", "ray"] = "local"
    ray_address: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    keys: Annotated[Path | None, tyro.conf.arg(metavar="FILE|openpi_libero|template")] = None
    csv: PrintCsv = False

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
        if self.ray_address and self.workers == "auto":
            raise SimEvalError("--workers auto counts the cores of this machine: give --workers N with --ray-address")
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
        render: rendering, as in the evaluation; by default the one that the policy was trained on, or the task's.
        hide_goal: leave out the marks of the goal, as in the evaluation.
        device: where the network runs: auto takes a GPU if there is one.
        threads: torch's CPU threads, as in the evaluation.
        out: write the findings to this JSON file as well.
    """

    JSON_WAS_A_FILE: ClassVar = True  # --json FILE, before 0.3, is --out FILE

    policy: Annotated[str | None, tyro.conf.arg(metavar="NAME|DIR")] = None
    task: Annotated[str, tyro.conf.arg(metavar="T[,T...]")] = ""
    data: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="DIR [DIR ...]")] = ()
    episodes: Count = 3
    render: Literal["fast", "faithful"] | None = None
    hide_goal: Flag = False
    device: Device = "auto"
    threads: Count = 1
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    json: PrintJson = False
    csv: PrintCsv = False


# --- collect ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CollectConfig:
    """Collect demonstrations with a policy.

    Attributes:
        task: tasks and suites to demonstrate, separated by commas, for example robosuite/LiftWide.
        out: folder for the episode files of all tasks; a folder that already holds some of them is continued.
        policy: the demonstrator: scripted, the name of a shipped checkpoint, or a checkpoint folder.
        episodes: number of episodes of each task that the folder holds in the end.
        split: the set from which episodes come; test episodes are never collected.
        keep_failures: also keep failed episodes.
        disturb: push the demonstrator off its path but record clean labels (DART), so that a learner sees recoveries.
        dry_run_first: run each episode without recording first, and record it only if it succeeds; faster where
            simulation is cheap compared with rendering and the demonstrator sometimes fails.
        post_success_steps: control steps recorded after the first success. With few of them a policy may learn to stop
            just short of success, in tasks where success is a small distance.
        render: fast, or faithful for the simulator's own look; by default faithful for LIBERO and fast for others.
        hide_goal: leave out the marks by which some simulators show where the goal is.
        size: height and width of every camera's pictures, in pixels.
        cameras: cameras to record, separated by commas; by default all.
        device: where a learned demonstrator runs: auto takes a GPU if there is one.
        workers: number of processes that run episodes; auto: as many as cores, free memory and the number of episodes
            make worthwhile. 1 is this process. With 2 or more, a crash of a simulator is survived.
    """

    SECTIONS: ClassVar = {
        "what is collected": (
            *("task", "out", "policy", "episodes", "split", "disturb", "keep_failures", "dry_run_first"),
            *("post_success_steps", "json", "csv"),
        ),
        "pictures": ("cameras", "size", "render", "hide_goal"),
        "machine": ("device", "workers"),
    }

    task: Annotated[str, tyro.conf.arg(metavar="T[,T...]")]
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    policy: Annotated[str, tyro.conf.arg(metavar="NAME|DIR")] = "scripted"
    episodes: Count = 100
    split: Literal["train", "val"] = "train"
    keep_failures: bool = False
    disturb: bool = True
    dry_run_first: Flag = False
    post_success_steps: Size = 10
    render: Literal["fast", "faithful"] | None = None
    hide_goal: Flag = False
    size: Annotated[int, Ge(16)] = 128
    cameras: Annotated[str, tyro.conf.arg(metavar="C[,C...]")] = ""
    device: Device = "auto"
    workers: Workers = "auto"
    json: PrintJson = False
    csv: PrintCsv = False
