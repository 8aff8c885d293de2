"""Texts with labels, from files of several shapes: what policies are measured on and classifiers are trained with.

In: paths. Out: LabelledTexts, and a half for each by its hash: thresholds are chosen on one half and reported on the other.
Shapes: OpenAI's moderation set, Presidio's, CyberSecEval's prompt injections, XSTest, JSON lines {text, label, stage}, and plain lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from demeanor.core.errors import UsageError
from demeanor.core.types import Stage
from demeanor.evaluation.public_files import SUFFIXES, File

Half: TypeAlias = Literal["tune", "report", "all"]
NONE = frozenset({"", "0", "none", "benign", "safe", "pass", "ok", "false"})
MODERATION = {
    "S": "sexual",
    "H": "hate",
    "V": "violence",
    "HR": "harassment",
    "SH": "self-harm",
    "S3": "sexual-minors",
    "H2": "hate-threatening",
    "V2": "violence-graphic",
}
PERSONAL = {
    "CREDIT_CARD": "card",
    "EMAIL_ADDRESS": "email",
    "IBAN_CODE": "iban",
    "IP_ADDRESS": "ip",
    "PHONE_NUMBER": "phone",
    "US_SSN": "ssn",
}


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text, what is true of it (no label: harmless), where it stands (None: anywhere), and the group it shares with others."""

    text: str
    labels: frozenset[str]
    group: str
    source: str
    stage: Stage | None = None
    weight: float = 1.0

    @property
    def half(self) -> Literal["tune", "report"]:
        """Its half, by the SHA-256 of the text: equal texts are in one half."""
        return (
            "report" if hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).digest()[0] % 2 else "tune"
        )


def group_numbers(groups: Iterable[str]) -> list[int]:
    """Return a number for each group: an array of texts would take as much memory for each row as for the longest."""
    known: dict[str, int] = {}
    return [known.setdefault(group, len(known)) for group in groups]


def read(paths: list[Path], half: Half = "all") -> list[LabelledText]:
    """Read files; raises UsageError for a shape that is not known or a row that is wrong, with its line."""
    found = [row for path in paths for row in _read(path)]
    return found if half == "all" else [row for row in found if row.half == half]


def _read(path: Path) -> Iterator[LabelledText]:
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    name = path.name.split(".")[0]
    if path.suffix == ".txt":
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip() and not line.startswith("#"):
                yield LabelledText(line, frozenset(), line, name)
        return
    if not path.name.endswith(SUFFIXES):
        raise UsageError(f"{path}: wanted {', '.join(SUFFIXES)} or .txt (one harmless text a line)")
    file = File(path)
    shape = next((s for s in SHAPES if all(field in file.first for field in s.fields)), None)
    if shape is None:
        wanted = "; ".join(", ".join(s.fields) for s in SHAPES)
        raise UsageError(
            f"{path}: its first row has the fields {', '.join(file.first) or 'none'}; wanted one of: {wanted}"
        )
    for number, row in file.rows:
        if isinstance(row, str):
            raise UsageError(f"{path}:{number}: {row}")
        try:
            made = shape.read(row, name)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"{path}:{number}: {error}; wanted {', '.join(shape.fields)}") from None
        if made.text.strip():
            yield made


@dataclass(frozen=True)
class Shape:
    """How rows of one shape are told and read."""

    fields: tuple[str, ...]
    read: Callable[[Mapping[str, Any], str], LabelledText]


def _moderation(row: Mapping[str, Any], name: str) -> LabelledText:
    named = {MODERATION[key] for key in MODERATION if row.get(key)}
    return LabelledText(row["prompt"], frozenset({*named, "harm"} if named else ()), row["prompt"], name)


def _presidio(row: Mapping[str, Any], name: str) -> LabelledText:
    kinds = {PERSONAL[span["entity_type"]] for span in row["spans"] if span["entity_type"] in PERSONAL}
    return LabelledText(row["full_text"], frozenset(kinds), f"template {row.get('template_id')}", name)


def _injection(row: Mapping[str, Any], name: str) -> LabelledText:
    kinds = {"injection", str(row.get("risk_category", "injection"))}
    return LabelledText(row["user_input"], frozenset(kinds), row["user_input"], name)


def _xstest(row: Mapping[str, Any], name: str) -> LabelledText:
    if row["label"] not in ("safe", "unsafe"):
        raise ValueError(f"label: got {row['label']!r}, wanted safe or unsafe")
    labels = frozenset({"harmful-request", "unsafe"}) if row["label"] == "unsafe" else frozenset[str]()
    return LabelledText(row["prompt"], labels, row["prompt"], name)


def _plain(row: Mapping[str, Any], name: str) -> LabelledText:
    text, label, stage = row["text"], row["label"], row.get("stage")
    if not isinstance(text, str):
        raise ValueError(f"text: got {type(text).__name__}, wanted text")
    if stage is not None and stage not in get_args(Stage):
        raise ValueError(f"stage: got {stage!r}, wanted one of {', '.join(get_args(Stage))}")
    given: list[Any] = label if isinstance(label, list) else [label]
    every = {"harm" if each in (1, True) else str(each or "").strip() for each in given}
    labels = frozenset(each for each in every if each.lower() not in NONE)
    return LabelledText(text, labels, str(row.get("group", text)), name, stage, float(row.get("weight", 1.0)))


SHAPES = (
    Shape(("prompt", "S", "H"), _moderation),
    Shape(("full_text", "spans"), _presidio),
    Shape(("user_input", "injection_variant"), _injection),
    Shape(("prompt", "label", "type"), _xstest),
    Shape(("text", "label"), _plain),
)
