"""A made-up result and a hostile twin of it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "evaluation"))

import synthetic

from demeanor.evaluation.ladder import ladder
from demeanor.evaluation.result import Result

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>\u202e\x00 & "quoted" \'single\' | pipe'


def make(**changes: Any) -> Result:
    items = synthetic.items(per_axis=24)
    rows = synthetic.rows(items)
    rival = HOSTILE if changes.get("hostile") else "a-rival"
    rows += [
        replace(r, variant=rival, stack_key="other", layer_ms={rival: 900.0}, events=())
        for r in rows
        if r.variant == "desk:dpo"
    ]
    if changes.get("hostile"):
        items = [
            replace(
                i,
                messages=(replace(i.messages[0], content=HOSTILE),),
                cluster=i.cluster + HOSTILE,
                tags=(HOSTILE,),
                target={"x": HOSTILE},
            )
            for i in items
        ]
        rows = [
            replace(
                r,
                text=HOSTILE,
                rule=HOSTILE,
                refused_by=HOSTILE if r.refused_by else "",
                layer_ms={**r.layer_ms, HOSTILE: 1.0},
                events=tuple(replace(d, detail=HOSTILE, by=HOSTILE, what=HOSTILE) for d in r.events),
            )
            for r in rows
        ]
    return ladder(
        rows,
        items,
        name=HOSTILE if changes.get("hostile") else "harbour-desk",
        steps=synthetic.STEPS,
        without=synthetic.WITHOUT,
        axes={axis: HOSTILE if changes.get("hostile") else about for axis, about in synthetic.AXES.items()},
        settings={"decoding": HOSTILE if changes.get("hostile") else "greedy", "policy": None},
        training={"sft": synthetic.ledger(80)},
        commands=("demeanor eval stack.yaml", HOSTILE)
        if changes.get("hostile")
        else ("demeanor eval stack.yaml",),
        external=(rival,),
    )


@pytest.fixture(scope="session")
def result() -> Result:
    return make()


@pytest.fixture(scope="session")
def hostile() -> Result:
    return make(hostile=True)


@pytest.fixture(scope="session")
def empty() -> Result:
    """The least there can be: one variant, one item, nothing to compare."""
    item = synthetic.items(per_axis=2)[0]
    rows = [r for r in synthetic.rows([item]) if r.variant == "desk:base"]
    return ladder(rows, [item], name="alone", steps=("desk:base",), without={})
