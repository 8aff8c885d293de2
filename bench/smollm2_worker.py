"""One engine with a real model, in its own process: `python -m bench.smollm2_worker WHO PATH`.

It answers JSON lines: {"do": "prefill", "tokens": 1024}, {"do": "decode", "at_once": 8, "prompt": 32, "new": 64}
(`known`: the prompts stand in the cache already), {"do": "answers", "prompts": [...], "new": 64}, {"do": "memory"},
{"do": "peak", "model": FOLDER, "format": "int8"} (GFLOP/s of the best product in that format, in this process).
A number of seconds comes with `others`, the share of the machine that other processes used meanwhile.
"""

from __future__ import annotations

import sys
from pathlib import Path

from demeanor.core import hardware

THREADS = int(__import__("os").environ.get("OMP_NUM_THREADS") or 2)
if __name__ == "__main__" and sys.argv[1].startswith("demeanor"):
    hardware.prepare(THREADS)  # before torch; the peers keep the process as they find it

import ctypes
import json
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from bench.peaks import peak

MOST, LONGEST = 32, 4096  # requests at once; tokens of a prompt
ROOM = 1024 + 128  # tokens of each sequence where there are many
FIRST, LAST = 100, 49_000  # random prompts use these tokens, all of them text


class Engine(Protocol):
    """What is timed: every method returns the new tokens of each prompt."""

    def generate(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        """Read the prompts and decode greedily; nothing ends an answer."""

    def know(self, prompts: list[list[int]]) -> Callable[[int], list[list[int]]]:
        """Read the prompts; return what decodes so many tokens after them."""


def prompts(count: int, length: int, seed: int) -> list[list[int]]:
    """Random tokens, others for every seed."""
    rng = random.Random(1_000_003 * seed + 1009 * count + length)
    return [[rng.randrange(FIRST, LAST) for _ in range(length)] for _ in range(count)]


def cache_of(folder: Path, *, narrow: bool = False) -> Any:
    """The format in which a stack with this base keeps keys and values unless it says otherwise; `narrow`: it has `compute: bf16`."""
    from demeanor.engine.placement import imported
    from demeanor.stack.schema import Import, WeightsSpec

    spec = WeightsSpec(base=Import(kind="import", path=str(folder.resolve())))
    return "bf16" if narrow or imported(spec, Path()) == "rounded" else "fp32"


class Ours:
    """LocalEngine, as `demeanor serve` uses it."""

    cached = 0  # tokens of the last prompts that were known

    def __init__(self, folder: Path, narrow: bool = False) -> None:
        import inspect

        from demeanor.engine.local import LocalEngine
        from demeanor.model import checkpoints
        from demeanor.text import tokenizer

        self.engine = LocalEngine(
            checkpoints.serving(folder),
            tokenizer.load(folder),
            num_slots=MOST,
            max_context=LONGEST + 256,
            cache_format=cache_of(folder, narrow=narrow),
            **(
                {"compute": "bf16"}
                if narrow and "compute" in inspect.signature(LocalEngine).parameters
                else {}
            ),
        )

    def generate(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        from demeanor.core.types import Decoding
        from demeanor.engine.local import Request

        decoding = Decoding(temperature=0, max_tokens=new)
        pieces = self.engine.generate([Request(tuple(x), decoding) for x in prompts])
        self.cached = sum(row[0].cached for row in pieces)
        return [[p.token for p in row] for row in pieces]

    def know(self, prompts: list[list[int]]) -> Callable[[int], list[list[int]]]:
        self.generate(prompts, 1)
        return lambda new: self.generate(prompts, new)


class Transformers:
    """A plain loop over the model's forward: cheaper than `generate`, which adds its own checks to every step."""

    def __init__(self, folder: Path, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(THREADS)
        self._model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        ).eval()
        self.gaps: list[list[float]] = []

    def _forward(self, ids: Any, cache: Any) -> Any:
        return self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]

    def generate(self, prompts: list[list[int]], new: int, *, gaps: bool = False) -> list[list[int]]:
        import torch
        from transformers import DynamicCache

        with torch.inference_mode():
            cache = DynamicCache(config=self._model.config)
            logits = self._forward(torch.tensor(prompts), cache)
            return self._decode(logits, cache, new, gaps)

    def _decode(self, logits: Any, cache: Any, new: int, gaps: bool = False) -> list[list[int]]:
        import torch

        found, self.gaps = [], []
        for i in range(new):
            if gaps:
                best = logits.float().topk(2).values
                self.gaps.append((best[:, 0] - best[:, 1]).tolist())
            found.append(logits.argmax(-1))
            if i + 1 < new:
                logits = self._forward(found[-1][:, None], cache)
        return torch.stack(found, 1).tolist()

    def know(self, prompts: list[list[int]]) -> Callable[[int], list[list[int]]]:
        import torch
        from transformers import DynamicCache

        cache = DynamicCache(config=self._model.config)
        with torch.inference_mode():
            logits = [self._forward(torch.tensor(prompts), cache)]

        def decode(new: int) -> list[list[int]]:
            with torch.inference_mode():
                found = self._decode(logits[0], cache, new)
                cache.crop(1 - new)  # the tokens that were fed
                return found

        return decode


class Wheel:
    """llama.cpp's server engine of the wheel `xllamacpp`, called in the process: no HTTP."""

    def __init__(self, path: Path) -> None:
        self._path, self._shape, self._server = path, (0, 0), None

    def _ready(self, slots: int, room: int) -> Any:
        """The server with so many slots: llama.cpp divides its context among them."""
        import xllamacpp

        if self._shape != (slots, room):
            self._server = None
            p = xllamacpp.CommonParams()
            p.model.path = str(self._path)
            p.n_parallel, p.n_ctx = slots, slots * room
            p.cpuparams.n_threads = p.cpuparams_batch.n_threads = THREADS
            p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
            p.n_gpu_layers, p.fit_params, p.cache_ram_mib, p.verbosity = 0, False, 0, -1
            self._server, self._shape = xllamacpp.Server(p), (slots, room)
            self._ask([FIRST] * 8, 4, False)
        return self._server

    def _ask(self, prompt: list[int], new: int, known: bool) -> list[int]:
        found = self._server.handle_completions(  # type: ignore[attr-defined]
            {
                "prompt": prompt,
                "n_predict": new,
                "temperature": 0,
                "samplers": [],
                "ignore_eos": True,
                "cache_prompt": known,
            }
        )
        return [-1] * int(found["usage"]["completion_tokens"])  # it returns text; only their number is used

    def _all(self, prompts: list[list[int]], new: int, known: bool) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in prompts]

        def one(i: int) -> None:
            found[i] = self._ask(prompts[i], new, known)

        threads = [threading.Thread(target=one, args=(i,)) for i in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def generate(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        self._ready(len(prompts), LONGEST + 256 if len(prompts) == 1 else ROOM)
        return self._all(prompts, new, False)

    def know(self, prompts: list[list[int]]) -> Callable[[int], list[list[int]]]:
        self._ready(len(prompts), LONGEST + 256 if len(prompts) == 1 else ROOM)
        self._all(prompts, 1, True)
        return lambda new: self._all(prompts, new, True)


class Native:
    """llama.cpp compiled for this CPU (`llama-cpp-python` from source), its C functions called directly."""

    def __init__(self, path: Path) -> None:
        import llama_cpp as ll

        self._ll, self._shape, self._context = ll, (0, 0), None
        quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
        self._quiet = quiet
        ll.llama_log_set(quiet, None)
        ll.llama_backend_init()
        self._model = ll.llama_model_load_from_file(str(path).encode(), ll.llama_model_default_params())
        self._vocabulary = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self._model))

    def _ready(self, slots: int, room: int) -> Any:
        ll = self._ll
        if self._shape != (slots, room):
            if self._context:
                ll.llama_free(self._context)
                ll.llama_batch_free(self._batch)
            p = ll.llama_context_default_params()
            p.n_ctx, p.n_batch, p.n_ubatch, p.n_seq_max = slots * room, 2048, 512, slots
            p.n_threads = p.n_threads_batch = THREADS
            p.flash_attn_type, p.kv_unified = 1, False
            self._context = ll.llama_init_from_model(self._model, p)
            self._batch, self._shape = ll.llama_batch_init(2048, 0, 1), (slots, room)
        return self._context

    def _feed(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Decode rows (token, position, sequence, read), 2,048 at a time; the best tokens of those read."""
        import numpy

        ll, batch, best = self._ll, self._batch, []
        for start in range(0, len(rows), 2048):
            part = rows[start : start + 2048]
            batch.n_tokens = len(part)
            for i, (token, position, sequence, read) in enumerate(part):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
                batch.seq_id[i][0], batch.logits[i] = sequence, read
            if ll.llama_decode(self._context, batch):
                raise SystemExit("llama_decode failed")
            for i, row in enumerate(part):
                if row[3]:
                    logits = ll.llama_get_logits_ith(self._context, i)
                    best.append(
                        int(numpy.argmax(numpy.ctypeslib.as_array(logits, shape=(self._vocabulary,))))
                    )
        return best

    def _forget(self, start: int) -> None:
        memory = self._ll.llama_get_memory(self._context)
        for sequence in range(self._shape[0]):
            self._ll.llama_memory_seq_rm(memory, sequence, start, -1)

    def _read(self, prompts: list[list[int]]) -> list[int]:
        self._ready(len(prompts), LONGEST + 256 if len(prompts) == 1 else ROOM)
        self._forget(0)
        return self._feed(
            [(t, i, s, i == len(x) - 1) for s, x in enumerate(prompts) for i, t in enumerate(x)]
        )

    def _decode(self, best: list[int], position: int, new: int) -> list[list[int]]:
        found = [best]
        for i in range(new - 1):
            found.append(self._feed([(t, position + i, s, True) for s, t in enumerate(found[-1])]))
        return [list(x) for x in zip(*found)]

    def generate(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        return self._decode(self._read(prompts), len(prompts[0]), new)

    def know(self, prompts: list[list[int]]) -> Callable[[int], list[list[int]]]:
        best, length = self._read(prompts), len(prompts[0])

        def decode(new: int) -> list[list[int]]:
            self._forget(length)
            return self._decode(best, length, new)

        return decode


def engine(who: str, path: Path) -> Any:
    """The engine of a name."""
    if who.startswith("demeanor"):
        return Ours(path, narrow=who.endswith("bf16"))
    if who.startswith("transformers"):
        return Transformers(path, "float32" if who.endswith("fp32") else "bfloat16")
    return Native(path) if who.startswith("llama.cpp native") else Wheel(path)


def used() -> tuple[float, float, float]:
    """Seconds: of the clock, of this process on all cores, and of everything on all cores."""
    busy = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
    own = os.times()
    ticks = os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), own.user + own.system, (sum(busy) - busy[3] - busy[4]) / ticks


def timed(run: Callable[[], Any]) -> dict[str, Any]:
    """Seconds of a call, and the share of the machine that others used."""
    before = used()
    run()
    clock, own, all_ = (b - a for a, b in zip(before, used()))
    others = max(0.0, all_ - own) / clock / (os.cpu_count() or 1)
    return {"seconds": clock, "others": round(others, 3)}


def memory() -> dict[str, float]:
    """MB of this process: resident now and at its peak, and resident without pages of files."""
    lines = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line
    )
    return {k: int(lines[k].split()[0]) / 1024 for k in ("VmRSS", "VmHWM", "RssAnon")}


def answer(made: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """Do what one line asks."""
    if asked["do"] == "memory":
        return memory()
    if asked["do"] == "peak":
        return peak(Path(asked["model"]), asked["format"], made.engine if isinstance(made, Ours) else None)
    if asked["do"] == "prefill":
        rows = prompts(1, asked["tokens"], asked["seed"])
        made.generate(prompts(1, 16, asked["seed"]), 1)  # the context of this shape
        return unknown(made, rows, timed(lambda: made.generate(rows, 1)))
    if asked["do"] == "answers":
        found, gaps = [], []
        for prompt in asked["prompts"]:
            if isinstance(made, Transformers):
                found += made.generate([prompt], asked["new"], gaps=True)
                gaps.append([g[0] for g in made.gaps])
            else:
                found += made.generate([prompt], asked["new"])
        return {"answers": found, "gaps": gaps}
    rows = prompts(asked["at_once"], asked["prompt"], asked["seed"])
    if asked.get("known"):
        decode = made.know(rows)
        return timed(lambda: decode(asked["new"]))
    made.generate(prompts(asked["at_once"], 8, asked["seed"]), 2)  # the context of this shape
    return unknown(made, rows, timed(lambda: made.generate(rows, asked["new"])))


def unknown(made: Any, rows: list[list[int]], told: dict[str, Any]) -> dict[str, Any]:
    """What was timed, if the prompts were read; raises RuntimeError if our engine knew more of them than chance gives: among many prompts
    some begin with the same token."""
    known, asked = getattr(made, "cached", 0), sum(map(len, rows))
    if known > 8 + asked / 50:
        raise RuntimeError(
            f"{known} of {asked} tokens of the prompts were in the cache: this is no measurement"
        )
    return told


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    if not sys.argv[1].startswith("llama.cpp"):
        import torch

        torch.set_num_threads(THREADS)
        if sys.argv[1].startswith("transformers"):
            import transformers

            transformers.logging.set_verbosity_error()
    base = memory()
    made = engine(sys.argv[1], Path(sys.argv[2]))
    made.generate([[FIRST] * 8], 2)
    print("@" + json.dumps({"base": base, "loaded": memory()}), flush=True)
    for line in sys.stdin:
        if line.strip() == "stop":
            break
        print("@" + json.dumps(answer(made, json.loads(line))), flush=True)
    os._exit(0)  # llama.cpp's server threads do not end by themselves


if __name__ == "__main__":
    main()
