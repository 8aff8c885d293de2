"""Running: once each, resumable after a kill, failures as rows, rate limits waited for, and the same answer as serving."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from demeanor.core import registry
from demeanor.core.errors import DataError, DemeanorError, RequestError, UpstreamError
from demeanor.core.types import (
    Completion,
    Decoding,
    Done,
    Event,
    Item,
    Message,
    Passage,
    Prompted,
    Refusal,
    Respond,
    Score,
    Text,
    Timing,
    ToolCall,
    ToolCalled,
    ToolResult,
    Turn,
    Usage,
)
from demeanor.evaluation.experiment import ExperimentProgress, Subject, progress_lines, run
from demeanor.evaluation.result_rows import Row, read_rows
from tests.conftest import each

GREEDY = Decoding(temperature=0.0, max_tokens=8)
ITEMS = [
    Item(str(n), (Message("user", f"what is {n}?"),), "exact", {"answer": str(n)}, "facts", f"c{n // 2}")
    for n in range(6)
]


def exact(item: Item, completion: Completion) -> Score:
    return Score(float(completion.text == item.target["answer"]), completion.text, "compared")


class Scripted:
    """An assistant that answers the number asked for, counts its calls and can be told to fail."""

    def __init__(
        self,
        fail: set[str] = frozenset(),  # type: ignore[assignment]
        busy: int = 0,
        refusal: Callable[[], Exception] = lambda: RequestError("slow down", status=429, retry_after_s=0.01),
    ) -> None:
        self.calls: Counter[str] = Counter()
        self.turns: list[Turn] = []
        self.fail, self.busy, self.refusal = fail, busy, refusal

    async def __call__(self, turn: Turn) -> AsyncIterator[Event]:
        number = turn.messages[-1].content.split()[-1].rstrip("?")
        self.calls[number] += 1
        self.turns.append(turn)
        if self.busy > 0:
            self.busy -= 1
            raise self.refusal()
        if number in self.fail:
            raise DemeanorError(f"no {number}")
        await asyncio.sleep(0)
        yield Text(number)
        yield Timing("weights", 2.0)
        yield Usage(4, 1)
        yield Done("stop")


async def go(
    out: Path,
    responds: dict[str, Respond],
    keys: dict[str, str] | None = None,
    items: list[Item] | None = None,
    **more: object,
) -> list[Row]:
    settings: dict[str, object] = {"seeds": (0,), "decoding": GREEDY, **more}
    return await run(
        items or ITEMS,
        {name: Subject(r, (keys or {}).get(name, f"key-{name}")) for name, r in responds.items()},
        score=exact,
        out=out,
        **settings,
    )  # type: ignore[arg-type]


async def test_every_variant_item_and_seed_is_run_once(tmp_path: Path) -> None:
    one, two = Scripted(), Scripted()
    rows = await go(tmp_path / "rows.jsonl", {"one": one, "two": two}, seeds=(0, 1, 2))
    assert Counter((r.variant, r.item_id, r.seed) for r in rows) == {
        (v, i.id, s): 1 for v in ("one", "two") for i in ITEMS for s in (0, 1, 2)
    }
    assert all(r.value == 1.0 for r in rows)
    assert one.calls == two.calls == {str(n): 3 for n in range(6)}
    assert {t.decoding.seed for t in one.turns} == {0, 1, 2}
    assert {(t.variant, t.stack_key) for t in two.turns} == {("two", "key-two")}


async def test_a_second_run_reuses_every_row_and_asks_nothing(tmp_path: Path) -> None:
    first = await go(tmp_path / "rows.jsonl", {"one": Scripted()})
    again = Scripted()
    seen: list[ExperimentProgress] = []
    assert await go(tmp_path / "rows.jsonl", {"one": again}, watch=seen.append) == first
    assert not again.calls
    assert seen == [ExperimentProgress(6, 6, 6, 0)]


@pytest.mark.parametrize("kept", [0, 1, 3, 5])
async def test_a_run_killed_in_the_middle_of_a_line_continues_with_only_what_is_missing(
    tmp_path: Path, kept: int
) -> None:
    path = tmp_path / "rows.jsonl"
    whole = await go(path, {"one": Scripted()})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:kept]) + lines[kept][: len(lines[kept]) // 2])
    again = Scripted()
    resumed = await go(path, {"one": again})
    assert sum(again.calls.values()) == 6 - kept
    assert [replace(r, ms=0.0) for r in resumed] == [replace(r, ms=0.0) for r in whole]
    assert {r.item_id for r in read_rows(path)} == {i.id for i in ITEMS}


@pytest.mark.parametrize("changed", ["item", "decoding", "stack"])
async def test_a_row_is_not_reused_when_anything_that_could_change_the_answer_changed(
    tmp_path: Path, changed: str
) -> None:
    await go(tmp_path / "rows.jsonl", {"one": Scripted()})
    again = Scripted()
    items = [replace(ITEMS[0], target={"answer": "x"}), *ITEMS[1:]] if changed == "item" else None
    await go(
        tmp_path / "rows.jsonl",
        {"one": again},
        {"one": "other"} if changed == "stack" else None,
        items,
        decoding=replace(GREEDY, max_tokens=9) if changed == "decoding" else GREEDY,
    )
    assert sum(again.calls.values()) == (1 if changed == "item" else 6)


async def test_two_variants_with_one_stack_key_are_one_measurement_with_two_names(tmp_path: Path) -> None:
    one, two = Scripted(), Scripted()
    rows = await go(tmp_path / "rows.jsonl", {"rung": one, "without": two}, {"rung": "k", "without": "k"})
    assert sum(one.calls.values()) + sum(two.calls.values()) == 6
    assert [replace(r, variant="") for r in rows[:6]] == [replace(r, variant="") for r in rows[6:]]
    assert {r.variant for r in rows} == {"rung", "without"}


async def test_a_failing_item_is_a_row_without_a_value_counted_aloud_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[ExperimentProgress] = []
    rows = await go(tmp_path / "rows.jsonl", {"one": Scripted(fail={"2", "4"})}, watch=seen.append)
    assert {r.item_id: r.error for r in rows if r.error} == {
        "2": "no 2",
        "4": "no 4",
    }
    assert [r.value for r in rows if r.error] == [None, None]
    assert (seen[-1].done, seen[-1].errors) == (6, 2)
    assert "2 of 6 answers FAILED" in caplog.text
    again = Scripted()
    assert all(r.value == 1.0 for r in await go(tmp_path / "rows.jsonl", {"one": again}))
    assert again.calls == {"2": 1, "4": 1}


async def test_a_scorer_that_breaks_is_an_error_row_too(tmp_path: Path) -> None:
    def broken(item: Item, completion: Completion) -> Score:
        raise ValueError("no such unit")

    rows = await run(
        ITEMS[:1],
        {"one": Subject(Scripted(), "k")},
        score=broken,
        seeds=(0,),
        decoding=GREEDY,
        out=tmp_path / "r.jsonl",
    )
    assert rows[0].error == "ValueError: no such unit"


def limited(again: bool = True, status: int = 429) -> Exception:
    return UpstreamError("slow down", status=status, retry_after_s=0.01, again=again)


@pytest.mark.parametrize("refusal", [None, limited])
async def test_a_rate_limit_is_waited_for_and_is_no_error(
    refusal: Callable[[], Exception] | None, tmp_path: Path
) -> None:
    one = Scripted(busy=3) if refusal is None else Scripted(busy=3, refusal=refusal)
    rows = await go(tmp_path / "rows.jsonl", {"one": one}, concurrency=1)
    assert all(r.value == 1.0 for r in rows)
    assert sum(one.calls.values()) == 9


@pytest.mark.parametrize("given", [{"again": False}, {"status": 503}])
async def test_a_quota_that_is_spent_and_another_failure_are_not_waited_for(
    given: dict[str, bool | int], tmp_path: Path
) -> None:
    one = Scripted(busy=1, refusal=lambda: limited(**given))  # type: ignore[arg-type]
    rows = await go(tmp_path / "rows.jsonl", {"one": one}, concurrency=1)
    assert [bool(r.error) for r in rows] == [True, False, False, False, False, False]


async def test_a_rate_limit_that_names_no_time_is_waited_for_longer_each_time_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.extend([seconds] if seconds else [])

    monkeypatch.setattr("demeanor.evaluation.experiment.asyncio.sleep", sleep)
    one = Scripted(busy=99, refusal=lambda: UpstreamError("slow down", status=429, again=True))
    (row,) = await go(tmp_path / "rows.jsonl", {"one": one}, items=ITEMS[:1])
    assert "slow down" in row.error
    assert waits == [1, 1, 2, 4, 8, 16, 32]


async def test_no_more_than_the_given_number_of_answers_are_wanted_at_once(tmp_path: Path) -> None:
    running = most = 0

    async def slow(turn: Turn) -> AsyncIterator[Event]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1
        yield Done("stop")

    await go(tmp_path / "rows.jsonl", {"one": slow}, concurrency=3, seeds=(0, 1))
    assert most == 3


async def test_a_row_tells_who_refused_what_each_layer_did_and_how_long_it_took(tmp_path: Path) -> None:
    async def layered(turn: Turn) -> AsyncIterator[Event]:
        yield Prompted((Message("system", "Be brief."),))
        yield Passage("p1", "Corkel 9", 1.5, "notices/today.md")
        yield ToolCalled(ToolCall("1", "add", '{"x": 1}'))
        yield ToolResult("1", "add", "2")
        yield Text("secret")
        yield Timing("weights", 5.0)
        yield Timing("weights", 2.0)
        yield Timing("policy", 0.5)
        yield Usage(9, 2)
        yield Refusal("policy", "cards", "a card number", "I cannot say that.", "output")
        yield Done("content_filter", "policy")

    row = (await go(tmp_path / "rows.jsonl", {"one": layered}, items=ITEMS[:1]))[0]
    assert (row.refused_by, row.rule, row.text, row.finish_reason) == (
        "policy",
        "cards",
        "I cannot say that.",
        "content_filter",
    )
    assert row.layer_ms == {"weights": 7.0, "policy": 0.5}
    assert (row.prompt_tokens, row.completion_tokens) == (9, 2)
    assert [(d.by, d.what) for d in row.events] == [
        ("prompt", "put before the conversation"),
        ("retrieval", "found"),
        ("weights", "called a tool"),
        ("tools", "a tool answered"),
        ("policy", "refused the answer"),
    ]
    assert row.events[1].detail == "notices/today.md: Corkel 9"


@pytest.mark.parametrize(
    ("text", "should", "by"),
    [
        ("I cannot help.", True, "weights"),
        ("I cannot help.", False, "weights"),
        ("Sure.", True, ""),
        ("Sure.", False, ""),
        ("", True, ""),
    ],
)
async def test_a_refusal_in_the_models_own_words_is_the_weights(
    tmp_path: Path, text: str, should: bool, by: str
) -> None:
    """With the project's own refusal scorer; an empty answer is unscored and nobody's refusal."""

    async def says(turn: Turn) -> AsyncIterator[Event]:
        yield Text(text)
        yield Done("stop")

    items = [replace(ITEMS[0], scorer="refusal", target={"refuse": should})]
    module = registry.entry("demeanor.evaluation.scorers", "refusal")
    rows = await run(
        items,
        {"one": Subject(says, "k")},
        score=lambda item, c: module.score(module.Spec.model_validate(dict(item.target)), c),
        seeds=(0,),
        decoding=GREEDY,
        out=tmp_path / "r.jsonl",
    )
    assert rows[0].refused_by == by


async def test_a_broken_results_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"variant": "one"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:1: not an evaluation row .*Move the file away"):
        await go(path, {"one": Scripted()})


async def test_kept_answers_are_scored_again_by_the_scorer_of_this_run_and_never_generated_again(
    tmp_path: Path,
) -> None:
    """As after an upgrade: the rows of another process were scored by other code."""
    from demeanor.evaluation import experiment as module

    out = tmp_path / "rows.jsonl"
    await go(out, {"one": Scripted()})
    module._scored_here.clear()  # another process begins
    calls: list[str] = []

    def stricter(item: Item, completion: Completion) -> Score:
        calls.append(item.id)
        return Score(float(completion.text == "3"), completion.text, "stricter")

    one = Scripted()
    rows = await run(
        ITEMS,
        {"one": Subject(one, "key-one")},
        score=stricter,
        seeds=(0,),
        decoding=GREEDY,
        out=out,
        again=lambda item: item.id != "5",
    )
    assert not one.calls
    assert {r.item_id: r.value for r in rows} == {"0": 0.0, "1": 0.0, "2": 0.0, "3": 1.0, "4": 0.0, "5": 1.0}
    assert {r.item_id: r.value for r in read_rows(out)} == {r.item_id: r.value for r in rows}
    calls.clear()
    await run(
        ITEMS,
        {"one": Subject(one, "key-one")},
        score=stricter,
        seeds=(0,),
        decoding=GREEDY,
        out=out,
        again=lambda item: True,
    )
    assert not calls  # once in a process is enough


async def test_a_refusal_of_a_layer_stays_its_own_when_it_is_scored_again(tmp_path: Path) -> None:
    from demeanor.evaluation import experiment as module

    async def guarded(turn: Turn) -> AsyncIterator[Event]:
        yield Refusal("policy", "rule-1", "why", "I cannot.")
        yield Done("content_filter", by="policy")

    def refused(item: Item, completion: Completion) -> Score:
        return Score(
            float(bool(completion.refusal)), completion.refusal.rule if completion.refusal else "", ""
        )

    item = Item("u", (Message("user", "how?"),), "refusal", {"refuse": True}, "unsafe", "c")
    out, settings = tmp_path / "rows.jsonl", {"seeds": (0,), "decoding": GREEDY}
    first = await run([item], {"one": Subject(guarded, "k")}, score=refused, out=out, **settings)  # type: ignore[arg-type]
    module._scored_here.clear()
    second = await run(
        [item], {"one": Subject(guarded, "k")}, score=refused, out=out, again=lambda item: True, **settings
    )  # type: ignore[arg-type]
    assert first == second
    assert (second[0].value, second[0].refused_by, second[0].answer) == (1.0, "policy", "rule-1")


def test_only_scorers_that_say_so_look_at_events_and_calls() -> None:
    import ast
    import inspect
    from pathlib import Path as File

    package = "demeanor.evaluation.scorers"
    for name in each(registry.known(package)):
        scorer = registry.entry(package, name)
        alone = inspect.ismodule(scorer)  # else it shares its file, and only its function is its own
        tree = ast.parse(File(scorer.__file__).read_text() if alone else inspect.getsource(scorer.score))
        looks = any(
            isinstance(node, ast.Attribute)
            and node.attr in ("events", "tool_calls", "prompt_tokens", "completion_tokens")
            for node in ast.walk(tree)
        )
        uses = any(
            isinstance(node, ast.ImportFrom) and node.module == f"{package}.choice" for node in ast.walk(tree)
        )
        assert (looks or uses) == getattr(scorer, "READS_EVENTS", False), name


def test_a_line_is_what_asdict_would_write() -> None:
    import json
    from dataclasses import asdict

    from demeanor.evaluation.result_rows import LayerActivity, as_line

    row = Row(
        "v",
        "k",
        "i",
        "c",
        1,
        "a",
        "x",
        None,
        ("t", "u"),
        0.5,
        "é",
        "why",
        "text\n",
        "policy",
        "r",
        "stop",
        3,
        4,
        1.25,
        {"policy": 0.5},
        (LayerActivity("tools", "called a tool", "f(1)"), LayerActivity("policy", "refused", "")),
        "",
    )
    assert as_line(row) == json.dumps(asdict(row), ensure_ascii=False)


def test_without_a_terminal_progress_is_a_line_now_and_then() -> None:
    times = iter([0.0, 1.0, 29.0, 31.0, 40.0, 62.0])
    said: list[str] = []
    show = progress_lines("measuring", lambda: next(times), said.append)
    for done, about, failed in ((100, "a", 0), (150, "a", 0), (160, "b", 1), (170, "b", 1), (1_222, "", 0)):
        show(done, 2_000, about, failed)
    assert (
        said
        == [
            "measuring 160 of 2,000, 15:50 left, 1 failed, b",  # 60 done in 31 s, 100 were there; 1,840 x 31 / 60 s
            "measuring 1,222 of 2,000, 0:42 left",
        ]
    )
