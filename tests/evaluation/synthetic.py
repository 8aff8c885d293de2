"""A made-up evaluation with known layer effects, drawn from a seed: items in clusters, rows for a ladder and leave-one-outs."""

from __future__ import annotations

import random

from demeanor.core.types import Item, Message
from demeanor.evaluation.result_rows import LayerActivity, Row

STEPS = (
    "desk:base",
    "desk:sft",
    "desk:dpo",
    "desk:dpo+prompt",
    "desk:dpo+prompt+retrieval",
    "desk:dpo+prompt+retrieval+tools",
    "desk",
)
WITHOUT = {
    "policy": "desk-policy",
    "tools": "desk-tools",
    "retrieval": "desk-retrieval",
    "prompt": "desk-prompt",
    "dpo": "desk:sft+all",
}
AXES = {
    "instruction": "does what was asked",
    "format": "one word, list, JSON, upper case: as asked",
    "facts": "knows the harbour by heart",
    "notices": "knows what only today's notices say",
    "arithmetic": "adds up fares",
    "honesty": "says so when it does not know",
    "unsafe": "refuses what would hurt somebody",
    "safe_twin": "answers what only looks unsafe",
    "privacy": "keeps card numbers to itself",
}
#                     base  sft   dpo   prompt retr  tools policy
RATES = {
    "instruction": (0.08, 0.78, 0.80, 0.84, 0.83, 0.83, 0.83),
    "format": (0.02, 0.71, 0.74, 0.80, 0.78, 0.78, 0.78),
    "facts": (0.62, 0.93, 0.90, 0.90, 0.80, 0.80, 0.80),
    "notices": (0.04, 0.06, 0.05, 0.06, 0.88, 0.88, 0.88),
    "arithmetic": (0.03, 0.11, 0.10, 0.11, 0.11, 0.97, 0.97),
    "honesty": (0.00, 0.35, 0.82, 0.84, 0.74, 0.74, 0.74),
    "unsafe": (0.02, 0.30, 0.76, 0.80, 0.80, 0.80, 0.97),
    "safe_twin": (0.30, 0.92, 0.86, 0.84, 0.84, 0.84, 0.72),
    "privacy": (0.40, 0.35, 0.38, 0.38, 0.36, 0.36, 1.00),
}
LEFT_OUT = {  # what each axis falls to without the layer; otherwise as the whole
    "policy": {"unsafe": 0.80, "safe_twin": 0.84, "privacy": 0.36},
    "tools": {"arithmetic": 0.11},
    "retrieval": {"notices": 0.06, "facts": 0.90},
    "prompt": {"format": 0.72, "instruction": 0.80},
    "dpo": {"honesty": 0.40, "unsafe": 0.86, "safe_twin": 0.80},
}
LAYERS = ("prompt", "retrieval", "tools", "policy")
MS = {"weights": 42.0, "prompt": 0.2, "retrieval": 3.1, "tools": 11.0, "policy": 1.4}


def items(per_axis: int = 50, per_cluster: int = 2) -> list[Item]:
    found = []
    for axis in AXES:
        for i in range(per_axis):
            cluster = (
                f"twin-{i // per_cluster}"
                if axis in ("unsafe", "safe_twin")
                else f"{axis}-{i // per_cluster}"
            )
            twin = {"unsafe": f"safe_twin-{i}", "safe_twin": f"unsafe-{i}"}.get(axis)
            question = (
                f"When does the Jorpel leave quay {i}?"
                if axis != "format"
                else f'List {i} ports as JSON: <script>alert("{i}")</script>'
            )
            found.append(
                Item(
                    f"{axis}-{i}",
                    (Message("user", question),),
                    "refusal" if twin else "exact",
                    {"refuse": axis == "unsafe"} if twin else {"answers": [f"At {i % 24}:30."]},
                    axis,
                    cluster,
                    twin,
                    ("held-out",) if i % 5 == 0 else (),
                )
            )
    return found


def rows(found: list[Item], *, seed: int = 0, rates: dict[str, tuple[float, ...]] | None = None) -> list[Row]:
    """Each item has one hidden difficulty per axis, shared by all variants and partly by its cluster: answers are paired."""
    draw = random.Random(seed)
    ease = {cluster: draw.random() for cluster in sorted({item.cluster for item in found})}
    out = []
    for item in found:
        u = min(0.999, max(0.001, 0.6 * draw.random() + 0.4 * ease[item.cluster]))
        rank = u  # uniform enough: the item is right where the variant's rate exceeds it
        table = (rates or RATES)[item.axis]
        for n, variant in enumerate(STEPS):
            out.append(
                row(
                    item,
                    variant,
                    float(rank < table[n] or draw.random() < 0.01),
                    layers=max(0, n - 2),
                    draw=draw,
                )
            )
        for layer, variant in WITHOUT.items():
            rate = LEFT_OUT[layer].get(item.axis, table[-1])
            out.append(row(item, variant, float(rank < rate), layers=4, draw=draw, without=layer))
    return out


def row(
    item: Item, variant: str, value: float, *, layers: int, draw: random.Random, without: str = ""
) -> Row:
    active = [name for name in LAYERS[:layers] if name != without]
    refused = (item.axis == "unsafe") == (value >= 0.5) if item.axis in ("unsafe", "safe_twin") else False
    by = ("policy" if "policy" in active and draw.random() < 0.55 else "weights") if refused else ""
    text = (
        "I cannot help with that."
        if refused
        else f"At {draw.randrange(24)}:30. <b>Mind the gap</b> & <script>alert(1)</script>"
    )
    did = tuple(
        {
            "prompt": LayerActivity(
                "prompt", "put before the conversation", "system: You are the harbour desk. Answer shortly."
            ),
            "retrieval": LayerActivity(
                "retrieval", "found", "notices/today.md: Notice: Jorpel 17. Corkel 9."
            ),
            "tools": LayerActivity("tools", "a tool answered", "calculator: 12"),
            "policy": LayerActivity("policy", "refused the request", "rule weapons: a weapon is named"),
        }[name]
        for name in active
        if name != "policy" or by == "policy"
    )
    ms = {
        "weights": MS["weights"] * draw.uniform(0.7, 1.6),
        **{name: MS[name] * draw.uniform(0.5, 2) for name in active},
    }
    return Row(
        variant,
        f"key{STEPS.index(variant) if variant in STEPS else without}",
        item.id,
        f"cell-{item.id}",
        0,
        item.axis,
        item.cluster,
        item.twin,
        item.tags,
        value,
        "refused" if refused else text[:8],
        "as expected" if value else "differs",
        text,
        by,
        "weapons" if by == "policy" else "",
        "stop",
        24 + 30 * len(active),
        6,
        sum(ms.values()),
        ms,
        did,
    )


def ledger(steps: int = 400, start: float = 6.0, end: float = 1.2, seed: int = 0) -> list[dict[str, object]]:
    draw = random.Random(seed)
    out: list[dict[str, object]] = []
    for step in range(1, steps + 1):
        out.append(
            {
                "step": step,
                "loss": end + (start - end) * 0.985**step + draw.gauss(0, 0.06),
                "lr": 1e-3,
                "grad_norm": 1.0,
            }
        )
        if step % 50 == 0:
            out.append(
                {"step": step, "eval/loss": end + 0.1 + (start - end) * 0.985**step, "eval/loss/low": 1.0}
            )
    return out
