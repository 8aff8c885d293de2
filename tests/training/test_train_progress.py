"""What a person sees: rates against hand arithmetic, a bar on a terminal, few plain lines elsewhere."""

from __future__ import annotations

from io import StringIO

import pytest
import torch
from tiny_training import Tiny

from demeanor.data.trees import Branch, Tree, collate
from demeanor.model.tensors import Segment
from demeanor.training.progress import StageProgress, attended_pairs, measured_peak, training_flops


class Hand:
    """A clock set by hand."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def shown(terminal: bool = False) -> tuple[StageProgress, Hand, StringIO]:
    clock, stream = Hand(), StringIO()
    return StageProgress("sft", stream=stream, terminal=terminal, clock=clock), clock, stream


def test_rates_are_loss_tokens_per_second_share_of_peak_and_time_left() -> None:
    watch, clock, _ = shown()
    with watch.running(100, 0, peak_flops=1000.0):
        assert watch.rates() == ""
        for step, loss in ((1, 3.0), (2, 1.0)):
            clock.now_s += 2.0
            watch.update(step, loss, tokens=5_000, flops=500.0)
        # 2 steps in 4 s: mean loss 2, 10,000 tokens / 4 s, 1,000 FLOPs / 4 s of 1,000 FLOP/s, 98 steps at 2 s
        assert watch.rates() == "mean loss 2.0000  2,500 tokens/s  25% of peak  3:16 left"


def test_a_peak_that_was_measured_beside_other_work_is_not_shown_as_one() -> None:
    watch, clock, _ = shown()
    with watch.running(100, 0, peak_flops=100.0):
        clock.now_s += 4.0
        watch.update(2, 2.0, tokens=10_000, flops=500.0)  # 125 FLOP/s, more than the peak
        assert watch.rates() == "mean loss 1.0000  2,500 tokens/s  3:16 left"


def test_a_loop_may_show_something_else_than_the_loss() -> None:
    watch, clock, _ = shown()
    with watch.running(100, 0, peak_flops=1000.0):
        clock.now_s += 4.0
        watch.show("reward 0.500")
        watch.update(2, 3.0, tokens=10_000, flops=1_000.0)
        assert watch.rates() == "reward 0.500  2,500 tokens/s  25% of peak  3:16 left"


def test_old_steps_leave_the_window() -> None:
    watch, clock, _ = shown()
    with watch.running(1000, 0):
        for step in range(1, 101):
            clock.now_s += 1.0
            watch.update(step, loss=9.0 if step <= 50 else 1.0, tokens=10 if step <= 50 else 1000, flops=0.0)
        assert watch.rates().startswith("mean loss 1.0000  1,000 tokens/s")


def test_without_a_terminal_a_line_comes_about_every_five_seconds() -> None:
    watch, clock, stream = shown()
    with watch.running(60, 0):
        for step in range(1, 61):
            clock.now_s += 1.0
            watch.update(step, 1.0, 10, 0.0)
    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines[:-1]] == [
        f"sft: step {step}/60" for step in range(5, 61, 5)
    ]
    assert lines[-1].startswith("sft: 60/60 steps in 60 s")
    assert "\x1b" not in stream.getvalue()


def test_on_a_terminal_there_is_a_bar_and_notes_stand_above_it() -> None:
    watch, clock, stream = shown(terminal=True)
    with watch.running(10, 4, peak_flops=None):
        clock.now_s += 1.0
        watch.update(5, 0.25, 64, 1.0)
        watch.say("[3 rows] left out")
    assert "resuming after step 4 of 10" in stream.getvalue()
    assert "[3 rows] left out" in stream.getvalue()  # brackets are text, not markup
    assert "5/10" in stream.getvalue()
    assert "mean loss 0.2500" in stream.getvalue()


def test_the_bar_is_taken_away_after_an_error() -> None:
    watch, _, stream = shown(terminal=True)
    with pytest.raises(ZeroDivisionError), watch.running(10, 0):
        raise ZeroDivisionError
    assert "\x1b[?25h" in stream.getvalue()  # the cursor is visible again


def test_attention_work_counts_context_and_causal_pairs() -> None:
    batch = collate([Tree((), (Branch((1, 2, 3, 4), (False, True, True, True)),), (0,), None, "")])
    shared = batch._replace(segments=(Segment(0, 2), Segment(2, 5, ((0, 2),)), Segment(5, 7, ((0, 2),))))
    # a prompt of 2 (3 pairs), branches of 3 and 2 that see it: 3*2 + 6 and 2*2 + 3
    assert attended_pairs(shared) == 3 + 12 + 7


def test_work_is_six_per_weight_and_token_with_the_head_only_where_scored() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.up = torch.nn.Linear(4, 6, bias=False), torch.nn.Linear(4, 5)
            self.embed_tokens = torch.nn.Embedding(11, 4)

    batch = collate([Tree((), (Branch((1, 2, 3, 4), (False, False, False, True)),), (0,), None, "")])
    tokens, trunk, head, pairs = 3, 4 * 6 + 4 * 5, 11 * 4, 3 * 4 / 2
    assert training_flops(Block(), head=True)(batch) == 6 * (trunk * tokens + head * 1) + 12 * 6 * pairs
    assert training_flops(Block(), head=False)(batch) == 6 * trunk * tokens + 12 * 6 * pairs
    assert training_flops(Tiny(), head=True)(batch) > 0


def test_the_measured_peak_is_possible_and_measured_once() -> None:
    first = measured_peak("cpu", torch.float32)
    assert 1e8 < first < 1e14
    assert measured_peak("cpu", torch.float32) == first
