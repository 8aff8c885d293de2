"""Training in bf16: compiled functions against torch's, whole layers and the head against their plain twins."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from demeanor.data.trees import Branch, Tree, collate
from demeanor.model import checkpoints, fused, heads
from demeanor.model.adapters import attach
from demeanor.model.heads import policy_outputs
from demeanor.model.llama import Llama
from demeanor.stack.schema import Adapter, ModelShape

compiled = pytest.mark.skipif(fused.build() is None, reason="no C++ compiler here, or torch has no OpenMP")


@pytest.fixture
def torch_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and the functions between the products are torch's."""
    return lambda: monkeypatch.setattr(fused, "_call", lambda *given: False)


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype)


def everything() -> dict[str, Tensor]:
    """The result of every function on the same rows; widths are no multiple of a vector's."""
    torch.manual_seed(0)
    narrow = torch.bfloat16
    x, slope, weight, residual = drawn(70, 43), drawn(70, 43, dtype=narrow), drawn(43), drawn(70, 43)
    more, joint, gates = (drawn(70, n, dtype=narrow) for n in (43, 10 * 38, 2 * 51))
    cos, sin = drawn(70, 19), drawn(70, 19)
    found = dict(zip(("total", "normed", "inverse"), fused.norm(x, more, weight, 1e-5)))
    found["alone"] = fused.norm(x, None, weight, 1e-5)[1]
    back = fused.norm_backward(slope, x, weight, found["inverse"], residual, weighs=True)
    assert back[2] is not None
    found |= {"dx": back[0], "dx16": back[1], "dweight": back[2]}
    q, k, v = fused.rotated(joint, cos, sin, 6, 2, 38)
    found |= {"q": q, "k": k, "v": v, "back": fused.rotated_back(q, k, v, cos, sin)}
    found["gated"] = fused.gated(gates)
    found["dgates"], found["again"] = fused.gated_backward(gates, drawn(70, 51, dtype=narrow))
    for dtype in (narrow, torch.float32):
        logits = drawn(9, 211, dtype=dtype) * 3
        found[f"logprobs {dtype}"] = fused.scored(logits, torch.arange(9) * 20, slope=True)
        found[f"slopes {dtype}"] = logits
    return found


@compiled
def test_compiled_functions_compute_what_torch_computes(torch_only: Callable[[], None]) -> None:
    ours = everything()
    torch_only()
    twins = everything()
    assert ours.keys() == twins.keys()
    assert len(ours) == 18
    for name, twin in twins.items():
        assert ours[name].dtype == twin.dtype, name
        near = {"rtol": 1e-2, "atol": 1e-3} if twin.dtype == torch.bfloat16 else {"rtol": 2e-5, "atol": 2e-5}
        torch.testing.assert_close(ours[name], twin, **near, msg=lambda said, name=name: f"{name}: {said}")


@compiled
def test_compiled_functions_give_the_same_bits_with_one_thread_and_with_two() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = everything()
        torch.set_num_threads(2)
        two = everything()
    finally:
        torch.set_num_threads(threads)
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def some_trees() -> list[Tree]:
    draw = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, 300) for _ in range(count))

    def branch(count: int) -> Branch:
        return Branch(tokens(count), (True,) * count)

    return [Tree(tokens(30), (branch(20), branch(33)), (0, 1)) for _ in range(4)] + [
        Tree(tokens(400), (branch(20),), (0,))
    ]


class Trained:
    """Log-probabilities and gradients of a model of three layers, drawn from a seed."""

    def __init__(self, *, bf16: bool, adapter: bool, recompute: bool = False) -> None:
        shape = ModelShape(layers=3, width=96, heads=6, kv_heads=2, mlp_width=144, context=512)
        model = checkpoints.create(shape, 300, 0)
        assert isinstance(model, Llama)
        if adapter:
            attach(model, Adapter(rank=5, alpha=10, targets=("q_proj", "v_proj", "up_proj", "down_proj")), 0)
            torch.manual_seed(1)
            for name, parameter in model.named_parameters():
                if name.endswith("lora_B"):
                    nn.init.normal_(parameter, std=0.05)
        model.recompute = recompute
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found = policy_outputs(model, collate(some_trees())).logprobs_C
        assert found is not None
        found.sum().backward()
        self.logprobs = found.detach()
        self.slopes = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("adapter", [False, True], ids=["all weights", "adapter"])
def test_a_fused_layer_is_as_near_to_fp32_as_the_plain_one(
    adapter: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, ours = Trained(bf16=False, adapter=adapter), Trained(bf16=True, adapter=adapter)
    again = Trained(bf16=True, adapter=adapter, recompute=True)
    monkeypatch.setattr(fused, "fits", lambda *given: False)
    plain = Trained(bf16=True, adapter=adapter)
    assert not torch.equal(ours.logprobs, plain.logprobs)  # so it was the fused layer that ran
    assert distance(ours.logprobs, exact.logprobs) < 1.3 * distance(plain.logprobs, exact.logprobs)
    assert ours.slopes.keys() == plain.slopes.keys() == exact.slopes.keys()
    far = {
        n: (distance(g, exact.slopes[n]), distance(plain.slopes[n], exact.slopes[n]))
        for n, g in ours.slopes.items()
    }
    assert {n: pair for n, pair in far.items() if pair[0] > 1.5 * pair[1] + 1e-3} == {}
    assert [
        n for n, g in ours.slopes.items() if not torch.equal(g, again.slopes[n])
    ] == []  # recomputed: bit-equal


def test_a_frozen_matrix_is_rounded_once_and_again_after_it_changed() -> None:
    linear = nn.Linear(8, 5, bias=False).requires_grad_(False)
    first = fused.joint([linear]).weight
    assert fused.joint([linear]).weight is first
    linear.weight.mul_(2)
    second = fused.joint([linear]).weight
    assert torch.equal(second, linear.weight.bfloat16())
    linear.requires_grad_(True)
    assert fused.joint([linear]).weight is not second


@pytest.mark.parametrize("library", [pytest.param(True, marks=compiled), False], ids=["compiled", "torch"])
@pytest.mark.parametrize("chunk_bytes", [128 << 20, 1 << 14], ids=["at once", "chunks"])
@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("equal", [False, True], ids=["weights differ", "equal weights"])
def test_the_fused_head_has_the_values_and_gradients_of_a_plain_log_softmax(
    library: bool,
    chunk_bytes: int,
    alike: bool,
    equal: bool,
    torch_only: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not library:
        torch_only()
    monkeypatch.setattr(fused, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(heads, "WIDE", 100)
    torch.manual_seed(0)
    hidden, weight, targets = (
        drawn(50, 24).requires_grad_(),
        drawn(333, 24).requires_grad_(),
        torch.arange(50),
    )
    slope = torch.full((50,), -0.7) if equal else drawn(50)
    wanted = (hidden.double() @ weight.double().T).log_softmax(-1)[torch.arange(50), targets]
    exact = torch.autograd.grad(wanted, (hidden, weight), slope.double())
    found = heads.token_logprobs(hidden, weight, targets, alike=alike)
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-5)
    for x, y in zip(torch.autograd.grad(found, (hidden, weight), slope), exact):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
    frozen = weight.detach()
    found = heads.token_logprobs(hidden, frozen, targets, alike=alike)
    torch.testing.assert_close(torch.autograd.grad(found, hidden, slope)[0], exact[0], rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = heads.token_logprobs(hidden, weight, targets, alike=alike)
        assert narrow.dtype == torch.float32
    for x, y in zip(torch.autograd.grad(narrow, (hidden, weight), slope), exact):
        assert distance(x, y) < 0.02
