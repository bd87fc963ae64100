"""A server that speaks openpi's protocol: it sends metadata first, then an answer to every request."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from contextlib import suppress
from http import HTTPStatus
from threading import Lock

from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

from sim_eval.core.errors import SimEvalError
from sim_eval.policies.policy import Policy
from sim_eval.policies.remote.messages import from_chunk, to_metadata, to_request
from sim_eval.policies.remote.wire import MAX_MESSAGE, pack, unpack

# The library would log a traceback for every client that does not speak websocket.
_SILENT = logging.getLogger(__name__)
_SILENT.setLevel(logging.CRITICAL + 1)


class PolicyServer:
    """Serves several clients, one request at a time, so that requests of different clients are never batched.

    An invalid request is answered by one line of text, and the connection stays open.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._metadata = pack(to_metadata(policy.spec))
        self._one_at_a_time = Lock()

    def listen(self, host: str, port: int) -> Server:
        """Opens the port. Call ``serve_forever()`` on the result; each client gets a thread.

        Raises:
            SimEvalError: the host or port cannot be used.
        """
        try:
            return serve(
                self._converse,
                host,
                port,
                compression=None,
                max_size=MAX_MESSAGE,
                origins=[None],  # browsers always send an origin: web pages must not reach this port
                process_request=_health,
                logger=_SILENT,
            )
        except (OSError, OverflowError) as error:
            raise SimEvalError(f"cannot listen on {host}:{port} ({error}): choose another --host or --port") from error

    def answer(self, question: bytes | str) -> bytes | str:
        """The answer to one message: bytes, or one line of text that says why there is none."""
        try:
            if isinstance(question, str):
                raise SimEvalError("the message is text: send an observation packed with msgpack")
            request = to_request(unpack(question), self._policy.spec)
            with self._one_at_a_time:
                began = time.perf_counter()
                (chunk,) = self._policy.predict([request])
                return pack(from_chunk(chunk, 1000 * (time.perf_counter() - began)))
        except SimEvalError as error:
            return " ".join(f"error: {error}".split())
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            return " ".join(f"error: {type(error).__name__}: {error}".split())

    def _converse(self, connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            connection.send(self._metadata)
            for question in connection:
                connection.send(self.answer(question))


def _health(connection: ServerConnection, request: Request) -> Response | None:
    return connection.respond(HTTPStatus.OK, "OK\n") if request.path == "/healthz" else None
