"""An embedded stack that ends in order: on Ctrl-C, SIGTERM and SIGHUP, and when one of its processes dies."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from privcode.embedded import EmbeddedStack, StackFailed

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CHECK_SECONDS: Final = 1.0


@contextmanager
def running_stack(home: Path, *, port: int = 0, report: Callable[[str], None]) -> Iterator[EmbeddedStack]:
    """Start a stack and stop it at the end of the block. Only from the main thread.

    The first stop signal raises ``KeyboardInterrupt`` in the block; later ones are ignored, so that an impatient second
    Ctrl-C can't cut the shutdown short. Raises :class:`StackFailed` in the block when a process of the stack has ended.
    """
    with _stop_signals(), EmbeddedStack(home, port=port, report=report) as stack:
        try:
            with _watched(stack):
                yield stack
        finally:
            _ignore_signals()


@contextmanager
def _stop_signals() -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        _ignore_signals()
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _watched(stack: EmbeddedStack) -> Iterator[None]:
    done = threading.Event()
    failures: list[StackFailed] = []
    main = threading.main_thread().ident
    assert main is not None

    def watch() -> None:
        while not done.wait(_CHECK_SECONDS):
            try:
                stack.check()
            except StackFailed as error:
                failures.append(error)
                # To the main thread itself: only so does it leave a system call that waits.
                signal.pthread_kill(main, signal.SIGINT)
                return

    thread = threading.Thread(target=watch, name="stack-watch", daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if failures:
            raise failures[0] from None
        raise
    finally:
        done.set()
        thread.join()
