"""Train the classifiers of policies/default.yaml: which rows, which licences (docs/policy.md says what came out).

python -m bench.default_policy ../shared/data [--out demeanor/policies]
python -m bench.default_policy ../shared/data --harmless FILE.jsonl      # trains nothing: the harmless texts of the half `report`, for `policy test --data`

Only the half `tune` of every public set is read, so that `demeanor policy test --half report` measures on texts that no weight and no
threshold has seen. No text of a set goes into the project: the files hold hashed n-grams' weights.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from demeanor.core.files import write_text
from demeanor.core.registry import SHIPPED
from demeanor.evaluation import labelled_texts, policy_texts, policy_training
from demeanor.evaluation.labelled_texts import LabelledText

FIRST = re.compile(r"\s*Human: (.*?)\n\nAssistant:", re.DOTALL)
WINDOW = 160  # characters of a part that the injection detector scores
FOR_EACH = 25  # texts of each template of attacks


def harmless(data: Path) -> Iterator[LabelledText]:
    """Requests and documents of public sets without a label for harm (Apache-2.0 and MIT)."""
    texts: dict[str, list[str]] = {
        "mt-bench": [json.loads(line)["turns"][0] for line in _lines(data / "mt-bench/question.jsonl")],
        "ifeval": [json.loads(line)["prompt"] for line in _lines(data / "ifeval/input_data.jsonl")],
        "rasbt": [
            f"{row['instruction']}\n{row.get('input', '')}".strip()
            for row in json.loads((data / "rasbt/instruction-data.json").read_text(encoding="utf-8"))
        ],
        "gsm8k": [json.loads(line)["question"] for line in _lines(data / "gsm8k/test-300.jsonl")],
        "truthfulqa": [
            row["Question"]
            for row in csv.DictReader((data / "truthfulqa/TruthfulQA.csv").open(encoding="utf-8"))
        ],
        "rag-docs": [
            row["text"]
            for row in json.loads((data / "rag-docs/anthropic_docs.json").read_text(encoding="utf-8"))
        ],
        "oasst": [json.loads(line)["prompt"]["text"] for line in _lines(data / "oasst/en_100_tree.jsonl")],
        "presidio": [
            row["full_text"]
            for row in json.loads((data / "presidio/synth_dataset_v2.json").read_text(encoding="utf-8"))
        ],
    }
    for name, some in texts.items():
        yield from (LabelledText(text, frozenset(), text, name) for text in some if text.strip())


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def injection_rows(data: Path) -> list[LabelledText]:
    """Our own attacks and half of our harmless trigger texts, with the tuning halves of the public sets."""
    found = labelled_texts.read([data / "prompt-injection/prompt_injection.json"])
    public = [*(replace(row, weight=3.0) for row in found), *harmless(data)]
    own = [replace(row, weight=4.0) for row in policy_texts.triggers()]
    further = [replace(row, weight=4.0) for row in labelled_texts.read([policy_texts.FURTHER])]
    return [
        *policy_texts.attacks(FOR_EACH),
        *policy_texts.harmless(FOR_EACH),
        *further,
        *(row for row in (*own, *public) if row.half == "tune"),
    ]


def harm_rows(data: Path) -> list[LabelledText]:
    """OpenAI's moderation set, and harmless requests."""
    rows = labelled_texts.read([data / "openai-moderation/samples-1680.jsonl.gz"])
    quiet = (replace(row, weight=0.1) for row in harmless(data))
    return [row for row in (*rows, *quiet) if row.half == "tune"]


def request_rows(data: Path) -> list[LabelledText]:
    """First questions of people who tried to get harm out of an assistant (hh-rlhf, harmless-base; MIT), and harmless requests.

    The label is noisy: some of these questions are harmless.
    """
    rows = list[LabelledText]()
    with gzip.open(data / "hh-rlhf/harmless-base-1500.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            first = FIRST.match(json.loads(line)["chosen"])
            if first:
                rows.append(
                    LabelledText(first[1].strip(), frozenset({"harmful-request"}), first[1], "hh-rlhf")
                )
    return [row for row in (*rows, *harmless(data)) if row.half == "tune"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--only", choices=("injection", "harm", "harmful-request"))
    parser.add_argument(
        "--harmless", type=Path, metavar="FILE", help="write harmless texts that no classifier was trained on"
    )
    asked = parser.parse_args()
    if asked.harmless:
        kept = [x for x in harmless(asked.data) if x.half == "report" and x.source != "presidio"]
        write_text(asked.harmless, "".join(json.dumps({"text": x.text, "label": ""}) + "\n" for x in kept))
        print(f"{asked.harmless}: {len(kept):,} texts")
        return
    todo = {
        "injection": (injection_rows, WINDOW, 0.001),
        "harm": (harm_rows, 2000, 0.01),
        "harmful-request": (request_rows, 600, 0.001),
    }
    for label, (rows_of, window, rate) in todo.items():
        if asked.only in (None, label):
            rows = rows_of(asked.data)
            made = policy_training.train(
                rows,
                [label],
                asked.out / f"{label}.safetensors",
                window=window,
                false_positives=rate,
                concepts=label == "injection",
            )
            print(made.path, made.path.stat().st_size, "bytes", *made.fits, sep="\n  ")


if __name__ == "__main__":
    main()
