"""A trained text classifier: hashed n-grams of words and characters, a logistic model, calibrated probabilities.

In: a folded text. Out: a probability for each label, and the parts of the text that have it. The file is safetensors with
JSON in its header and holds no text. Needs numpy only; time is linear in the text. `demeanor policy train` writes files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from demeanor.core.errors import DemeanorError
from demeanor.core.files import replacing
from demeanor.core.phone_numbers import Span
from demeanor.layers.policy.concepts import WEIGHT, digest, features
from demeanor.layers.policy.concepts import size as concepts_size
from demeanor.layers.policy.disguises import disguised

Floats: TypeAlias = npt.NDArray[np.float32]
Ints: TypeAlias = npt.NDArray[np.int64]
FORMAT = "demeanor-text-classifier-1"
CHARS = (3, 4, 5)  # lengths of character n-grams, within words and across their ends
WORDS = 3  # longest n-gram of words
WORD = re.compile(r"\w+")
SPACE = re.compile(r"[\W_]+")
LOOK_ALIKES = str.maketrans(
    "аеорсухіјѕԁһкмтвнАВЕКМНОРСТХІЈЅΑΒΕΗΙΚΜΝΟΡΤΥΧοανρτ",
    "aeopcyxijsdhkmtbhabekmhopctxijsabehikmnoptyxoavpt",
)
"""Cyrillic and Greek letters that look like Latin ones; mapped in words that also have Latin letters."""
MIXED = re.compile(r"\w*(?:[a-zA-Z]\w*[\u0370-\u052f]|[\u0370-\u052f]\w*[a-zA-Z])\w*")


def normal(text: str) -> str:
    """Return the text as n-grams read it: lower case, look-alike letters as Latin ones, one space between words."""
    if not text.isascii():
        text = MIXED.sub(lambda found: found[0].translate(LOOK_ALIKES), text)
    return f" {SPACE.sub(' ', text.lower()).strip()} "


def hashed(text: str, bits: int) -> Ints:
    """Return the buckets of all n-grams of a normalised text, each once: words first, then characters."""
    found = [_chars(text, n) * 2 for n in CHARS]
    words = np.array([_word(w) for w in WORD.findall(text)], dtype=np.uint64)
    found += [_mixed(words, n, salt=7 * n) * 2 + 1 for n in range(1, WORDS + 1)]
    each = np.unique(np.concatenate(found))
    return np.asarray(each % np.uint64(2**bits), dtype=np.int64)


def meant(text: str) -> Ints:
    """Return the features of the meanings in a text."""
    return _meant(text) if len(text) <= SHORT else features(WORD.findall(normal(text)))


@lru_cache(64)
def _meant(text: str) -> Ints:
    return features(WORD.findall(normal(text)))


SHORT = 4096  # characters of a text whose n-grams are remembered for the next classifier


@lru_cache(64)
def _known(text: str, bits: int) -> Ints:
    return hashed(normal(text), bits)


@lru_cache(2**16)
def _word(word: str) -> int:
    """Return a number of a word that is the same on every machine (FNV-1a)."""
    value = 0xCBF29CE484222325
    for byte in word.encode("utf-8", "surrogatepass"):
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def _chars(text: str, n: int) -> npt.NDArray[np.uint64]:
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    return _mixed(codes, n, salt=n)


def _mixed(codes: npt.NDArray[np.uint64], n: int, salt: int) -> npt.NDArray[np.uint64]:
    """Return one number for each `n` codes in a row, none for fewer (overflow wraps, as it should)."""
    count = max(0, len(codes) - n + 1)
    value = np.full(count, salt, np.uint64)
    for i in range(n if count else 0):
        value = (value ^ codes[i : count + i]) * np.uint64(0x9E3779B97F4A7C15)
        value ^= value >> np.uint64(29)
    return value >> np.uint64(8)


SENTENCE = re.compile(r"[^.!?。！？\n\r]*[.!?。！？\n\r]*\s*")
LONG = 2**16  # characters; windows of a longer text do not overlap


def windows(text: str, size: int) -> list[Span]:
    """Return the parts of a text that are scored each: all of it if it is short, else sentences up to `size` characters
    together, each window beginning with the last sentence of the one before."""
    if len(text) <= size:
        return [(0, len(text))]
    pieces = [
        (at, min(at + size // 2, found.end()))
        for found in SENTENCE.finditer(text)
        for at in range(found.start(), found.end(), size // 2)
    ]
    found, i = list[Span](), 0
    while i < len(pieces):
        j = i + 1
        while j < len(pieces) and pieces[j][1] - pieces[i][0] <= size:
            j += 1
        found.append((pieces[i][0], pieces[j - 1][1]))
        if j == len(pieces):
            break
        i = j if len(text) > LONG or j - i == 1 else j - 1
    return found


@dataclass(frozen=True, eq=False)
class TextClassifier:
    """One logistic model for each label over hashed n-grams weighted by rarity, and Platt's calibration of its scores."""

    labels: tuple[str, ...]
    weights_LD: Floats
    bias_L: Floats
    rarity_D: Floats  # inverse document frequency of each bucket
    platt_L2: Floats  # probability = sigmoid(a x score + b)
    thresholds: tuple[float, ...]
    window: int
    about: Mapping[str, Any]
    concepts_LF: Floats | None = (
        None  # weights of concepts.py's features, where the classifier reads meanings
    )

    @property
    def bits(self) -> int:
        return int(self.rarity_D.shape[0]).bit_length() - 1

    def scores(self, texts: Sequence[str]) -> Floats:
        """Return uncalibrated scores of texts as they are, without windows: scores_NL."""
        found = np.zeros((len(texts), len(self.labels)), np.float32)
        for n, text in enumerate(texts):
            buckets = _known(text, self.bits) if len(text) <= SHORT else hashed(normal(text), self.bits)
            rarity = self.rarity_D[buckets]
            length = float(np.sqrt(rarity @ rarity)) or 1.0
            found[n] = self.weights_LD[:, buckets] @ rarity / length + self.bias_L
            if self.concepts_LF is not None:
                found[n] += WEIGHT * self.concepts_LF[:, meant(text)].sum(axis=1)
        return found

    def parts(self, text: str) -> tuple[list[Span], Floats]:
        """Return the windows of a folded text and the probabilities of each: probabilities_WL. Text in disguise is read too."""
        spans = windows(text, self.window)
        hidden = disguised(text)
        scores_WL = self.scores([*(text[a:b] for a, b in spans), *(inner for _, inner in hidden)])
        return [*spans, *(span for span, _ in hidden)], self.calibrated(scores_WL)

    def calibrated(self, scores_WL: Floats) -> Floats:
        """Return probabilities of scores."""
        z = np.clip(scores_WL * self.platt_L2[:, 0] + self.platt_L2[:, 1], -30, 30)
        return np.asarray(1 / (1 + np.exp(-z)), dtype=np.float32)

    def column(self, label: str | None) -> int:
        """Return the number of a label (None: the only one). Raises DemeanorError that lists the labels."""
        if label is None and len(self.labels) == 1:
            return 0
        if label not in self.labels:
            raise DemeanorError(f"label: got {label or 'none'}, wanted one of {', '.join(self.labels)}")
        return self.labels.index(label)


def read_tensors(path: Path, wanted: str) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Return the tensors and the JSON header of a file; raises DemeanorError where it is not of the wanted format."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get("demeanor", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise DemeanorError(f"{path}: not a file of `demeanor policy train` ({error})") from None
    if header.get("format") != wanted:
        raise DemeanorError(
            f"{path}: its format is {header.get('format')!r}, wanted {wanted}; write it with `demeanor policy train`"
        )
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise DemeanorError(f"{path}: holds numbers that are not finite; train it again")
    return tensors, header


def load_classifier(path: Path) -> TextClassifier:
    """Read a classifier once for each state of its file; raises DemeanorError."""
    about = path.stat()
    return _loaded(path, about.st_mtime_ns, about.st_size)


@lru_cache(32)
def _loaded(path: Path, *state: int) -> TextClassifier:
    tensors, header = read_tensors(path, FORMAT)
    labels = tuple(header["labels"])
    try:
        found = TextClassifier(
            labels,
            tensors["weights"].astype(np.float32),
            tensors["bias"].astype(np.float32),
            tensors["rarity"].astype(np.float32),
            tensors["platt"].astype(np.float32),
            tuple(header["thresholds"]),
            int(header["window"]),
            header.get("about", {}),
            tensors["concepts"].astype(np.float32) if "concepts" in tensors else None,
        )
    except KeyError as error:
        raise DemeanorError(f"{path}: {error} is missing; train it again") from None
    if found.concepts_LF is not None and (
        header.get("concepts") != digest() or found.concepts_LF.shape != (len(labels), concepts_size())
    ):
        raise DemeanorError(f"{path}: was trained with other meanings of words than these; train it again")
    shapes = (found.weights_LD.shape, found.bias_L.shape, found.platt_L2.shape)
    size, count = found.rarity_D.shape[0], len(labels)
    if shapes != ((count, size), (count,), (count, 2)) or size != 2**found.bits or found.window < 1:
        raise DemeanorError(f"{path}: its tensors do not fit together; train it again")
    return found


def write_tensors(path: Path, tensors: Mapping[str, npt.NDArray[Any]], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header, to a temporary name first."""
    from safetensors.numpy import save

    data = save(dict(tensors), {"demeanor": json.dumps(header, sort_keys=True)})
    with replacing(path) as temporary:
        temporary.write_bytes(data)
