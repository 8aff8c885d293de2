"""The diagnosis as a section of the page: what it says is in the tree, and every string is escaped."""

from __future__ import annotations

import math
from dataclasses import replace

from pydantic import TypeAdapter

from demeanor.core.table import Page
from demeanor.evaluation.diagnosis.analysis import AxisNet, Diagnosis, HonestEstimate, Repair, section
from demeanor.evaluation.result import plain
from demeanor.report import outputs

AXIS = AxisNet("safe_twin", 30, 28, 40, 0, 0.4, 0.3, 0.5, 0.0001, 0.001, True)
RULE = Repair(
    "rule <how-to> off",
    "rule",
    "policy",
    "Loosen it.",
    94,
    39,
    0.41,
    0.3,
    0.5,
    160,
    6,
    0.04,
    0.01,
    0.08,
    0.05,
    -0.01,
    0.11,
    0.04,
    0.3,
    1.0,
    -2.0,
    3.5,
    (AXIS,),
    ("a", "b"),
    ("c",),
    False,
)
FOUND = Diagnosis(
    "x",
    "hash",
    "all items",
    "by <scorers>",
    94,
    400,
    160,
    (RULE, replace(RULE, name="again", kind="again", net=None, axes=())),
    HonestEstimate(("rule <how-to> off",), 0.41, 0.35, 0.2, 0.5),
    "policy",
    "Loosen or drop <it>.",
    {},
)


def diagnosis(found: Diagnosis) -> str:
    return outputs.html_page(Page("t", "a", "h", (section(found),)))


def test_the_section_tells_the_recommendation_the_suspect_and_the_axis_that_is_helped() -> None:
    page = diagnosis(FOUND)
    assert "Loosen or drop &lt;it&gt;." in page
    assert "<b>policy</b>" in page
    assert "fixes 28 of 30 failing items, breaks 0 of 40, net 40% (30 to 50)" in page
    assert "39/94" in page
    assert "fixes 41% of the items it was picked on" in page
    assert "<how-to>" not in page


def test_no_layer_is_named_where_none_is_implicated() -> None:
    page = diagnosis(replace(FOUND, suspect="none", repairs=(), honest=None))
    assert "Suspect: <b>none</b>" in page
    assert "picked on" not in page


def test_a_learning_curve_is_told_where_it_was_asked_for() -> None:
    page = diagnosis(replace(FOUND, curve=((0.5, 0.4), (1.0, 0.6)), learnt="More help."))
    assert "50% of the rows: 40% right, 100% of the rows: 60% right. More help." in page


def test_a_saved_diagnosis_is_read_as_it_was_where_no_answer_has_a_cost() -> None:
    found = replace(FOUND, repairs=(replace(RULE, ms=math.nan),))
    read = TypeAdapter(Diagnosis).validate_python(plain(found))
    assert math.isnan(read.repairs[0].ms)
    assert replace(read, repairs=()) == replace(found, repairs=())
    assert '<td class="number">–</td>' in diagnosis(read)
