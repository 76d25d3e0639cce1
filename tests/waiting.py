"Waiting for what other threads and processes do."

import threading
import time


def until(condition, limit_s: float = 120):
    "Wait until something has happened, and fail when it does not."
    deadline, pause = time.monotonic() + limit_s, threading.Event()
    while not (found := condition()):
        assert time.monotonic() < deadline, "it has not happened"
        pause.wait(0.02)
    return found
