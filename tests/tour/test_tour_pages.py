"""The tour's pages: contents, chapters, runs as processes, checked answers; nothing of a result becomes markup."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from demeanor.cli import main
from demeanor.core.errors import UsageError
from demeanor.tour import findings
from demeanor.tour.chapters import chapter, chapters
from demeanor.tour.notebook import Notebook, Processes, number
from demeanor.tour.tour_pages import routes
from tests.conftest import REPOSITORY, each

KEPT = REPOSITORY / "docs" / "tour" / "kept"


class ScriptedProcesses(Processes):
    """Runs nothing; says what it was asked."""

    def start(self, chapter: object) -> None:
        self.begun = chapter

    def state(self, number: int) -> str:
        return "running"


@pytest.fixture
def reader(tmp_path: Path) -> Notebook:
    return Notebook(tmp_path)


@pytest.fixture
def client(reader: Notebook) -> TestClient:
    return TestClient(Starlette(routes=routes(reader, ScriptedProcesses(reader.folder, []))))


def test_links_of_a_chapter_lead_somewhere_and_comments_are_not_shown(client: TestClient) -> None:
    for one in each(chapters()):
        text = client.get(f"/tour/{one.number}").text
        assert "&lt;!--" not in text
        links = [x for x in re.findall(r'href="([^"]+)"', text) if x.startswith("/tour")]
        assert all(client.get(link).status_code == 200 for link in each(links))
        assert ".md" not in "".join(re.findall(r'href="([^"]+)"', text))


def test_words_of_a_chapter_lead_to_their_meaning_and_links_stay_links(client: TestClient) -> None:
    words = client.get("/tour/words").text
    chapters_text = "".join(client.get(f"/tour/{one.number}").text for one in chapters())
    anchors = set(re.findall(r'class="word" href="/tour/words#([\w-]+)"', chapters_text))
    assert {"word-sft", "word-dpo", "word-kl-divergence"} <= anchors
    assert all(f'id="{anchor}"' in words for anchor in each(anchors))
    assert not re.search(r"<a [^>]*>(?:(?!</a>).)*<a ", chapters_text, re.S)


def test_the_contents_and_every_chapter_are_pages(client: TestClient) -> None:
    assert client.get("/tour").text.count("<li>") == 10
    for one in each(chapters()):
        text = client.get(f"/tour/{one.number}").text
        assert f'src="/tour/kept/{one.experiment}.svg"' in text
        assert client.get(f"/tour/kept/{one.experiment}.svg").headers["content-type"] == "image/svg+xml"
        assert "<table>" in text


def test_a_guess_is_asked_before_the_kept_results_and_the_exercise_after_them(client: TestClient) -> None:
    page = client.get("/tour/5").text
    asked = [
        page.index(mark)
        for mark in ('id="guess"', "/tour/kept/layers.svg", 'id="answer"', "/tour/kept/smollm2-layers.svg")
    ]
    assert asked == sorted(asked)
    assert page.count("By how many points does the policy change") == 1


@pytest.mark.parametrize(
    "path",
    ["/tour/11", "/tour/0/state", "/tour/kept/secret.svg", "/tour/static/pages.py", "/tour/5/picture.svg"],
)
def test_what_is_not_there_is_404(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_an_experiment_is_begun_with_the_guess_written_down(client: TestClient, reader: Notebook) -> None:
    assert client.post("/tour/5/run", json={"guess": 80}).status_code == 202
    assert reader.notes()["layers"]["guess"] == 80
    assert client.get("/tour/5/state").json() == {"state": "running", "said": ""}


def test_a_form_of_another_page_begins_nothing(client: TestClient, reader: Notebook) -> None:
    assert client.post("/tour/5/run", data={"guess": "80"}).status_code == 400
    assert (
        client.post("/tour/5/run", content=b"{}", headers={"content-type": "text/plain"}).status_code == 400
    )
    assert reader.notes() == {}


def test_an_answer_is_checked_against_the_own_run_and_needs_one(client: TestClient, reader: Notebook) -> None:
    assert (
        "run its experiment first"
        in client.post("/tour/5/answer", json={"answer": 1}).json()["error"]["message"]
    )
    found = findings.load(KEPT / "layers.json")
    findings.save(found, reader.folder)
    right = 100 * found.answers["policy"].value
    assert client.post("/tour/5/answer", json={"answer": right}).json()["right"] is True
    assert client.post("/tour/5/answer", json={"answer": right + 90}).json()["right"] is False
    assert client.post("/tour/5/answer", json={"answer": "x"}).status_code == 400


@pytest.mark.parametrize("number", ["NaN", "1e999", "true", "9" * 400, "null", "[]"])
def test_what_is_no_number_is_no_answer_and_no_guess(
    number: str, client: TestClient, reader: Notebook
) -> None:
    findings.save(findings.load(KEPT / "layers.json"), reader.folder)
    headers = {"content-type": "application/json"}
    answer = client.post("/tour/5/answer", content=f'{{"answer": {number}}}', headers=headers)
    assert answer.status_code == 400
    client.post("/tour/5/run", content=f'{{"guess": {number}}}', headers=headers)
    assert reader.notes() == {}


def test_a_broken_or_hostile_result_does_no_harm(client: TestClient, reader: Notebook) -> None:
    found = findings.load(KEPT / "layers.json")
    findings.save(replace(found, said="<script>alert(1)</script>"), reader.folder)
    text = client.get("/tour/5").text
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    (reader.folder / "layers.json").write_text("{")
    assert client.get("/tour/5").status_code == 200


def test_labels_are_compared_with_the_world(client: TestClient) -> None:
    assert (
        "You agree with the labels of the demo on"
        in client.post("/tour/label", json={"labels": list("ABABA")}).json()["said"]
    )
    assert client.post("/tour/label", json={"labels": list("ABABC")}).status_code == 400


def test_one_experiment_runs_at_a_time_and_its_words_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = Processes(tmp_path / "tour", [])
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho measuring\nsleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    processes.start(chapter(1))
    try:
        with pytest.raises(UsageError, match="still running"):
            processes.start(chapter(2))
        wait(lambda: processes.said(1) == "measuring")
        assert processes.state(1) == "running"
    finally:
        processes.close()
    assert processes.state(1) == "failed"
    assert processes.state(2) == "idle"


def wait(until: Callable[[], bool]) -> None:
    import time

    end = time.monotonic() + 120
    while not until():
        assert time.monotonic() < end
        time.sleep(0.01)


# ---- the command line ----


def test_the_chapters_are_listed_shown_and_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = ["--results", str(tmp_path)]
    findings.save(findings.load(KEPT / "better.json"), tmp_path / "tour")
    assert main(["tour", "list", *results]) == 0
    assert "Does alignment always make it better?" in capsys.readouterr().out
    assert main(["tour", "show", "1"]) == 0
    assert "pretraining" in capsys.readouterr().out
    value = 100 * findings.load(KEPT / "better.json").answers["facts"].value
    assert main(["tour", "answer", "10", f"{value:.0f}", *results]) == 0
    assert main(["tour", "answer", "10", "60", *results]) == 1
    assert main(["tour", "answer", "1", "60", *results]) == 2
    assert "demeanor tour run 1" in capsys.readouterr().err
    assert main(["tour", "show", "11"]) == 2


@pytest.mark.parametrize(
    ("text", "value"), [("−17", -17), ("+84", 84), ("84 %", 84), ("-33,5", -33.5), ("0", 0)]
)
def test_a_number_is_read_as_the_results_print_it(text: str, value: float) -> None:
    assert number(text) == value


@pytest.mark.parametrize("text", ["nan", "1e999", "-inf", "", "a half", "1.2.3"])
def test_a_guess_or_an_answer_that_is_no_number_is_refused(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = ["--results", str(tmp_path)]
    assert main(["tour", "answer", "10", text, *results]) == 2
    assert main(["tour", "run", "10", "--guess", text, *results]) == 2
    assert capsys.readouterr().err.count(f"got '{text}', wanted a number") == 2


def test_labels_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tour", "label", "--labels", "ABABA"]) == 0
    assert "You agree with the labels of the demo" in capsys.readouterr().out
    assert main(["tour", "label", "--labels", "ABX"]) == 2


def test_a_chapter_says_so_before_any_work_if_nothing_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        "--stack",
        str(REPOSITORY / "stacks/demo/demo.yaml"),
        "--runs",
        str(tmp_path),
        "--results",
        str(tmp_path),
    ]
    assert main(["tour", "run", "5", "--guess", "1", *given]) == 2
    assert "demeanor demo" in capsys.readouterr().err
