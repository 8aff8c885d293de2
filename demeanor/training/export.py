"""Export of the served weights as a Hugging Face folder, a GGUF file or an ONNX Runtime GenAI model, and its check.

In: a Stack with trained weights. Out: a new folder; a comparison of prompts (our chat template against the other
program's) and of greedy answers, token by token, on the stack's suites. It never writes into a folder that has
files.
"""

from __future__ import annotations

import glob
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch

from demeanor.core import files
from demeanor.core.errors import CheckpointError, DemeanorError, UsageError
from demeanor.core.types import Item, Message
from demeanor.model import adapter_folding, checkpoints
from demeanor.model.hf import LOCAL
from demeanor.model.llama import Llama
from demeanor.model.stored import ADAPTER, is_adapter
from demeanor.stack.schema import Import
from demeanor.stack.stack import Stack
from demeanor.text import tokenizer as tokenizers
from demeanor.text.template import load_template
from demeanor.training import export_gguf, ollama
from demeanor.training.runs import Runs, weights_folder

Target: TypeAlias = Literal["hf", "onnx", "gguf"]
Dtype: TypeAlias = Literal["fp32", "bf16", "fp16", "q8_0", "q4_0"]
WRITTEN: dict[Target, tuple[Dtype, ...]] = {
    "hf": ("fp32", "bf16", "fp16"),
    "onnx": ("fp32", "bf16", "fp16"),
    "gguf": ("fp32", "bf16", "fp16", "q8_0", "q4_0"),
}
LOCK = "demeanor-export.lock"
"""Held in the hidden folder beside the target while an export writes there."""
Generate: TypeAlias = Callable[[list[int]], list[int]]
"""Prompt tokens in, new tokens out, greedily."""

BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)


@dataclass(frozen=True, slots=True)
class ExportDifference:
    """One item on which the export and our engine differ: the prompt or answer of each."""

    item: str
    ours: str
    theirs: str


@dataclass(frozen=True, slots=True)
class ExportCheck:
    """Number of items compared, the prompts that differ and the answers that differ."""

    items: int
    prompts: tuple[ExportDifference, ...]
    answers: tuple[ExportDifference, ...]

    @property
    def equal(self) -> bool:
        return not self.prompts and not self.answers


def export(
    stack: Stack, runs: Runs, out: Path, *, target: Target, dtype: Dtype, texts: Sequence[str] = ()
) -> Path:
    """Write the served weights, adapters merged, to `out`.

    `texts`: some that a GGUF file's tokenizer must read as ours does, besides our own. Raises UsageError or
    CheckpointError before any work if it cannot.
    """
    if dtype not in WRITTEN[target]:
        raise UsageError(f"--dtype {dtype}: --to {target} is written in {', '.join(WRITTEN[target])}")
    _empty(out)
    if target == "onnx":
        _need_onnx()
    source = weights_folder(stack, runs, stack.serve)
    with _scratch(out) as scratch:
        whole = scratch / "hf"
        whole.mkdir()
        model = checkpoints.exported(source, keep_groups=dtype in export_gguf.ROUNDED)
        if target == "gguf":
            _gguf(stack, source, model, whole, dtype, texts)
            return _moved(whole, out)
        wide = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
        if isinstance(model, Llama):
            checkpoints.save(model, whole, wide, shard_bytes=checkpoints.SHARD_BYTES)
        else:
            checkpoints.save_checkpoint(model.to(wide), whole)
        _beside(stack, source, whole)
        return _moved(whole if target == "hf" else _onnx(whole, scratch, dtype), out)


def _beside(stack: Stack, source: Path, folder: Path) -> None:
    """Write what a server needs beside the weights: tokenizer, the stack's template, the tokens that end an answer.

    transformers and vLLM read the ends from generation_config.json, other programs from config.json.
    """
    for name in BESIDE:
        if (source / name).is_file():
            shutil.copy(source / name, folder / name)
    tokenizer = tokenizers.load(source)
    template = load_template(stack.template, tokenizer, folder=source, root=stack.root)
    (folder / "chat_template.jinja").unlink(missing_ok=True)  # it would hide the one that is written here
    tokenizer.save(folder, chat_template=template.jinja)
    ends = sorted({tokenizer.eos_id, *template.stop_tokens})
    padding = tokenizer.special.get(str(tokenizer.padding(ends)), tokenizer.eos_id)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends, "pad_token_id": padding}
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        written = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        kept = {k: v for k, v in written.items() if k != "pad_token_id" or v is not None}
        files.write_json(path, {**ids, **kept, "eos_token_id": ends}, indent=2)


def export_adapter(stack: Stack, runs: Runs, out: Path, *, base: str | None = None) -> Path:
    """Write the served weights' adapters as one PEFT folder on `base` (null: the base's hub id or absolute folder).

    Raises CheckpointError before any work if the weights are whole, or are on a GGUF file and `base` is not given.
    """
    _empty(out)
    source = weights_folder(stack, runs, stack.serve)
    whole, chain = adapter_folding.chain(source)
    if base is None:
        own = stack.spec.weights.base
        is_base = isinstance(own, Import) and whole == weights_folder(stack, runs, "base")
        is_hub_id = isinstance(own, Import) and is_base and not (stack.root / own.path).exists()
        base = own.path.partition("@")[0] if isinstance(own, Import) and is_hub_id else str(whole.resolve())
        if not any(whole.glob("*.safetensors")):
            raise CheckpointError(
                f"--adapter: its base is a GGUF file ({stack.root / own.path if isinstance(own, Import) else whole}), "
                "which PEFT cannot load; name the Hugging Face weights that the file was made from: --base OWNER/NAME"
            )
    elif Path(base).is_dir():
        base = str(Path(base).resolve())  # PEFT looks from where it runs
    one = adapter_folding.folded(chain, source)
    with _scratch(out) as scratch:
        folder = scratch / "adapter"
        adapter_folding.write(one, folder, base=base)
        for name in BESIDE:
            if (source / name).is_file():
                shutil.copy(source / name, folder / name)
        return _moved(folder, out)


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write in, deleted at the end; one that a killed export left there is deleted first."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{glob.escape(out.name)}.*"):
        with suppress(DemeanorError, OSError):  # it is in use
            if (left / LOCK).is_file():
                files.lock(left / LOCK, left, "export").close()
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as made:
        held = files.lock(Path(made) / LOCK, Path(made), "export")
        try:
            yield Path(made)
        finally:
            held.close()


def _empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out}: exists and is not empty; name a new folder, or empty it")


def _moved(made: Path, out: Path) -> Path:
    """Give a finished folder its name."""
    if out.exists():
        out.rmdir()
    return made.rename(out)


def _gguf(
    stack: Stack, source: Path, model: object, folder: Path, dtype: Dtype, texts: Sequence[str]
) -> None:
    """Write the GGUF file and its Modelfile."""
    tokenizer = tokenizers.load(source)
    template = load_template(stack.template, tokenizer, folder=source, root=stack.root)
    name = f"{stack.spec.name}-{stack.serve}-{export_gguf.FORMATS[dtype]}"
    about = export_gguf.settings(model, tokenizer, template, name=name, dtype=dtype, texts=texts)
    assert isinstance(model, Llama), "settings refuses every other one"
    export_gguf.write(folder / f"{name}.gguf", model, about, dtype)
    context = model.config.max_position_embeddings
    text = ollama.modelfile(stack, f"{name}.gguf", template, tokenizer, context)
    (folder / "Modelfile").write_text(text, encoding="utf-8")


class GreedyAnswers(NamedTuple):
    """Our engine's prompts and greedy answers as tokens, and the settings that made them."""

    prompts: list[list[int]]
    answers: list[list[int]]
    max_tokens: int
    stop_tokens: frozenset[int]
    decode: Callable[[list[int]], str]


def compare(items: Sequence[Item], ours: GreedyAnswers, out: Path, *, target: Target) -> ExportCheck:
    """Let the export answer the items greedily, and compare its prompts and answers token by token."""
    if target == "gguf":
        path, longest = export_gguf.file_of(out), max(map(len, ours.prompts)) + ours.max_tokens
        with export_gguf.llama_cpp(
            path, room=ours.max_tokens, stops=ours.stop_tokens, context=longest
        ) as theirs:
            prompts = [theirs.prompt(item.messages) for item in items]
            answers = [theirs.answer(prompt) for prompt in ours.prompts]
        return _compared(items, ours, prompts, answers)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out, **LOCAL)
    prompts = [_rendered(tokenizer, item) for item in items]
    load = _genai if target == "onnx" else _transformers
    generate = load(out, ours.max_tokens, ours.stop_tokens)
    return _compared(items, ours, prompts, [generate(prompt) for prompt in ours.prompts])


def _compared(
    items: Sequence[Item], ours: GreedyAnswers, prompts: list[list[int]], answers: list[list[int]]
) -> ExportCheck:
    """The prompts and answers of another program against ours."""

    def differences(here: list[list[int]], there: list[list[int]]) -> tuple[ExportDifference, ...]:
        pairs = zip(items, here, there, strict=True)
        return tuple(
            ExportDifference(item.id, ours.decode(a), ours.decode([t for t in b if t >= 0]))
            for item, a, b in pairs
            if a != b
        )

    return ExportCheck(len(items), differences(ours.prompts, prompts), differences(ours.answers, answers))


def _rendered(tokenizer: Any, item: Item) -> list[int]:
    """The prompt as the chat template and tokenizer of transformers make it."""
    text = tokenizer.apply_chat_template(
        [_said(m) for m in item.messages], add_generation_prompt=True, tokenize=False
    )
    return [int(t) for t in tokenizer(text, add_special_tokens=False)["input_ids"]]


def _said(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.content}


def _transformers(folder: Path, room: int, stops: frozenset[int]) -> Generate:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model: Any
    if is_adapter(folder):
        from peft import PeftModel  # type: ignore[import-not-found,unused-ignore]

        base = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
        whole = AutoModelForCausalLM.from_pretrained(base, use_safetensors=True, **LOCAL)
        model = PeftModel.from_pretrained(whole, folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **LOCAL)
    model.eval()

    def generate(prompt: list[int]) -> list[int]:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            found = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=room,
                do_sample=False,
                eos_token_id=sorted(stops),
                pad_token_id=min(stops),
            )
        return [int(t) for t in found[0, len(prompt) :]]

    return generate


def _need_onnx() -> None:
    missing = [
        name for name in ("onnxruntime_genai", "onnx", "onnx_ir") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise DemeanorError(
            f"--to onnx: {', '.join(missing)} not installed; pip install onnxruntime-genai onnx onnx-ir"
        )


def _onnx(whole: Path, scratch: Path, dtype: str) -> Path:
    """Build the model offline with onnxruntime_genai's builder; tokenizer and template are copied."""
    made = scratch / "onnx"
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "onnxruntime_genai.models.builder",
            "-i",
            str(whole),
            "-o",
            str(made),
            "-p",
            dtype,
            "-e",
            "cpu",
            "-c",
            str(scratch / "cache"),
        ],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,  # it has a question about code of a checkpoint
    )
    if ran.returncode:
        raise CheckpointError(
            f"onnxruntime_genai's builder failed: {(ran.stderr.strip() or ran.stdout.strip())[-300:]}"
        )
    for name in (*BESIDE, "config.json"):
        if (whole / name).is_file() and not (made / name).is_file():
            shutil.copy(whole / name, made / name)
    return made


def _genai(folder: Path, room: int, stops: frozenset[int]) -> Generate:
    import numpy as np
    import onnxruntime_genai as og  # type: ignore[import-not-found,unused-ignore]

    model = og.Model(str(folder))

    def generate(prompt: list[int]) -> list[int]:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(prompt) + room, do_sample=False)
        generator = og.Generator(model, params)
        generator.append_tokens(np.array([prompt], dtype=np.int32))
        found: list[int] = []
        while not generator.is_done() and len(found) < room:
            generator.generate_next_token()
            found.append(int(generator.get_next_tokens()[0]))
            if found[-1] in stops:
                break
        return found

    return generate


def report(comparison: ExportCheck, target: Target = "hf", shown: int = 3) -> Sequence[str]:
    """Lines about what was compared, and the first differences."""
    n, whose = comparison.items, "llama.cpp's" if target == "gguf" else "transformers'"
    found = [
        f"{n} items of the stack's suites, greedy, without runtime layers",
        f"  prompts identical to {whose} template and tokenizer: {n - len(comparison.prompts)} of {n}",
        f"  answers identical token for token: {n - len(comparison.answers)} of {n}",
    ]
    for what, differences in (("prompt", comparison.prompts), ("answer", comparison.answers)):
        for d in differences[:shown]:
            found.append(
                f"  {what} of {d.item}: ours {json.dumps(d.ours[-120:], ensure_ascii=False)}, "
                f"export's {json.dumps(d.theirs[-120:], ensure_ascii=False)}"
            )
    return found
