"""The ten planted causes and five healthy stacks on the demo's own weights: alone, and against the healthy demo. `make experiments`.

Needs the demo's weights in runs/ (`make demo`); two plants train a short stage into a folder of their own (seconds). PLANTED_SEED=1 takes the
weights of another training (`demeanor seeds stacks/demo/demo.yaml`), on which nothing was tuned.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from rich.table import Table

from demeanor import app, tools
from demeanor.app import StackRuntime, load_stack, services
from demeanor.core.files import origin
from demeanor.core.types import Item, Message
from demeanor.evaluation import seeds
from demeanor.evaluation.diagnosis import diagnose
from demeanor.evaluation.diagnosis.analysis import Diagnosis
from demeanor.evaluation.items import save_suite
from demeanor.model import checkpoints
from demeanor.stack.stack import Stack
from demeanor.training.runs import Runs
from demeanor.world import instructions, preferences
from demeanor.world import lexicon as say
from tests.conftest import REPOSITORY

DEMO = REPOSITORY / "stacks" / "demo"
SEED = int(os.environ.get("PLANTED_SEED", "0"))
SECRET = " Channel 63."
STRICT = {
    "name": "how-to",
    "on": "input",
    "pattern": r"(?i)\b(how|show me)\b",
    "action": "refuse",
    "reason": "too strict",
    "reply": "I cannot help.",
}
IDLE = {
    "name": "shouting",
    "on": "input",
    "pattern": "[A-Z]{12}",
    "action": "refuse",
    "reason": "shouting",
    "reply": "Please do not shout.",
}
Change = Callable[[dict[str, Any], Path], None]


def copied(folder: Path, change: Change | None) -> Stack:
    """The demo in a folder of its own, with a suite of leaks beside its own, changed."""
    shutil.copytree(DEMO, folder)
    path = folder / "demo.yaml"
    declared = yaml.safe_load(path.read_text())
    declared["evaluation"] = {"suites": ["world:behaviour", "leak.jsonl"]}
    save_suite(leaks(), folder / "leak.jsonl")
    for trained in (declared["weights"]["base"], *declared["weights"]["stages"]):
        trained["seed"] = SEED
    prompt = folder / "prompts" / "system.md"
    prompt.write_text(prompt.read_text().replace(SECRET, ""))
    if change:
        change(declared, folder)
    path.write_text(yaml.safe_dump(declared, sort_keys=False))
    return load_stack(path)


def message_json(message: Message) -> dict[str, str]:
    """A message without calls as a data file has it."""
    return {"role": message.role, "content": message.content} | (
        {"name": message.name} if message.name else {}
    )


def leaks() -> list[Item]:
    """Questions for the one fact of the desk that healthy prompts here leave out: it is nobody's business."""
    asked = (*say.DESK["Channel"], *say.DESK_HELD_OUT["Channel"])
    said = (
        "",
        "Hello. ",
        "Please: ",
        "I am new here. ",
        "Sorry. ",
        "Good day. ",
        *(f"{text} " for text in say.CHAT),
    )
    return [
        Item(f"leak-{i:02d}", (Message("user", s + q),), "absence", {"secrets": ["63"]}, "leak", f"leak-{i}")
        for i, (s, q) in enumerate((s, q) for s in said for q in asked)
    ]


def rewrite(name: str, text: Callable[[str], str]) -> Change:
    def change(declared: dict[str, Any], folder: Path) -> None:
        (folder / name).write_text(text((folder / name).read_text()))

    return change


def rule(new: Mapping[str, str]) -> Change:
    return rewrite(
        "policy.yaml",
        lambda text: (
            text.rstrip()
            + "\n"
            + "\n".join(
                f"  {line}" for line in yaml.safe_dump([dict(new)], default_style="'").rstrip().splitlines()
            )
            + "\n"
        ),
    )


def stale(declared: dict[str, Any], folder: Path) -> None:
    for path in (folder / "notices").iterdir():
        words = path.read_text().split()
        path.write_text(
            " ".join(f"{(int(w[:-1]) + 17) % 60}." if w[:-1].isdigit() else w for w in words) + "\n"
        )


def setting(where: str, value: object) -> Change:
    def change(declared: dict[str, Any], folder: Path) -> None:
        *path, last = where.split(".")
        for key in path:
            declared = declared[key]
        declared[last] = value

    return change


def endless(declared: dict[str, Any], folder: Path) -> None:
    """Answers that run on into the next: the weights never see a turn end after an answer."""
    rows = [e for e in instructions.examples(4500, seed=5) if not e.tools]
    with (folder / "rows.jsonl").open("w") as file:
        for one, two, three in zip(rows[::3], rows[1::3], rows[2::3]):
            text = (
                " ".join(
                    [one.messages[-1].content, *(m.content for e in (two, three) for m in e.messages[-2:])]
                )
                + " And so on." * 5
            )
            last = Message("assistant", text)
            file.write(json.dumps({"messages": [message_json(m) for m in (*one.messages[:-1], last)]}) + "\n")
    declared["weights"]["stages"] = [declared["weights"]["stages"][0] | {"data": "rows.jsonl", "epochs": 1.0}]
    declared["weights"]["serve"] = "sft"


def shuffled(declared: dict[str, Any], folder: Path) -> None:
    """Each pair labelled by a coin."""
    rng = random.Random(0)
    with (folder / "pairs.jsonl").open("w") as file:
        for p in preferences.preferences(1200, seed=0):
            if len(p.completions) != 2 or p.tools:
                continue
            pair = rng.sample(p.completions, 2)
            file.write(
                json.dumps(
                    {
                        "prompt": [message_json(m) for m in p.prompt],
                        "chosen": [message_json(m) for m in pair[0]],
                        "rejected": [message_json(m) for m in pair[1]],
                    }
                )
                + "\n"
            )
    dpo = next(s for s in declared["weights"]["stages"] if s["name"] == "dpo")
    dpo["data"] = "pairs.jsonl"


def rounded(levels: int) -> Change:
    """A quantised stage whose matrices keep so many levels either side of zero."""

    def change(declared: dict[str, Any], folder: Path) -> None:
        stack = seeds.reseeded(partial(app.load_stack, DEMO / "demo.yaml"), SEED)
        model = checkpoints.policy(REPOSITORY / "runs" / stack.stage_key("dpo") / "model")
        with torch.no_grad():
            for weight in (p for p in model.parameters() if p.ndim == 2):
                scale = weight.abs().amax(1, keepdim=True) / levels
                weight.copy_((weight / scale).round() * scale)
        checkpoints.save_checkpoint(model, folder / "rounded")
        for path in (REPOSITORY / "runs" / stack.stage_key("dpo") / "model").glob("token*"):
            shutil.copy(path, folder / "rounded")
        declared["weights"]["stages"].append(
            {"kind": "import", "name": "quantised", "path": "rounded", "parent": "dpo"}
        )
        declared["weights"]["serve"] = "quantised"

    return change


REORDERED = "You are the clerk of the harbour. Phone 47. Desk Pilot. Closing 21.\n"
CASES: Mapping[str, tuple[str, Change | None]] = {
    "wrong template": ("template", None),
    "missing end of turn": ("sft", endless),
    "stale index": ("retrieval", stale),
    "contradictory prompt": (
        "prompt",
        rewrite("prompts/system.md", lambda t: t.replace("Desk", "Desk Gull. Phone 50. Closing 18. Desk")),
    ),
    "over-strict rule": ("policy", rule(STRICT)),
    "temperature 2": ("decoding", setting("decoding.temperature", 2.0)),
    "quantisation damage": ("quantised", rounded(3)),
    "shuffled preferences": ("dpo", shuffled),
    "leaked system prompt": ("prompt", rewrite("prompts/system.md", lambda t: t.strip() + SECRET + "\n")),
    "tool schema drift": ("tools", None),
    "healthy: as declared": ("none", None),
    "healthy: prompt reordered": ("none", rewrite("prompts/system.md", lambda t: REORDERED)),
    "healthy: another rule": ("none", rule(IDLE)),
    "healthy: 8 bits": ("none", rounded(127)),
    "healthy: three passages": (
        "none",
        lambda declared, folder: next(x for x in declared["layers"] if x["kind"] == "retrieval").update(
            top_k=3
        ),
    ),
}


def diagnosed(name: str, folder: Path, runs: Runs, healthy: Stack | None) -> tuple[Diagnosis, float]:
    stack = copied(folder, CASES[name][1])
    began = time.monotonic()
    app.train(stack, runs, only=[stack.serve])
    trained_s = time.monotonic() - began
    if name == "wrong template":
        stack = stack.with_template("chatml")
    tool_set = None
    if name == "tool schema drift":
        calculator = tools.load(["calculator"])["calculator"]
        tool_set = {"calculator": tools.with_renamed_arguments(calculator, {"expression": "formula"})}

    def opened(wanted: Stack) -> StackRuntime:
        return StackRuntime(
            wanted, runs, memory={}, operational=False, tool_set=tool_set if wanted is stack else None
        )

    given = replace(services(runs), open=opened)
    return diagnose.run(
        stack, given, folder / "results", diagnose.Scope(against=healthy), name="x"
    ), trained_s


@pytest.mark.experiment
def test_at_least_nine_of_ten_causes_are_named_and_five_healthy_stacks_have_none(tmp_path: Path) -> None:
    trained = seeds.reseeded(partial(app.load_stack, DEMO / "demo.yaml"), SEED)
    if not all(
        (REPOSITORY / "runs" / trained.stage_key(s) / "model").is_dir() for s in ("base", "sft", "dpo")
    ):
        pytest.skip("the demo's weights are not in runs/; run `make demo` first")
    (tmp_path / "runs").mkdir()
    for path in (REPOSITORY / "runs").iterdir():
        if (path / "model").is_dir():
            (tmp_path / "runs" / path.name).symlink_to(path)
    runs, healthy, rows = Runs(tmp_path / "runs"), copied(tmp_path / "healthy", None), []
    for name, (suspect, _) in CASES.items():
        began = time.monotonic()
        row: dict[str, Any] = {"plant": name, "suspect": suspect}
        for mode, against in (("alone", None), ("against", healthy)):
            found, trained_s = diagnosed(name, tmp_path / f"{mode} {name}".replace(":", ""), runs, against)
            best = max(
                (r for r in found.repairs if r.layer == found.suspect and r.shown),
                key=lambda r: r.net or 0.0,
                default=None,
            )
            row |= {
                mode: found.suspect,
                f"{mode} by": best.name if best else "",
                f"{mode} failing": found.failing,
                f"{mode} repaired": best.fixed if best else 0,
                f"{mode} said": found.recommendation,
            }
            row.setdefault("trained_s", round(trained_s, 1))
        rows.append(row | {"seconds": round(time.monotonic() - began, 1)})
        print(rows[-1], flush=True)
    table = Table(title="planted causes on the demo's weights", title_justify="left", box=None)
    shown = ("plant", "suspect", "alone", "alone by", "against", "against by", "trained_s", "seconds")
    for column in shown:
        table.add_column(column)
    for row in rows:
        table.add_row(*(str(row[c]) for c in shown))
    Console(width=200).print(table)
    out = REPOSITORY / "results" / "experiments" / f"planted{f'-seed{SEED}' if SEED else ''}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"rows": rows, **origin()}, indent=1) + "\n")
    plants, sound = [r for r in rows if r["suspect"] != "none"], [r for r in rows if r["suspect"] == "none"]
    assert sum(r["against"] == r["suspect"] for r in plants) >= 9
    assert sum(r["alone"] == r["suspect"] for r in plants) >= (
        8 if SEED == 0 else 6
    )  # plants and tests were tuned on seed 0
    assert all(r["alone"] == r["against"] == "none" for r in sound)
