"""Drafts are checked many tokens at a time and never change what is said: same tokens, probabilities and ends, in fewer steps."""

from __future__ import annotations

import random

import pytest
import torch
from byte_model import END, ByteModel, ByteTokenizer, random_next

from demeanor.core.types import Decoding
from demeanor.engine import scheduler as batching
from demeanor.engine.forward import Rows, Torch
from demeanor.engine.scheduler import Batch, Piece, Request, SequenceState
from demeanor.model.llama import KVCache
from demeanor.model.native import NativeStep

Drafts = tuple[tuple[int, ...], ...]


class Reader(ByteModel):
    """Speaks from every token of a run."""

    def prefill(self, tokens_T: torch.Tensor, slot: int, start: int, cache: KVCache) -> torch.Tensor:
        tokens = tokens_T.tolist()
        return torch.stack(
            [self.next(self._write(cache, slot, start + i, [token])) for i, token in enumerate(tokens)]
        )


class Exact(Torch):
    """The byte model answers the same however its tokens are fed."""

    exact = True


def answers(
    asked: list[tuple[tuple[int, ...], Drafts, Decoding]], num_slots: int = 4, exact: bool = True
) -> tuple[list[list[Piece]], int]:
    """Every request's pieces, and the steps that they took."""
    model = Reader(random_next)
    forward = Exact if exact else Torch
    batch = Batch(forward(model, KVCache(model.config, num_slots, 2048)), num_slots)
    said: dict[SequenceState, list[Piece]] = {}
    for prompt, drafts, decoding in asked:
        one = SequenceState(
            Request(prompt, decoding, frozenset({END}), drafts=drafts),
            decoding.max_tokens,
            ByteTokenizer().decode,
        )
        said[one] = []
        batch.add(one)
    steps = 0
    while batch.busy:
        steps += 1
        for one, piece in batch.step():
            said[one].append(piece)
    return list(said.values()), steps


def prompts(count: int) -> list[tuple[int, ...]]:
    rng = random.Random(0)
    return [tuple(rng.randrange(256) for _ in range(rng.randint(1, 30))) for _ in range(count)]


GREEDY = Decoding(temperature=0, max_tokens=16, top_logprobs=2)


@pytest.mark.parametrize("num_slots", [1, 4])
@pytest.mark.parametrize("seed", range(4))
def test_drafts_of_any_kind_never_change_an_answer(num_slots: int, seed: int) -> None:
    rng, asked = random.Random(seed), prompts(12)
    plain, _ = answers([(p, (), GREEDY) for p in asked], num_slots)
    true = [tuple(x.token for x in pieces) for pieces in plain]

    def drafts(answer: tuple[int, ...]) -> Drafts:
        wrong = list(answer)
        wrong[rng.randrange(len(wrong))] ^= 1
        kinds = [
            answer,
            answer[: rng.randint(0, len(answer))],
            tuple(wrong),
            (*answer, 7, 7),
            (),
            tuple(rng.randrange(256) for _ in range(9)),
            rng.choice(true),
        ]
        return tuple(rng.sample(kinds, rng.randint(1, 4)))

    drafted, _ = answers([(p, drafts(a), GREEDY) for p, a in zip(asked, true)], num_slots)
    assert drafted == plain


def test_a_right_draft_takes_one_step_and_a_wrong_one_no_more_than_none() -> None:
    prompt = prompts(1)[0]
    (plain,), steps = answers([(prompt, (), GREEDY)])
    answer = tuple(x.token for x in plain)
    assert steps == len(answer) > 3
    assert answers([(prompt, (answer,), GREEDY)])[1] == 1
    assert answers([(prompt, ((answer[0] ^ 1, 5, 5),), GREEDY)])[1] == steps
    assert (
        answers([(prompt, ((*answer[:3], answer[3] ^ 1), (*answer,)), GREEDY)])[1] == 2
    )  # the second draft goes on where the first fails


def test_drafts_are_not_looked_at_where_an_answer_is_drawn_or_the_forward_is_not_exact() -> None:
    prompt = prompts(1)[0]
    (plain,), steps = answers([(prompt, (), GREEDY)])
    answer = tuple(x.token for x in plain)
    assert answers([(prompt, (answer,), GREEDY)], exact=False) == ([plain], steps)
    drawn = Decoding(temperature=1.0, max_tokens=16, seed=3)
    assert answers([(prompt, (answer,), drawn)]) == answers([(prompt, (), drawn)])
    biased = Decoding(temperature=0, max_tokens=16, logit_bias=((answer[1], -50.0),))
    assert answers([(prompt, (answer,), biased)]) == answers([(prompt, (), biased)])


def test_a_slot_that_held_a_wrong_guess_is_read_right_by_the_next_prompt() -> None:
    prompt = prompts(1)[0]
    (plain,), _ = answers([(prompt, (), GREEDY)])
    answer = tuple(x.token for x in plain)
    wrong = (*answer[:2], answer[2] ^ 1, 9, 9)
    following = (
        *prompt,
        *wrong,
        1,
        2,
        3,
    )  # begins as the slot would look if the wrong guess had stayed in it
    alone, _ = answers([(following, (), GREEDY)], num_slots=1)
    after, _ = answers([(prompt, (wrong,), GREEDY), (following, (), GREEDY)], num_slots=1)
    assert after == [plain, *alone]


@pytest.mark.parametrize("seed", range(6))
def test_drafts_change_nothing_where_sequences_come_late_share_prefixes_and_are_cancelled(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(batching, "READ_PER_STEP", rng.choice([4, 16, 256]))
    monkeypatch.setattr(batching, "DRAFTED_PER_STEP", rng.choice([1, 5, 512]))
    heads = [tuple(rng.randrange(256) for _ in range(40)) for _ in range(3)]
    asked = [
        (*rng.choice(heads)[: rng.randint(1, 40)], *(rng.randrange(256) for _ in range(rng.randint(0, 12))))
        for _ in range(14)
    ]
    alone = [answers([(p, (), GREEDY)], 1)[0][0] for p in asked]
    model, slots = Reader(random_next), rng.choice([1, 2, 3, 5])
    batch = Batch(Exact(model, KVCache(model.config, slots, 2048)), slots)
    said: dict[SequenceState, tuple[list[Piece], list[Piece]]] = {}
    for prompt, true in zip(asked, alone):
        answer = tuple(x.token for x in true)
        wrong = [*answer[:-1], answer[-1] ^ 1]
        drafts = (answer[: rng.randint(0, len(answer))], tuple(wrong), (*answer, 3))[: rng.randint(0, 3)]
        said[
            SequenceState(
                Request(prompt, GREEDY, frozenset({END}), drafts=drafts),
                GREEDY.max_tokens,
                ByteTokenizer().decode,
            )
        ] = (true, [])
    waiting, gone = list(said), set()
    while waiting or batch.busy:
        for _ in range(rng.randint(0, 3)):
            if waiting:
                batch.add(waiting.pop())
        for one, piece in batch.step():
            said[one][1].append(piece)
        present = [*batch.running, *batch.waiting]
        if present and rng.random() < 0.15:
            gone.add(one := rng.choice(present))
            batch.drop(one)
    assert len(said) == len(asked)
    for one, (true, found) in said.items():
        assert found == (true[: len(found)] if one in gone else true)


def test_all_drafts_of_a_step_together_are_read_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, sizes = prompts(4), list[int]()
    plain, _ = answers([(p, (), GREEDY) for p in asked])
    run = Exact.run

    def measured(self: Exact, rows: Rows) -> NativeStep:
        sizes.append(len(rows.read))
        return run(self, rows)

    monkeypatch.setattr(Exact, "run", measured)
    monkeypatch.setattr(batching, "DRAFTED_PER_STEP", 3)
    monkeypatch.setattr(batching, "READ_PER_STEP", 1)  # so that all guessing is done behind the prompts
    drafted, _ = answers([(p, (tuple(x.token for x in a),), GREEDY) for p, a in zip(asked, plain)])
    assert drafted == plain
    assert max(sizes) <= len(asked) + 3
