"""Serve a policy by openpi's websocket protocol: ``python -m sim_eval.serve --policy deep_llama``.

``python -m sim_eval.rollout --policy ws://127.0.0.1:8000`` then scores it, from this machine or, with ``--host``, from
another. openpi-client can call it too.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

import tyro

from sim_eval.configs import Device, Flag
from sim_eval.console import run
from sim_eval.core.programs import command
from sim_eval.policies.policy import Weights
from sim_eval.policies.spatialvla.configuration_spatialvla import Count, Size

PROGRAM = command("serve")


@dataclass(frozen=True)
class ServeArguments:
    """Serve a policy by openpi's websocket protocol, until Ctrl-C.

    Attributes:
        policy: deep_llama or another shipped checkpoint, a checkpoint folder, scripted, zero or random.
        host: address to listen on. Anyone who can reach it may call the policy, so prefer this machine's own.
        port: port to listen on; 0 takes a free one.
        device: where the network runs: auto takes a GPU if there is one.
        euler_steps: steps of the flow-matching sampler; by default those saved with the checkpoint.
        weights: precision of the network: float32, bfloat16, int8 or nf4 (4 bits); the last two need
            sim_eval[quantized].
        compile: run the network's Euler step through torch.compile.
        threads: torch's CPU threads; with 1 the result does not depend on the machine's number of cores.
    """

    policy: Annotated[str, tyro.conf.arg(metavar="NAME|DIR")]
    host: Annotated[str, tyro.conf.arg(metavar="ADDRESS")] = "127.0.0.1"
    port: Size = 8000
    device: Device = "auto"
    euler_steps: Count | None = None
    weights: Weights = "float32"
    compile: Flag = False
    threads: Count = 1


def main(arguments: ServeArguments) -> int:
    """Runs the command; returns the exit code."""
    from sim_eval.core.errors import extra
    from sim_eval.evaluation.jobs import PolicySource
    from sim_eval.policies.policy import InferenceConfig

    with extra("serve"):
        from sim_eval.policies.remote.server import PolicyServer

    inference = InferenceConfig(arguments.euler_steps, arguments.weights, arguments.compile)
    policy = PolicySource(arguments.policy, arguments.device, inference, arguments.threads).load()
    with PolicyServer(policy).listen(arguments.host, arguments.port) as server, suppress(KeyboardInterrupt):
        host, port = server.socket.getsockname()[:2]
        print(f"serving {policy.spec.name} on ws://{host}:{port}", flush=True)
        server.serve_forever()
    return 0


if __name__ == "__main__":
    run(main, ServeArguments, PROGRAM)
