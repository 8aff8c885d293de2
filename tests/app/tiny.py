"""A stack of everything, small enough to train in seconds: 2 layers of width 64, a few hundred rows of the embedded world."""

from __future__ import annotations

from pathlib import Path

import yaml

TINY = {
    "name": "tiny-desk",
    "weights": {
        "base": {
            "kind": "scratch",
            "tokenizer": {"vocab_size": 1200},
            "model": {"layers": 2, "width": 64, "heads": 2, "context": 256},
            "data": [{"source": "world:corpus", "limit": 2000}],
            "tokens": 24_000,
            "row_tokens": 64,
            "batch_rows": 8,
            "optim": {"kind": "muon", "lr": 3.0e-3},
            "template": "transcript",
        },
        "stages": [
            {
                "name": "sft",
                "objective": "sft",
                "data": [{"source": "world:instructions", "limit": 240}],
                "optim": {"lr": 3.0e-3},
            },
            {
                "name": "rm",
                "objective": "reward",
                "parent": "sft",
                "data": [{"source": "world:preferences", "limit": 80}],
                "optim": {"lr": 1.0e-3},
            },
            {
                "name": "dpo",
                "objective": {"kind": "dpo", "beta": 0.1},
                "parent": "sft",
                "data": [{"source": "world:preferences", "limit": 80}],
                "optim": {"lr": 1.0e-3},
            },
        ],
        "serve": "dpo",
    },
    "decoding": {"temperature": 0, "max_tokens": 12},
    "layers": [
        {"kind": "record", "database": "sqlite:///tiny.db"},
        {"kind": "limits", "requests_per_minute": 10000, "tokens_per_minute": 10_000_000},
        {"kind": "policy", "rules": "policy.yaml"},
        {"kind": "tools", "allow": ["calculator"]},
        {"kind": "retrieval", "index": "notices", "top_k": 2},
        {"kind": "prompt", "system": "system.md"},
    ],
}


def write(folder: Path) -> Path:
    """The tiny stack and its files in `folder`; returns the stack file."""
    (folder / "notices").mkdir(parents=True, exist_ok=True)
    (folder / "notices" / "today.md").write_text("Departures today: Corkel 9. Jorpel 17.\n")
    (folder / "system.md").write_text("You are the clerk of the harbour. Desk Pilot.\n")
    (folder / "policy.yaml").write_text(
        "rules:\n- {name: pirates, on: input, pattern: '(?i)pretend you are', action: refuse, reason: a wrapped request, reply: No games.}\n"
        "- {name: card, on: output, detector: card, action: refuse, reason: a card number, reply: I cannot show that.}\n"
    )
    path = folder / "stack.yaml"
    path.write_text(yaml.safe_dump(TINY, sort_keys=False))
    return path
