"""Child processes: they ignore Ctrl-C, which is the parent's to handle, and end with the parent."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import wait

SPAWN = multiprocessing.get_context("spawn")
"""Forking a process whose threads hold locks can deadlock, and torch has such threads."""


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Blocks Ctrl-C while processes start, and for good in those processes."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # it would unblock signals when it starts later
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_parent() -> None:
    """Makes this child process ignore Ctrl-C, and end at once when its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
