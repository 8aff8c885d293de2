"""One tiny stack, trained once for all tests of the composition."""

from __future__ import annotations

import pytest

from demeanor.stack.stack import Stack
from demeanor.train import pipeline
from demeanor.train.runs import Runs
from tests.app import tiny


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stack, Runs]:
    """The tiny stack with all its weights."""
    folder = tmp_path_factory.mktemp("tiny")
    stack, runs = pipeline.load_stack(tiny.write(folder)), pipeline.runs(folder / "runs")
    pipeline.train(stack, runs)
    return stack, runs
