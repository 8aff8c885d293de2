"""llama.cpp's logits of given tokens, through the C functions of the package llama-cpp-python (the peers' venv).

In: a GGUF file and tokens. Out: one row of logits for each token. Knows nothing of demeanor.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class LlamaFile:
    """A loaded GGUF file, of which several readers can be made."""

    def __init__(self, path: Path) -> None:
        try:
            import llama_cpp as ll  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            raise SystemExit(
                "this comparison needs llama.cpp's C functions: bench/.venv/bin/pip install llama-cpp-python"
            ) from None
        self.ll = ll
        self._quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_mute)
        ll.llama_log_set(self._quiet, None)
        ll.llama_backend_init()
        self.model = ll.llama_model_load_from_file(str(path).encode(), ll.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp does not load {path}")
        self.vocabulary: int = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self.model))
        self.num_bytes = int(ll.llama_model_size(self.model))

    def reader(self, room: int, threads: int, *, wide: bool = False) -> LlamaReader:
        """A sequence of up to `room` tokens. `wide`: keys and values in fp32 and no flash attention; else llama.cpp's defaults."""
        return LlamaReader(self, room, threads, wide=wide)


class LlamaReader:
    """One context of a file."""

    def __init__(self, file: LlamaFile, room: int, threads: int, *, wide: bool) -> None:
        ll = file.ll
        p = ll.llama_context_default_params()
        p.n_ctx = p.n_batch = p.n_ubatch = max(room, 256)
        p.n_threads = p.n_threads_batch = threads
        if wide:
            p.type_k = p.type_v = 0  # GGML_TYPE_F32
            p.flash_attn_type = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._file, self._context = file, ll.llama_init_from_model(file.model, p)
        self._batch = ll.llama_batch_init(max(room, 256), 0, 1)

    def read(self, tokens: Sequence[int], at_once: int | None = None) -> Tensor:
        """Return logits_TV of a sequence from its start, read in parts of `at_once` tokens (None: whole)."""
        import numpy

        ll, n = self._file.ll, len(tokens)
        ll.llama_memory_seq_rm(ll.llama_get_memory(self._context), 0, 0, -1)
        found = torch.empty(n, self._file.vocabulary)
        for start in range(0, n, at_once or n):
            part: Any = tokens[start : start + (at_once or n)]
            self._batch.n_tokens = len(part)
            for i, token in enumerate(part):
                self._batch.token[i], self._batch.pos[i], self._batch.n_seq_id[i] = token, start + i, 1
                self._batch.seq_id[i][0], self._batch.logits[i] = 0, True
            if ll.llama_decode(self._context, self._batch):
                raise SystemExit("llama_decode failed")
            shape = (len(part), self._file.vocabulary)
            logits = numpy.ctypeslib.as_array(ll.llama_get_logits(self._context), shape=shape)
            found[start : start + len(part)] = torch.from_numpy(logits)
        return found


def _mute(*_: object) -> None:
    """Drop a line of llama.cpp's log."""
