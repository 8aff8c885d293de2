"""`python -m bench.harnesses`: Inspect and lm-eval run on the served demo, read back as one paired table.

The server is `demeanor serve` in a process of its own; the harnesses run from bench/.venv-clients on small
tasks made of the world's items. Needs the demo's weights (`make demo`) and bench/.venv-clients. Nothing
leaves this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.clients import HERE, KEY, NAME, ROOT, serve
from demeanor.core.types import Item
from demeanor.evaluation.items import load_suite
from demeanor.world import catalog

BIN = HERE / ".venv-clients" / "bin"
CHAT = (f"{NAME}:base", f"{NAME}:sft", f"{NAME}:dpo", NAME)
WEIGHTS = CHAT[:3]
ASKED = 36
"""Items of each task, at most: all that the suite has of an axis."""

INSPECT = """
from inspect_ai import Task, task
from inspect_ai.dataset import FieldSpec, json_dataset
from inspect_ai.scorer import includes, match
from inspect_ai.solver import generate

FIELDS = FieldSpec(input="question", target="answer", id="id", metadata=["cluster"])


@task
def facts():
    return Task(dataset=json_dataset("facts.jsonl", FIELDS), solver=generate(), scorer=includes())


@task
def arithmetic():
    dataset = json_dataset("arithmetic.jsonl", FIELDS)
    return Task(dataset=dataset, solver=generate(), scorer=match(numeric=True))
"""
COMMON = (
    "dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder}/{file}\n"
    "test_split: test\ndoc_to_text: '{{{{question}}}}'\n"
)
SAY = (
    "task: desk_say\noutput_type: generate_until\ndoc_to_target: '{{answer}}'\n"
    "generation_kwargs:\n  until: ['\\n']\n  max_gen_toks: 24\n"
    "metric_list:\n  - metric: exact_match\n    ignore_case: true\n    ignore_punctuation: true\n"
)
CHOOSE = (
    "task: desk_choose\noutput_type: multiple_choice\ndoc_to_choice: '{{choices}}'\ndoc_to_target: 0\n"
    "target_delimiter: ' '\nmetric_list:\n  - metric: acc\n"
)


def write_tasks(folder: Path) -> None:
    """The tasks of both harnesses, and their data, in a folder."""
    items = {
        axis: [i for i in load_suite(catalog.SUITES["behaviour"]()) if i.axis == axis][:ASKED]
        for axis in ("facts", "arithmetic")
    }
    for axis, found in items.items():
        (folder / f"{axis}.jsonl").write_text("".join(json.dumps(_line(item)) + "\n" for item in found))
    (folder / "desk.py").write_text(INSPECT)
    (folder / "say.yaml").write_text(SAY + COMMON.format(folder=folder, file="facts.jsonl"))
    (folder / "choose.yaml").write_text(CHOOSE + COMMON.format(folder=folder, file="facts.jsonl"))


def _line(item: Item) -> dict[str, Any]:
    answers = item.target.get("answers") or [str(item.target["value"])]
    return {
        "id": item.id,
        "question": item.messages[-1].content,
        "answer": answers[0],
        "cluster": item.cluster,
        "choices": [answers[0], *list(item.target.get("wrong", ()))[:3]],
    }


def inspect(url: str, folder: Path, kind: str = "json") -> list[Path]:
    """Run Inspect on every variant; the folders of its logs, in the order of the ladder."""
    logs = []
    for model in CHAT:
        logs.append(folder / "inspect" / model.replace(":", "__"))
        _do(
            [
                str(BIN / "inspect"),
                "eval",
                "desk.py",
                "--model",
                f"openai-api/demeanor/{model}",
                "--log-dir",
                str(logs[-1]),
                "--log-format",
                kind,
                "--display",
                "none",
                "--temperature",
                "0",
                "--max-connections",
                "8",
            ],
            folder,
            DEMEANOR_API_KEY=KEY,
            DEMEANOR_BASE_URL=url,
        )
    return logs


def lm_eval(url: str, folder: Path, task: str, models: Sequence[str], *, chat: bool) -> list[Path]:
    """Run lm-eval on some variants, in chat or on raw text; returns the folders of its samples, in ladder
    order."""
    tokenizer = next(p.parent for p in (ROOT / "runs").glob("*/model/tokenizer.json"))
    out = folder / f"lm-eval-{task}"
    for model in models:
        place = (
            f"base_url={url}/chat/completions"
            if chat
            else f"base_url={url}/completions,tokenizer={tokenizer},tokenized_requests=True"
        )
        _do(
            [
                str(BIN / "lm_eval"),
                "run",
                "--model",
                "local-chat-completions" if chat else "local-completions",
                "--tasks",
                f"desk_{task}",
                "--model_args",
                f"{place},model={model},num_concurrent=4",
                "--include_path",
                str(folder),
                "--log_samples",
                "--output_path",
                str(out),
                *(["--apply_chat_template"] if chat else []),
            ],
            folder,
            OPENAI_API_KEY=KEY,
            HF_DATASETS_OFFLINE="1",
            HF_HUB_OFFLINE="1",
            HF_HOME=str(folder / "hf"),
        )
    return [out / model.replace(":", "__") for model in models]


def _do(command: Sequence[str], folder: Path, **environment: str) -> None:
    ran = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    if ran.returncode:
        raise SystemExit(
            f"harnesses: {' '.join(command[:4])} ended with {ran.returncode}:\n"
            f"{(ran.stdout + ran.stderr)[-3000:]}"
        )


def main() -> int:
    """Serve, run both harnesses, print a paired table of each, leave logs and results in a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--keep", type=Path, default=Path("results/harnesses"), help="folder for logs and results"
    )
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as scratch:
        server = serve(port, Path(scratch))
        try:
            url, folder = f"http://127.0.0.1:{port}/v1", Path(scratch)
            write_tasks(folder)
            logs = {
                "inspect": inspect(url, folder),
                "lm-eval-say": lm_eval(url, folder, "say", CHAT, chat=True),
                "lm-eval-choose": lm_eval(url, folder, "choose", WEIGHTS, chat=False),
            }
            shutil.rmtree(options.keep, ignore_errors=True)
            options.keep.mkdir(parents=True)
            for name in logs:
                shutil.copytree(folder / name, options.keep / name)
        finally:
            server.terminate()
            server.wait(30)
        for name, found in logs.items():
            kept = [options.keep / path.relative_to(folder) for path in found]
            print(f"\n$ demeanor logs import {' '.join(map(str, kept))} --name {name}", flush=True)
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "demeanor",
                    "logs",
                    "import",
                    *map(str, kept),
                    "--name",
                    name,
                    "--results",
                    str(options.keep),
                ],
                cwd=ROOT,
                check=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
