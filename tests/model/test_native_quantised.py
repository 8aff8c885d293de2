"""Products in integers are those of a slow twin, and one row's bits never depend on the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from demeanor.model import native
from demeanor.model.adapters import replace_module
from demeanor.model.grouped import GROUP, GROUP_FORMATS, Grouped, GroupFormat, group_rounded
from demeanor.model.grouped_modules import GroupedEmbedding, GroupedLinear, dequantised
from demeanor.model.initial import initialise
from demeanor.model.llama import Config, KVCache, Llama
from demeanor.model.pages import PagedCache

pytestmark = pytest.mark.skipif(native.build() is None, reason="no C++ compiler here")


def model(format: GroupFormat, *, tied: bool = True, width: int = 96, inner: int = 152) -> Llama:
    """A Llama of odd sizes whose matrices are in groups."""
    torch.manual_seed(2)
    config = Config("llama", 131, width, inner, 2, 3, 1, width // 3, 128, 1e-5, 1e4, tied, mlp_bias=True)
    found = Llama(config)
    initialise(found, 0, mimetic=False)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.mul_(8.0) if parameter.ndim == 2 else parameter.add_(0.1 * torch.randn_like(parameter))
    for name, module in list(found.named_modules()):
        if isinstance(module, nn.Linear):
            replace_module(found, name, GroupedLinear(group_rounded(module.weight, format), module.bias))
        elif isinstance(module, nn.Embedding):
            replace_module(found, name, GroupedEmbedding(group_rounded(module.weight, format)))
    return found


def tokens(n: int, seed: int = 0) -> list[int]:
    return torch.randint(1, 131, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def rounded_row(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """int8 values (G, 32) and fp32 scales (G,) of one row, in the order of operations of the kernel."""
    groups = x.numpy().astype(np.float32).reshape(-1, GROUP)
    peak = np.abs(groups).max(1)
    with np.errstate(divide="ignore"):
        factor = np.where(peak > 0, np.float32(127) / peak, np.float32(0)).astype(np.float32)
    return np.rint(groups * factor[:, None]).astype(np.int8), (peak / np.float32(127)).astype(np.float32)


def slow_product(matrix: Grouped, rows_NI: Tensor) -> Tensor:
    """x W^T with rows rounded to int8: integer sums of each group, scaled and added in fp64."""
    missing = (0, -matrix.shape[1] % GROUP)
    whole_groups = nn.functional.pad(matrix.integers(), missing)
    integers = whole_groups.numpy().astype(np.int64).reshape(matrix.shape[0], -1, GROUP)
    scales = matrix.scales_OG.double().numpy()
    minima = 0.0 if matrix.minima_OG is None else matrix.minima_OG.double().numpy()
    out = []
    for row in nn.functional.pad(rows_NI, missing):
        values, factors = rounded_row(row)
        whole = np.einsum("ogk,gk->og", integers, values.astype(np.int64))
        added = minima * values.astype(np.int64).sum(1)
        out.append(((scales * whole + added) * factors.astype(np.float64)).sum(1))
    return torch.from_numpy(np.stack(out))


@pytest.mark.parametrize("format", GROUP_FORMATS)
@pytest.mark.parametrize("rows", [1, 2, 5, 8, 13, 33])
def test_logits_of_hidden_states_are_those_of_the_slow_twin(format: GroupFormat, rows: int) -> None:
    ours = model(format, tied=False)
    held = native.Native(ours, PagedCache(ours.config, 1, 64))
    hidden = torch.randn(rows, 96, generator=torch.Generator().manual_seed(rows)) * 3
    hidden[0, 32:64] = 0.0
    matrix = ours.lm_head.grouped
    assert isinstance(matrix, Grouped)
    wanted = slow_product(matrix, hidden)
    found = held.logits(hidden).double()
    assert set(held.formats) == {format}
    assert float((found - wanted).abs().max()) <= 3e-6 * float(wanted.abs().max())
    exact = hidden.double() @ matrix.dequantised().double().T
    assert float((found - exact).abs().max()) <= 0.02 * float(exact.abs().max()), "rounding rows costs little"


@pytest.mark.parametrize("format", GROUP_FORMATS)
def test_integer_sums_are_exact(format: GroupFormat) -> None:
    """Rows of whole numbers up to 127 and scales that are powers of two: nothing is rounded at all."""
    draw = torch.Generator().manual_seed(5)
    whole = torch.randint(-127, 128, (7, 96), generator=draw).float()
    whole[:, ::32] = 127.0  # the greatest of each group, so that its scale is 1
    ours = model(format, tied=False)
    matrix = ours.lm_head.grouped
    assert isinstance(matrix, Grouped)
    matrix.scales_OG.fill_(0.5)
    if matrix.minima_OG is not None:
        matrix.minima_OG.fill_(-2.0)
    found = native.Native(ours, PagedCache(ours.config, 1, 64)).logits(whole)
    assert torch.equal(found, whole @ matrix.dequantised().T)


@pytest.mark.parametrize("format", GROUP_FORMATS)
@pytest.mark.parametrize("tied", [True, False])
def test_the_whole_forward_is_near_the_unpacked_one(format: GroupFormat, tied: bool) -> None:
    ours = model(format, tied=tied)
    held = native.Native(ours, PagedCache(ours.config, 1, 64))
    asked = tokens(20)
    found = held.forward(asked, [0] * 20, range(20), range(20)).logits_RV
    plain = dequantised(ours)
    assert isinstance(plain, Llama)
    with torch.no_grad():
        wanted = plain.prefill(torch.tensor(asked), 0, 0, KVCache(ours.config, 1, 64)) @ plain.head().T
    assert float((found - wanted).norm()) <= 0.05 * float(wanted.norm())


@pytest.mark.parametrize("format", GROUP_FORMATS)
def test_the_best_token_is_that_of_the_unpacked_weights_unless_two_are_near(format: GroupFormat) -> None:
    """What rounding rows moves is noise of a few per cent of the logits' spread; a best token further ahead stays."""
    ours = model(format)
    asked = tokens(100, seed=3)
    found = native.Native(ours, PagedCache(ours.config, 1, 128)).forward(
        asked, [0] * 100, range(100), range(100)
    )
    plain = dequantised(ours)
    assert isinstance(plain, Llama)
    wanted = native.Native(plain, PagedCache(ours.config, 1, 128)).forward(
        asked, [0] * 100, range(100), range(100)
    )
    noise, spread = (found.logits_RV - wanted.logits_RV).std(), wanted.logits_RV.std()
    assert 0 < noise <= 0.05 * spread
    best = wanted.logits_RV.topk(2).values
    ahead = best[:, 0] - best[:, 1] > 0.2 * spread
    assert 30 <= int(ahead.sum()) < 100
    assert torch.equal(found.best_R[ahead], wanted.best_R[ahead])


@pytest.mark.parametrize("format", GROUP_FORMATS)
def test_a_row_has_the_same_bits_alone_in_chunks_and_among_others(format: GroupFormat) -> None:
    ours = model(format)
    held = native.Native(ours, PagedCache(ours.config, 40, 64))
    asked = tokens(30)
    alone = held.forward(asked, [0] * 30, range(30), range(30), threads=1).logits_RV
    for threads in (1, 2, 3):
        for size in (1, 4, 7, 13):
            parts = [
                held.forward(
                    asked[at : at + size],
                    [5] * len(asked[at : at + size]),
                    range(at, min(30, at + size)),
                    range(len(asked[at : at + size])),
                    threads=threads,
                ).logits_RV
                for at in range(0, 30, size)
            ]
            assert torch.equal(torch.cat(parts), alone), (threads, size)
        others = tokens(21, seed=9)
        among = held.forward(
            others + asked,
            [7] * 21 + [9] * 30,
            [*range(21), *range(30)],
            range(21, 51),
            threads=threads,
        )
        assert torch.equal(among.logits_RV, alone), threads


def test_matrices_are_held_in_their_own_size() -> None:
    ours = model("q4_0")
    held = native.Native(ours, PagedCache(ours.config, 1, 64))
    norms_and_more = 4 * (5 * 96 + 2 * 16 * 64 + 2 * (2 * 160 + 96 + 64))
    weights = sum(module.grouped.num_bytes for module in ours.modules() if hasattr(module, "grouped"))
    assert weights <= held.num_bytes <= 1.25 * weights + norms_and_more  # padded to whole panels


def test_broken_activations_show() -> None:
    ours = model("q8_0")
    with torch.no_grad():
        ours.model.norm.weight[3] = torch.nan
    said: Any = native.Native(ours, PagedCache(ours.config, 1, 64)).forward(tokens(3), [0] * 3, range(3), [2])
    assert bool(said.total_R.isnan().all())
