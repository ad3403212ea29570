"""Ctrl-C and worker processes: a terminal sends it to all of them, but only the parent answers."""

import contextlib
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker


@contextlib.contextmanager
def block_sigint() -> Iterator[None]:
    """Let processes that this thread starts meanwhile never see Ctrl-C (they inherit the mask).

    A handler of their own would come too late: a worker needs a moment to start, and a traceback
    from each would bury the parent's sentence. Does nothing where there are no signal masks
    (Windows).
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # multiprocessing starts its tracker with the first process, and takes the mask away with it.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
