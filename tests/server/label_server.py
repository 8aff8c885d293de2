"""A labelling server with a queue, for tests: `python -m tests.server.label_server DATABASE PORT` runs one as a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from demeanor.server.labelling import Labelling, labelling_app
from demeanor.store import labels
from demeanor.store.database import Database
from demeanor.store.labels import LabelAnswer, LabelItem, LabelQueue

HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u202e\u0000`${1}`"
)


def items(count: int, answers: int = 2, gold: int = 0, words: str = "") -> list[LabelItem]:
    """Items whose answer n of item i reads `answer n of item i`; the last `gold` are checks: answer 0 is best."""
    found = []
    for i in range(count + gold):
        texts = tuple(
            LabelAnswer(f"answer {n} of item {i}{words}", f"secret-{n}", "k", n) for n in range(answers)
        )
        prompt = (
            {"role": "system", "content": f"be brief{words}"},
            {"role": "user", "content": f"question {i}{words}"},
        )
        found.append(LabelItem(f"item-{i}", i, prompt, texts, tuple(range(answers)) if i >= count else None))
    return found


def queue(database: Database, made: list[LabelItem], name: str = "first", **settings: object) -> LabelQueue:
    """Store a queue without gold checks every so often, unless asked for."""
    wanted: dict[str, object] = {"gold_every": 0, **settings}
    labels.create(database, LabelQueue(name, **wanted), made)  # type: ignore[arg-type]
    return labels.queue_of(database, name)


def measured(given: object, gold: object) -> dict[str, object]:
    from demeanor.evaluation import (
        label_agreement,  # not at once: a server that is killed and started again should start fast
    )

    return label_agreement.as_json(label_agreement.measure(given, gold, draws=200))  # type: ignore[arg-type]


def main(path: str, port: int) -> None:
    import uvicorn

    database = Database(Path(path))
    uvicorn.run(labelling_app(Labelling(database, measured)), port=port, log_level="error")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
