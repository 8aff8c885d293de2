"""The decoding forward in C++ on a CPU: compiles `native.cpp` on first use into the user's cache folder.

In: a Llama and its KV cache. Out: logits of mixed prompt and answer rows, bit-equal whatever else is in the
batch. Without a C++ compiler `build` returns None and the engine decodes with torch.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from demeanor.core import hardware
from demeanor.model.adapters import adapters
from demeanor.model.compiled import compiled
from demeanor.model.deferred import Deferred
from demeanor.model.drawn import Drawn, conditioned
from demeanor.model.drawn import entropy as row_entropy
from demeanor.model.grouped import Grouped, GroupFormat, group_panels, joined
from demeanor.model.grouped_modules import matrices
from demeanor.model.llama import Llama, rotary
from demeanor.model.pages import CELLS, PAGE, PagedCache

log = logging.getLogger("demeanor.model")

WORTH_WAKING = 500_000  # logits; for fewer a second thread takes longer to wake (up to 1 ms) than to work

Format: TypeAlias = Literal["fp32", "bf16", "int8"]  # storage of a matrix; int8 has one scale per output

KINDS: dict[Format | GroupFormat, int] = {"fp32": 0, "bf16": 1, "int8": 2, "q8_0": 3, "q4_0": 4, "q4_1": 5}
BF16_PRODUCTS = 8  # as in kernels/products.h
Compute: TypeAlias = Literal["fp32", "bf16"]
"""What rows are multiplied in: fp32, or bf16 with fp32 sums, where the weights are rounded to bf16 too. Weights in int8
or in groups have products of their own."""

MEASURED_ROWS, MEASURED_SHAPE = 96, (768, 768)  # rows; outputs and inputs where a model's own are unknown
WIDEST = 1024  # larger matrices run at the same speed, so they are measured cut
MOST_RANK = 1024  # of an adapter, as in native.cpp
SOURCE = Path(__file__).with_name("native.cpp")


class NativeStep(NamedTuple):
    """For each row that was read: logits_RV, the best token best_R, and the logsumexp of the logits
    total_R."""

    logits_RV: Tensor
    best_R: Tensor
    total_R: Tensor


@cache
def build() -> ctypes.CDLL | None:
    """Compile (3 s) or load from the cache; None with a warning if that fails, or if DEMEANOR_NATIVE=0."""
    if os.environ.get("DEMEANOR_NATIVE", "1") == "0":
        return None
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if compiler is None:
        log.warning("no C++ compiler found: decoding uses torch, which is slower; install g++ or clang++")
        return None
    try:
        library = _typed(ctypes.CDLL(str(compiled(SOURCE, compiler))))
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", "") or str(error)
        log.warning(
            "%s could not compile the decoder; decoding uses torch, which is slower: %s",
            compiler,
            reason[-500:],
        )
        return None
    cores = sorted(hardware.cores())
    library.pool_cores((ctypes.c_int * len(cores))(*cores), len(cores))
    return library


Shapes: TypeAlias = tuple[tuple[int, int], ...]
_SECONDS: dict[Shapes, tuple[float, float]] = {}  # measured in this process: fp32, bf16


def faster(shapes: Shapes = ()) -> Compute:
    """Return the faster format for products with matrices of these shapes (outputs, inputs), measured once in a process (some ms
    each): bf16 only if it is 1.1 times as fast as fp32, and fp32 where nothing is compiled."""
    library = build()
    if library is None:
        return "fp32"
    if shapes not in _SECONDS:
        cut = [(min(outs, WIDEST), min(ins, WIDEST)) for outs, ins in shapes or (MEASURED_SHAPE,)]
        wide_s, narrow_s = (
            sum(library.measured_seconds(kind, MEASURED_ROWS, *shape) for shape in cut)
            for kind in (KINDS["fp32"], BF16_PRODUCTS)
        )
        _SECONDS[shapes] = wide_s, narrow_s
        text = ", ".join(f"{outs} x {ins}" for outs, ins in cut)
        log.info(
            "products of %d rows with %s: fp32 %.3f ms, bf16 %.3f ms",
            MEASURED_ROWS,
            text,
            1e3 * wide_s,
            1e3 * narrow_s,
        )
    wide_s, narrow_s = _SECONDS[shapes]
    return "bf16" if wide_s > hardware.FASTER * narrow_s else "fp32"


def measured(shapes: Shapes) -> tuple[float, float] | None:
    """Return the seconds in fp32 and in bf16 that `faster` measured for these shapes; None if it was not asked."""
    return _SECONDS.get(shapes)


def _typed(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    library.panel_width.restype = library.page_tokens.restype = number
    library.model_new.argtypes, library.model_new.restype = [pointer, ctypes.c_float, pointer], pointer
    library.model_free.argtypes, library.model_free.restype = [pointer], None
    library.pool_cores.argtypes, library.pool_cores.restype = [pointer, number], None
    library.measured_seconds.argtypes, library.measured_seconds.restype = [size] * 4, ctypes.c_double
    library.model_forward.argtypes = [
        pointer,
        number,
        size,
        *[pointer] * 3,
        size,
        *[pointer] * 7,
    ]
    library.model_head.argtypes = [pointer, number, size, pointer, pointer]
    library.gated_backward.argtypes = [number, size, size, *[pointer] * 5]
    library.drawn_logprobs.argtypes = [number, size, size, size, *[pointer] * 7]
    library.twister_bytes.argtypes, library.twister_bytes.restype = [], size
    library.twister_seed.argtypes = [pointer, ctypes.c_uint32]
    library.twister_uniforms.argtypes = [pointer, size, pointer]
    library.draw_tokens.argtypes = [number, size, size, size, *[pointer] * 6]
    library.release_memory.argtypes, library.release_memory.restype = [], None
    for function in ("model_forward", "model_head", "gated_backward", "drawn_logprobs", "draw_tokens"):
        getattr(library, function).restype = None
    return library


Packed: TypeAlias = dict[str, tuple[object, list[int], list[Tensor]]]
"""Matrices whose weights are frozen: what they were packed from, and the result."""


class LayerTrace(NamedTuple):
    """Activations of N rows in one layer, which a backward pass reads; columns are rounded up to panels.

    The residual stream before the layer and after its attention; queries and keys as projected (only if heads are
    normed); queries, keys (both rotated) and values; mixed values; gate and up in alternating panels.
    """

    before: Tensor
    projected: Tensor | None
    heads: Tensor
    mixed: Tensor
    middle: Tensor
    gates: Tensor


class Trace(NamedTuple):
    """Every layer's activations of N rows, and the residual stream after the last layer."""

    layers: tuple[LayerTrace, ...]
    after: Tensor


class Native:
    """A model packed for `native.cpp` with one cache of keys and values; raises ValueError if `fits` is False.

    Each matrix is stored in the narrowest format that holds it exactly, so packing never rounds; one that comes in
    groups keeps them, and its products round each row to int8. `packed` keeps frozen matrices between models that
    differ in the others.
    """

    def __init__(
        self, model: Llama, cache: PagedCache, packed: Packed | None = None, *, compute: Compute = "fp32"
    ) -> None:
        library = build()
        if library is None or not fits(model):
            raise ValueError("compiled code cannot run this model here; see `fits` and `build`")
        config = model.config
        self._library, self._cache = library, cache
        self._panel: int = library.panel_width()
        self.vocab, self.width = config.vocab_size, config.hidden_size
        self._config = config
        self.compute = compute
        packing = _Packing(model, self._panel, packed, compute)
        assert library.page_tokens() == PAGE
        pointers = [*packing.outside(cache.max_tokens), cache.data.data_ptr(), cache.table.data_ptr()]
        for i in range(config.num_hidden_layers):
            pointers += packing.layer(i)
        self._kept, self.formats = packing.kept, packing.formats
        ints = array(
            "q",
            [
                config.hidden_size,
                config.num_attention_heads,
                config.num_key_value_heads,
                config.head_dim,
                config.intermediate_size,
                config.vocab_size,
                config.num_hidden_layers,
                cache.table.shape[1],
                *cache.data.shape[1:],
                CELLS[cache.data.dtype],
            ],
        )
        addresses = (ctypes.c_void_p * len(pointers))(*(p or None for p in pointers))
        self._model = library.model_new(ints.buffer_info()[0], config.rms_norm_eps, addresses)
        if packed is None:  # a trainer packs again in every step, into the same memory
            library.release_memory()

    def forward(
        self,
        tokens: Sequence[int],
        slots: Sequence[int],
        positions: Sequence[int],
        read: Sequence[int],
        *,
        threads: int | None = None,
    ) -> NativeStep:
        """Write the keys and values of N rows (a token of a slot at a position); return the logits of rows
        `read`.

        Rows may be of many slots, also several of one slot; all earlier positions of a slot must be written
        by then.
        """
        out = torch.empty(len(read), -(-self.vocab // self._panel) * self._panel)
        best, total = torch.empty(len(read), dtype=torch.int64), torch.empty(len(read))
        pointers = (out.data_ptr(), best.data_ptr(), total.data_ptr()) if read else (0, 0, 0)
        self._call(tokens, slots, positions, read, 0, *pointers, threads)
        return NativeStep(out[:, : self.vocab], best, total)

    def hidden(
        self, tokens: Sequence[int], slots: Sequence[int], positions: Sequence[int], read: Sequence[int]
    ) -> Tensor:
        """Return hidden states after the final norm instead of logits: hidden_RD."""
        out = torch.empty(len(read), self.width)
        self._call(tokens, slots, positions, read, out.data_ptr(), 0, 0, 0, None)
        return out

    def trace(self, num_rows: int) -> Trace:
        """Return memory for the activations of so many rows."""
        config, panel = self._config, self._panel
        kv_heads, turned = config.num_key_value_heads, config.num_attention_heads + config.num_key_value_heads

        def rows(columns: int) -> Tensor:
            return torch.empty(num_rows, -(-columns // panel) * panel)

        def layer() -> LayerTrace:
            return LayerTrace(
                rows(config.hidden_size),
                torch.empty(num_rows, turned * config.head_dim) if config.qk_norm else None,
                rows((turned + kv_heads) * config.head_dim),
                torch.empty(num_rows, config.num_attention_heads * config.head_dim),
                rows(config.hidden_size),
                torch.empty(num_rows, 2 * (-(-config.intermediate_size // panel) * panel)),
            )

        return Trace(tuple(layer() for _ in range(config.num_hidden_layers)), rows(config.hidden_size))

    def traced(
        self,
        tokens: Sequence[int],
        slots: Sequence[int],
        positions: Sequence[int],
        read: Sequence[int],
        trace: Trace,
        start: int,
    ) -> Tensor:
        """Do what `hidden` does, and write the rows' activations to the rows of `trace` from `start` on."""
        out = torch.empty(len(read), self.width)
        pointers = [
            0 if x is None else x[start:].data_ptr() for layer in trace.layers for x in layer
        ]  # in the order of native.cpp's Trace
        addresses = (ctypes.c_void_p * len(pointers))(*(p or None for p in pointers))
        kept = (ctypes.addressof(addresses), trace.after[start:].data_ptr())
        self._call(tokens, slots, positions, read, out.data_ptr(), 0, 0, 0, None, kept)
        return out

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """Return the logits of hidden states after the final norm: logits_RV, bits as `forward` gives them."""
        out = torch.empty(len(hidden_RD), -(-self.vocab // self._panel) * self._panel)
        hidden_RD = hidden_RD.contiguous()
        self._library.model_head(
            self._model, torch.get_num_threads(), len(out), hidden_RD.data_ptr(), out.data_ptr()
        )
        return out[:, : self.vocab]

    def _call(
        self,
        tokens: Sequence[int],
        slots: Sequence[int],
        positions: Sequence[int],
        read: Sequence[int],
        hidden: int,
        logits: int,
        best: int,
        total: int,
        threads: int | None,
        trace: tuple[int, int] = (0, 0),
    ) -> None:
        if not tokens:
            return
        arrays = [array("q", x) for x in (tokens, slots, positions, read)]
        t, s, p, r = (x.buffer_info()[0] for x in arrays)
        self._library.model_forward(
            self._model,
            threads or torch.get_num_threads(),
            len(tokens),
            t,
            s,
            p,
            len(read),
            r,
            hidden or None,
            logits or None,
            best or None,
            total or None,
            *(pointer or None for pointer in trace),
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of the packed tensors; those shared with other models count in each."""
        return sum({x.data_ptr(): x.numel() * x.element_size() for x in self._kept}.values())

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self._library.model_free(self._model)


def rounded(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest int8 values and one scale per output: weight = int8 x scale (symmetric, absolute
    maximum)."""
    scale_O = weight_OI.abs().amax(1).clamp_min(1e-12) / 127
    return (weight_OI / scale_O[:, None]).round().to(torch.int8), scale_O


def _stacked(*weights: Tensor) -> Tensor:
    return torch.cat(weights) if len(weights) > 1 else weights[0]


def _panels(weight_OI: Tensor, panel: int, together: int = 1) -> Tensor:
    """Lay a matrix out in panels of outputs: (panels, inputs / together, panel, together); missing inputs are zero."""
    outs, ins = weight_OI.shape
    wide = torch.nn.functional.pad(weight_OI, (0, -ins % together)) if ins % together else weight_OI
    return wide.view(outs // panel, panel, -1, together).transpose(1, 2).contiguous()


Weight: TypeAlias = Tensor | Grouped | Deferred


def _stamp(weight: Weight) -> tuple[int, int]:
    """What tells a matrix from what it was before."""
    if isinstance(weight, Deferred):
        return id(weight), 0
    x = weight.packed_OB if isinstance(weight, Grouped) else weight
    return x.data_ptr(), x._version


def _one(stored: Sequence[Weight], join: Callable[..., Tensor]) -> Tensor | Grouped:
    """Return several matrices as one, in groups if all are in one format; those in files are read."""
    weights = [w.read() if isinstance(w, Deferred) else w for w in stored]
    groups = [w for w in weights if isinstance(w, Grouped)]
    if len(groups) == len(weights) and len({w.format for w in groups}) == 1:
        return groups[0] if len(groups) == 1 else joined(groups, join)  # whole groups fill whole panels
    return join(*(w.dequantised() if isinstance(w, Grouped) else w.detach() for w in weights))


class _Packing:
    """A model's tensors as `model_new` expects them: lists of pointers, and numbers in place of pointers; 0
    is none.

    Everything is copied, so training the model on does not change the packed one; equal copies are shared in
    the process.
    """

    def __init__(
        self, model: Llama, panel: int, packed: Packed | None = None, compute: Compute = "fp32"
    ) -> None:
        self._model, self._panel, self._packed, self._compute = model, panel, packed, compute
        self._state, self._adapters = model.state_dict(keep_vars=True), dict(adapters(model))
        self._matrices = matrices(model)
        self.kept: list[Tensor] = []  # what the pointers point to
        self.formats: Counter[Format | GroupFormat] = Counter()

    def outside(self, max_tokens: int) -> list[int]:
        """Embedding, final norm, rotary tables, head."""
        cos, sin = rotary(self._model.config, torch.arange(max_tokens))
        half = self._model.config.head_dim // 2
        name, tied = "model.embed_tokens.weight", self._model.config.tie_word_embeddings
        head = self._frozen("head", self._weight(name if tied else "lm_head.weight"))
        return [
            *(head if tied else self._frozen("embedding", self._weight(name))),
            self._plain(self._state["model.norm.weight"]),
            self._plain(cos[:, 0, :half]),
            self._plain(sin[:, 0, :half]),
            *head,
        ]

    def layer(self, i: int) -> list[int]:
        """Norms, then the four matrices with their adapters."""

        def tensor(name: str) -> Tensor | None:
            return self._state.get(f"model.layers.{i}.{name}")

        def linear(name: str) -> tuple[Weight, Tensor | None]:
            return self._weight(f"model.layers.{i}.{name}.weight"), tensor(f"{name}.bias")

        qkv = [f"self_attn.{x}_proj" for x in "qkv"]
        weights, biases = zip(*map(linear, qkv))
        (gate, gate_bias), (up, up_bias) = linear("mlp.gate_proj"), linear("mlp.up_proj")
        out, (down, down_bias) = linear("self_attn.o_proj"), linear("mlp.down_proj")
        norms = ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")
        qkv_bias = None if biases[0] is None else torch.cat(biases).detach()
        paired_bias = None if gate_bias is None or up_bias is None else self._paired(gate_bias, up_bias)
        paired_adapters = self._low_rank(i, "mlp.gate_proj", "mlp.up_proj", step=2)
        return [
            *(self._plain(tensor(f"{norm}.weight")) for norm in norms),
            *self._frozen(f"{i}.qkv", *weights, bias=qkv_bias, low_rank=self._low_rank(i, *qkv)),
            *self._frozen(f"{i}.out", out[0], bias=out[1], low_rank=self._low_rank(i, "self_attn.o_proj")),
            *self._frozen(
                f"{i}.gate_up", gate, up, join=self._paired, bias=paired_bias, low_rank=paired_adapters
            ),
            *self._frozen(
                f"{i}.down",
                down,
                join=self._wide,
                bias=down_bias,
                low_rank=self._low_rank(i, "mlp.down_proj"),
            ),
        ]

    def _weight(self, name: str) -> Weight:
        return self._matrices[name] if name in self._matrices else self._state[name]

    def _plain(self, x: Tensor | None) -> int:
        return 0 if x is None else self._keep(x.detach().float().clone(memory_format=torch.contiguous_format))

    def _frozen(
        self,
        name: str,
        *weights: Weight,
        join: Callable[..., Tensor] = _stacked,
        bias: Tensor | None = None,
        low_rank: Sequence[int] = (),
    ) -> list[int]:
        """Format, panels, scales, bias, and low-rank products of one matrix; frozen weights are packed once."""
        shift = 0 if bias is None else self._plain(self._rows(bias.detach()))
        places = list(low_rank) or [0] * 5
        frozen = self._packed is not None and not any(
            isinstance(w, Tensor) and w.requires_grad for w in weights
        )
        stamp = [_stamp(w) for w in weights] if frozen else None
        known = None if self._packed is None or stamp is None else self._packed.get(name)
        if known is not None and known[0] == stamp:
            self.kept += known[2]
            return [*known[1], shift, *places]
        before = len(self.kept)
        found = self._matrix(_one(weights, join))
        if self._packed is not None and stamp is not None:
            self._packed[name] = (stamp, found, self.kept[before:])
        return [*found, shift, *places]

    def _matrix(self, weight: Tensor | Grouped) -> list[int]:
        """Format, panels and scales of one matrix."""
        if isinstance(weight, Grouped):
            self.formats[weight.format] += 1
            return [
                KINDS[weight.format],
                self._keep(group_panels(joined([weight], self._rows), self._panel)),
                0,
            ]
        weight = self._rows(weight)
        kind, scale = narrowest(weight), 0
        narrow = self._compute == "bf16" and kind != "int8"
        kind = "bf16" if narrow else kind
        self.formats[kind] += 1
        if kind == "int8":
            parts, factors = zip(*map(rounded, _chunks(weight)))
            weight, scale = torch.cat(parts), self._keep(torch.cat(factors))
        else:
            weight = weight.bfloat16() if kind == "bf16" else weight.float()
        panels = _panels(weight, self._panel, 2 if kind == "bf16" else 1)
        return [BF16_PRODUCTS if narrow else KINDS[kind], self._keep(panels), scale]

    def _low_rank(self, i: int, *names: str, step: int = 1) -> list[int]:
        """Adapters of maps that are stacked in one matrix (`step` 2: their panels alternate): their common rank, A
        with a scale for each of its rows, B by panels, and the ranks that each panel reads."""
        own = [self._adapters.get(f"model.layers.{i}.{name}") for name in names]
        if not any(own):
            return []
        panel, start = self._panel, 0
        thick: list[Tensor] = []
        readers: defaultdict[int, list[int]] = defaultdict(list)  # by panel: bounds of the ranks it reads
        columns: list[tuple[Tensor, Tensor]] = []  # of each adapter: its outputs' places, and B
        outs, scales = 0, []
        for n, (name, adapter) in enumerate(zip(names, own)):
            count = self._weight(f"model.layers.{i}.{name}.weight").shape[0]
            at = torch.arange(count)
            places = at + outs if step == 1 else (at // panel * step + n) * panel + at % panel
            outs += count if step == 1 else -(-count // panel) * panel
            if adapter is None:
                continue
            rank = len(adapter.lora_A)
            thick.append(self._wide(adapter.lora_A) if name == "mlp.down_proj" else adapter.lora_A)
            scales += [adapter.scale] * rank
            columns.append((places, adapter.lora_B.detach().float()))
            for p in torch.unique(places // panel).tolist():
                readers[p] += [start, start + rank]
            start += rank
        b = torch.zeros(-(-outs // panel) * panel, start)
        first = 0
        for places, part in columns:
            b[places, first : first + part.shape[1]] = part
            first += part.shape[1]
        ranges: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for p, ranks in readers.items():
            ranges[min(ranks), max(ranks)].append(p)
        table, parts, offset = torch.zeros(len(b) // panel, 3, dtype=torch.int64), [], 0
        for (low, high), chosen in ranges.items():
            size = panel * (high - low)
            table[chosen] = torch.tensor(
                [[low, high - low, offset + j * size] for j in range(len(chosen))], dtype=torch.int64
            )
            parts.append(b.view(-1, panel, start)[chosen, :, low:high].transpose(1, 2).flatten())
            offset += size * len(chosen)
        a = _panels(self._rows(torch.cat(thick).detach().float()), panel)
        scale = torch.tensor(scales + [0.0] * (-start % panel))
        return [start, *map(self._keep, (a, scale, torch.cat(parts), table))]

    def _paired(self, gate: Tensor, up: Tensor) -> Tensor:
        """Alternate the panels of both."""
        panels = [self._rows(x.detach()).reshape(-1, self._panel, *x.shape[1:]) for x in (gate, up)]
        return torch.stack(panels, 1).flatten(0, 2)

    def _wide(self, weight: Tensor) -> Tensor:
        """Pad columns with zeros to whole panels, which is the width of the activation."""
        return torch.nn.functional.pad(weight, (0, -weight.shape[1] % self._panel))

    def _rows(self, x: Tensor) -> Tensor:
        """Pad rows with zeros to whole panels."""
        missing = -len(x) % self._panel
        return torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) if missing else x

    def _keep(self, x: Tensor) -> int:
        x = shared(x)
        self.kept.append(x)
        return x.data_ptr()


_ALL: WeakValueDictionary[tuple[object, ...], Tensor] = WeakValueDictionary()


def shared(x: Tensor) -> Tensor:
    """Return an equal tensor that is already stored, else this one: stages of one base share their
    tensors."""
    raw = (
        x.detach().reshape(-1).view(torch.uint8).numpy()
    )  # torch would sum bytes by first making each 8 bytes wide
    key = (x.dtype, tuple(x.shape), int(raw[: len(raw) // 8 * 8].view(np.int64).sum()))
    other = _ALL.get(key)
    if other is not None and torch.equal(other, x):
        return other
    _ALL[key] = x
    return x


PROBED = 8  # rows that are looked at before the whole matrix
CHUNK = 1 << 22  # numbers that are looked at or rounded together


def narrowest(weight_OI: Tensor) -> Format:
    """Return the narrowest format that holds a matrix (int8: up to the last bit of its scales).

    It is looked at part by part, so that a head of 128,000 tokens is not copied to be looked at.
    """
    is_int8 = is_bf16 = True
    for wide_OI in chain([weight_OI[:PROBED].detach().float()], _chunks(weight_OI)):
        if is_int8:
            small, scale_O = rounded(wide_OI)
            is_int8 = bool(((small * scale_O[:, None] - wide_OI).abs() <= 2e-6 * wide_OI.abs()).all())
        if not is_int8 and weight_OI.dtype == torch.bfloat16:
            return "bf16"
        is_bf16 = is_bf16 and torch.equal(wide_OI.bfloat16().float(), wide_OI)
        if not is_int8 and not is_bf16:
            return "fp32"
    return "int8" if is_int8 else "bf16"


def _chunks(weight_OI: Tensor) -> Iterator[Tensor]:
    """Parts of a matrix in fp32, one at a time."""
    for part in torch.split(weight_OI, max(1, CHUNK // max(weight_OI.shape[1], 1))):
        yield part.detach().float()


def drawn_logprobs(
    logits_CV: Tensor, targets_C: Tensor, drawn: Drawn | None = None, *, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return the log-probability (nats) of each row's target under the distribution that it was drawn from, and the
    entropy of that distribution.

    Compiled code sums each row in one order whatever the other rows are; without it torch computes the same.
    """
    drawn = drawn or Drawn(None, None, None)
    library, C = build(), len(logits_CV)
    if library is None or logits_CV.device.type != "cpu" or logits_CV.dtype != torch.float32:
        wide_CV = conditioned(logits_CV.float(), drawn)
        logprobs_C = wide_CV.log_softmax(-1).gather(1, targets_C[:, None])[:, 0]
        return logprobs_C, row_entropy(wide_CV) if entropy else None
    if logits_CV.stride(1) != 1:
        logits_CV = logits_CV.contiguous()
    logprobs_C, entropy_C = torch.empty(C), torch.empty(C) if entropy else None
    temperature_C = torch.ones(C) if drawn.temperature_C is None else drawn.temperature_C.float().contiguous()
    ends, kept_K = None, None
    if drawn.kept_K is not None and drawn.kept_of_K is not None:
        ends, kept_K = _ragged(drawn.kept_K, drawn.kept_of_K, C)
    tensors = (logits_CV, temperature_C, targets_C.contiguous(), ends, kept_K, logprobs_C, entropy_C)
    pointers = [None if x is None or not x.numel() else x.data_ptr() for x in tensors]
    threads = torch.get_num_threads() if logits_CV.numel() > WORTH_WAKING else 1
    library.drawn_logprobs(threads, C, logits_CV.stride(0), logits_CV.shape[1], *pointers)
    return logprobs_C, entropy_C


def _ragged(kept_K: Tensor, kept_of_K: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return where each row's kept tokens end, starting with 0, and the tokens, ascending within a row."""
    by_token = kept_K.argsort(stable=True)
    order = by_token[kept_of_K[by_token].argsort(stable=True)]
    sizes = torch.bincount(kept_of_K, minlength=count)
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]), kept_K[order].contiguous()


def gated_backward(gates: Tensor, slope_TI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return act = silu(gate) up from a trace's gates, and from the slope of act those of gate and up: each (T, I)."""
    library = build()
    assert library is not None, "a trace was made, so there is compiled code"
    slope_TI = slope_TI.contiguous()
    found = tuple(torch.empty_like(slope_TI) for _ in range(3))
    library.gated_backward(
        torch.get_num_threads(),
        *slope_TI.shape,
        gates.data_ptr(),
        slope_TI.data_ptr(),
        *(x.data_ptr() for x in found),
    )
    return found[0], found[1], found[2]


def fits(model: Llama) -> bool:
    """True if compiled code can run the model: on a CPU, with an even head size and small adapters."""
    device = (model.model.norm.weight if isinstance(model, Llama) else model.head()).device
    ranks = [len(x.lora_A) for _, x in adapters(model)] if isinstance(model, Llama) else []
    return device.type == "cpu" and model.config.head_dim % 2 == 0 and max(ranks, default=0) <= MOST_RANK
