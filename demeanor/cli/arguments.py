"""What verbs read from the command line alike: a count, a name for files. In: text. Out: the value, or argparse's error."""

from __future__ import annotations

import argparse


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"got '{text}', wanted a number of at least 1")
    return int(text)


def name(text: str) -> str:
    """A name of files in the folder of results, so that no name writes elsewhere."""
    if not text or text.startswith(".") or any(sign in text for sign in "/\\\0"):
        raise argparse.ArgumentTypeError(
            f"got '{text}', wanted a name for files, without slashes or a full stop in front; --results names their folder"
        )
    return text
