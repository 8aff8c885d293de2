"""Threads get the lock in the order they asked for it, even against a thread that asks again at once."""

from __future__ import annotations

import threading
import time

from demeanor.engine.local import FairLock


def test_one_thread_at_a_time_and_every_thread_gets_a_turn() -> None:
    lock, inside, seen, together = FairLock(), [0], [], threading.Barrier(3, timeout=120)

    def loop(name: int) -> None:
        together.wait()  # a thread that starts late would leave its turns to the others
        for _ in range(20):
            with lock:
                inside[0] += 1
                assert inside[0] == 1
                time.sleep(0.0005)
                seen.append(name)
                inside[0] -= 1

    threads = [threading.Thread(target=loop, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(seen) == [0] * 20 + [1] * 20 + [2] * 20
    longest = max(len(run) for run in "".join("a" if name == 0 else " " for name in seen).split())
    assert longest < 10, "a plain lock lets the first thread through nearly 20 times in a row"


def test_an_error_inside_lets_the_next_one_in() -> None:
    lock = FairLock()
    try:
        with lock:
            raise ValueError
    except ValueError:
        pass
    entered = threading.Event()

    def enter() -> None:
        with lock:
            entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    assert entered.wait(120)
    thread.join()
