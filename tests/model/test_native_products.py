"""Products of the compiled forward: one row's bits never depend on the others, and errors stay below what sums allow."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from demeanor.model import adapters, checkpoints, native
from demeanor.model.llama import Config, KVCache, Llama
from demeanor.model.pages import PagedCache
from demeanor.stack.schema import Adapter, ModelShape

pytestmark = pytest.mark.skipif(native.build() is None, reason="no C++ compiler here")

FORMATS = ("fp32", "bf16", "int8", "bf16 products")
SHAPES = [
    (131, 72),
    (64, 35),
    (40, 2113),
]  # outputs and inputs: no whole panels, an odd end, several blocks of inputs
ROWS = [*range(1, 66), 95, 96, 97, 200]


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def head(format: str, outs: int, ins: int) -> tuple[native.Native, Tensor]:
    """A model whose head is one matrix in a format, and that matrix as numbers."""
    config = Config("llama", outs, ins, 8, 1, 1, 1, 16, 32, 1e-5, 1e4, tie_word_embeddings=True)
    model = Llama(config)
    weight = torch.randn(outs, ins, generator=torch.Generator().manual_seed(outs))
    if format == "int8":
        small, scale = native.rounded(weight)
        weight = small * scale[:, None]
    elif format == "bf16":
        weight = weight.bfloat16().float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
        model.head().copy_(weight)
    compute: native.Compute = "bf16" if format == "bf16 products" else "fp32"
    held = native.Native(model, PagedCache(model.config, 1, 32), compute=compute)
    return held, weight.bfloat16().float() if format == "bf16 products" else weight


def hidden(rows: int, ins: int) -> Tensor:
    return torch.randn(rows, ins, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize(("outs", "ins"), SHAPES)
@pytest.mark.parametrize("format", FORMATS)
def test_a_row_has_the_same_bits_among_any_number_of_rows_and_threads(
    format: str, outs: int, ins: int
) -> None:
    held, _ = head(format, outs, ins)
    x = hidden(max(ROWS), ins)
    torch.set_num_threads(1)
    alone = torch.cat([held.logits(row[None]) for row in x])
    differ = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for rows in ROWS if threads == 1 else (1, 2, 5, 13, 64, 97, 200):
            first, last = held.logits(x[:rows]), held.logits(x[-rows:])
            if not (torch.equal(first, alone[:rows]) and torch.equal(last, alone[-rows:])):
                differ.append((threads, rows))
    assert differ == []


@pytest.mark.parametrize(("outs", "ins"), SHAPES)
@pytest.mark.parametrize("format", FORMATS)
def test_sums_are_within_the_rounding_of_fp32(format: str, outs: int, ins: int) -> None:
    """n additions in any order: |error| <= (n + 2) u sum |x w|, u = 2^-24 (Higham 2002, section 3.1)."""
    held, weight = head(format, outs, ins)
    x = hidden(50, ins)
    read = x.bfloat16().double() if format == "bf16 products" else x.double()
    wanted = read @ weight.double().T
    allowed = (ins + 4) * 2.0**-24 * (read.abs() @ weight.double().abs().T)
    assert bool(((held.logits(x).double() - wanted).abs() <= allowed).all())
    assert float(wanted.abs().mean()) > 1, "there is something to sum"


def test_bf16_products_are_one_chain_of_sums_with_the_second_of_a_pair_first() -> None:
    """A product of two bf16 is an fp32 exactly, so an addition a product is all the rounding there is."""
    for outs, ins in SHAPES:
        held, weight = head("bf16 products", outs, ins)
        x = hidden(9, ins)
        read = torch.nn.functional.pad(x.bfloat16().float(), (0, ins % 2))
        weight = torch.nn.functional.pad(weight, (0, ins % 2))
        total = torch.zeros(9, outs)
        for k in range(0, ins, 2):
            for i in (k + 1, k):
                total = total + read[:, i, None] * weight[None, :, i]
        assert torch.equal(held.logits(x), total)


def test_rows_are_rounded_to_the_nearest_bf16_ties_to_even_and_nan_stays() -> None:
    held, weight = head("bf16 products", 64, 35)
    one = torch.zeros(6, 35)
    one[:, 4] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -3.3e38, torch.nan, torch.inf])
    found = held.logits(one)
    wanted = one.bfloat16().float()[:, 4, None] * weight[None, :, 4]
    assert torch.equal(found[:3], wanted[:3])
    assert bool(found[4].isnan().all())
    assert torch.equal(found[5].isinf(), torch.ones(64, dtype=torch.bool))


def test_a_tied_embedding_is_the_packed_head_and_is_held_once() -> None:
    for format, size in (("fp32", 4), ("bf16", 2)):
        held, _ = head(format, 131, 72)
        panel = native.build().panel_width()  # type: ignore[union-attr]
        matrix = -(-131 // panel) * panel * 72 * size
        assert sum(x.numel() * x.element_size() >= matrix for x in held._kept) == 1


def test_an_adapter_adds_its_product_at_any_number_of_rows(tmp_path: Path) -> None:
    """Ranks that fill no panel, on maps that begin inside one: against x W^T + scale (x A^T) B^T of torch."""
    shape = ModelShape(layers=2, width=72, heads=6, kv_heads=2, mlp_width=88, context=256)
    model = checkpoints.create(shape, 131, 0)
    adapters.attach(model, Adapter(rank=5, alpha=9.0, targets=("all-linear",)), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, module in adapters.adapters(model):
            module.lora_B.normal_(std=0.2, generator=generator)
    tokens = torch.randint(1, 131, (230,), generator=generator).tolist()
    held = native.Native(model, PagedCache(model.config, 2, 256))
    with torch.no_grad():
        wanted = model.prefill(torch.tensor(tokens), 0, 0, KVCache(model.config, 1, 256))
    rows = list(range(230))
    whole = held.hidden(tokens, [0] * 230, rows, rows)
    assert torch.allclose(whole, wanted, atol=1e-4)
    parts = [held.hidden(tokens[a : a + 7], [1] * len(tokens[a : a + 7]), rows[a : a + 7], rows[: len(tokens[a : a + 7])]) for a in range(0, 230, 7)]  # fmt: skip
    assert torch.equal(torch.cat(parts), whole)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(held.hidden(tokens, [1] * 230, rows, rows), whole)


def test_the_faster_format_is_measured_once() -> None:
    assert native.faster() in ("fp32", "bf16")
    assert native.measured(()) is not None


def fingerprint() -> str:
    """Of bf16 products of three shapes: the same on every CPU."""
    total = hashlib.sha256()
    for outs, ins in SHAPES:
        held, _ = head("bf16 products", outs, ins)
        total.update(held.logits(hidden(30, ins)).contiguous().numpy().tobytes())
    return total.hexdigest()


@pytest.mark.experiment
@pytest.mark.parametrize(
    "flags",
    ["-mno-avx512f -mno-avx512bf16", "-march=haswell", "-march=x86-64"],
    ids=["no AVX-512", "AVX2", "plain"],
)
def test_other_instruction_sets_agree_with_themselves(flags: str, tmp_path: Path) -> None:
    """Compiled for less than this CPU has: these tests and those of the forward pass, and bf16 products keep their bits."""
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\nexec g++ "$@" {flags}\n', encoding="utf-8")
    compiler.chmod(0o755)
    settings = {**os.environ, "CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "2"}
    here = Path(__file__)
    files = [
        str(here),
        str(here.with_name("test_model_native.py")),
        str(here.with_name("test_native_quantised.py")),
        str(here.with_name("test_paged_attention.py")),
    ]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not experiment", *files, "-k", "not compiler and not folder"],
        capture_output=True, text=True, timeout=900, env=settings, cwd=here.parents[2],
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-3000:]
    code = "from tests.model.test_native_products import fingerprint; print(fingerprint())"
    other = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env=settings,
        cwd=here.parents[2],
    )
    assert other.stdout.strip() == fingerprint(), other.stderr[-2000:]
