"""A GGUF file as a model folder: config, tokenizer and template from its header, its tensors in place.

In: a file. Out: a folder with config.json, tokenizer.json, tokenizer_config.json, generation_config.json, and a
link to the file, whose tensors `model/stored.py` reads. Nothing of the file is copied or rounded.
"""

from __future__ import annotations

import os
from pathlib import Path

from demeanor.core.errors import CheckpointError
from demeanor.core.files import write_json
from demeanor.model import checkpoints, gguf_llama
from demeanor.model.gguf_llama import FILE, GgufTensors
from demeanor.text import gguf_tokenizer

READER = 3
"""Which files this version would write; a folder of another one is written again. Count it up with every change."""


def write(source: Path, folder: Path) -> None:
    """Fill `folder`; raises CheckpointError if the file is damaged or cannot run here."""
    tensors = GgufTensors(source)
    config = gguf_llama.config(tensors.file)
    tokenizer, about = gguf_tokenizer.read(tensors.file.settings, source)
    stops = gguf_tokenizer.ends(tensors.file.settings)
    first = tensors.file.settings.get("tokenizer.ggml.bos_token_id")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config, indent=2)
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(folder / "tokenizer_config.json", about, indent=2)
    write_json(folder / "generation_config.json", {"bos_token_id": first, "eos_token_id": stops}, indent=2)
    link(source, folder)
    try:
        checkpoints.check(folder)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None


def link(source: Path, folder: Path) -> None:
    """Let the folder's link lead to `source`, which may have moved."""
    place, wanted = folder / FILE, source.resolve()
    if place.is_symlink() and Path(os.readlink(place)) == wanted:
        return
    part = place.with_name(f"{FILE}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(wanted)
    os.replace(part, place)
