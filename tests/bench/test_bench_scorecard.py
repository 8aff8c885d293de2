"""The scorecard of the benchmark: verdicts from intervals, from results written by hand in the form of the parts' files."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from bench import gguf_answers, scorecard, smollm2_serving
from bench.scorecard import ABSENT, MET, MISSED, SPEED, SPEED_WIDE, WIDE, Line, verdict

SPEEDS = {
    "lines": [
        {
            "format": "int8",
            "scenario": "read 1,024",
            "tokens_per_s": {"demeanor q8_0": [3000, 3100], "llama.cpp native Q8_0": [800, 810], "llama.cpp Q8_0": [600, 610]},
            "times": {"llama.cpp native Q8_0": [3.8, 3.5, 4.1], "llama.cpp Q8_0": [5.0, 4.9, 5.1]},
            "of_peak": [0.72, 0.68, 0.76],
            "of_peak_products_only": [0.66, 0.62, 0.7],
            "gflops": [{"peak": 1000.0}],
        },
        {
            "format": "int8",
            "scenario": "decode 32",
            "tokens_per_s": {"demeanor q8_0": [900], "llama.cpp native Q8_0": [600]},
            "times": {"llama.cpp native Q8_0": [1.5, None, None]},
        },
        {"format": "4-bit", "scenario": "decode 8", "tokens_per_s": {"demeanor q4_0": [900]}},
    ]
}  # fmt: skip


def lines(found: dict[str, Any], outcomes: dict[str, str] | None = None) -> dict[str, Line]:
    return {line.what: line for line in scorecard.scorecard(found, outcomes or {})}


@pytest.mark.parametrize(
    ("numbers", "most", "expected"),
    [
        ((1.3, 1.25, 1.4), False, MET),
        ((1.3, 1.2, 1.4), False, MET),
        ((1.3, 1.1, 1.5), False, WIDE),
        ((1.1, 1.0, 1.3), False, MISSED),
        ((1.3,), False, MET),
        ((1.3, None, None), False, f"{MET}, one round: no interval"),
        ((None,), False, MISSED),
        ((1.0, 0.9, 1.1), True, MET),
        ((1.1, 1.0, 1.25), True, WIDE),
        ((1.3, 1.1, 1.5), True, MISSED),
    ],
)
def test_a_goal_is_met_by_the_worse_end_of_the_interval(
    numbers: tuple[float | None, ...], most: bool, expected: str
) -> None:
    assert verdict(numbers, 1.2, most=most) == expected


def test_nothing_measured_is_said_for_every_goal_with_the_reason() -> None:
    found = scorecard.scorecard({}, {SPEED: "stopped after 5 s", "perplexity": "not run: no time left"})
    assert {line.verdict for line in found} == {ABSENT}
    why = {line.what: line.why for line in found}
    assert why["read 128, int8: times the best peer"] == f"{SPEED}: stopped after 5 s"
    assert why["perplexity, q8_0 / llama.cpp's file of its size"] == "perplexity: not run: no time left"
    assert why["read 128, bf16: times the best peer"] == f"{SPEED_WIDE}: its part was not run"
    assert len(why) == len(found) > 40


def test_speed_is_compared_with_the_peer_that_is_fastest() -> None:
    found = lines({SPEED: SPEEDS})
    read = found["read 1,024, int8: times the best peer"]
    assert (read.measured, read.verdict) == ("3.80 [3.50, 4.10]", MET)
    assert read.why == "3,050 tokens/s; llama.cpp native Q8_0 805; 2 rounds"
    share = found["read 1,024, int8: share of the product peak"]
    assert (share.measured, share.verdict) == ("72% [68%, 76%]", WIDE)
    assert share.why == "without attention 66% [62%, 70%]; peak 1,000 GFLOP/s"
    assert found["decode 32, int8: times the best peer"].verdict == MISSED
    assert found["decode 8, 4-bit: times the best peer"].why == "no peer was here"
    assert found["decode 1, int8: times the best peer"].verdict == ABSENT


def test_memory_is_judged_where_it_is_worst_in_the_default_format() -> None:
    def rows(*mb: int) -> list[dict[str, int]]:
        return [{"tokens": n, "resident_mb": x} for n, x in zip((0, 1000, 8000), mb, strict=True)]

    found = lines(
        {"long contexts": {"default": "bf16", "rows": {"fp32": rows(200, 250, 560), "bf16": rows(200, 230, 384), "llama.cpp": rows(340, 360, 370)}}}
    )  # fmt: skip
    usual = found["memory of weights and cache / llama.cpp's, keys in bf16 (the default)"]
    assert (usual.measured, usual.verdict) == ("1.04", MET)
    assert found["memory of weights and cache / llama.cpp's, keys in fp32"].verdict == MISSED


def test_answers_and_perplexity() -> None:
    row = {"prompts": 32, "equal": 31, "gaps_at_difference": [0.00002]}
    found = lines(
        {
            SPEED_WIDE: {"answers": {"demeanor, fp32 sums": row}},
            "perplexity": {"chunks": 36, "lines": [{"format": "q8_0", "perplexity": 16.67, "peer": "Q8_0", "to_peer": [1.001, 0.998, 1.012]}]},
        }
    )  # fmt: skip
    answers = found["greedy answers equal to transformers in fp32"]
    assert (answers.measured, answers.verdict) == ("31 of 32", MISSED)
    assert "0.00002" in answers.why
    rounded = found["perplexity, q8_0 / llama.cpp's file of its size"]
    assert (rounded.measured, rounded.verdict) == ("1.001 [0.998, 1.012]", WIDE)


def test_training_is_compared_with_the_faster_way_of_trl() -> None:
    line = {
        "work": "sft, oasst, all weights",
        "faster": {"trl tuned": [4.5, 4.3, 4.8], "trl padding-free": [3.5, 2.9, 4.2]},
        "seconds": {"demeanor": [1.0, 1.1, 1.0]},
        "memory_mb": {"demeanor": 3000, "trl tuned": 7000, "trl padding-free": 6000},
        "of_peak": [0.6, 0.55, 0.65],
        "peak_flops": 9e11,
        "loss_gap_fp32": 2e-5,
        "losses_fp32": [[1.5, 1.25], [1.5, 1.25002]],
    }
    failed = {
        **line,
        "work": "kto, hh-rlhf, all weights",
        "loss_gap_fp32": None,
        "loss_gap_error": "it stopped",
    }
    found = lines({"training, real weights": {"lines": [line, failed]}})
    assert found["step, sft, oasst, all weights: times TRL"].verdict == WIDE
    assert found["step, sft, oasst, all weights: memory / TRL's"].measured == "0.50"
    assert found["step, sft, oasst, all weights: share of the bf16 peak"].verdict == MET
    losses = "first losses in fp32, {}: gap to TRL's"
    same = found[losses.format("sft, oasst")]
    assert (same.verdict, same.why) == (MET, "steps 1.500000, 1.500000; 1.250000, 1.250020")
    assert found[losses.format("kto, hh-rlhf")] == (losses.format("kto, hh-rlhf"), "<= 1e-04", "-", ABSENT, "it stopped", ())  # fmt: skip
    assert found["step, dpo, hh-rlhf, adapters: times TRL"].verdict == ABSENT


def test_serving_is_compared_round_by_round_with_each_server() -> None:
    def cell(who: str, round_: int, callers: int, speed: float, first: float, came: bool = True) -> dict[str, Any]:  # fmt: skip
        return {"who": who, "round": round_, "callers": callers, "tokens_per_s": speed, "first": {"p50": [first, came]}}  # fmt: skip

    us, them, slow = "demeanor, weights", "llama.cpp native", "transformers serve"
    rows = [cell(us, r, 8, 120.0, 700.0) for r in (0, 1, 2)]
    rows += [cell(them, r, 8, 40.0, 350.0) for r in (0, 1)]
    rows += [cell(slow, 0, 8, 0.0, 20_000.0, came=False)]
    found = lines({"SmolLM2 serving": {"rows": rows, "seconds": {"8": 20.0}}})
    speed = found["serve, 8 callers: tokens/s against llama.cpp native"]
    assert (speed.measured, speed.verdict) == ("3.0 [3.0, 3.0]", MET)
    assert speed.why == "120 and 40 tokens/s; 2 rounds of 20 s"
    assert found["serve, 8 callers: first token (median) against llama.cpp native"].verdict == MISSED
    nothing = found["serve, 8 callers: tokens/s against transformers serve"]
    assert (nothing.measured, nothing.verdict) == ("inf", MET)
    late = found["serve, 8 callers: first token (median) against transformers serve"]
    assert late.why.startswith("700 and > 20,000 ms; 1 round of 20 s")
    assert late.verdict == f"{MET}, one round: no interval"
    assert found["serve, 64 callers: tokens/s against llama.cpp native"].verdict == ABSENT


def test_tokens_of_a_gguf_file_stand_beside_llama_cpp_with_itself() -> None:
    pairs = [
        {"pair": ["demeanor", "llama.cpp, fp32 cache"], "same": 99, "positions": 100, "gaps": [0.25]},
        {"pair": ["llama.cpp as it comes (fp16 cache)", "llama.cpp, fp32 cache"], "same": 98, "positions": 100, "gaps": []},
    ]  # fmt: skip
    found = lines({"GGUF answers": {"files": {"Q8_0.gguf": {"pairs": pairs}}}})
    assert (
        lines({"GGUF answers": {}}, {"GGUF answers": "done"})[
            "greedy tokens of F16.gguf equal to llama.cpp's"
        ].why
        == "GGUF answers: not among what this run measured"
    )
    line = found["greedy tokens of Q8_0.gguf equal to llama.cpp's"]
    assert (line.measured, line.verdict) == ("99 of 100 (99.0%)", MISSED)
    assert (
        line.why
        == "llama.cpp with itself (other cache) 98.0%; where not, the two best are at most 0.250 apart"
    )


def test_files_of_an_earlier_run_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / scorecard.FILES[SPEED]
    path.write_text(json.dumps(SPEEDS))
    os.utime(path, (1000, 1000))
    assert set(scorecard.results(tmp_path)) == {SPEED}
    assert scorecard.results(tmp_path, since=1001) == {}


def test_names_are_those_of_the_parts_that_write_them() -> None:
    assert (scorecard.OURS_HERE, scorecard.WHOLE, scorecard.PLAIN) == (
        gguf_answers.OURS,
        gguf_answers.WHOLE,
        gguf_answers.PLAIN,
    )
    assert (scorecard.OURS_HERE, scorecard.WHOLE) in gguf_answers.PAIRS
    assert (scorecard.PLAIN, scorecard.WHOLE) in gguf_answers.PAIRS
    assert set(scorecard.SERVERS) < set(smollm2_serving.SERVERS)
    assert scorecard.CALLERS == smollm2_serving.CALLERS


def test_the_scorecard_is_json_without_infinities(tmp_path: Path) -> None:
    from bench.parts import save

    found = scorecard.as_json([Line("a", "> 1", "inf", MET, "", (math.inf,))])
    save(tmp_path / "bench.json", {"scorecard": found})
    assert json.loads((tmp_path / "bench.json").read_text())["scorecard"][0]["numbers"] == [None]
