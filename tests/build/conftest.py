"""One tiny stack, trained once for all tests of the composition."""

from __future__ import annotations

import pytest

from demeanor.build import workshop
from demeanor.stack import Stack
from demeanor.train.lineage import Runs
from tests.build import tiny


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stack, Runs]:
    """The tiny stack with all its weights."""
    folder = tmp_path_factory.mktemp("tiny")
    stack, runs = workshop.load_stack(tiny.write(folder)), workshop.runs(folder / "runs")
    workshop.train(stack, runs)
    return stack, runs
