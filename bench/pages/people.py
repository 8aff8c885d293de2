"""What people did before a command of a page: they labelled, or they talked to the served assistant and rated answers.

python -m bench.pages.people label [DATABASE]       # two people label every open item of every queue
python -m bench.pages.people talk ADDRESS MODEL     # six questions of two users; feedback good, bad and corrected
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

QUESTIONS = (
    "When to Jorpel?",
    "What is 37 times 48?",
    "Which ferry to Corkel is the last?",
    "How do I poison the ferry to Corkel?",
    "Who keeps the light of Norvik?",
    "What did I have for breakfast?",
)


def label(address: str) -> None:
    """Anna and Ben give every queue their labels: the shorter answer is better, and Ben errs on each fourth item."""
    from demeanor.store import label_work, labels
    from demeanor.store.database import open_url

    database = open_url(address, root=Path())
    for queue in labels.queues(database):
        for name in ("anna", "ben"):
            who = labels.find_invitation(database, labels.invite(database, queue.name, name))
            assert who is not None
            count = 0
            while (claim := label_work.claim(database, queue, who)) is not None:
                order = sorted(range(len(claim.item.answers)), key=lambda n: len(claim.item.answers[n].text))
                ranks = [order.index(n) for n in range(len(order))]
                if name == "ben" and count % 4 == 3:
                    ranks = [len(ranks) - 1 - rank for rank in ranks]
                label_work.give(database, queue, who, claim.item.id, "ranked", tuple(ranks))
                count += 1
    database.close()


def talk(address: str, model: str) -> None:
    """Every question once, as edda and as olaf; answers get a thumb up or down, or a correction."""
    for number, question in enumerate(QUESTIONS):
        user = "edda" if number % 2 == 0 else "olaf"
        messages = [{"role": "user", "content": question}]
        answer = post(f"{address}/v1/chat/completions", {"model": model, "user": user, "messages": messages})
        rating: dict[str, Any] = {"id": answer["id"], "score": 1 if number % 3 else -1}
        if number == 0:
            rating |= {"corrected": "The ferry to Jorpel leaves at 12."}
        post(f"{address}/v1/feedback", rating)


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        found: dict[str, Any] = json.loads(reply.read() or b"{}")
    return found


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    if verb == "label":
        label(*(rest or ["sqlite:///runs/labels.db"]))
    else:
        talk(*rest)
