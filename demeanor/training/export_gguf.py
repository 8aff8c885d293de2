"""Export as one GGUF file for llama.cpp, with an Ollama Modelfile beside it; and llama.cpp as the judge of it.

In: a policy with its tokenizer and template. Out: NAME.gguf and Modelfile in a folder; prompts and greedy answers
of llama.cpp (the package xllamacpp), as tokens. It writes no file that llama.cpp would read differently.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from demeanor.core.errors import CheckpointError, DemeanorError
from demeanor.core.types import Message
from demeanor.model import gguf, gguf_llama
from demeanor.model.gguf import Typed
from demeanor.model.grouped_modules import matrices
from demeanor.model.llama import Llama
from demeanor.text import gguf_writing
from demeanor.text.template import Template
from demeanor.text.tokenizer import Tokenizer

FORMATS = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
ROUNDED = ("q8_0", "q4_0")
INSTALL = "pip install 'demeanor[gguf]'"


def settings(
    model: object, tokenizer: Tokenizer, template: Template, *, name: str, dtype: str, texts: Sequence[str]
) -> dict[str, Any]:
    """Return everything of the file but its tensors.

    Raises CheckpointError for what GGUF or llama.cpp cannot hold: another architecture, values beyond fp16, a
    text that llama.cpp would read as other tokens.
    """
    if not isinstance(model, Llama):
        raise CheckpointError("--to gguf: this architecture is not written here; export it as hf")
    large = gguf_llama.unfit({**model.state_dict(), **matrices(model)}) if dtype == "fp16" else None
    if large:
        raise CheckpointError(f"--to gguf --dtype fp16: {large} has values beyond 65504; use bf16 or fp32")
    config = model.config
    words = gguf_writing.settings(
        tokenizer,
        config.vocab_size,
        template.stop_tokens or {tokenizer.eos_id},
        chat_template=template.jinja,
        texts=texts,
    )
    lists = {"tokenizer.ggml.token_type": "i", "tokenizer.ggml.scores": "f"}
    typed = {
        key: Typed(lists[key], value) if key in lists else Typed("I", value) if type(value) is int else value
        for key, value in words.items()
    }
    return {**gguf_llama.settings(config, name, FORMATS[dtype]), **typed}


def write(path: Path, model: Llama, about: dict[str, Any], dtype: str) -> None:
    """Write the file with the settings that `settings` returned."""
    gguf.write(path, about, gguf_llama.tensors(model, FORMATS[dtype]))


def file_of(folder: Path) -> Path:
    """Return the GGUF file of an exported folder; raises CheckpointError if it has none."""
    found = sorted(folder.glob("*.gguf"))
    if len(found) != 1:
        raise CheckpointError(f"{folder}: holds {len(found)} .gguf files, wanted one")
    return found[0]


# ---- llama.cpp ----


def runnable() -> bool:
    """True if llama.cpp can be run here."""
    return importlib.util.find_spec("xllamacpp") is not None


class LlamaCpp(NamedTuple):
    """llama.cpp on a file: prompts of conversations, tokens of texts, and greedy answers, all as tokens."""

    prompt: Callable[[Sequence[Message]], list[int]]
    tokens: Callable[[str], list[int]]
    answer: Callable[[list[int]], list[int]]


@contextmanager
def llama_cpp(path: Path, *, room: int, stops: Collection[int], context: int) -> Iterator[LlamaCpp]:
    """Run llama.cpp's server on a file in this process, with fp32 keys and values.

    An answer has at most `room` tokens, and ends with one of `stops` as ours does.
    """
    if not runnable():
        raise DemeanorError(f"{path}: llama.cpp is not installed here; {INSTALL}")
    import xllamacpp  # type: ignore[import-not-found,unused-ignore]

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = context, 1, False, 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.use_jinja = True
    server = xllamacpp.Server(params)
    with httpx.Client(base_url=server.listening_address, timeout=600) as client:

        def post(address: str, **body: Any) -> Any:
            found = client.post(address, json=body)
            if found.status_code != 200:
                raise CheckpointError(f"{path}: llama.cpp answered {found.status_code}: {found.text[:300]}")
            return found.json()

        def tokens(text: str, special: bool = False) -> list[int]:
            found = post("/tokenize", content=text, parse_special=special, add_special=special)
            return [int(t) for t in found["tokens"]]

        def prompt(messages: Sequence[Message]) -> list[int]:
            said = [{"role": m.role, "content": m.content} for m in messages]
            return tokens(post("/apply-template", messages=said)["prompt"], special=True)

        def answer(given: list[int]) -> list[int]:
            found = post(
                "/completion",
                prompt=given,
                n_predict=room,
                temperature=0,
                return_tokens=True,
                cache_prompt=False,
            )
            made = [int(t) for t in found["tokens"]]
            ended = found["stop_type"] == "eos" and not (made and made[-1] in stops)
            return [*made, -1] if ended else made

        yield LlamaCpp(prompt, tokens, answer)
    del server
