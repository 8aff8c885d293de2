"""The engine on the real forward pass: token for token what transformers' generate says, alone and in any company."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from pathlib import Path

import pytest
import torch
from byte_model import ByteTokenizer

from demeanor.core.types import Decoding
from demeanor.engine.local import LocalEngine, Request
from demeanor.model import checkpoints, native
from demeanor.model.llama import KVCache
from demeanor.model.pages import PagedCache
from demeanor.stack.schema import ModelShape

NUM_NEW = 24


def hf_greedy(folder: Path, prompts: list[tuple[int, ...]]) -> list[list[int]]:
    """The peer: one prompt at a time, so that no padding is involved."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    with torch.inference_mode():
        return [
            model.generate(torch.tensor([p]), do_sample=False, max_new_tokens=NUM_NEW)[0, len(p) :].tolist()
            for p in prompts
        ]


def prompts(vocab_size: int, lengths: list[int]) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(11)
    return [tuple(torch.randint(0, vocab_size, (n,), generator=generator).tolist()) for n in lengths]


def requests(asked: list[tuple[int, ...]], decoding: Decoding) -> list[Request]:
    return [Request(prompt, decoding) for prompt in asked]


def tokens(answers: list[list]) -> list[list[int]]:
    return [[piece.token for piece in pieces] for pieces in answers]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with grouped queries, written as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("llama")
    shape = ModelShape(layers=2, width=64, heads=4, kv_heads=2, context=400, init="normal")
    model = checkpoints.create(shape, 257, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)  # sharp attention and logits: a wrong position or slot shows at once
    checkpoints.save(model, folder)
    return folder


@pytest.fixture(params=[1, 3, 16])
def engine(request: pytest.FixtureRequest, folder: Path) -> Iterator[LocalEngine]:
    with closing(LocalEngine(checkpoints.load(folder), ByteTokenizer(), num_slots=request.param)) as engine:
        yield engine


LENGTHS = [5, 1, 300, 17, 60, 2, 256, 33, 8]


@cache
def wanted(folder: Path) -> list[list[int]]:
    return hf_greedy(folder, prompts(257, LENGTHS))


def test_greedy_is_what_transformers_generates(engine: LocalEngine, folder: Path) -> None:
    answers = engine.generate(requests(prompts(257, LENGTHS), Decoding(temperature=0, max_tokens=NUM_NEW)))
    assert tokens(answers) == wanted(folder)


def test_what_a_slot_still_holds_changes_no_answer(engine: LocalEngine, folder: Path) -> None:
    asked = prompts(257, LENGTHS)
    greedy = Decoding(temperature=0, max_tokens=NUM_NEW)
    engine.generate(
        requests([p[: max(1, len(p) // 2)] for p in asked], Decoding(temperature=1.0, seed=1, max_tokens=5))
    )
    assert tokens(engine.generate(requests(asked, greedy))) == wanted(folder)
    assert tokens(engine.generate(requests(asked[::-1], greedy))) == wanted(folder)[::-1]


def test_a_seeded_answer_is_the_same_alone_and_in_company(engine: LocalEngine) -> None:
    settings = [
        Decoding(temperature=1.0 + i % 2, top_p=1.0 if i % 3 else 0.8, seed=i, max_tokens=NUM_NEW)
        for i in range(len(LENGTHS))
    ]
    asked = [Request(prompt, decoding) for prompt, decoding in zip(prompts(257, LENGTHS), settings)]
    together = tokens(engine.generate(asked))
    assert [tokens(engine.generate([one]))[0] for one in asked] == together


def test_the_logprob_of_an_answer_is_the_models(engine: LocalEngine, folder: Path) -> None:
    from transformers import LlamaForCausalLM

    prompt = prompts(257, [9])[0]
    pieces = engine.generate([Request(prompt, Decoding(temperature=1.0, top_p=0.9, seed=1, max_tokens=10))])[
        0
    ]
    whole = torch.tensor([[*prompt, *(piece.token for piece in pieces)]])
    with torch.inference_mode():
        logprobs_TV = (
            LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)(whole).logits[0].log_softmax(-1)
        )
    want = [logprobs_TV[len(prompt) - 1 + i, piece.token].item() for i, piece in enumerate(pieces)]
    assert [piece.logprob for piece in pieces] == pytest.approx(want, abs=2e-4)


def test_an_answer_may_fill_the_context_to_the_last_token(folder: Path) -> None:
    with closing(
        LocalEngine(checkpoints.load(folder), ByteTokenizer(), num_slots=2, max_context=40)
    ) as engine:
        pieces = engine.generate(requests([prompts(257, [5])[0]], Decoding(temperature=0, max_tokens=1000)))[
            0
        ]
    assert (len(pieces), pieces[-1].finish) == (35, "length")
    assert [piece.token for piece in pieces][:NUM_NEW] == wanted(folder)[0]


def test_stories_are_told_as_transformers_tells_them(shared: Path) -> None:
    from demeanor.text import tokenizer as text

    folder = shared / "stories260K-hf"
    tokenizer = text.load(folder)
    asked = [
        tuple(tokenizer.encode(start))
        for start in (
            "Once upon a time",
            "Lily and Tom went to the park. They saw a big dog and",
            "One day, a",
            "The little bird was sad because",
        )
    ]
    want = hf_greedy(folder, asked)
    with closing(LocalEngine(checkpoints.load(folder), tokenizer, num_slots=3)) as engine:
        together = engine.generate(requests(asked, Decoding(temperature=0, max_tokens=NUM_NEW)))
        alone = [
            engine.generate([one])[0] for one in requests(asked, Decoding(temperature=0, max_tokens=NUM_NEW))
        ]
    assert tokens(together) == tokens(alone) == want
    for prompt, pieces, answer in zip(asked, together, want):
        told = "".join(piece.text for piece in pieces)
        assert tokenizer.decode([*prompt, *answer]).endswith(told)
        assert len(told) > NUM_NEW


def test_hidden_states_come_between_two_steps_and_disturb_nobody(folder: Path) -> None:
    model = checkpoints.load(folder)
    (asked, other) = prompts(257, [9, 300])
    with torch.no_grad():
        wanted = model.prefill(torch.tensor(other), 0, 0, KVCache(model.config, 1, 400))
    with closing(LocalEngine(model, ByteTokenizer(), num_slots=1)) as engine:
        alone = tokens(engine.generate(requests([asked], Decoding(0, max_tokens=200))))
        found: list[torch.Tensor] = []
        reader = threading.Thread(target=lambda: found.extend(engine.hidden(other) for _ in range(5)))
        reader.start()
        assert tokens(engine.generate(requests([asked], Decoding(0, max_tokens=200)))) == alone
        reader.join()
    assert len(found) == 5
    assert all(torch.allclose(x, wanted, atol=1e-3) for x in found)


def test_two_models_hold_equal_matrices_once(folder: Path) -> None:
    if native.build() is None:
        pytest.skip("no C++ compiler here")
    first, second = checkpoints.load(folder), checkpoints.load(folder)
    with torch.no_grad():
        second.model.layers[0].self_attn.q_proj.weight.add_(0.01)  # as an adapter on q would
    caches = [PagedCache(first.config, 1, 64) for _ in range(2)]
    one, two = (native.Native(m, c) for m, c in zip((first, second), caches))
    apart = {x.data_ptr() for x in one._kept} ^ {x.data_ptr() for x in two._kept}
    assert len(apart) == 2, "the first layer's projection, in each"
