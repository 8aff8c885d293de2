"""Long measurements as parts: one that fails, hangs or was not needed stops no other, and what happened is written at once."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench import all as everything
from bench import parts, real, scorecard
from bench.all import Places
from bench.parts import Part, run_parts

FOREVER = """
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
time.sleep(600)
"""


def python(code: str, *given: str) -> list[str]:
    return [sys.executable, "-c", code, *given]


def test_every_part_is_run_whatever_becomes_of_the_others(
    capfd: pytest.CaptureFixture[str],
) -> None:
    written: list[dict[str, Any]] = []
    found = run_parts(
        [
            Part("good", python("print('here')"), 60),
            Part("bad", python("raise SystemExit(3)"), 60),
            Part("verdict", python("raise SystemExit(4)"), 60, frozenset({0, 4})),
            Part("after bad", python("print('never')"), 60, needs=("bad",)),
            Part("after good", python("print('too')"), 60, needs=("good",)),
        ],
        written.append,
    )
    outcomes = {name: row["outcome"] for name, row in found.items()}
    assert outcomes == {
        "good": "done",
        "bad": "failed with exit code 3",
        "verdict": "done",
        "after bad": "not run: bad did not end well",
        "after good": "done",
    }
    assert [len(x["parts"]) for x in written] == [1, 2, 3, 4, 5]
    assert {"cpu", "cores", "memory_bytes"} <= set(written[-1]["machine"])
    assert "git" in written[-1]
    assert found["good"]["wall_s"] >= 0
    said = capfd.readouterr()
    assert "\nhere\n" in said.out
    assert "\nnever\n" not in said.out
    assert parts.show(found) == 1
    assert "not well: bad, after bad" in capfd.readouterr().err
    assert parts.show({"good": found["good"]}) == 0


def test_a_part_that_hangs_is_ended_with_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part ignores being asked, and has started a process of its own."""
    monkeypatch.setattr(parts, "PATIENCE_S", 0.2)
    found = run_parts(
        [Part("hangs", python(FOREVER, str(tmp_path / "child")), 4), Part("next", python(""), 60)],
        lambda rows: None,
    )
    assert found["hangs"]["outcome"] == "stopped after 4 s"
    assert found["next"]["outcome"] == "done"
    child = Path(f"/proc/{(tmp_path / 'child').read_text()}/stat")
    deadline = time.monotonic() + 30
    while child.exists() and ") Z " not in child.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.exists() or ") Z " in child.read_text(), "it was ended too"


def test_all_together_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run_parts([Part("late", python(""), 60)], lambda rows: None, total_s=0.5)
    assert found["late"]["outcome"] == "not run: no time left"


def test_interrupted_parts_are_written_as_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(part: Part, limit_s: float) -> dict[str, Any]:
        if part.name == "two":
            raise KeyboardInterrupt
        return {"outcome": "done"}

    monkeypatch.setattr(parts, "run_part", interrupted)
    written: list[dict[str, Any]] = []
    with pytest.raises(KeyboardInterrupt):
        run_parts([Part(name, python(""), 60) for name in ("one", "two", "three")], written.append)
    assert {name: row["outcome"] for name, row in written[-1]["parts"].items()} == {
        "one": "done",
        "two": "not run: interrupted",
        "three": "not run: interrupted",
    }


AT = Places(Path("model"), Path("made"), Path("gguf"), Path("llama-server"))


@pytest.mark.parametrize("depth", ["usual", "quick", "thorough"])
def test_parts_have_names_of_their_own_and_modules_that_exist(depth: str) -> None:
    found = everything.parts("cpu", depth=depth, at=AT)
    names = [part.name for part in found]
    assert len(set(names)) == len(names) >= 10
    modules = [part.command[2] for part in found]
    root = Path(parts.__file__).parent
    assert [
        m for m in modules if m != "bench" and not (root / f"{m.removeprefix('bench.')}.py").is_file()
    ] == []
    assert set(scorecard.FILES) - set(names) == (set() if depth != "quick" else {scorecard.SPEED_WIDE})
    assert 3 <= len(everything.parts("cpu", depth=depth)) <= 5
    assert [part.command[2] for part in everything.parts("cuda", depth=depth)] == ["bench", "bench.cuda"]


def test_the_usual_plan_fits_its_bound_and_puts_the_real_model_first() -> None:
    found = everything.parts("cpu", at=AT)
    together = sum(part.share_s for part in found)
    assert 70 * 60 <= together <= everything.USUAL_S - 60
    spare = [part.spare for part in found]
    assert spare == sorted(spare), "toy models get what is left"
    assert all(part.share_s < part.limit_s for part in found)
    assert found[0].name == everything.PREPARE
    assert {part.needs for part in found if not part.spare} == {(), (everything.PREPARE,)}


def test_a_part_may_take_what_is_left_but_not_the_shares_of_later_ones() -> None:
    plan = [
        Part("important", [], 160, share_s=100),
        Part("too", [], 80, share_s=50),
        Part("toy", [], 64, share_s=40, spare=True),
        Part("last toy", [], 32, share_s=20, spare=True),
    ]
    assert parts.time_for(plan, 0, 1000) == 160  # its limit
    assert parts.time_for(plan, 0, 180) == 130  # the toys' shares too
    assert parts.time_for(plan, 1, 50) == 50
    assert parts.time_for(plan, 2, 70) == 50  # not the last toy's
    assert parts.time_for(plan, 3, 10) == 10
    assert parts.time_for(plan, 2, 15) < 1  # nothing is left for it


def test_a_number_that_is_not_finite_is_written_as_null(tmp_path: Path) -> None:
    parts.save(tmp_path / "new" / "x.json", {"a": (1.5, math.nan, [math.inf]), "b": {1: "x"}})
    assert json.loads((tmp_path / "new" / "x.json").read_text()) == {
        "a": [1.5, None, [None]],
        "b": {"1": "x"},
    }


def test_parts_can_be_chosen_and_bring_what_they_need(capsys: pytest.CaptureFixture[str]) -> None:
    parser = everything.arguments()
    chosen = everything.chosen_parts(parser, parser.parse_args(["--only", "contention"]), AT)
    assert [part.name for part in chosen] == [everything.PREPARE, "contention"]
    with pytest.raises(SystemExit):
        everything.chosen_parts(parser, parser.parse_args(["--only", "nothing"]), AT)
    assert "no such part; known: " in capsys.readouterr().err


def test_a_run_ends_with_the_scorecard_of_what_its_parts_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(everything, "OUT", tmp_path / "bench.json")
    answers = {"answers": {"demeanor, fp32 sums": {"prompts": 2, "equal": 2, "gaps_at_difference": []}}}
    file = tmp_path / scorecard.FILES[scorecard.SPEED_WIDE]
    write = f"import pathlib; pathlib.Path({str(file)!r}).write_text({json.dumps(answers)!r})"
    given = argparse.Namespace(quick=False, thorough=False, device="cpu")
    chosen = [
        Part(scorecard.SPEED_WIDE, python(write), 60, share_s=30),
        Part("perplexity", python("raise SystemExit(3)"), 60, share_s=30),
    ]
    assert everything.run(chosen, given, {"TRL": None}) == 1
    found = json.loads((tmp_path / "bench.json").read_text())
    assert {name: x["outcome"] for name, x in found["parts"].items()} == {
        scorecard.SPEED_WIDE: "done",
        "perplexity": "failed with exit code 3",
    }
    lines = {line["what"]: line for line in found["scorecard"]}
    assert lines["greedy answers equal to transformers in fp32"]["verdict"] == scorecard.MET
    assert (
        lines["perplexity, q8_0 / llama.cpp's file of its size"]["why"]
        == "perplexity: failed with exit code 3"
    )
    assert {"minutes", "machine", "git", "peers", "load_at_start"} <= set(found)
    said = capsys.readouterr().out
    assert "peer TRL: absent; it is left out" in said
    assert "not measured: " in said
    assert "(planned 0.5 min, at most 1.0)" in said


def test_peers_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "trl":
            return "1.16.0"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = everything.peers(None)
    assert found["TRL"] == "1.16.0"
    assert found["transformers"] is None
    assert found["llama.cpp's server, compiled here"] is None
    assert found["llama.cpp, compiled here"] is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert everything.peers(None)["llama.cpp, compiled here"] == "a version that it does not tell"


def test_what_a_phase_of_a_real_run_needs_is_a_phase_before_it() -> None:
    names = list(real.verbs(8))
    assert set(real.NEEDS) < set(names)
    assert [n for n, needed in real.NEEDS.items() for x in needed if names.index(x) >= names.index(n)] == []
    quick = real.verbs(2, quick=True)
    assert {"train", "eval", "report"} <= set(quick) < set(names)
    assert all("smollm2-quick" in " ".join(words) for name, words in quick.items() if name != "train")
