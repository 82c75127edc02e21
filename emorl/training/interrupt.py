"""Turns Ctrl-C, SIGTERM and SIGHUP into a request that the training loop reads between two steps.

SIGHUP comes when a terminal is closed or an ssh connection ends. Its default is to end the process:
who closes the terminal of a training means to end it, and must not lose what was trained. Who wants
it to go on says so, by nohup or tmux.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """Context in which the first of these signals only sets `requested`; the second one ends.

    Under nohup SIGHUP stays ignored. Outside the main thread Python allows no signal handlers:
    there the context does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            under_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            self._previous = {
                s: signal.signal(s, self._request)
                for s in SIGNALS
                if not (s == signal.SIGHUP and under_nohup)
            }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
