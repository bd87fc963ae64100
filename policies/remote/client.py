"""A policy that runs on a server at ``ws://host:port``: sim_eval's own server, or any that speaks openpi's protocol."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from websockets.exceptions import ConnectionClosed, InvalidURI, WebSocketException
from websockets.sync.client import ClientConnection, connect

from sim_eval.core.errors import SimEvalError
from sim_eval.core.programs import command
from sim_eval.core.types import ActionChunk
from sim_eval.policies.policy import PolicyRequest, PolicySpec
from sim_eval.policies.remote.keys import SHIPPED, KeyMapping, read_keys
from sim_eval.policies.remote.messages import from_metadata, from_request, to_chunk
from sim_eval.policies.remote.wire import MAX_MESSAGE, Message, pack, unpack

Result = TypeVar("Result")
TOO_BIG = 1009  # the websocket close code for a message that is too big


@dataclass(frozen=True)
class Patience:
    """Timeouts of a client, in seconds.

    Attributes:
        connect: for opening a connection, and for the metadata on it.
        answer: for a chunk of actions; the first one may take long because the server compiles its network.
        retries: pauses before each further attempt when a connection cannot be opened or was dropped.
    """

    connect: float = 10.0
    answer: float = 300.0
    retries: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)


class _Dropped(Exception):
    """The connection is lost; another attempt may succeed."""


class RemotePolicy:
    """Sends each request to a server as one message; reconnects when the connection was dropped.

    Args:
        url: the server's address.
        keys: observation keys for third-party servers: a file, or the name of a shipped one; see
            :mod:`sim_eval.policies.remote.keys`.
        patience: timeouts and retries.

    Raises:
        SimEvalError: no server answers, it speaks another protocol, or it is a third party's and there are no keys.
    """

    def __init__(self, url: str, keys: Path | None = None, patience: Patience = Patience()) -> None:
        self._url, self._patience = url, patience
        self._open = ExitStack()
        self._connection: ClientConnection | None = None
        self._mapping: KeyMapping | None = read_keys(keys) if keys else None
        self._metadata: bytes | None = None
        self._retried(self._connected)
        assert self._metadata is not None
        try:
            own = from_metadata(unpack(self._metadata))
        except SimEvalError as error:
            raise SimEvalError(f"the server at {url} sends metadata that cannot be read: {error}") from error
        self.spec: PolicySpec
        if own is not None:
            if self._mapping is not None:
                raise SimEvalError(f"the server at {url} is sim_eval's own and says what it needs: leave --keys out")
            self.spec = own
        elif self._mapping is not None:
            self.spec = self._mapping.spec(self._metadata)
        else:
            raise SimEvalError(
                f"the server at {url} is not sim_eval's own and does not say what it needs or what its actions mean: "
                f"describe it in a file and give that as --keys, or use a shipped one: {', '.join(SHIPPED)}"
            )

    def predict(self, requests: Sequence[PolicyRequest]) -> list[ActionChunk]:
        """Asks for one chunk after another.

        Raises:
            SimEvalError: the server reports an error, does not answer in time, sends an invalid answer, or is gone.
        """
        return [self._predict(request) for request in requests]

    def close(self) -> None:
        """Closes the connection; the next request opens a new one."""
        self._connection = None
        self._open.close()

    def _predict(self, request: PolicyRequest) -> ActionChunk:
        mapping = self._mapping
        question = pack(mapping.message(request) if mapping else from_request(request))
        answer = self._retried(lambda: self._ask(question))
        return to_chunk(answer, mapping.answer) if mapping else to_chunk(answer)

    def _retried(self, attempt: Callable[[], Result]) -> Result:
        for pause in (*self._patience.retries, None):
            try:
                return attempt()
            except _Dropped as error:
                if pause is None:
                    raise SimEvalError(
                        f"no server at {self._url}, tried {len(self._patience.retries) + 1} times ({error}): start "
                        f"one, for example by {command('serve')}"
                    ) from error
                time.sleep(pause)
        raise AssertionError

    def _ask(self, question: bytes) -> Message:
        connection = self._connected()
        try:
            connection.send(question)
            answer = connection.recv(timeout=self._patience.answer)
        except TimeoutError as error:
            self.close()
            raise SimEvalError(f"the server at {self._url} gave no answer in {self._patience.answer:g} s") from error
        except ConnectionClosed as error:
            self.close()
            if error.rcvd is not None and error.rcvd.code == TOO_BIG:
                raise SimEvalError(
                    f"the server at {self._url} refuses a message of {len(question)} bytes: use smaller pictures"
                ) from error
            if error.sent is not None and error.sent.code == TOO_BIG:
                raise SimEvalError(
                    f"the server at {self._url} answers with more than {MAX_MESSAGE} bytes, which are not read"
                ) from error
            raise _Dropped(str(error)) from error
        except OSError as error:
            self.close()
            raise _Dropped(str(error)) from error
        except BaseException:  # a late answer must not be taken for the answer to the next request
            self.close()
            raise
        if isinstance(answer, str):
            self.close()  # as openpi's server does after an error
            lines = answer.strip().splitlines() or ["nothing"]
            raise SimEvalError(f"the server at {self._url} answers: {lines[-1][:500]}")  # the last line of a traceback
        return unpack(answer)

    def _connected(self) -> ClientConnection:
        """The connection; opens a new one if necessary, which must lead to the same policy."""
        if self._connection is not None:
            return self._connection
        try:
            connection = self._open.enter_context(
                # Without pings, because openpi's server does not answer them while it computes.
                connect(
                    self._url,
                    compression=None,
                    proxy=None,
                    max_size=MAX_MESSAGE,
                    open_timeout=self._patience.connect,
                    close_timeout=1,
                    ping_interval=None,
                )
            )
            metadata = connection.recv(timeout=self._patience.connect)
        except InvalidURI as error:
            raise SimEvalError(f"{self._url} is no address of a server: write ws://host:port") from error
        except (OSError, EOFError, WebSocketException) as error:
            self.close()
            raise _Dropped(f"{type(error).__name__}: {error}") from error
        if isinstance(metadata, str):
            metadata = metadata.encode()
        if self._metadata not in (None, metadata):
            self.close()
            raise SimEvalError(f"the server at {self._url} now serves another policy: start a new run")
        self._metadata, self._connection = metadata, connection
        return connection
