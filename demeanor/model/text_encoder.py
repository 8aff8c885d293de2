"""Text encoders for retrieval: a BERT-family model through transformers, or static vectors.

In: a folder or a hub id, texts. Out: one vector of length 1 for each text. A folder holds what transformers loads
(pooling, lengths and prompts as sentence-transformers writes them beside it), or static vectors (model2vec,
WordLlama): one table and one tokenizer. No code of a folder runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demeanor.core.errors import CheckpointError, DemeanorError

BATCH = 32


def load_encoder(name: str, root: Path) -> TransformersEncoder | StaticEncoder:
    """Return an encoder by its folder (from `root`) or hub id; raises DemeanorError that says what is wrong."""
    folder = root / name
    if not folder.is_dir():
        if folder.exists() or name.count("/") != 1 or name.startswith((".", "/")):
            raise DemeanorError(
                f"encoder: no such folder: {folder}; wanted a folder, owner/name or http://host/v1#model"
            )
        return TransformersEncoder(name)
    if not (folder / "config.json").exists() or _is_static(folder):
        return StaticEncoder(folder)
    return TransformersEncoder(folder)


def _is_static(folder: Path) -> bool:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return bool(config.get("model_type") == "model2vec")


def _unit(vectors: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = (vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-12)).numpy()
    return found


class TransformersEncoder:
    """A BERT-family model through transformers; mean or first-token pooling."""

    def __init__(self, source: Path | str) -> None:
        from transformers import AutoModel, AutoTokenizer

        self._folder = source if isinstance(source, Path) else None
        try:
            options: dict[str, Any] = {"trust_remote_code": False}
            self._tokenizer = AutoTokenizer.from_pretrained(str(source), **options)
            self._model = (
                AutoModel.from_pretrained(str(source), use_safetensors=True, **options).eval().float()
            )
        except Exception as error:  # transformers raises whatever its files or the network make it raise
            raise CheckpointError(f"encoder {source}: cannot be loaded: {str(error)[:300]}") from None
        pooling, lengths, prompts = (
            self._beside(x)
            for x in (
                "1_Pooling/config.json",
                "sentence_bert_config.json",
                "config_sentence_transformers.json",
            )
        )
        self._first = bool(pooling.get("pooling_mode_cls_token"))
        most = int(getattr(self._model.config, "max_position_embeddings", 512))
        self._length = min(int(lengths.get("max_seq_length") or most), most)
        self._before = {True: "", False: ""}
        if isinstance(names := prompts.get("prompts"), dict):
            self._before = {
                True: str(names.get("query") or ""),
                False: str(names.get("document") or names.get("passage") or ""),
            }
        self.identity = (
            _folder_identity(self._folder)
            if self._folder
            else f"hub:{source}@{self._model.config._commit_hash}"
        )

    def _beside(self, name: str) -> dict[str, Any]:
        path = None if self._folder is None else self._folder / name
        if path is None or not path.exists():
            return {}
        found = json.loads(path.read_text("utf-8"))
        return found if isinstance(found, dict) else {}

    def encode(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        rows = []
        with torch.inference_mode():
            for at in range(0, len(texts), BATCH):
                batch = self._tokenizer(
                    [self._before[query] + text for text in texts[at : at + BATCH]],
                    padding=True, truncation=True, max_length=self._length, return_tensors="pt",
                )  # fmt: skip
                hidden = self._model(**batch).last_hidden_state
                if self._first:
                    rows.append(hidden[:, 0])
                    continue
                mask = batch["attention_mask"][..., None].to(hidden.dtype)
                rows.append((hidden * mask).sum(1) / mask.sum(1).clamp_min(1))
        return _unit(torch.cat(rows).float())


class StaticEncoder:
    """A table of token vectors; a text is the mean of its tokens' vectors."""

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        tables = sorted(folder.glob("*.safetensors"))
        tokenizers = sorted(folder.glob("**/*tokenizer*.json"))
        tokenizers = [x for x in tokenizers if "config" not in x.name]
        if len(tables) != 1 or len(tokenizers) != 1:
            raise CheckpointError(
                f"encoder {folder}: found {len(tables)} .safetensors files and {len(tokenizers)} tokenizer files; wanted "
                "config.json of a transformers model, or one table of vectors and one tokenizer"
            )
        try:
            tensors = load_file(tables[0])
            self._tokenizer = Tokenizer.from_file(str(tokenizers[0]))
        except Exception as error:
            raise CheckpointError(f"encoder {folder}: cannot be loaded: {str(error)[:300]}") from None
        two = {name: x for name, x in tensors.items() if x.ndim == 2}
        if len(two) != 1:
            raise CheckpointError(
                f"encoder {folder}: {tables[0].name} has {len(two)} tables of vectors; wanted one"
            )
        self._table = next(iter(two.values())).float()
        if self._tokenizer.get_vocab_size() > len(self._table):
            raise CheckpointError(f"encoder {folder}: the tokenizer has more tokens than the table has rows")
        weights = tensors.get("weights")
        if weights is not None and weights.shape == (len(self._table),):
            self._table = self._table * weights[:, None].float()
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.identity = _folder_identity(folder)

    def encode(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        rows = []
        for found in self._tokenizer.encode_batch(list(texts), add_special_tokens=False):
            ids = torch.tensor(found.ids or [0])
            rows.append(self._table[ids].mean(0))
        return _unit(torch.stack(rows))


def _folder_identity(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (".safetensors", ".json", ".txt"):
            with path.open("rb") as file:
                total.update(
                    path.relative_to(folder).as_posix().encode()
                    + hashlib.file_digest(file, "sha256").digest()
                )
    return f"folder:{total.hexdigest()[:16]}"
