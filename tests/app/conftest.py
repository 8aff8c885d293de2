"""One tiny stack, trained once for all tests of the composition."""

from __future__ import annotations

import pytest

from demeanor import app
from demeanor.app import load_stack
from demeanor.stack.stack import Stack
from demeanor.train.runs import Runs
from tests.app import tiny


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stack, Runs]:
    """The tiny stack with all its weights."""
    folder = tmp_path_factory.mktemp("tiny")
    stack, runs = load_stack(tiny.write(folder)), Runs(folder / "runs")
    app.train(stack, runs)
    return stack, runs
