"""Ctrl-C as something to look at, where work may stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupt:
    """While entered, the first Ctrl-C only sets :attr:`requested`; a second one acts as usual.

    Outside of the main thread, where Python hears no signals, it does nothing.

    Attributes:
        requested: Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._usual: Any = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._usual = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        if self._usual is not None:
            signal.signal(signal.SIGINT, self._usual)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, self._usual)
