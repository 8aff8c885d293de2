"""Imported weights as they lie on the disk: what a folder or file lacks, before anything is loaded.

In: the path that a stack names. Out: problems with their place in the stack, or what kind of weights it holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demeanor.core.errors import Problem
from demeanor.core.files import left_behind, names_gguf
from demeanor.stack.schema import AnyStage, ImportStage, Stage


def too_long(stages: Sequence[AnyStage], folder: Path, where: str) -> list[Problem]:
    """Check that no stage has rows longer than the context that an imported base declares."""
    config = _json(folder / "config.json")
    inner = config.get("text_config")
    context = config.get("max_position_embeddings") or (inner or {}).get("max_position_embeddings")
    if not isinstance(context, int):
        return []
    return [
        Problem(
            f"{where}: weights.stages[{i}].max_tokens",
            f"got {stage.max_tokens}, wanted at most {context}, the context of {folder}; leave it out for that",
        )
        for i, stage in enumerate(stages)
        if isinstance(stage, Stage) and (stage.max_tokens or 0) > context
    ]


def imported(stage: ImportStage, root: Path, here: str) -> list[Problem]:
    """Check an imported stage's folder (a tokenizer is not needed) and that it is what `reward` says."""
    problems = checkpoint(stage.path, root, f"{here}.path", needs=())
    if problems or not (root / stage.path).is_dir():
        return problems
    if is_reward_folder(root / stage.path) != stage.reward:
        got = "a policy" if stage.reward else "a reward model (sequence classification)"
        return [
            Problem(f"{here}.reward", f"got {str(stage.reward).lower()}, but {root / stage.path} holds {got}")
        ]
    return []


def checkpoint(
    path: str, root: Path, where: str, needs: Sequence[str] = ("tokenizer.json",)
) -> list[Problem]:
    """Check that a folder has the files of a model (those in `needs` too), or that a GGUF file is one."""
    folder = root / path
    if names_gguf(folder):
        return _gguf(folder, where)
    if folder.is_dir():
        config = "adapter_config.json" if (folder / "adapter_config.json").is_file() else "config.json"
        wanted = [n for n in (config, *needs) if not (folder / n).is_file()]
        weights = list(folder.glob("*.safetensors"))
        if not weights:
            wanted.append("a .safetensors file")
        what = f"{folder} is not a Hugging Face checkpoint: it lacks {', '.join(wanted)}{_way_out(folder)}"
        return [Problem(where, what)] if wanted else []
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", path) and not path.startswith((".", "/"))
    if is_hub_id and not folder.parent.is_dir():
        return []
    hint = "wanted a Hugging Face folder, a .gguf file, or a hub id such as Qwen/Qwen3-0.6B@main"
    return [Problem(where, f"no such folder: {folder}; {hint}")]


LOAD = "from_pretrained"  # only text here: nothing is loaded
SAVE = f"AutoModelForCausalLM.{LOAD}({{0!r}}).save_pretrained({{1!r}})"


def _way_out(folder: Path) -> str:
    """What to do about a folder that lacks files, by what it has instead."""
    files = sorted(folder.glob("*.gguf"))
    if files:
        return f". It holds {files[0].name}: name that file, {files[0]}"
    said, new = "", str(folder) + "-safetensors"
    if not any(folder.glob("*.safetensors")) and [*folder.glob("*.bin"), *folder.glob("*.pt")]:
        said += (
            ". Pickled weights (.bin, .pt) are not loaded, since reading them can run code. If you trust them: python -c "
            f'"from transformers import AutoModelForCausalLM; {SAVE.format(str(folder), new)}", then copy its tokenizer '
            f"files there and name {new}"
        )
    if not (folder / "tokenizer.json").is_file() and (folder / "tokenizer.model").is_file():
        said += (
            '. Its tokenizer.model has no fast form yet: python -c "from transformers import AutoTokenizer; '
            f'AutoTokenizer.{LOAD}({str(folder)!r}).save_pretrained({str(folder)!r})" writes tokenizer.json'
        )
    return said


def _gguf(path: Path, where: str) -> list[Problem]:
    """Check that a GGUF file is there and begins as one; its header is read when it is used."""
    try:
        with path.open("rb") as file:
            first = file.read(4)
    except OSError as error:
        return [Problem(where, f"{path} cannot be read ({error.strerror}); wanted a GGUF file")]
    if first == b"GGUF":
        return []
    what = left_behind(path) or ("; name its folder" if path.suffix == ".safetensors" else "")
    return [Problem(where, f"{path} is not a GGUF file: it begins with {first!r}, wanted b'GGUF'{what}")]


def is_reward_folder(folder: Path) -> bool:
    """True if a Hugging Face or PEFT folder is a sequence classifier and not a language model."""
    adapter = _json(folder / "adapter_config.json")
    names = (
        [adapter.get("task_type")] if adapter else _json(folder / "config.json").get("architectures") or ()
    )
    return any(str(name) == "SEQ_CLS" or str(name).endswith("ForSequenceClassification") for name in names)


def adapter_base(folder: Path) -> str | None:
    """Return the base weights that a PEFT folder names; None for a folder of whole weights."""
    name = _json(folder / "adapter_config.json").get("base_model_name_or_path")
    return str(name) if name else None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
