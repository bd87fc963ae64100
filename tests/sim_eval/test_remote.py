"""Policies over the network: the real openpi-client, a server like openpi's, and either side misbehaving."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_simulator import ACTION, PLANE, FakePolicy, PlaneSimulator, wander

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import ActionChunk, EpisodeKey, FloatArray, Recorder, RenderConfig, Simulator, observe_task
from sim_eval.envs.tasks import get_task
from sim_eval.evaluation.engine import EpisodeResult, RolloutProtocol, run_episode
from sim_eval.policies.policy import Policy, PolicyRequest, PolicySpec, check_fit
from sim_eval.policies.registry import load_policy
from sim_eval.policies.remote import client, server
from sim_eval.policies.remote.client import Patience, RemotePolicy
from sim_eval.policies.remote.messages import from_request
from sim_eval.policies.remote.server import PolicyServer
from sim_eval.policies.remote.wire import pack, unpack

openpi_numpy = pytest.importorskip("openpi_client.msgpack_numpy")
openpi_policy = pytest.importorskip("openpi_client.websocket_client_policy")
import websockets  # noqa: E402
from websockets.asyncio.server import ServerConnection as AsyncConnection  # noqa: E402
from websockets.asyncio.server import serve as serve_async  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

KEY = EpisodeKey(PLANE.name, "test", 3)
PROTOCOL = RolloutProtocol()
HASTY = Patience(connect=5.0, answer=5.0, retries=(0.01, 0.01))


@contextmanager
def serving(policy: Policy, port: int = 0) -> Iterator[str]:
    """The policy on a server of ours; its address."""
    with PolicyServer(policy).listen("127.0.0.1", port) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{listening.socket.getsockname()[1]}"
    thread.join()


def seeing(answer: Callable[[PolicyRequest], object] | None = None) -> FakePolicy:
    """Looks at both cameras and at its own key."""

    def act(request: PolicyRequest) -> FloatArray:
        seen = request.observation
        bias = sum(float(view.depth.mean()) + float(view.rgb.mean()) for view in seen.views.values()) / 1000
        return np.array([0.3, bias]) + request.key.rng(f"policy/{request.policy_call}").normal(0, 0.9, (8, 2))

    spec = PolicySpec("seeing", "point", {"top": (32, 32), "side": (32, 32)}, {"eef_pos": 3}, ACTION, (), False, "d1")
    return FakePolicy(answer or act, spec)


def a_request(policy: Policy) -> PolicyRequest:
    simulator = PlaneSimulator(PLANE)
    simulator.reset(KEY)
    observation = observe_task(simulator, PLANE.instruction(KEY), tuple(policy.spec.cameras))
    return PolicyRequest(observation, KEY, 0, ACTION)


class Actions(Recorder):
    """A recorder of what was executed, and of the pushes."""

    def __init__(self) -> None:
        self.executed: list[bytes] = []
        self.pushes: list[FloatArray] = []

    def before_act(self, simulator: Simulator, label: FloatArray, executed: FloatArray) -> None:
        self.executed.append(executed.tobytes())
        self.pushes.append(executed - label)


@pytest.mark.parametrize("policy", [seeing(), wander(), load_policy("random")], ids=lambda policy: policy.spec.name)
def test_an_episode_over_the_network_is_the_local_one(policy: Policy) -> None:
    def episodes(policy: Policy) -> tuple[list[EpisodeResult], list[bytes]]:
        actions, keys = Actions(), [replace(KEY, index=index) for index in range(3)]
        return [run_episode(PlaneSimulator(PLANE), policy, key, PROTOCOL, actions) for key in keys], actions.executed

    local = episodes(policy)
    assert len(set(local[1])) > 60
    with serving(policy) as url:
        remote = RemotePolicy(url)
        assert remote.spec == policy.spec
        check_fit(remote.spec, PlaneSimulator(PLANE).spec)
        assert episodes(remote) == local
        remote.close()


def test_privileged_state_and_disturbance_travel() -> None:
    spec = PolicySpec("homing", privileged=True)
    homing = FakePolicy(lambda r: ActionChunk(5 * r.privileged["goal"][None], np.array([0.3, 0.0])), spec)
    asked = replace(a_request(homing), privileged={"goal": np.array([0.1, 0.2])})
    with serving(homing) as url:
        remote = RemotePolicy(url)
        (chunk,) = remote.predict([asked])
        remote.close()
    assert chunk.disturbance is not None
    assert (chunk.actions.tolist(), chunk.disturbance.tolist()) == ([[0.5, 1.0]], [0.3, 0.0])


@pytest.mark.skipif(find_spec("metaworld") is None, reason="Meta-World is not installed")
def test_a_served_demonstrator_is_pushed_as_often_as_a_local_one() -> None:
    """Meta-World's demonstrators ask for pushes in short bursts only; pushed all the time they fail."""
    key, scripted = EpisodeKey("metaworld/reach-v3", "train", 1), load_policy("scripted")
    simulator, local, remote = get_task(key.task).make(RenderConfig(height=16, width=16)), Actions(), Actions()
    alone = run_episode(simulator, scripted, key, PROTOCOL, local, disturb=True)
    with serving(scripted) as url:
        client = RemotePolicy(url)
        served = run_episode(simulator, client, key, PROTOCOL, remote, disturb=True)
        client.close()
    simulator.close()
    assert (served, remote.executed) == (alone, local.executed)
    pushed = np.array(local.pushes).any(axis=1)
    assert pushed.any()
    assert pushed.mean() < 0.5


@pytest.mark.filterwarnings("ignore:connect:DeprecationWarning")  # openpi-client's
def test_openpi_client_asks_our_server() -> None:
    policy = seeing()
    asked = a_request(policy)
    with serving(policy) as url:
        theirs = openpi_policy.WebsocketClientPolicy("127.0.0.1", int(url.rsplit(":", 1)[1]))
        assert theirs.get_server_metadata()["sim_eval"]["policy"]["name"] == "seeing"
        for policy_call in range(2):
            answer = theirs.infer(from_request(replace(asked, policy_call=policy_call)))
            assert (
                answer["actions"].tobytes()
                == policy.predict([replace(asked, policy_call=policy_call)])[0].actions.tobytes()
            )
            assert answer["server_timing"]["infer_ms"] >= 0
        with pytest.raises(RuntimeError, match="the message lacks 'views/top/rgb'"):
            theirs.infer({"observation/image": np.zeros((4, 4, 3), np.uint8), "prompt": "lift"})
        assert theirs.infer(from_request(asked))["actions"].shape == (8, 2)  # and the server lives on
        theirs._ws.close()
        with urllib.request.urlopen(url.replace("ws://", "http://") + "/healthz") as health:
            assert health.read() == b"OK\n"


class OpenpiServer:
    """What openpi's serving script speaks, from openpi-client's msgpack_numpy: ``infer`` answers a table with a table.

    ``drops`` connections are closed where an answer is due, without a word.
    """

    def __init__(
        self, infer: Callable[[dict[str, Any]], dict[str, Any]], metadata: dict[str, Any] | None = None
    ) -> None:
        self._infer, self._metadata = infer, metadata or {}
        self.drops = self.connections = 0
        self.asked: list[dict[str, Any]] = []

    async def _converse(self, connection: AsyncConnection) -> None:
        self.connections += 1
        await connection.send(openpi_numpy.packb(self._metadata))
        async for question in connection:
            if self.drops:
                self.drops -= 1
                connection.transport.abort()
                return
            try:
                self.asked.append(openpi_numpy.unpackb(question))
                await connection.send(
                    openpi_numpy.packb({**self._infer(self.asked[-1]), "server_timing": {"infer_ms": 1.0}})
                )
            except Exception:
                await connection.send(traceback.format_exc())
                await connection.close(1011, "see the last frame")

    @contextmanager
    def running(self, port: int = 0) -> Iterator[str]:
        loop = asyncio.new_event_loop()

        async def start() -> Any:
            return await serve_async(self._converse, "127.0.0.1", port, compression=None, max_size=None)

        listening = loop.run_until_complete(start())
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        finally:
            loop.call_soon_threadsafe(listening.close)
            asyncio.run_coroutine_threadsafe(listening.wait_closed(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys.json"
    spec = {
        "name": "pi0-plane",
        "observation": {
            "observation/image": "views/top/rgb",
            "observation/state": ["proprio/eef_pos"],
            "prompt": "prompt",
        },
        "cameras": {"top": [32, 32]},
        "proprio": {"eef_pos": 3},
        "action": {
            "names": ["dx", "dy"],
            "low": [-1, -1],
            "high": [1, 1],
            "control_mode": "ee_delta_position",
            "control_hz": 20,
            "frame": "world",
            "metres_per_unit": 0.1,
        },
    }
    file.write_text(json.dumps(spec))
    return file


def ahead(question: dict[str, Any]) -> dict[str, Any]:
    assert question["observation/image"].shape == (32, 32, 3)
    return {"actions": np.tile(np.float32([1.0, -question["observation/state"][1]]), (10, 1))}


def test_our_client_asks_a_server_like_openpis(keys: Path) -> None:
    openpi = OpenpiServer(ahead, {"reset_pose": [0.0, 1.0]})
    with openpi.running() as url:
        remote = RemotePolicy(url, keys, HASTY)
        check_fit(remote.spec, PlaneSimulator(PLANE).spec)
        result = run_episode(PlaneSimulator(PLANE), remote, KEY, PROTOCOL)
        remote.close()
    assert (result.success, result.error) == (True, None)
    assert len(openpi.asked) == result.policy_calls
    assert set(openpi.asked[0]) == {"observation/image", "observation/state", "prompt"}
    assert openpi.asked[0]["prompt"] == result.instruction
    assert openpi.connections == 1


def test_a_server_that_does_not_say_what_it_means_needs_keys_and_ours_needs_none(keys: Path) -> None:
    with OpenpiServer(ahead).running() as url, pytest.raises(SimEvalError, match="give that as --keys"):
        RemotePolicy(url)
    with serving(seeing()) as url, pytest.raises(SimEvalError, match="leave --keys out"):
        RemotePolicy(url, keys)


def test_dropped_connections_are_tried_again_then_cost_the_episode_only(keys: Path) -> None:
    openpi = OpenpiServer(ahead)
    with openpi.running() as url:
        remote = RemotePolicy(url, keys, HASTY)
        fine = run_episode(PlaneSimulator(PLANE), remote, KEY, PROTOCOL)
        openpi.drops = 2  # the second retry is answered
        assert run_episode(PlaneSimulator(PLANE), remote, KEY, PROTOCOL) == fine
        openpi.drops = 3
        lost = run_episode(PlaneSimulator(PLANE), remote, KEY, PROTOCOL)
        assert lost.error is not None
        assert f"policy: SimEvalError: no server at {url}, tried 3 times" in lost.error
        assert (lost.success, lost.steps) == (False, 0)
        assert run_episode(PlaneSimulator(PLANE), remote, KEY, PROTOCOL) == fine
        remote.close()


def test_a_server_that_went_away_and_came_back_is_found_again_and_another_one_is_refused() -> None:
    policy = seeing()
    with serving(policy) as url:
        remote = RemotePolicy(url, patience=HASTY)
        fine = run_episode(PlaneSimulator(PLANE), remote, KEY, PROTOCOL)
    port = int(url.rsplit(":", 1)[1])
    error = run_episode(PlaneSimulator(PLANE), remote, KEY, PROTOCOL).error
    assert error is not None
    assert "tried 3 times" in error
    with serving(policy, port):
        assert run_episode(PlaneSimulator(PLANE), remote, KEY, PROTOCOL) == fine
    policy.spec = replace(policy.spec, digest="d2")
    with serving(policy, port):
        error = run_episode(PlaneSimulator(PLANE), remote, KEY, PROTOCOL).error
    assert error is not None
    assert f"the server at {url} now serves another policy" in error


def test_a_policys_error_is_told_in_one_line_and_both_sides_live_on(
    keys: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails_once(request: object) -> object:
        if not failed:
            failed.append(True)
            raise ValueError("out of\nideas")
        return np.zeros((8, 2))

    failed: list[bool] = []
    with serving(seeing(fails_once)) as url:
        remote = RemotePolicy(url, patience=HASTY)
        error = run_episode(PlaneSimulator(PLANE), remote, KEY, PROTOCOL).error
        assert error == f"policy: SimEvalError: the server at {url} answers: error: ValueError: out of ideas"
        assert run_episode(PlaneSimulator(PLANE), remote, KEY, PROTOCOL).error is None
        remote.close()
    assert "Traceback" in capfd.readouterr().err  # for who runs the server
    failed.clear()
    with OpenpiServer(lambda question: {"actions": fails_once(question)}).running() as url:
        remote = RemotePolicy(url, keys, HASTY)
        error = run_episode(PlaneSimulator(PLANE), remote, KEY, PROTOCOL).error
        assert error is not None
        assert "Traceback" not in error
        assert run_episode(PlaneSimulator(PLANE), remote, KEY, PROTOCOL).error is None
        remote.close()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"action": np.zeros((4, 2))}, "the message lacks 'actions'"),
        ({"actions": np.zeros(2)}, "'actions' must be float64 [any, any], not float64 [2]"),
        ({"actions": [[0.0, 0.0]]}, "'actions' must be of type ndarray, not list"),
        ({"actions": np.zeros((4, 3))}, "action chunk of shape (4, 3)"),
        ({"actions": np.full((4, 2), np.nan)}, "not finite"),
        ({"actions": np.array([["a", "b"]])}, "dtype <U1"),
    ],
)
def test_a_wrong_answer_costs_the_episode(keys: Path, answer: dict[str, Any], words: str) -> None:
    with OpenpiServer(lambda question: answer).running() as url:
        remote = RemotePolicy(url, keys, HASTY)
        error = run_episode(PlaneSimulator(PLANE), remote, KEY, PROTOCOL).error
        remote.close()
    assert error is not None
    assert words in error


def test_a_server_that_does_not_answer_is_not_waited_for_forever(keys: Path) -> None:
    awake = threading.Event()

    def sleeps(question: object) -> dict[str, Any]:
        awake.wait(10)
        return {"actions": np.zeros((4, 2))}

    with OpenpiServer(sleeps).running() as url:
        remote = RemotePolicy(url, keys, replace(HASTY, answer=0.05))
        error = run_episode(PlaneSimulator(PLANE), remote, KEY, PROTOCOL).error
        awake.set()
    assert error is not None
    assert f"the server at {url} gave no answer in 0.05 s" in error


def test_messages_beyond_the_bound_are_refused_on_both_sides(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = seeing()
    with monkeypatch.context() as small:
        small.setattr(server, "MAX_MESSAGE", 1000)
        with serving(policy) as url:
            remote = RemotePolicy(url, patience=HASTY)
            with pytest.raises(SimEvalError, match=r"refuses a message of \d+ bytes: use smaller pictures"):
                remote.predict([a_request(policy)])
            with connect(url) as stranger:
                stranger.recv()
                stranger.send(bytes(2000))
                with pytest.raises(websockets.ConnectionClosed):
                    stranger.recv()
            again = RemotePolicy(url, patience=HASTY)  # it lives on
            again.close()
    big = OpenpiServer(lambda question: {"actions": np.zeros((1000, 2))})
    with monkeypatch.context() as small, big.running() as url:
        small.setattr(client, "MAX_MESSAGE", 10_000)
        remote = RemotePolicy(url, keys, HASTY)
        with pytest.raises(SimEvalError, match="answers with more than 10000 bytes, which are not read"):
            remote.predict([a_request(remote)])
        remote.close()


@pytest.mark.parametrize("junk", [b"", b"\xc1", b"\x80", pack({"prompt": "x"}), "hello", b"\x00" * 100_000])
def test_junk_gets_an_answer_and_the_connection_goes_on(junk: bytes | str) -> None:
    policy = seeing()
    with serving(policy) as url, connect(url, compression=None, max_size=None) as stranger:
        unpack(stranger.recv())  # type: ignore[arg-type]
        stranger.send(junk)
        told = stranger.recv()
        assert isinstance(told, str)
        assert told.startswith("error: the message")
        assert "\n" not in told
        stranger.send(pack(from_request(a_request(policy))))
        answer = stranger.recv()
        assert isinstance(answer, bytes)
        assert "actions" in unpack(answer)


def test_strangers_do_not_disturb_the_server(capfd: pytest.CaptureFixture[str]) -> None:
    policy = seeing()
    with serving(policy) as url, ExitStack() as stack:
        port = int(url.rsplit(":", 1)[1])
        socket.create_connection(("127.0.0.1", port)).close()
        silent = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        rude = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        rude.sendall(b"\x00\xff rude \r\n\r\n" * 10)
        halfway = connect(url).__enter__()
        halfway.send(pack(from_request(a_request(policy))))
        halfway.socket.close()
        with pytest.raises(websockets.InvalidStatus):  # as a web page would
            connect(url, origin="http://evil.example").__enter__()  # type: ignore[arg-type]
        remotes = [RemotePolicy(url, patience=HASTY) for _ in range(2)]
        results = [run_episode(PlaneSimulator(PLANE), remote, KEY, PROTOCOL) for remote in remotes]
        assert results[0] == results[1]
        assert results[0].error is None
        for remote in remotes:
            remote.close()
        silent.close()
    assert "Traceback" not in capfd.readouterr().err


def test_who_is_no_such_server_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        with pytest.raises(SimEvalError, match=f"no server at ws://127.0.0.1:{port}, tried 1 times"):
            RemotePolicy(f"ws://127.0.0.1:{port}", patience=Patience(0.05, 0.05, ()))
    with pytest.raises(SimEvalError, match=r"tried 3 times .*refused"):
        RemotePolicy(f"ws://127.0.0.1:{port}", patience=HASTY)
    with pytest.raises(SimEvalError, match="write ws://host:port"):
        RemotePolicy("ws://", patience=HASTY)

    async def babble(connection: AsyncConnection) -> None:
        await connection.send("welcome to the chat")

    babbling = OpenpiServer(ahead)
    babbling._converse = babble  # type: ignore[method-assign]
    with babbling.running() as url, pytest.raises(SimEvalError, match="sends metadata that cannot be read"):
        RemotePolicy(url, patience=HASTY)


def test_a_port_that_is_taken_and_a_host_that_is_not_ours_are_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for host, port in (("127.0.0.1", taken.getsockname()[1]), ("192.0.2.1", 0), ("127.0.0.1", 70000)):
            with pytest.raises(SimEvalError, match=f"cannot listen on {host}:{port}"):
                PolicyServer(wander()).listen(host, port)
