"""What shares a batch never changes an answer; slots are taken in order, freed at once, and their old tokens used again."""

from __future__ import annotations

import math
import random

import pytest
import torch
from byte_model import END, VOCAB_SIZE, ByteModel, ByteTokenizer, random_next, says, slow_answer

from demeanor.core.errors import EngineError
from demeanor.core.types import Decoding
from demeanor.engine import scheduler as batch_module
from demeanor.engine.forward import Torch
from demeanor.engine.scheduler import Batch, Piece, Request, SequenceState
from demeanor.model.llama import KVCache

GREEDY = Decoding(temperature=0, max_tokens=12)


def sequence(prompt: str | tuple[int, ...], decoding: Decoding = GREEDY) -> SequenceState:
    tokens = tuple(prompt.encode()) if isinstance(prompt, str) else prompt
    return SequenceState(
        Request(tokens, decoding, frozenset({END})), decoding.max_tokens, ByteTokenizer().decode
    )


def made(model: ByteModel, num_slots: int) -> Batch:
    return Batch(Torch(model, KVCache(model.config, num_slots, 2048)), num_slots)


def run(model: ByteModel, sequences: list[SequenceState], num_slots: int) -> list[list[Piece]]:
    """Step until all have ended; one list of pieces per sequence."""
    batch = made(model, num_slots)
    for one in sequences:
        batch.add(one)
    said: dict[SequenceState, list[Piece]] = {one: [] for one in sequences}
    while batch.busy:
        for one, piece in batch.step():
            said[one].append(piece)
    return list(said.values())


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def prompts(num: int, longest: int, seed: int = 0) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    return [tuple(rng.randrange(256) for _ in range(rng.randint(1, longest))) for _ in range(num)]


@pytest.mark.parametrize("num_slots", [1, 3, 8])
def test_a_greedy_answer_is_that_of_reading_everything_again_for_each_token(num_slots: int) -> None:
    asked = prompts(10, 40)
    answers = run(ByteModel(random_next), [sequence(prompt) for prompt in asked], num_slots)
    assert [[p.token for p in pieces] for pieces in answers] == [
        slow_answer(random_next, prompt, 12, frozenset({END})) for prompt in asked
    ]


@pytest.mark.parametrize("num_slots", [2, 8])
def test_a_seeded_answer_is_the_same_alone_and_in_any_batch(num_slots: int) -> None:
    settings = [
        Decoding(temperature=t, top_p=p, max_tokens=12, seed=s)
        for t, p, s in [
            (0.7, 1.0, 1),
            (1.0, 0.9, 2),
            (1.5, 0.5, 1),
            (0.0, 1.0, 4),
            (1.0, 1.0, -5),
            (1.0, 1.0, 2**70),
        ]
    ]
    asked = prompts(len(settings), 20)
    alone = [run(ByteModel(random_next), [sequence(p, d)], 1)[0] for p, d in zip(asked, settings)]
    together = run(ByteModel(random_next), [sequence(p, d) for p, d in zip(asked, settings)], num_slots)
    assert [[p.token for p in pieces] for pieces in together] == [
        [p.token for p in pieces] for pieces in alone
    ]


def test_another_seed_or_no_seed_is_another_answer() -> None:
    def answer(seed: int | None) -> str:
        return text(
            run(
                ByteModel(random_next),
                [sequence("Who?", Decoding(temperature=1.0, max_tokens=20, seed=seed))],
                1,
            )[0]
        )

    assert answer(1) == answer(1) != answer(2)
    assert answer(None) != answer(None), "20 draws of about 5 bits each"


def test_a_long_prompt_is_read_in_chunks_and_nobody_stalls() -> None:
    model = ByteModel(random_next)
    batch = made(model, 2)
    first = sequence("short", Decoding(temperature=0, max_tokens=50))
    batch.add(first)
    batch.step()
    long = prompts(1, 1)[0] * 600
    batch.add(sequence(long))
    for _ in range(5):
        assert [one for one, _ in batch.step()][:1] == [first], "a decoder speaks in every step"
    read = [len(tokens) for kind, _, tokens in model.calls if kind == "prefill"]
    assert read == [5, 128, 128, 128, 128, 88]


def test_what_does_not_fit_into_a_step_waits_for_the_next() -> None:
    model = ByteModel(random_next)
    asked = [(1,) * 200, (2,) * 56, (3,) * 5]
    run(model, [sequence(prompt, Decoding(temperature=0, max_tokens=1)) for prompt in asked], 3)
    assert [len(tokens) for _, _, tokens in model.calls] == [5, 200, 51, 5], "the shortest, then by age"


def test_a_short_prompt_does_not_wait_for_long_ones_and_the_oldest_goes_on() -> None:
    model = ByteModel(random_next)
    batch = made(model, 4)
    old, other, short = sequence((1,) * 1500), sequence((2,) * 1500), sequence((3,) * 100)
    for one in (old, other, short):
        batch.add(one)
    assert [one for one, _ in batch.step()] == [short]
    assert [(tokens[0], len(tokens)) for _, _, tokens in model.calls] == [(3, 100), (1, 156)]
    stream = [sequence((4 + i,) * 800) for i in range(5)]  # shorter ones, each more than a step reads
    for one in stream:
        batch.add(one)
        before = old.num_read
        batch.step()
        assert old.num_read >= before + 64, "half of what is read is the oldest's"


def test_an_oldest_prompt_that_waits_for_a_prefix_keeps_no_room_from_the_one_that_reads_it() -> None:
    model = ByteModel(random_next)
    batch = made(model, 2)
    system = (1,) * 900
    oldest, shorter = sequence((*system, *[2] * 90)), sequence((*system, 3))
    for one in (oldest, shorter):
        batch.add(one)
    batch.step()
    assert (oldest.num_read, shorter.num_read) == (0, 256)


def test_a_prompt_whose_log_probabilities_are_asked_reads_no_more_beside_others_than_alone() -> None:
    batch = made(ByteModel(random_next), 6)
    talker = sequence("hello", Decoding(temperature=0, max_tokens=50))
    batch.add(talker)
    batch.step()
    scored = [
        SequenceState(
            Request((i,) * 1000, GREEDY, frozenset({END}), prompt_logprobs=0),
            GREEDY.max_tokens,
            ByteTokenizer().decode,
        )
        for i in range(1, 6)
    ]
    for one in scored:
        batch.add(one)
    before = [one.num_read for one in scored]
    batch.step()
    read = [one.num_read - b for one, b in zip(scored, before)]
    assert sum(read) == 512
    assert max(read) <= 256


def slow_room(reading: int, decoding: int) -> int:
    """What a step reads, by counting up: 32 tokens more as long as there are no more than 128 for each that reads per one that decodes."""
    room = 128
    while room < 512 and (room + 32) * decoding <= 128 * reading:
        room += 32
    return room


def test_the_more_read_beside_each_that_decodes_the_more_is_read_in_a_step() -> None:
    batch = made(ByteModel(random_next), 1)
    assert [batch._room(5, 0), batch._room(1, 31), batch._room(31, 1)] == [256, 128, 512]
    assert all(batch._room(w, d) == slow_room(w, d) for w in range(1, 70) for d in range(1, 33))


def test_requests_are_admitted_in_order_of_arrival() -> None:
    batch = made(ByteModel(random_next), 2)
    waiting = [sequence(f"request {i}", Decoding(temperature=0, max_tokens=3 + i % 2)) for i in range(6)]
    for one in waiting:
        batch.add(one)
    began: list[SequenceState] = []
    while batch.busy:
        began += [one for one, _ in batch.step() if one not in began]
    assert began == waiting


def test_a_dropped_sequence_gives_its_slot_to_the_next_in_the_very_next_step() -> None:
    batch = made(ByteModel(random_next), 1)
    first, second, third = (
        sequence(f"request {i}", Decoding(temperature=0, max_tokens=1000)) for i in range(3)
    )
    for one in (first, second, third):
        batch.add(one)
    batch.step()
    batch.drop(first)
    batch.drop(second)
    assert [one for one, _ in batch.step()] == [third]
    batch.drop(third)
    batch.drop(third)
    assert not batch.busy
    assert batch.step() == []


def test_a_prefix_that_a_slot_still_holds_is_not_read_again() -> None:
    model = ByteModel(random_next)
    system = "You are the harbour desk. "
    _, again, other = run(model, [sequence(system + "Who?"), sequence(system + "When?"), sequence("Hm?")], 1)
    read = ["".join(map(chr, tokens)) for kind, _, tokens in model.calls if kind == "prefill"]
    assert read == [system + "Who?", "en?", "Hm?"], "'Wh' is shared too"
    assert text(again) == text(run(ByteModel(random_next), [sequence(system + "When?")], 1)[0])
    assert text(other) == text(run(ByteModel(random_next), [sequence("Hm?")], 1)[0])


def test_a_new_sequence_takes_the_slot_that_knows_most_of_it() -> None:
    model = ByteModel(random_next)
    batch = made(model, 3)
    for wave in (["aaaa", "bbbb", "cccc"], ["bbbbx", "ccccx", "aaaax"]):
        for prompt in wave:
            batch.add(sequence(prompt, Decoding(temperature=0, max_tokens=1)))
        while batch.busy:
            batch.step()
    assert model.calls[3:] == [("step", [0, 1, 2], [ord("x")] * 3)], (
        "each reads its last token only, all in one step"
    )


def test_the_same_prompt_twice_reads_only_its_last_token_again() -> None:
    model = ByteModel(random_next)
    first, second = run(model, [sequence("Who is Marla?"), sequence("Who is Marla?")], 1)
    assert [p.token for p in first] == [p.token for p in second]
    assert [len(tokens) for kind, _, tokens in model.calls if kind == "prefill"] == [13]
    assert model.calls[12] == ("step", [0], [ord("?")]), "the second answer begins"


def test_one_prompt_asked_many_times_at_once_is_read_once() -> None:
    model = ByteModel(random_next)
    prompt = "You are the harbour desk. Who is Marla?"
    settings = [Decoding(temperature=1.0, seed=i, max_tokens=6) for i in range(8)]
    together = run(model, [sequence(prompt, d) for d in settings], 8)
    assert [len(tokens) for kind, _, tokens in model.calls if kind == "prefill"] == [len(prompt)]
    assert model.calls[1][2][1:] == [ord("?")] * 7, "the others wait for one step and read their last token"
    alone = [run(ByteModel(random_next), [sequence(prompt, d)], 1)[0] for d in settings]
    assert [text(pieces) for pieces in together] == [text(pieces) for pieces in alone]


def test_what_a_running_neighbour_knows_is_copied_and_both_go_on_apart() -> None:
    model = ByteModel(random_next)
    batch = made(model, 2)
    system = "You are the harbour desk. "
    said: dict[SequenceState, list[int]] = {sequence(system + "Who?"): [], sequence(system + "When?"): []}
    for one in said:
        batch.add(one)
        for neighbour, piece in batch.step():
            said[neighbour].append(piece.token)
    while batch.busy:
        for one, piece in batch.step():
            said[one].append(piece.token)
    assert [len(tokens) for kind, _, tokens in model.calls if kind == "prefill"] == [len(system) + 4, 3]
    for one, tokens in said.items():
        assert tokens == slow_answer(random_next, one.request.tokens, 12, frozenset({END}))


def test_random_arrivals_and_departures_never_change_an_answer() -> None:
    rng = random.Random(1)
    model = ByteModel(random_next)
    batch = made(model, 3)
    stems = ["", "You are a desk. ", "You are a boat. "]
    said: dict[SequenceState, list[int]] = {}
    for _ in range(150):
        if rng.random() < 0.4:
            decoding = Decoding(temperature=0, max_tokens=rng.randint(1, 10))
            one = sequence(rng.choice(stems) + "hello"[: rng.randint(1, 5)] * rng.randint(1, 40), decoding)
            said[one] = []
            batch.add(one)
        if said and rng.random() < 0.1:
            gone = rng.choice(list(said))
            batch.drop(gone)
            said.pop(gone)
        for one, piece in batch.step():
            said[one].append(piece.token)
    while batch.busy:
        for one, piece in batch.step():
            said[one].append(piece.token)
    assert len(said) > 30
    for one, tokens in said.items():
        assert tokens == slow_answer(random_next, one.request.tokens, one.limit, frozenset({END}))


def test_broken_weights_are_an_error_and_not_an_answer() -> None:
    batch = made(ByteModel(lambda history: torch.full((VOCAB_SIZE,), torch.nan)), 1)
    batch.add(sequence("Who?"))
    ((_, error),) = batch.step()
    assert isinstance(error, EngineError)
    assert "NaN" in str(error)
    assert not batch.busy


def test_infinite_logits_are_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ByteModel, "head", lambda self: torch.ones(VOCAB_SIZE, VOCAB_SIZE))
    batch = made(ByteModel(lambda history: torch.full((VOCAB_SIZE,), 1e38)), 1)
    batch.add(sequence("Who?", Decoding(temperature=0.7, top_p=0.9)))
    ((_, error),) = batch.step()
    assert isinstance(error, EngineError)
    assert "infinity" in str(error)
    assert not batch.busy


# ---- how an answer ends ----


def answer(said: str, stop: tuple[str, ...] = (), max_tokens: int = 100) -> list[Piece]:
    model = ByteModel(says({"?": said}))
    return run(model, [sequence("?", Decoding(temperature=0, max_tokens=max_tokens, stop=stop))], 1)[0]


def test_the_stop_token_ends_an_answer_and_is_not_in_its_text() -> None:
    pieces = answer("Marla.")
    assert text(pieces) == "Marla."
    assert [p.finish for p in pieces] == [None] * 6 + ["stop"]
    assert pieces[-1].token == END


def test_max_tokens_ends_an_answer_with_length() -> None:
    pieces = answer("Marla.", max_tokens=3)
    assert (text(pieces), pieces[-1].finish, len(pieces)) == ("Mar", "length", 3)


def test_a_stop_token_at_the_last_allowed_place_is_a_stop() -> None:
    assert answer("Marla.", max_tokens=7)[-1].finish == "stop"


@pytest.mark.parametrize(
    ("said", "stop", "want", "finish"),
    [
        ("Marla.\nUser: hm", ("\nUser:",), "Marla.", "stop"),
        ("one\n\ntwo", ("\n\n", "tw"), "one", "stop"),
        ("a é b", ("é",), "a ", "stop"),
        ("\nUse it", ("\nUser:",), "\nUse it", "stop"),
        ("ab", ("abc",), "ab", "stop"),
    ],
)
def test_a_stop_string_is_cut_out_across_token_boundaries(
    said: str, stop: tuple[str, ...], want: str, finish: str
) -> None:
    pieces = answer(said, stop)
    assert (text(pieces), pieces[-1].finish) == (want, finish)


def test_what_a_stop_string_held_back_is_given_out_when_the_answer_ends() -> None:
    pieces = answer("abc", ("abcd",), max_tokens=3)
    assert ([p.text for p in pieces], pieces[-1].finish) == (["", "", "abc"], "length")


def test_characters_come_whole_and_half_a_character_ends_as_a_mark() -> None:
    assert [p.text for p in answer("é中")] == ["", "é", "", "", "中", ""]
    assert text(answer("é中", max_tokens=4)) == "é\ufffd"


# ---- log-probabilities ----


def test_logprobs_are_nats_of_the_unmodified_distribution() -> None:
    decoding = Decoding(temperature=0.3, top_p=0.5, max_tokens=4, seed=1, top_logprobs=3)
    pieces = run(ByteModel(random_next), [sequence("Who?", decoding)], 1)[0]
    history = list(b"Who?")
    assert len(pieces) == 4
    for piece in pieces:
        logprobs_V = random_next(tuple(history)).double().log_softmax(-1)
        assert piece.logprob == pytest.approx(logprobs_V[piece.token].item(), abs=1e-5)
        assert [value for _, value in piece.top] == pytest.approx(
            logprobs_V.topk(3).values.tolist(), abs=1e-5
        )
        history.append(piece.token)


def test_only_who_asks_gets_alternatives_and_never_more_than_asked() -> None:
    wanted = [None, 0, 1, 5, 1000]
    pieces = run(
        ByteModel(random_next),
        [sequence("Who?", Decoding(temperature=0, max_tokens=1, top_logprobs=k)) for k in wanted],
        5,
    )
    assert [len(said[0].top) for said in pieces] == [0, 0, 1, 5, VOCAB_SIZE]


def test_alternatives_and_own_text_show_tokens_even_while_text_is_held_back() -> None:
    model = ByteModel(says({"?": "ab"}))
    pieces = run(model, [sequence("?", Decoding(temperature=0, stop=("abc",), top_logprobs=1))], 1)[0]
    assert [(p.text, p.own, p.top[0][0]) for p in pieces] == [
        ("", "a", "a"),
        ("", "b", "b"),
        ("ab", "<|end|>", "<|end|>"),
    ]
    assert all(math.isclose(p.logprob, 0.0, abs_tol=1e-6) for p in pieces)


def test_a_greedy_batch_draws_no_random_number_and_makes_one_step_call() -> None:
    model = ByteModel(random_next)
    before = torch.random.get_rng_state()
    run(model, [sequence(f"{i}", Decoding(temperature=0, max_tokens=2)) for i in range(4)], 4)
    assert torch.equal(torch.random.get_rng_state(), before)
    steps = [slots for kind, slots, _ in model.calls if kind == "step"]
    assert steps == [[0, 1, 2, 3]]
    assert batch_module.READ_PER_STEP == 256


# ---- what a request may change of the distribution ----


def slow_moved(prompt: tuple[int, ...], decoding: Decoding) -> list[int]:
    """The twin of a greedy answer with bias and penalties: count what was said, again for each token."""
    history, said = list(prompt), list[int]()
    while len(said) < decoding.max_tokens and END not in said:
        logits = random_next(tuple(history)).tolist()
        for token, value in decoding.logit_bias:
            logits[token] += value
        for token in set(said):
            logits[token] -= decoding.presence_penalty + decoding.frequency_penalty * said.count(token)
        said.append(max(range(VOCAB_SIZE), key=logits.__getitem__))
        history.append(said[-1])
    return said


def test_bias_and_penalties_are_those_of_a_slow_count_and_leave_neighbours_alone() -> None:
    like = tuple((token, 6.0) for token in (65, 66, 67))
    settings = [
        Decoding(0, max_tokens=30, logit_bias=like),
        Decoding(0, max_tokens=30, logit_bias=like, presence_penalty=2.0),
        Decoding(0, max_tokens=30, logit_bias=like, frequency_penalty=0.7),
        Decoding(0, max_tokens=30),
        Decoding(
            0, max_tokens=30, logit_bias=((END, -100.0),), presence_penalty=-1.0, frequency_penalty=-0.5
        ),
    ]
    answers = run(ByteModel(random_next), [sequence("Who?", d) for d in settings], 5)
    found = [[p.token for p in pieces] for pieces in answers]
    assert found == [slow_moved(tuple(b"Who?"), d) for d in settings]
    assert len({tuple(x) for x in found}) == 5, "every setting does something"


def test_log_probabilities_stay_those_of_the_unmodified_distribution_under_bias() -> None:
    piece = run(
        ByteModel(random_next), [sequence("Who?", Decoding(0, max_tokens=1, logit_bias=((65, 100.0),)))], 1
    )[0][0]
    assert piece.token == 65
    assert piece.logprob == pytest.approx(
        random_next(tuple(b"Who?")).double().log_softmax(-1)[65].item(), abs=1e-5
    )


def test_top_k_of_one_is_greedy_and_every_narrowing_is_the_same_alone_and_in_a_batch() -> None:
    settings = [
        Decoding(1.5, max_tokens=12, seed=3, top_k=1),
        Decoding(1.5, max_tokens=12, seed=3, top_k=5),
        Decoding(1.5, max_tokens=12, seed=3, min_p=0.3),
        Decoding(1.5, max_tokens=12, seed=3, presence_penalty=1.0),
        Decoding(1.5, max_tokens=12, seed=3),
    ]
    together = run(ByteModel(random_next), [sequence("Who?", d) for d in settings], 5)
    assert [p.token for p in together[0]] == slow_answer(random_next, tuple(b"Who?"), 12, frozenset({END}))
    alone = [run(ByteModel(random_next), [sequence("Who?", d)], 1)[0] for d in settings]
    assert [[p.token for p in x] for x in together] == [[p.token for p in x] for x in alone]
    assert len({text(x) for x in together}) >= 4, "only the penalty may find nothing to penalise"


# ---- a prompt's own log-probabilities ----


class WholeByteModel(ByteModel):
    """A ByteModel that says something at every prompt token."""

    def prefill(self, tokens_T: torch.Tensor, slot: int, start: int, cache: KVCache) -> torch.Tensor:
        return torch.cat(
            [
                super(WholeByteModel, self).prefill(tokens_T[i : i + 1], slot, start + i, cache)
                for i in range(len(tokens_T))
            ]
        )


@pytest.mark.parametrize("length", [1, 2, 7, 300, 520])
def test_prompt_logprobs_are_those_of_every_token_given_all_before_it(length: int) -> None:
    prompt = tuple(random.Random(length).randrange(256) for _ in range(length))
    asked = [
        SequenceState(
            Request(prompt, Decoding(0, max_tokens=n), prompt_logprobs=k), n, ByteTokenizer().decode
        )
        for n, k in ((2, 1), (0, 0), (1, 3))
    ]
    answers = run(WholeByteModel(random_next), [sequence("before"), *asked], 2)[1:]
    for pieces, k in zip(answers, (1, 0, 3)):
        told = pieces[0].prompt
        assert [r.token for r in told] == list(prompt)
        assert told[0].logprob is None
        for i in range(1, length):
            logprobs_V = random_next(prompt[:i]).double().log_softmax(-1)
            assert told[i].logprob == pytest.approx(logprobs_V[prompt[i]].item(), abs=1e-4)
            assert [value for _, value in told[i].top] == pytest.approx(
                logprobs_V.topk(k).values.tolist(), abs=1e-4
            )
    assert [len(pieces) for pieces in answers] == [2, 1, 1]
    assert (answers[1][0].token, answers[1][0].text, answers[1][0].finish) == (-1, "", "length")
    assert [p.token for p in answers[0]] == slow_answer(random_next, prompt, 2)
