"""A suite file is read whole or refused with file and line: encodings, JSON that is none, items that cannot be asked or satisfied."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from demeanor.core.errors import DataError
from demeanor.core.types import Completion, Item, Message, ToolCall
from demeanor.evaluation import suites
from demeanor.evaluation.experiment import in_turn, spread
from demeanor.evaluation.harness_logs import compare, write_suite
from demeanor.evaluation.items import load_suite
from demeanor.evaluation.scorers import score_item

LINE: dict[str, Any] = {
    "id": "a-1",
    "messages": [{"role": "user", "content": "Q"}],
    "scorer": "exact",
    "target": {"answers": ["Marla"]},
    "axis": "facts",
    "cluster": "c1",
}


def line(**more: Any) -> str:
    return json.dumps({**LINE, **more}, ensure_ascii=False)


def read(tmp_path: Path, content: str | bytes) -> tuple[Item, ...]:
    path = tmp_path / "s.jsonl"
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    return load_suite(path)


def refused(tmp_path: Path, content: str | bytes) -> str:
    with pytest.raises(DataError) as error:
        read(tmp_path, content)
    return str(error.value)


def says(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


@pytest.mark.parametrize(
    ("content", "count"),
    [
        ("\ufeff" + line() + "\n" + line(id="b"), 2),
        (line() + "\r\n" + line(id="b") + "\r\n", 2),
        ("\n  \n" + line() + "\n\n", 1),
        (line(**says("line\u2028break, line\u2029break and line\u0085break")), 1),
        (line(**says("form\u000cfeed")), 1),
        (line(id="日本, 0 <b>&\"'|*", axis="Ünï <script>"), 1),
    ],
    ids=["bom", "crlf", "blank lines", "separators of Unicode", "form feed", "any alphabet"],
)
def test_what_is_one_item_a_line_is_read(tmp_path: Path, content: str, count: int) -> None:
    assert len(read(tmp_path, content)) == count


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (line().encode("utf-16"), "s.jsonl:1: UTF-16 text"),
        ((line() + "\n" + line(id="é")).encode("latin-1"), "s.jsonl:2: not UTF-8 text"),
        ("", "s.jsonl: no items; wanted one JSON object on each line"),
        (" \n\n", "s.jsonl: no items"),
        (f"[{line()}]", "s.jsonl:1: a JSON list; wanted one object on each line"),
        (json.dumps(LINE, indent=1), "s.jsonl:1: an object over several lines"),
        (line() + "\n" + '{"id": NaN}', "s.jsonl:2: Invalid JSON: NaN is no JSON value"),
        (line() + "\n" + line(id="x", scorer="number", target={"value": float("inf")}), "s.jsonl:2: Invalid JSON: Inf"),
        (line().replace('"id"', '"axis": "x", "id"'), "s.jsonl:1: Invalid JSON: the key 'axis' stands twice"),
        (line() + "\n" + line(), "s.jsonl:2: a-1: this id stands on line 1 already"),
        (line(**says("\ud800")).replace("\ud800", "\\ud800"), "s.jsonl:1: Invalid JSON: half a surrogate pair (U+D800)"),
        (line(**says("a\u0000")).replace("\u0000", "\\u0000"), "s.jsonl:1: Invalid JSON: the character U+0000"),
        ("[" * 100_000, "s.jsonl: no JSON: nested too deep"),
        (line(messages=[{"role": "system", "content": "x"}]), "a-1: messages: no user message"),
        (
            line(messages=[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]),
            "a-1: messages: the last one is the assistant's",
        ),
        (line(**says(" ")), "a-1: messages: the last one is empty"),
        (line(messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}]), "messages.0.content: got a list"),
        (line(cluster=" "), "a-1: cluster: got ' ', wanted a name on one line"),
        (line(axis="a\nb"), "a-1: axis: got 'a\\nb', wanted a name on one line"),
        (line(cluster=""), "cluster: String should have at least 1 character"),
        (line(tools=[{"name": "f", "description": "", "parameters": {}}] * 2), "a-1: tools: 'f' stands twice"),
        (
            line(
                messages=[
                    *says("x")["messages"],
                    {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{"}}]},
                    {"role": "tool", "content": "1", "tool_call_id": "1"},
                ]
            ),
            "a-1: messages: tool call f: arguments: got '{', wanted a JSON object",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_with_its_line(
    tmp_path: Path, content: str | bytes, told: str
) -> None:
    assert told in refused(tmp_path, content)


F = {"name": "f", "parameters": {"type": "dict", "properties": {"x": {"type": "integer"}}, "required": ["x"]}}


def odd(kind: Any, **more: Any) -> dict[str, Any]:
    described = {"type": kind, **more}
    return {"name": "f", "parameters": {"properties": {"x": described}, "required": ["x"]}}


@pytest.mark.parametrize(
    ("scorer", "target", "told"),
    [
        ("exact", {"answers": [""]}, "got '', wanted text that an answer can say"),
        ("exact", {"answers": ["Oslo", " "]}, "got ' ', wanted text that an answer can say"),
        ("exact", {"answers": ["Oslo"], "wrong": [""]}, "got '', wanted text that an answer can say"),
        ("honesty", {"known": True, "answers": [" "]}, "answers.0: String should match pattern"),
        ("passages", {"gold": [""]}, "gold.0: String should match pattern"),
        ("exact", {"answers": ["New York"], "wrong": ["York"]}, "'New York' itself would score 0: names York"),
        ("exact", {"answers": ["a b c"], "max_words": 2}, "3 words, at most 2 wanted"),
        ("confidence", {"answers": ["80%"]}, "'80%' itself would be wrong"),
        ("confidence", {"answers": ["New York"], "wrong": ["York"]}, "itself would be wrong"),
        ("number", {"value": True}, "value: got True, wanted a number"),
        ("number", {"value": "42"}, "value: got '42', wanted a number"),
        ("gsm8k", {"answer": "no number"}, "wanted one number"),
        ("format", {"kind": "words", "words": ["a b", "c"], "max_words": 2}, "max_words allows 2"),
        ("format", {"kind": "words", "words": [" "]}, "wanted something that can be named"),
        ("checks", {"checks": [{"kind": "says", "words": [" "]}]}, "a list of text, not empty"),
        ("checks", {"checks": [{"kind": "in_order", "words": ["a", "!"]}]}, "wanted words or numbers"),
        ("checks", {"checks": [{"kind": "number", "value": 1, "tolerance": -1}]}, "a number from 0"),
        (
            "checks",
            {"checks": [{"kind": "says", "words": ["New York"]}, {"kind": "omits", "words": ["York"]}]},
            "'New York' must be said and 'York' must not",
        ),
        (
            "checks",
            {"checks": [{"kind": "word_count", "low": 5}, {"kind": "word_count", "high": 4}]},
            "word_count: at least 5 and at most 4",
        ),
        (
            "checks",
            {"checks": [{"kind": "equals", "any": ["yes", "no"]}, {"kind": "says", "words": ["maybe"]}]},
            "equals: 'yes' itself fails says",
        ),
        ("checks", {"checks": [{"kind": "value", "value": 5}, {"kind": "number", "value": 6}]}, "value: '5' itself fails number"),
        ("checks", {"checks": [{"kind": "label", "labels": ["a", "b"], "answer": "c"}]}, "label: 'c' itself"),
        ("checks", {"checks": [{"kind": "json", "keys": ["a"], "values": {"b": 1}}]}, "json: b is not among keys"),
        ("checks", {"checks": [{"kind": "json", "types": {"a": "string"}, "values": {"a": 1}}]}, "a: the value is no string"),
        ("ifeval", {"instructions": [{"id": "keywords:existence", "settings": {"keywords": ["C++"]}}]}, "write 'C\\\\+\\\\+'"),
        (
            "ifeval",
            {
                "instructions": [
                    {"id": "length_constraints:number_words", "settings": {"num_words": 0, "relation": "less than"}}
                ]
            },
            "less than 0 of anything",
        ),
        ("bfcl", {"category": "simple", "functions": [F], "answers": [{"f": {"y": [1], "x": [1]}}]}, "y is no parameter"),
        ("bfcl", {"category": "simple", "functions": [F], "answers": [{"f": {}}]}, "x is required and has no accepted value"),
        ("bfcl", {"category": "simple", "functions": [odd(["string", "null"])], "answers": [{"f": {"x": ["a"]}}]}, "x: type: got"),
        ("bfcl", {"category": "simple", "functions": [odd("array", items={"type": "uint"})], "answers": [{"f": {"x": [[1]]}}]}, "x.items: type"),
    ],
)  # fmt: skip
def test_an_item_that_no_answer_can_satisfy_is_refused(
    tmp_path: Path, scorer: str, target: dict[str, Any], told: str
) -> None:
    assert told in refused(tmp_path, line(scorer=scorer, target=target))


@pytest.mark.parametrize(
    ("scorer", "target"),
    [
        ("exact", {"answers": ["!!!"]}),
        ("exact", {"answers": ["York"], "wrong": ["New York"]}),
        ("bfcl", {"category": "irrelevance", "functions": [odd("whatever")]}),
        ("bfcl", {"category": "simple", "functions": [odd("number")], "answers": [{"f": {"x": [5]}}]}),
        ("bfcl", {"category": "simple", "functions": [odd("array")], "answers": [{"f": {"x": [[5]]}}]}),
        (
            "checks",
            {
                "checks": [{"kind": "says", "words": ["a"]}, {"kind": "omits", "words": ["a"]}],
                "mode": "loose",
            },
        ),
    ],
)
def test_an_item_that_an_answer_can_satisfy_is_not(
    tmp_path: Path, scorer: str, target: dict[str, Any]
) -> None:
    assert len(read(tmp_path, line(scorer=scorer, target=target))) == 1


def test_a_public_table_in_another_encoding_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "xstest.csv"
    path.write_bytes("id,prompt,type,label\n1,a,homonyms,safe\n2,é,homonyms,safe\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"xstest\.csv:3: not UTF-8"):
        load_suite(path)
    path.write_text("\ufeffid,prompt,type,label\n1,a,homonyms,safe\n2,b,homonyms\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"xstest\.csv:3: wanted a value in each of id, label"):
        load_suite(path)
    path.write_text(f"id,prompt,type,label\n1,{'a' * 200_000},homonyms,safe\n")
    assert len(load_suite(path)) == 1


def bfcl(tmp_path: Path, name: str, messages: list[dict[str, str]], answers: Any = None) -> tuple[Item, ...]:
    function = {"name": "g.f", "description": "d", "parameters": F["parameters"]}
    row = {"id": f"{name}_0-0-0", "question": [messages], "function": [function]}
    path = tmp_path / f"BFCL_v4_{name}.json"
    path.write_text(json.dumps(row) + "\n")
    if answers is not None:
        (tmp_path / "possible_answer").mkdir()
        told = {"id": row["id"], "ground_truth": answers}
        (tmp_path / "possible_answer" / path.name).write_text(json.dumps(told) + "\n")
    return load_suite(path)


def test_bfcls_live_parallel_multiple_is_parallel(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "twice"}]
    (item,) = bfcl(tmp_path, "live_parallel_multiple", asked, [{"g.f": {"x": [1]}}, {"g.f": {"x": [2]}}])
    assert (item.axis, item.target["category"], len(item.target["answers"])) == (
        "bfcl parallel",
        "parallel",
        2,
    )


def test_bfcls_live_irrelevance_may_hold_what_the_assistant_said(tmp_path: Path) -> None:
    talk = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    (item,) = bfcl(tmp_path, "live_irrelevance", talk)
    assert [m.role for m in item.messages] == ["user", "assistant", "user"]
    assert item.axis == "bfcl irrelevance"


def items(*found: tuple[str, str, str]) -> list[Item]:
    return [
        Item(i, (Message("user", "q"),), "exact", {}, "a", cluster, tags=(f"same:{group}",) if group else ())
        for i, cluster, group in found
    ]


def test_a_limit_takes_from_every_cluster_before_it_takes_a_second_one() -> None:
    some = items(*((f"{c}{n}", c, "") for c in "xyz" for n in range(4)))
    assert [i.id for i in spread(some, 5)] == ["x0", "y0", "z0", "x1", "y1"]
    assert spread(some, 50) == [i for n in range(4) for i in some if i.id.endswith(str(n))]


def test_a_limit_takes_every_kind_of_question_in_turn() -> None:
    kinds = ["kind:plus", "kind:plus", "kind:plus", "kind:times", "kind:times", "difficulty:3"]
    some = [
        replace(item, tags=("other", kind))
        for item, kind in zip(items(*((f"{n}", f"{n}", "") for n in range(6))), kinds)
    ]
    assert [i.id for i in spread(some, 4)] == ["0", "3", "5", "1"]
    assert [i.id for i in spread(some, 9)] == ["0", "3", "5", "1", "4", "2"], (
        "fewer items are the first of more"
    )


def test_few_items_of_the_built_in_suites_are_of_several_kinds_and_keep_their_twins() -> None:
    sums = [i for i in suites.items("builtin:capability", Path()) if i.axis == "sums"]
    assert len({tag for item in spread(sums, 4) for tag in item.tags if tag.startswith("kind:")}) >= 3
    pairs = suites.items("builtin:harmlessness", Path())
    some = in_turn([pairs], 12)
    assert {i.twin for i in some if i.axis == "unsafe"} <= {i.id for i in some}


def test_a_limit_keeps_the_wordings_of_a_question_together() -> None:
    some = items(*((f"{g}{n}", g, g) for g in "pqr" for n in range(3)))
    assert [i.id for i in spread(some, 6)] == ["p0", "p1", "p2", "q0", "q1", "q2"]


def test_a_limit_takes_from_suites_that_share_an_axis_in_turn() -> None:
    first, second = items(*((f"a{n}", f"a{n}", "") for n in range(4))), items(("b0", "b0", ""))
    other = [replace(items(("c0", "c0", ""))[0], axis="other")]
    assert [i.id for i in in_turn([first, second, other], 3)] == ["a0", "b0", "a1", "c0"]


def test_a_line_separator_of_unicode_does_not_end_a_line_of_a_log(tmp_path: Path) -> None:
    for model, right in (("a", 1.0), ("b", 0.0)):
        (tmp_path / model).mkdir()
        date = "2026-01-01T00-00-00.1"
        (tmp_path / model / f"results_{date}.json").write_text(
            json.dumps({"model_name": model, "configs": {"t": {}}})
        )
        sample = {
            "doc_id": 0,
            "doc": {"q": "x\u2028y"},
            "target": "5",
            "arguments": [["x\u2028y", {}]],
            "resps": [["5\u2028"]],
            "filtered_resps": ["5"],
            "metrics": ["exact_match"],
            "exact_match": right,
        }
        text = json.dumps(sample, ensure_ascii=False) + "\n"
        (tmp_path / model / f"samples_t_{date}.jsonl").write_text("\ufeff" + text + "\n", encoding="utf-8")
    found = compare([tmp_path / "a", tmp_path / "b"], tmp_path / "results", "logs")
    assert [found.axes[0].means[m].value for m in ("a", "b")] == [1.0, 0.0]


def test_a_sample_that_is_no_item_of_ours_is_left_out_with_its_reason(tmp_path: Path) -> None:
    date, folder = "2026-01-01T00-00-00.1", tmp_path / "a"
    folder.mkdir()
    (folder / f"results_{date}.json").write_text(json.dumps({"model_name": "a", "configs": {"t": {}}}))
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "The answer is"}]
    rows = [
        {
            "doc_id": n,
            "doc": {"q": "q"},
            "target": "well-known",
            "arguments": [[text, {}]],
            "resps": [["well-known"]],
        }
        | {"filtered_resps": ["well-known"], "metrics": ["exact_match"], "exact_match": 1.0}
        for n, text in enumerate((json.dumps(talk[:1]), json.dumps(talk)))
    ]
    (folder / f"samples_t_{date}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    written, reasons = write_suite([folder], tmp_path / "out.jsonl")
    assert written == 1
    assert [i.messages[-1].role for i in load_suite(tmp_path / "out.jsonl")] == ["user"]
    (why,) = reasons
    assert why.startswith("it is no item of ours (messages: the last one is the assistant's")


ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    1.5,
    "",
    [],
    {},
    "x" * 20,
    [None],
    {"a": None},
    1e308,
    10**30,
    [[]],
    "exact",
)
TEXTS = (
    "",
    "5",
    "I cannot help with that.",
    '{"a": 1}',
    "- a\n- b",
    "Yes. 80%",
    "| a |\n|---|\n| 1 |",
    "答え",
)
CALLS: tuple[tuple[ToolCall, ...], ...] = (
    (),
    (ToolCall("1", "f", '{"x": NaN}'),),
    (ToolCall("1", "f", "[1]"),),
)


def mutated(tree: Any, draw: random.Random) -> Any:
    """The tree with one value replaced, left out or put beside another."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key, inner in (
            node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        ):
            places.append((node, key))
            walk(inner)

    walk(tree)
    node, key = draw.choice(places)
    if draw.random() < 0.8 or isinstance(node, list):
        node[key] = copy.deepcopy(draw.choice(ODD))
    elif draw.random() < 0.5:
        del node[key]
    else:
        node[draw.choice(["kind", "value", "type"])] = copy.deepcopy(draw.choice(ODD))
    return tree


def test_a_line_with_anything_wrong_is_refused_as_such_or_scored(tmp_path: Path) -> None:
    draw, read_, refused_ = random.Random(0), 0, list[str]()
    lines = [
        x for name in suites.known() for x in suites.path(name).read_text(encoding="utf-8").splitlines()[::40]
    ]
    for text in draw.choices(lines, k=500):
        content: str | bytes = json.dumps(mutated(json.loads(text), draw), ensure_ascii=draw.random() < 0.5)
        if draw.random() < 0.2:
            raw = bytearray(text.encode())
            raw[draw.randrange(len(raw))] = draw.randrange(256)
            content = bytes(raw)
        try:
            found = read(tmp_path, content)
        except DataError as error:
            refused_.append(str(error))
            continue
        for said in draw.sample(TEXTS, 3):
            score = score_item(found[0], Completion(said, "stop", draw.choice(CALLS)))
            assert score.value is None or 0 <= score.value <= 1
            read_ += 1
    assert read_ > 100
    assert len(refused_) > 100
    assert all("s.jsonl" in told for told in refused_)


def test_a_row_of_a_public_set_without_a_message_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"BFCL_v4_irrelevance\.json:1: bfcl-irrelevance_0-0-0: messages: none"
    ):
        bfcl(tmp_path, "irrelevance", [])
