"""Tokens drawn by compiled code: random numbers of an answer, and one draw for each row of logits.

In: logits, settings of each row, the answers' random numbers. Out: tokens, and of how many each was drawn. `engine/sampling.py` says what a
draw is and computes the same with torch; `kernels/draws.h` is the code.
"""

from __future__ import annotations

import ctypes
import secrets
from collections.abc import Sequence

import torch
from torch import Tensor

from demeanor.model.native import build


class Noise:
    """The random numbers of one answer, one for each token of the vocabulary and each draw. They are torch's for this seed (None: a random one),
    with and without compiled code."""

    def __init__(self, seed: int | None) -> None:
        library, seed = build(), secrets.randbits(64) if seed is None else seed
        self.state: Tensor | None = None
        if library is None:
            self._generator = torch.Generator().manual_seed(seed % 2**64)
        else:
            self.state = torch.empty(library.twister_bytes(), dtype=torch.uint8)
            library.twister_seed(self.state.data_ptr(), seed % 2**32)  # torch takes no more bits of it

    def uniform(self, vocab_size: int) -> Tensor:
        """Return the numbers of the next draw, in [0, 1), float32 but fine-grained near 0: uniform_V."""
        if self.state is None:
            return torch.rand(vocab_size, generator=self._generator, dtype=torch.float64).float()
        library, uniform_V = build(), torch.empty(vocab_size)
        assert library is not None, "it made the state"
        library.twister_uniforms(self.state.data_ptr(), vocab_size, uniform_V.data_ptr())
        return uniform_V


def draw_tokens(
    logits_NV: Tensor, settings_N4: Tensor, noises: Sequence[Noise], keep: Sequence[bool]
) -> tuple[Tensor, dict[int, Tensor]] | None:
    """Draw one token per row by `engine.sampling.race` after `narrowed`: tokens_N, and by row, where `keep` says so and narrowing
    excluded tokens, those that were left, ascending.

    `settings_N4`: temperature, top_p, min_p and top_k (0: off) of each row. None: compiled code cannot do it here.
    """
    library, states = build(), [noise.state for noise in noises]
    if library is None or logits_NV.device.type != "cpu" or logits_NV.dtype != torch.float32:
        return None
    if logits_NV.stride(1) != 1:
        logits_NV = logits_NV.contiguous()
    (N, V), settings_N4 = logits_NV.shape, settings_N4.float().contiguous()
    tokens_N, counts_N = torch.empty(N, dtype=torch.long), torch.empty(N, dtype=torch.long)
    kept = {i: torch.empty(V, dtype=torch.int32) for i, wanted in enumerate(keep) if wanted}
    held = [state.data_ptr() for state in states if state is not None]
    assert len(held) == N, "random numbers that were made without compiled code"
    twisters = (ctypes.c_void_p * N)(*held)
    places = (ctypes.c_void_p * N)(*(kept[i].data_ptr() if i in kept else None for i in range(N)))
    library.draw_tokens(
        torch.get_num_threads() if N > 1 else 1,
        N,
        logits_NV.stride(0),
        V,
        logits_NV.data_ptr(),
        settings_N4.data_ptr(),
        twisters,
        tokens_N.data_ptr(),
        counts_N.data_ptr(),
        places,
    )
    counts = counts_N.tolist()
    return tokens_N, {i: x[: counts[i]].long() for i, x in kept.items() if 0 < counts[i] < V}
