"""The sentence about an unknown name."""

from __future__ import annotations

import time

from demeanor.core.errors import unknown


def test_a_long_unknown_name_is_shortened_and_compared_with_nothing() -> None:
    names = ["ab" * 5_000 + str(i) for i in range(20)]
    started = time.thread_time()
    told = unknown("ba" * 5_000, names, noun="tool")
    assert time.thread_time() - started < 1.0  # SequenceMatcher needs minutes
    assert told.startswith(f"unknown tool '{'ba' * 100}...'. Known: ")
    assert unknown("crad", ["card"]) == "unknown name 'crad'. Did you mean 'card'? Known: card."
