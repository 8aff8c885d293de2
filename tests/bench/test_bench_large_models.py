"""The table of large models: llama.cpp's lines are read, medians and ratios are printed."""

from __future__ import annotations

import argparse

from bench import large_models


def test_the_speeds_of_llama_cpp_are_read_and_set_against_ours() -> None:
    said = "loading\n" + '{"pp": 64, "tg": 12, "pl": 4, "speed_pp": 50.0, "speed_tg": 8.0}\n'
    found = large_models.theirs(said)
    assert found == {"read 4": 50.0, "decode 4": 8.0}
    rows = {
        "m.gguf": {
            large_models.OURS: {"load_s": [2.0], "decode 4": [15.0, 16.0, 20.0], "bytes": [1e9, 1.1e9]},
            large_models.THEIRS: {"decode 4": [7.0, 8.0, 9.0], "bytes": [2e9]},
        }
    }
    table = large_models.table(rows, argparse.Namespace(read=64, new=12))
    assert "| m.gguf | load, s | 2.0 [2.0, 2.0] |  |  |" in table
    assert (
        "| m.gguf | decode 12 tokens, 4 at once, tokens/s | 16.0 [15.0, 20.0] | 8.0 [7.0, 9.0] | 2.00 |"
        in table
    )
    assert "| m.gguf | peak memory, GB | 1.10 | 2.00 | 0.53 |" in table
