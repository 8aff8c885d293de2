"""The benchmark of a real model: its ratios, its comparison of answers and its count of FLOPs, on numbers made by hand."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pytest

from bench import smollm2_speed
from bench.smollm2_speed import compare_answers, contenders_of, found_model, line, peak_shares, prepared
from bench.smollm2_worker import cache_of, prompts, timed, unknown
from demeanor.app import load_stack
from demeanor.model import checkpoints
from demeanor.stack.schema import ModelShape


def rates(*speeds: float) -> list[dict[str, float]]:
    return [{"rate": x, "others": 0.01 * i} for i, x in enumerate(speeds)]


def test_a_ratio_is_that_of_one_round_against_the_peer_that_is_fastest() -> None:
    found = line(
        "int8",
        "decode 1",
        {
            ("demeanor int8", "decode 1"): rates(20, 40),
            ("llama.cpp Q8_0", "decode 1"): rates(5, 10),
            ("llama.cpp native Q8_0", "decode 1"): rates(10, 20),
        },
        ["demeanor int8", "llama.cpp Q8_0", "llama.cpp native Q8_0"],
    )
    assert found["best_peer"] == "llama.cpp native Q8_0"
    assert found["times"]["llama.cpp native Q8_0"] == [2.0, 2.0, 2.0]  # 20/10 and 40/20: no spread
    assert found["times"]["llama.cpp Q8_0"] == [4.0, 4.0, 4.0]
    assert found["others"] == 0.01


def test_without_a_peer_there_is_no_ratio() -> None:
    found = line("fp32", "read 128", {("demeanor fp32", "read 128"): rates(5)}, ["demeanor fp32"])
    assert "times" not in found
    assert found["tokens_per_s"] == {"demeanor fp32": [5]}


def test_another_attempt_has_other_prompts_and_prompts_that_were_known_are_no_measurement() -> None:
    asked: list[int] = []

    class Noted(smollm2_speed.Measurer):
        def __init__(self) -> None:
            self._tries, self._model, self._kind, self._least_s = 3, Path(), "int8", 0.0
            self.contenders, self.rates = {}, {}

        def _repeated(self, who: str, asked_for: dict[str, object], seed: int) -> dict[str, object]:
            asked.append(seed)
            return {"seconds": 1.0, "others": 0.5, "calls": 1}

    Noted().measure("llama.cpp Q8_0", "read 128", 7)
    assert len(set(asked)) == 3
    assert not any(
        prompts(1, 128, a)[0][:2] == prompts(1, 128, b)[0][:2] for a in asked for b in asked if a < b
    )
    told = {"seconds": 1.0, "others": 0.0}
    assert unknown(argparse.Namespace(cached=2), [[1] * 128], told) == told
    with pytest.raises(RuntimeError, match="100 of 128 tokens"):
        unknown(argparse.Namespace(cached=100), [[1] * 128], told)


def test_answers_are_compared_up_to_their_first_difference() -> None:
    found = compare_answers(
        {"transformers fp32": [[1, 2, 3], [4, 5, 6]], "demeanor fp32": [[1, 2, 3], [4, 9, 9]]},
        [[0.5, 0.5, 0.5], [0.5, 0.0625, 0.5]],
    )
    ours = found["demeanor fp32"]
    assert (ours["equal"], ours["same_before"], ours["gaps_at_difference"]) == (1, 2.0, [0.0625])


def test_a_folder_for_fp32_holds_what_no_narrower_format_holds(tmp_path: Path) -> None:
    import torch

    model = checkpoints.create(ModelShape(layers=1, width=64, heads=1), 300, 0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.bfloat16())
    source = tmp_path / "hf"
    checkpoints.save(model, source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).write_text("{}")
    out = checkpoints.load(prepared(source, tmp_path, "fp32"))
    changed = out.model.layers[0].mlp.up_proj.weight  # type: ignore[union-attr]
    assert not torch.equal(changed.bfloat16().float(), changed)
    assert torch.allclose(changed, model.model.layers[0].mlp.up_proj.weight, rtol=2e-4)  # type: ignore[union-attr]


@pytest.mark.parametrize("format", ["q8_0", "q4_0", "bf16", "fp32"])
def test_keys_and_values_are_kept_as_a_stack_with_these_weights_keeps_them(
    format: str, tmp_path: Path
) -> None:
    source = tmp_path / "hf"
    checkpoints.save(checkpoints.create(ModelShape(layers=1, width=64, heads=1), 300, 0), source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).write_text("{}")
    folder = prepared(source, tmp_path, format)
    spec = {"name": "s", "weights": {"base": {"kind": "import", "path": str(folder)}}}
    (tmp_path / "stack.yaml").write_text(json.dumps(spec))
    exact, narrow = (load_stack(tmp_path / "stack.yaml", [f"weights.compute={x}"]) for x in ("fp32", "bf16"))
    assert cache_of(folder) == exact.cache_format("base")
    assert cache_of(folder, narrow=True) == narrow.cache_format("base") == "bf16"


def test_prompts_are_others_in_every_round_and_the_same_for_everybody() -> None:
    assert prompts(2, 5, 1) == prompts(2, 5, 1) != prompts(2, 5, 2)
    assert [len(x) for x in prompts(2, 5, 1)] == [5, 5]


def test_a_measurement_says_how_long_it_took_and_what_others_used() -> None:
    found = timed(lambda: None)
    assert 0 <= found["seconds"] < 60
    assert math.isfinite(found["others"])


def test_the_share_of_the_peak_is_that_of_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        smollm2_speed, "shares", lambda model, tokens, rate, peak: {"of_peak": rate / peak / tokens}
    )
    gflops = [{"torch": 1.0, "own": 2.0, "peak": 2.0}, {"torch": 4.0, "own": None, "peak": 4.0}]
    rows = [{"rate": 128.0, "gflops": gflops[0]}, {"rate": 256.0, "gflops": gflops[1]}]
    assert peak_shares(Path(), "read 128", rows) == {"of_peak": [0.5, 0.5, 0.5], "gflops": gflops}
    assert peak_shares(Path(), "read 128", [{"rate": 128.0}]) == {}


def test_contenders_that_cannot_be_the_best_are_left_out_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = argparse.Namespace(without=[], every=False)
    monkeypatch.setattr(smollm2_speed, "runnable", lambda who: True)
    assert contenders_of("int8", options) == ["demeanor q8_0", "llama.cpp native Q8_0"]
    monkeypatch.setattr(smollm2_speed, "runnable", lambda who: "native" not in who)
    assert "llama.cpp Q8_0" in contenders_of("int8", options)
    options.every = True
    assert contenders_of("int8", options) == list(smollm2_speed.FORMATS["int8"])


def test_without_the_model_the_benchmark_says_so_and_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(smollm2_speed, "PLACES", ("NO_SUCH_VARIABLE", str(tmp_path)))
    monkeypatch.setattr("sys.argv", ["bench"])
    assert found_model(tmp_path) is None
    assert smollm2_speed.main() == 0
    assert "is not here; left out" in capsys.readouterr().out
