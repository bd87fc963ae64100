"""A policy that runs on a server, ``ws://host:port``: our own, or any that speaks openpi's protocol."""

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
from sim_eval.core.types import ActionChunk
from sim_eval.policies.policy import PolicyRequest, PolicySpec
from sim_eval.policies.remote.keys import SHIPPED, KeyMapping, read_keys
from sim_eval.policies.remote.messages import from_metadata, from_request, to_chunk
from sim_eval.policies.remote.wire import MAX_MESSAGE, Message, pack, unpack

Result = TypeVar("Result")
TOO_BIG = 1009  # websocket's code of a connection that was closed over the size of a message


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for, seconds.

    Attributes:
        connect: for a connection, and for the metadata on it.
        answer: for a chunk of actions; a server's first one may have to compile its network.
        retries: pauses before each further try over a connection that cannot be made or was dropped.
    """

    connect: float = 10.0
    answer: float = 300.0
    retries: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)


class _Dropped(Exception):
    """The connection is gone; another try may help."""


class RemotePolicy:
    """Asks a server, one observation a message, over one connection that is made anew when it was dropped.

    Args:
        url: of the server.
        keys: file, or the name of one that comes along, that says how a server is asked that is not sim_eval's own;
            see :mod:`sim_eval.policies.remote.keys`.

    Raises:
        SimEvalError: nobody answers there, it is no such server, or it is not sim_eval's own and there are no keys.
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
            raise SimEvalError(f"the server at {url} introduces itself with something else: {error}") from error
        self._spec: PolicySpec
        if own is not None:
            if self._mapping is not None:
                raise SimEvalError(f"the server at {url} is sim_eval's own and knows what it needs: leave --keys out")
            self._spec = own
        elif self._mapping is not None:
            self._spec = self._mapping.served_by(self._metadata)
        else:
            raise SimEvalError(
                f"the server at {url} is not sim_eval's own and does not say what it needs and what its actions mean: "
                f"describe it in a file and give that as --keys, or one that comes along: {', '.join(SHIPPED)}"
            )

    @property
    def spec(self) -> PolicySpec:
        return self._spec

    def predict(self, requests: Sequence[PolicyRequest]) -> list[ActionChunk]:
        """Asks for one chunk after the other.

        Raises:
            SimEvalError: the server refuses, does not answer in time, answers something else, or stays away.
        """
        return [self._predict(request) for request in requests]

    def close(self) -> None:
        """Leaves the server; another question connects again."""
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
                        "one, for example by python -m sim_eval.serve"
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
        except BaseException:  # an answer that nobody waited for must not be taken for the next one
            self.close()
            raise
        if isinstance(answer, str):
            self.close()  # as openpi's server does after an error
            told = answer.strip().splitlines() or ["nothing"]
            raise SimEvalError(f"the server at {self._url} answers: {told[-1][:500]}")  # of a traceback what it says
        return unpack(answer)

    def _connected(self) -> ClientConnection:
        """The connection; a new one must lead to the same policy."""
        if self._connection is not None:
            return self._connection
        try:
            connection = self._open.enter_context(
                # No pings: openpi's server does not answer them while it computes.
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
