"Work in a forked child that may be killed."

import os
import signal
import time
from collections.abc import Callable

PATIENCE_S, TRIES = 60, 3


def in_a_child(work: Callable[[], None]) -> int:
    "The exit status of a child that does `work`; the negative number of the signal that ended it."
    for _ in range(TRIES):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work()
                status = 0
            finally:
                os._exit(status)
        status = ended(child)
        if status is not None:
            return status
    raise AssertionError(f"a child did not end within {PATIENCE_S} s, {TRIES} times")


def ended(child: int) -> int | None:
    "How a child ended; one that has inherited a lock nobody gives back is killed, and None."
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
