"""Sampler and trainer agree to the last bit; a group's prompt is read once; a draw depends on its seed only."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest
import torch
from byte_model import END, ByteModel, ByteTokenizer, random_next
from torch import Tensor

from demeanor.core.errors import ContextError, EngineError
from demeanor.core.types import Decoding, OutputFormat
from demeanor.data.trees import Branch, Tree, collate
from demeanor.engine import rollouts
from demeanor.engine.forward import Compiled, Rows, forward_of
from demeanor.engine.local import LocalEngine, Request
from demeanor.engine.rollouts import SampledTokens, sample_groups
from demeanor.engine.scheduler import SequenceState
from demeanor.model import adapters, checkpoints, native
from demeanor.model.exact import exact_policy_outputs
from demeanor.model.heads import policy_outputs
from demeanor.model.llama import Llama
from demeanor.model.tensors import TokenBatch
from demeanor.objectives._importance import importance_weights
from demeanor.stack.schema import Adapter, ModelShape

compiled = pytest.mark.skipif(native.build() is None, reason="no C++ compiler here")

VOCAB, STOP = 257, frozenset({END})
LENGTHS = (40, 1, 128, 9)
DECODINGS = {
    "T 1": Decoding(1.0, max_tokens=48),
    "T 0.7": Decoding(0.7, max_tokens=48),
    "T 1.5": Decoding(1.5, max_tokens=48),
    "top_p": Decoding(1.0, top_p=0.8, max_tokens=48),
    "top_k": Decoding(0.7, top_k=20, max_tokens=48),
    "min_p": Decoding(1.0, min_p=0.05, max_tokens=48),
    "all three": Decoding(1.2, top_k=40, top_p=0.9, min_p=0.02, max_tokens=48),
}


def policy(adapter: Adapter | None = None, *, context: int = 400) -> Llama:
    """Sharp random weights: answers end, and a wrong position or slot shows at once."""
    model = checkpoints.create(
        ModelShape(layers=2, width=64, heads=4, kv_heads=2, context=context, init="normal"), VOCAB, 3
    )
    if adapter is not None:
        adapters.attach(model, adapter, 1)
    draw = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 2:
                p.copy_(0.1 * torch.randn(p.shape, generator=draw) if "lora_B" in name else 5 * p)
    return model


def prompts(lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (n,), generator=draw).tolist() for n in lengths]


def groups(
    model: Llama, decoding: Decoding, *, count: int = 8, num_slots: int = 32
) -> list[list[SampledTokens]]:
    return sample_groups(
        model,
        ByteTokenizer(),  # type: ignore[arg-type]
        prompts(),
        count=count,
        decoding=decoding,
        stop_tokens=STOP,
        seeds=lambda prompt, completion: 1000 * prompt + completion,
        num_slots=num_slots,
    )


def batch_of(found: Sequence[Sequence[SampledTokens]], decoding: Decoding) -> TokenBatch:
    """The groups as token trees with the columns of sampling."""
    trees = [
        Tree(
            tuple(prompt), tuple(Branch(s.tokens, (True,) * len(s.tokens)) for s in group), (0,) * len(group)
        )
        for prompt, group in zip(prompts(), found)
    ]
    flat = [s for group in found for s in group]
    sampled_C = torch.tensor([x for s in flat for x in s.sampled])
    each = [ids for s in flat for ids in (s.kept or ((),) * len(s.tokens))]
    pairs = [(i, token) for i, ids in enumerate(each) for token in ids]
    of_K, kept_K = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(1)
    return collate(trees)._replace(
        sampled_C=sampled_C,
        temperature_C=torch.full_like(sampled_C, decoding.temperature),
        kept_K=kept_K if pairs else None,
        kept_of_K=of_K if pairs else None,
    )


def column(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


def drift(logprobs_C: Tensor, batch: TokenBatch) -> dict[str, float]:
    found = importance_weights("none", 2.0, logprobs_C, column(batch.sampled_C), batch.branch_C)
    return {name: float(total / count) for name, (total, count) in found.metrics.items()}


def assert_equal_bits(model: Llama, decoding: Decoding) -> TokenBatch:
    batch = batch_of(groups(model, decoding), decoding)
    logprobs_C = column(exact_policy_outputs(model, batch).logprobs_C)
    assert logprobs_C.requires_grad
    difference_C = logprobs_C.detach() - column(batch.sampled_C)
    assert float(difference_C.abs().max()) == 0.0
    assert bool((difference_C.exp() == 1.0).all())
    found = drift(logprobs_C, batch)
    assert found["kl_sample_train_v1"] == 0.0
    assert found["kl_sample_train_v2"] == 0.0
    assert found["sampler/ess"] == 1.0
    return batch


@compiled
@pytest.mark.parametrize("name", DECODINGS)
def test_the_trainers_log_probabilities_are_the_samplers(name: str) -> None:
    batch = assert_equal_bits(policy(), DECODINGS[name])
    assert len(batch.targets_C) > 800, "the completions are long"
    assert (batch.kept_K is None) == name.startswith("T "), "truncation keeps its tokens"


@compiled
def test_they_stay_equal_with_an_adapter_and_after_optimiser_steps() -> None:
    for adapter in (None, Adapter(rank=4, alpha=8)):
        model = policy(adapter)
        trained = [p for p in model.parameters() if p.requires_grad]
        before = [p.detach().clone() for p in trained]
        for decoding in (DECODINGS["T 0.7"], DECODINGS["top_p"], DECODINGS["min_p"]):
            batch = assert_equal_bits(model, decoding)
            logprobs_C = column(exact_policy_outputs(model, batch).logprobs_C)
            (-(logprobs_C * torch.linspace(-1, 1, len(logprobs_C))).mean()).backward()
            with torch.no_grad():
                for p in trained:
                    p -= 0.1 * column(p.grad) / column(p.grad).norm()
                    p.grad = None
        assert all(not torch.equal(p, old) for p, old in zip(trained, before)), "every weight has learned"


@compiled
def test_they_are_equal_for_long_answers() -> None:
    decoding = Decoding(1.0, top_p=0.95, max_tokens=250)
    model = policy()
    found = sample_groups(
        model,
        ByteTokenizer(),  # type: ignore[arg-type]
        prompts()[:1],
        count=2,
        decoding=decoding,
        stop_tokens=frozenset(),
        seeds=lambda prompt, completion: completion,
    )
    assert [len(s.tokens) for s in found[0]] == [250, 250]
    batch = batch_of(found, decoding)
    assert torch.equal(
        column(exact_policy_outputs(model, batch).logprobs_C).detach(), column(batch.sampled_C)
    )


@compiled
def test_the_ordinary_forward_differs_in_the_last_bits_only() -> None:
    """fp32 rounds to 6e-8; a few hundred sums of logits of about 10 leave 1e-7 to 1e-4 a token, and never 0."""
    model, decoding = policy(), DECODINGS["T 1"]
    batch = batch_of(groups(model, decoding), decoding)
    found = drift(column(policy_outputs(model, batch).logprobs_C), batch)
    assert 1e-8 < found["sampler/logprob_difference"] < 1e-4
    assert 0 < found["kl_sample_train_v2"] < 1e-9


@compiled
@pytest.mark.parametrize("name", ["top_p", "top_k"])
def test_a_trainer_that_ignores_the_mask_is_biased_by_the_mass_that_was_kept(name: str) -> None:
    """log p_all(x) - log p_kept(x) = log(kept mass) for every x: the ratio is the kept mass, never above 1."""
    model, decoding = policy(), DECODINGS[name]
    batch = batch_of(groups(model, decoding), decoding)
    bare = batch._replace(kept_K=None, kept_of_K=None)
    with torch.no_grad():
        hidden_CD = model.hidden(batch.tokens_T, batch.positions_T, batch.segments, batch.scored_C)
        probs_CV = ((hidden_CD @ model.head().T) / decoding.temperature).softmax(-1)
        ratio_C = (column(exact_policy_outputs(model, bare).logprobs_C) - column(batch.sampled_C)).exp()
    mass_C = torch.zeros(len(ratio_C)).index_add(
        0, column(batch.kept_of_K), probs_CV[column(batch.kept_of_K), column(batch.kept_K)]
    )
    mass_C = torch.where(mass_C == 0, 1.0, mass_C)  # a target without a row kept everything
    assert torch.allclose(ratio_C, mass_C, atol=1e-5)
    assert (0.8 <= float(ratio_C.mean()) < 0.97) if name == "top_p" else float(ratio_C.mean()) < 0.999
    assert float(ratio_C.max()) <= 1 + 1e-5


@compiled
def test_a_trainer_at_another_temperature_is_not_the_sampler() -> None:
    model, decoding = policy(), DECODINGS["T 0.7"]
    batch = batch_of(groups(model, decoding), decoding)
    found = drift(column(exact_policy_outputs(model, batch._replace(temperature_C=None)).logprobs_C), batch)
    assert found["kl_sample_train_v1"] > 0.01
    assert found["kl_sample_train_v2"] > 0.01


class Counted(Compiled):
    """A forward that counts the rows it reads."""

    rows = 0

    def run(self, rows: Rows) -> native.NativeStep:
        Counted.rows += len(rows.tokens)
        return super().run(rows)


@compiled
@pytest.mark.parametrize("num_slots", [8, 3])
def test_a_prompt_is_read_once_whatever_the_number_of_completions(
    num_slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """128 prompt tokens, then 7 times the last one, whose hidden state gives the first token; and all tokens but the
    last of each completion."""
    model, made = policy(), []

    def counted(*given: object) -> Counted:
        made.append(forward_of(*given))  # type: ignore[arg-type]
        made[-1].__class__ = Counted
        return made[-1]

    monkeypatch.setattr(rollouts, "forward_of", counted)
    monkeypatch.setattr(Counted, "rows", 0)
    found = sample_groups(
        model,
        ByteTokenizer(),  # type: ignore[arg-type]
        prompts((128,)),
        count=8,
        decoding=Decoding(1.0, max_tokens=20),
        stop_tokens=frozenset(),
        seeds=lambda prompt, completion: completion,
        num_slots=num_slots,
    )
    assert Counted.rows == 128 + 7 + sum(len(s.tokens) - 1 for s in found[0]) == 128 + 7 + 8 * 19


@compiled
@pytest.mark.parametrize("name", ["T 1", "all three"])
def test_a_completion_depends_on_its_seed_only(name: str) -> None:
    """Not on the number of slots, of threads or of completions, nor on the other prompts."""
    model, decoding = policy(), DECODINGS[name]
    wanted = groups(model, decoding)
    assert groups(model, decoding) == wanted
    assert groups(model, decoding, num_slots=3) == wanted
    assert [group[:3] for group in wanted] == groups(model, decoding, count=3)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert groups(model, decoding) == wanted
    finally:
        torch.set_num_threads(threads)
    alone = sample_groups(
        model,
        ByteTokenizer(),  # type: ignore[arg-type]
        prompts()[2:3],
        count=1,
        decoding=decoding,
        stop_tokens=STOP,
        seeds=lambda prompt, completion: 2005,
    )
    assert alone[0][0] == wanted[2][5]
    assert len({s.tokens for group in wanted for s in group}) == 32, "every completion is another"


@compiled
def test_an_engine_that_records_gives_the_same_draws() -> None:
    """The serving engine in its thread, and with sequences that are not recorded beside it."""
    model, decoding = policy(), DECODINGS["all three"]
    wanted = groups(model, decoding)
    engine = LocalEngine(model, ByteTokenizer(), num_slots=5)  # type: ignore[arg-type]
    try:
        asked = [dataclasses.replace(decoding, seed=1000 * n) for n in range(len(LENGTHS))]
        requests = [Request(tuple(p), d, STOP, recorded=True) for p, d in zip(prompts(), asked)]
        plain = [dataclasses.replace(r, recorded=False) for r in requests]
        found = engine.generate([*requests, *plain])
    finally:
        engine.close()
    assert len(wanted) == len(LENGTHS)
    for group, recorded, silent in zip(wanted, found[:4], found[4:]):
        assert [p.token for p in recorded] == [p.token for p in silent] == list(group[0].tokens)
        assert tuple(p.sampled for p in recorded) == group[0].sampled
        assert tuple(p.kept for p in recorded) == group[0].kept
        assert {p.sampled for p in silent} == {None}
        assert [p.logprob for p in recorded] == [p.logprob for p in silent], "of the unmodified distribution"


@compiled
def test_at_temperature_1_a_draw_has_the_log_probability_that_the_api_gives() -> None:
    engine = LocalEngine(policy(), ByteTokenizer(), num_slots=2)  # type: ignore[arg-type]
    try:
        pieces = engine.generate([Request((1, 2, 3), Decoding(1.0, max_tokens=30, seed=4), recorded=True)])[0]
    finally:
        engine.close()
    assert [p.logprob for p in pieces] == [p.sampled for p in pieces]
    assert len(pieces) == 30


def test_tokens_text_and_end_of_a_completion_are_what_was_drawn() -> None:
    """On a model of bytes, without compiled code: sums are torch's, and everything else is the same."""
    model = ByteModel(random_next)
    found = sample_groups(
        model,  # type: ignore[arg-type]
        ByteTokenizer(),  # type: ignore[arg-type]
        [[104, 105], [104]],
        count=3,
        decoding=Decoding(1.0, top_k=5, max_tokens=4, stop=("zz",)),
        stop_tokens=STOP,
        seeds=lambda prompt, completion: completion,
    )
    assert [len(group) for group in found] == [3, 3]
    for prompt, group in zip([[104, 105], [104]], found):
        for s in group:
            assert s.ended == (s.tokens[-1] == END)
            assert s.text == ByteTokenizer().decode([t for t in s.tokens if t != END])
            assert len(s.tokens) == len(s.sampled) == len(s.kept) <= 4
            history = list(prompt)
            for token, sampled, kept in zip(s.tokens, s.sampled, s.kept):
                logits_V = random_next(tuple(history)).double()
                best = sorted(logits_V.topk(5).indices.tolist())
                assert list(kept) == best
                total = math.log(sum(math.exp(logits_V[i]) for i in best))
                assert sampled == pytest.approx(float(logits_V[token]) - total, abs=1e-5)
                history.append(token)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"logit_bias": ((3, 1.0),)}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"form": OutputFormat("json_object")}, "form"),
    ],
)
def test_draws_that_training_could_not_repeat_are_refused(change: dict[str, object], named: str) -> None:
    with pytest.raises(EngineError, match=named):
        groups(policy(), dataclasses.replace(DECODINGS["T 1"], **change))  # type: ignore[arg-type]


def test_a_prompt_without_room_for_an_answer_is_refused_and_a_short_one_is_cut_at_the_context() -> None:
    model = policy(context=64)
    given = {"count": 1, "stop_tokens": frozenset[int](), "seeds": lambda prompt, completion: 1}
    with pytest.raises(ContextError, match="prompt 1 has 64 tokens"):
        sample_groups(model, ByteTokenizer(), [[1], [1] * 64], decoding=DECODINGS["T 1"], **given)  # type: ignore[arg-type]
    found = sample_groups(model, ByteTokenizer(), [[1] * 60], decoding=DECODINGS["T 1"], **given)  # type: ignore[arg-type]
    assert (len(found[0][0].tokens), found[0][0].ended) == (4, False)
    assert sample_groups(model, ByteTokenizer(), [], decoding=DECODINGS["T 1"], **given) == []  # type: ignore[arg-type]


def test_a_failure_of_one_completion_fails_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: SequenceState, *given: object) -> None:
        raise ValueError("no text")

    monkeypatch.setattr(SequenceState, "accept", broken)
    with pytest.raises(EngineError, match="no text"):
        groups(policy(), DECODINGS["T 1"])
