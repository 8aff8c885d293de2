"""Answers that fail are the first thing that a verb says, and its exit code; the others are measured; a suite is read or refused."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from demeanor.cli import main


class Upstream(BaseHTTPRequestHandler):
    """SAY<<x>> is answered with x, CALL<<f {}>> with a call; FAIL fails, HALF ends in half a surrogate pair."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = asked["messages"][-1]["content"]
        if "FAIL" in text:
            self.reply(500, "application/json", json.dumps({"error": {"message": "boom"}}))
            return
        say, call = re.search(r"SAY<<(.*?)>>", text, re.DOTALL), re.search(r"CALL<<(\w+) (.*?)>>", text)
        delta: dict[str, Any] = {"content": "a\ud83d" if "HALF" in text else say[1] if say else ""}
        if call:
            function = {"name": call[1], "arguments": call[2]}
            delta = {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": function}]}
        chunks = [(delta, None), ({}, "tool_calls" if call else "stop")]
        told = [{"choices": [{"index": 0, "delta": d, "finish_reason": end}]} for d, end in chunks]
        self.reply(
            200, "text/event-stream", "".join(f"data: {json.dumps(x)}\n\n" for x in told) + "data: [DONE]\n\n"
        )

    def reply(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


class Server(ThreadingHTTPServer):
    request_queue_size = 128


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a stack over the scripted server; its suite is s.jsonl."""
    server = Server(("127.0.0.1", 0), Upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    (tmp_path / "far.yaml").write_text(
        f"name: far\nweights:\n  base: {{kind: remote, url: '{url}', model: m, retries: 0, timeout_s: 5}}\n"
        "decoding: {temperature: 0, max_tokens: 48}\nlayers:\n  - {kind: prompt, text: Be brief.}\n"
        f"evaluation: {{suites: [s.jsonl], judge: {{url: '{url}', model: j}}}}\n"
    )
    (tmp_path / "gate.yaml").write_text("non_inferiority: [{axis: facts, margin: 0.9}]\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    server.shutdown()
    server.server_close()


def item(name: str, asks: str, **more: Any) -> dict[str, Any]:
    return {
        "id": name,
        "messages": [{"role": "user", "content": asks}],
        "scorer": "exact",
        "target": {"answers": ["Marla"]},
        "axis": "facts",
        "cluster": name,
        **more,
    }


def write(folder: Path, *items: dict[str, Any]) -> None:
    (folder / "s.jsonl").write_text("".join(json.dumps(x) + "\n" for x in items))


def good(count: int = 8) -> list[dict[str, Any]]:
    return [item(f"i{n}", f"Q{n} SAY<<Marla>>") for n in range(count)]


def rows(folder: Path, name: str = "far") -> dict[str, dict[str, Any]]:
    read = [json.loads(line) for line in (folder / "results" / f"{name}.rows.jsonl").read_text().splitlines()]
    return {row["item_id"]: row for row in read}


def test_eval_says_first_how_many_answers_failed_and_measures_the_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, *good(), item("bad", "FAIL", axis="other"), item("half", "HALF", axis="other"))
    assert main(["eval", "far.yaml", "--variants", "far:base"]) == 3
    out = capsys.readouterr().out
    assert out.lstrip().startswith("1 of 10 answers FAILED and have no score: 1 x http://127.0.0.1")
    found = rows(folder)
    assert [found[f"i{n}"]["value"] for n in range(8)] == [1.0] * 8
    assert (found["half"]["value"], found["half"]["text"], found["half"]["error"]) == (0.0, "a\ufffd", "")
    assert (found["bad"]["value"], found["bad"]["error"][-9:]) == (None, "500: boom")
    result = json.loads((folder / "results" / "far.json").read_text())
    assert (result["answers"], result["failed"]) == (10, 1)
    assert main(["report", "results/far.json"]) == 0
    assert "1 of 10 answers FAILED" in (folder / "results" / "far.html").read_text()


def test_eval_without_failures_says_nothing_of_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, *good(), item("wrong", "SAY<<no idea>>"))
    assert main(["eval", "far.yaml", "--variants", "far:base"]) == 0
    assert "FAILED" not in capsys.readouterr().out


def test_where_every_answer_fails_the_page_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, item("a", "FAIL 1"), item("b", "FAIL 2"))
    assert main(["eval", "far.yaml"]) == 3
    assert capsys.readouterr().out.lstrip().startswith("4 of 4 answers FAILED")
    assert json.loads((folder / "results" / "far.json").read_text())["cost"] == []


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["diagnose", "far.yaml"], 3),
        (["attribute", "far.yaml"], 3),
        (["duel", "far.yaml"], 3),
        (["frontier", "far.yaml"], 3),
        (["gate", "far.yaml", "--against", "far:base", "--rules", "gate.yaml"], 4),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else str(x),
)
def test_every_verb_that_measures_says_it_first(
    folder: Path, capsys: pytest.CaptureFixture[str], command: list[str], code: int
) -> None:
    twins = [
        item(f"{axis}{n}", f"{axis}{n} SAY<<{'I cannot help.' if axis == 'unsafe' else 'Yes.'}>>", axis=axis)
        | {"scorer": "refusal", "target": {"refuse": axis == "unsafe"}}
        for axis in ("safe_twin", "unsafe")
        for n in range(3)
    ]
    write(folder, *good(), *twins, item("wrong", "SAY<<no>>"), item("bad", "FAIL", axis="other"))
    assert main(command) == code
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    told = [n for n, line in enumerate(lines) if "answers FAILED and have no score" in line]
    assert told
    assert all(line.startswith(("replaying", "judge:")) for line in lines[: told[0]])


def test_a_gate_does_not_pass_while_answers_failed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gate = ["gate", "far.yaml", "--against", "far:base", "--rules", "gate.yaml"]
    write(folder, *good(24))
    assert main(gate) == 0
    write(folder, *good(24), item("bad", "FAIL", axis="other"))
    assert main(gate) == 4
    assert "2 answers failed: run again" in " ".join(capsys.readouterr().out.split())


def test_a_judge_that_fails_is_said_first_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judged = {"scorer": "judged", "target": {"question": "FAIL?"}}
    write(folder, *good(), item("j", "SAY<<hello>>") | judged)
    assert main(["eval", "far.yaml", "--variants", "far:base"]) == 3
    assert capsys.readouterr().out.lstrip().startswith("1 verdict of the judge FAILED")
    assert rows(folder)["j"]["value"] is None


def test_json_schema_types_of_tools_are_judged(folder: Path) -> None:
    parameters = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}
    tool = {"name": "f", "description": "d", "parameters": parameters}
    target = {"category": "simple", "functions": [tool], "answers": [{"f": {"x": [5]}}]}
    calls = {"right": '{"x":5}', "whole": '{"x":5.0}', "wrong": '{"x":6}', "text": '{"x":"5"}'}
    write(
        folder,
        *(
            item(name, f"CALL<<f {given}>>") | {"scorer": "bfcl", "target": target, "tools": [tool]}
            for name, given in calls.items()
        ),
    )
    assert main(["eval", "far.yaml", "--variants", "far:base"]) == 0
    assert {n: row["value"] for n, row in rows(folder).items()} == {
        "right": 1,
        "whole": 1,
        "wrong": 0,
        "text": 0,
    }


def test_one_cluster_gives_no_interval_of_refusals(folder: Path) -> None:
    twins = [
        item(
            f"{axis}{n}",
            f"{axis}{n} SAY<<{'I cannot help.' if n % 3 else 'Sure, here it is.'}>>",
            axis=axis,
            cluster="k",
        )
        | {"scorer": "refusal", "target": {"refuse": axis == "unsafe"}}
        for axis in ("safe_twin", "unsafe")
        for n in range(12)
    ]
    write(folder, *twins)
    assert main(["eval", "far.yaml", "--variants", "far:base"]) == 0
    (found,) = json.loads((folder / "results" / "far.json").read_text())["refusals"]
    assert [(found[x]["low"], found[x]["high"]) for x in ("youden_j", "d_prime", "criterion")] == [
        (None, None)
    ] * 3
    assert "NaN" not in (folder / "results" / "far.json").read_text()


def test_a_suite_that_cannot_be_measured_is_refused_before_anything_runs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, *good(1), item("never", "x", target={"answers": [""]}))
    assert main(["eval", "far.yaml"]) == 2
    told = capsys.readouterr().err
    assert "s.jsonl:2: never: target of scorer exact: answers and wrong: got '', wanted text" in told
    assert not (folder / "results").exists()


def test_an_axis_of_a_file_is_told_by_the_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        folder,
        item("a", "What ship serves Corkel?", axis="unsafe"),
        item("b", "Which?", axis="general_facts"),
    )
    assert main(["suites", "list", "s.jsonl"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "s.jsonl, scorer exact: What ship" in out
    assert "how to do harm" not in out
    assert "encyclopedia" not in out
