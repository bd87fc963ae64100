"""Workers as Ray actors, on this machine or on a cluster whose nodes share the run folder.

Ray places and starts them. An actor connects back to the parent and runs
:func:`sim_eval.evaluation.workers.work`, as a worker process of this machine does, under the same supervision.
"""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import suppress
from multiprocessing.connection import Client, Connection, answer_challenge, deliver_challenge
from pathlib import Path

from sim_eval.core.errors import SimEvalError
from sim_eval.evaluation.workers import START_TIMEOUT, environment, work

try:
    import ray
except ImportError as error:
    raise SimEvalError("--backend ray needs Ray: pip install 'sim_eval[ray]'") from error

OBJECT_STORE = 100 * 1024 * 1024  # bytes; nothing is stored in it
CONNECT_TIMEOUT = 10.0  # seconds in which a cluster must answer


class WorkerActor:
    """A Ray actor that runs a worker."""

    def work(self, folder: str, address: tuple[str, int], secret: bytes) -> None:
        with suppress(OSError):  # paths may be relative to the parent's folder, which another node may lack
            os.chdir(folder)
        work(Client(address, authkey=secret))


class RayWorker:
    """A :class:`sim_eval.evaluation.workers.WorkerHandle` of a :class:`WorkerActor`."""

    def __init__(self, gpus: float) -> None:
        secret = secrets.token_bytes(32)
        with socket.create_server((ray.util.get_node_ip_address(), 0)) as server:
            server.settimeout(START_TIMEOUT)
            options = {"num_cpus": 1, "num_gpus": gpus, "runtime_env": {"env_vars": environment()}}
            self._actor = ray.remote(WorkerActor).options(**options).remote()
            self._actor.work.remote(str(Path.cwd()), server.getsockname(), secret)
            try:
                caller, _ = server.accept()
            except TimeoutError as error:
                raise SimEvalError(f"Ray started no actor in {START_TIMEOUT:g} s: see `ray status`") from error
        caller.setblocking(True)
        self.connection = Connection(caller.detach())
        deliver_challenge(self.connection, secret)
        answer_challenge(self.connection, secret)

    def end(self, dead: bool) -> str:
        ray.kill(self._actor)
        return "its actor died"


class Cluster:
    """A connection to Ray. A call starts a worker; ``close`` comes after the last one.

    Args:
        address: host:port of a running cluster; None: a new one of this machine.
        workers: number of actors; they share the cluster's GPUs, if it has any.

    Raises:
        SimEvalError: there is no such cluster, or it has too few processors.
    """

    def __init__(self, address: str | None, workers: int) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            if address:
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), CONNECT_TIMEOUT).close()  # Ray itself would try for minutes
                ray.init(address, logging_level="ERROR")
            else:
                ray.init(
                    "local",
                    logging_level="ERROR",
                    num_cpus=workers,
                    object_store_memory=OBJECT_STORE,
                    include_dashboard=False,
                )
        except (OSError, RuntimeError, ValueError) as error:
            raise SimEvalError(f"no Ray at {address or 'this machine'} ({error}): check --ray-address") from error
        resources = ray.cluster_resources()
        if resources.get("CPU", 0) < workers:
            self.close()
            raise SimEvalError(f"Ray has {resources.get('CPU', 0):g} processors: use no more --workers than that")
        self._gpus = min(1.0, resources.get("GPU", 0) / workers)

    def __call__(self) -> RayWorker:
        return RayWorker(self._gpus)

    def close(self) -> None:
        ray.shutdown()
