"""Products in groups, compiled for CPUs with fewer instructions than this one: the same integers, and no bit depends on company."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from demeanor.core import hardware
from demeanor.model import compiled, native
from demeanor.model.grouped import GROUP_FORMATS, Grouped, GroupFormat, group_panels, group_rounded
from tests.model.test_native_quantised import slow_product

COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
BUILDS = {  # flags, and what this CPU must know to run the result
    "plain": ("-march=x86-64", set[str]()),
    "AVX2 alone": ("-march=x86-64 -mavx2", {"avx2"}),
    "AVX2, FMA, F16C": ("-march=haswell", {"avx2", "fma", "f16c", "bmi2"}),
    "AVX2, VNNI": ("-march=haswell -mavxvnni", {"avx2", "fma", "f16c", "bmi2", "avx_vnni"}),
    "AVX-512 without VNNI": ("-march=skylake-avx512", {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}),
}  # fmt: skip
LONGER = {"AVX2 alone", "AVX2, VNNI"}  # left to `make experiments`
INS, OUTS = 152, 64  # the last group is not full; whole panels at every width

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="these flags are those of x86-64"),
]


class Build:
    """The products of one build."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        size, pointer = ctypes.c_int64, ctypes.c_void_p
        self.library.products.argtypes = [size] * 4 + [pointer] * 3
        self.library.matrix_row.argtypes = [size] * 3 + [pointer] * 2
        self.panel: int = self.library.panel_width()

    def products(self, matrix: Grouped, rows_NI: Tensor) -> Tensor:
        packed, rows_NI = group_panels(matrix, self.panel), rows_NI.contiguous()
        out = torch.empty(len(rows_NI), OUTS)
        pointers = (rows_NI.data_ptr(), packed.data_ptr(), out.data_ptr())
        self.library.products(native.KINDS[matrix.format], INS, OUTS // self.panel, len(rows_NI), *pointers)
        return out

    def rows(self, matrix: Grouped) -> Tensor:
        packed, out = group_panels(matrix, self.panel), torch.empty(OUTS, INS)
        for i in range(OUTS):
            self.library.matrix_row(native.KINDS[matrix.format], INS, i, packed.data_ptr(), out[i].data_ptr())
        return out


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.experiment] if name in LONGER else [], id=name)
        for name in BUILDS
    ],
)
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Build:
    flags, needed = BUILDS[request.param]
    path = tmp_path_factory.mktemp("build") / "products.so"
    general = [flag for flag in compiled.FLAGS if flag not in ("-march=native", "-O3")]
    source = Path(__file__).with_name("quantised_builds.cpp")
    assert COMPILER is not None
    command = [
        COMPILER,
        *general,
        "-O1",
        f"-I{compiled.KERNELS.parent}",
        *flags.split(),
        str(source),
        "-o",
        str(path),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    if missing := needed - hardware.cpu_flags():
        pytest.skip(f"it compiles; this CPU cannot run it without {', '.join(sorted(missing))}")
    return Build(path)


def matrix(format: GroupFormat) -> Grouped:
    return group_rounded(torch.randn(OUTS, INS, generator=torch.Generator().manual_seed(7)), format)


@pytest.mark.parametrize("format", GROUP_FORMATS)
def test_integer_sums_are_exact(build: Build, format: GroupFormat) -> None:
    """Rows of whole numbers up to 127 and scales that are powers of two: nothing is rounded, so every build is equal."""
    draw = torch.Generator().manual_seed(5)
    whole = torch.randint(-127, 128, (7, INS), generator=draw).float()
    whole[:, ::32] = 127.0
    found = matrix(format)
    found.scales_OG.fill_(0.5)
    if found.minima_OG is not None:
        found.minima_OG.fill_(-2.0)
    assert torch.equal(build.products(found, whole), whole @ found.dequantised().T)


@pytest.mark.parametrize("format", GROUP_FORMATS)
def test_products_are_those_of_the_slow_twin_and_no_bit_depends_on_company(
    build: Build, format: GroupFormat
) -> None:
    rows = 3 * torch.randn(17, INS, generator=torch.Generator().manual_seed(1))
    rows[3, 32:64] = 0.0
    found, together = matrix(format), build.products(matrix(format), rows)
    wanted = slow_product(found, rows)
    assert float((together - wanted).abs().max()) <= 3e-6 * float(wanted.abs().max())
    for count in (1, 2, 3, 5, 12):
        apart = torch.cat([build.products(found, rows[a : a + count]) for a in range(0, 17, count)])
        assert torch.equal(apart, together), count


@pytest.mark.parametrize("format", GROUP_FORMATS)
def test_a_row_of_the_matrix_is_what_it_stands_for(build: Build, format: GroupFormat) -> None:
    found = matrix(format)
    assert torch.equal(build.rows(found), found.dequantised()[:, :INS])
