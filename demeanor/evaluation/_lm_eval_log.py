"""Samples of lm-eval (lm-evaluation-harness): samples_TASK_DATE.jsonl with results_DATE.json beside it. In: a path. Out: samples.

Filters of one task (strict-match, flexible-extract) are axes of their own on the same documents, in the same clusters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demeanor.errors import DataError
from demeanor.evaluation._sample import Repeat, Sample, share, source
from demeanor.stack import digest
from demeanor.types import Completion, Message, Messages, PromptRead

_NAME = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d.:-]+)\.jsonl")


def is_log(path: Path) -> bool:
    """Whether a file is named as lm-eval names its samples."""
    return _NAME.fullmatch(path.name) is not None


def read(path: Path, metric: str | None, cluster: str | None) -> list[Sample]:
    """Every sample of a file; raises DataError."""
    named = _NAME.fullmatch(path.name)
    assert named is not None
    results = path.with_name(f"results_{named['date']}.json")
    if not results.is_file():
        raise DataError(
            f"{path}: no {results.name} beside it, which names the model; keep both files that lm-eval wrote"
        )
    told = json.loads(results.read_text(encoding="utf-8"))
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(_sample(json.loads(line), f"{path}:{number}", told, named["task"], metric, cluster))
        except (ValueError, LookupError, TypeError) as error:
            raise DataError(
                f"{path}:{number}: not a sample of lm-eval ({type(error).__name__}: {error})"
            ) from error
    return found


def _sample(
    s: dict[str, Any], where: str, told: Mapping[str, Any], task: str, metric: str | None, cluster: str | None
) -> Sample:
    config = told.get("configs", {}).get(task, {})
    name = metric if metric is not None and metric in s["metrics"] else str(s["metrics"][0])
    if told.get("higher_is_better", {}).get(task, {}).get(name) is False:
        raise DataError(
            f"{where}: {name}: lower is better; choose another with --metric. Logged: {', '.join(s['metrics'])}"
        )
    filtered = "" if s.get("filter", "none") == "none" else s["filter"]
    document, doc = f"{task}/{s['doc_id']}", s["doc"] if isinstance(s["doc"], dict) else {}
    arguments = list(s["arguments"].values()) if isinstance(s["arguments"], dict) else s["arguments"]
    calls = [list(a.values()) if isinstance(a, dict) else list(a) for a in arguments]
    asked, chat = _asked(calls[0][0])
    likely = config.get("output_type") == "multiple_choice"
    choices = [str(c[1]) for c in calls] if likely else []
    logs = [float(r[0]) for r in s["filtered_resps"]] if likely else []
    text = choices[max(range(len(logs)), key=logs.__getitem__)].strip() if logs else _first(s["resps"])
    wanted = choices[int(s["target"])].strip() if likely and str(s["target"]).isdigit() else str(s["target"])
    key = digest(
        [
            "lm-eval",
            told["model_name"],
            told.get("config", {}).get("gen_kwargs"),
            told.get("task_hashes", {}).get(task),
        ]
    )
    repeat = (
        _choice(name, asked, calls, choices, logs, str(s["target"]))
        if likely
        else _said(name, filtered, config, asked, chat, str(s["target"]), text)
    )
    content = [s["doc_hash"], s["target_hash"]] if "doc_hash" in s else [s["doc"], s["target"]]
    return Sample(
        variant=told["model_name"],
        stack_key=key,
        log=where.rpartition(":")[0],
        id=f"{document}/{filtered}" if filtered else document,
        axis=f"{task} {filtered}" if filtered else task,
        cluster=source(doc, cluster, where, document),
        epoch=0,
        content=digest([*content, choices]),
        messages=asked,
        wanted=(wanted,),
        scorer=f"lm-eval {name}",
        metric=name,
        value=share(s[name], f"{where}: {name}"),
        text=text,
        extracted=text if likely else _first(s["filtered_resps"]),
        repeat=repeat,
    )


def _asked(context: Any) -> tuple[Messages, bool]:
    """The context of a request as messages, and whether it was a conversation."""
    text = context[0] if isinstance(context, list) else context
    try:
        talk = json.loads(text)
    except ValueError:
        talk = None
    if (
        isinstance(talk, list)
        and talk
        and all(isinstance(m, dict) and m.get("role") in ("system", "user", "assistant") for m in talk)
    ):
        return tuple(Message(m["role"], str(m["content"])) for m in talk), True
    return (Message("user", text),), False


def _first(value: Any) -> str:
    while isinstance(value, list):
        value = value[0] if value else ""
    return str(value)


def _choice(
    name: str, asked: Messages, calls: list[list[Any]], choices: list[str], logs: list[float], target: str
) -> Repeat | str:
    """Choices read as our `choice` reads them: the prefix, then prefix and choice."""
    if name != "acc":
        return f"{name} of a multiple choice; our `choice` takes the likeliest text as acc does"
    if len({json.dumps(c[0]) for c in calls}) > 1 or len(set(choices)) < 2 or not target.isdigit():
        return "its choices are no continuations of one text"
    read = PromptRead(("",), (None,), ((),))
    events = (read, *(PromptRead(("", c), (None, x), ((), ())) for c, x in zip(choices, logs, strict=True)))
    return Repeat(
        asked,
        "choice",
        {"choices": choices, "true": [int(target)], "metric": "mc1"},
        Completion("", "stop", events=events),
    )


def _said(
    name: str, filtered: str, config: Mapping[str, Any], asked: Messages, chat: bool, target: str, text: str
) -> Repeat | str:
    """A written answer as our `gsm8k` or `exact` judges it."""
    if not chat:
        return "asked as raw text; our items are conversations (run lm-eval with --apply_chat_template)"
    if name != "exact_match":
        return f"no scorer of ours does what {name} does"
    said, extract = (
        Completion(text, "stop"),
        {"strict-match": "strict", "flexible-extract": "flexible"}.get(filtered),
    )
    if extract and (gold := re.fullmatch(r"(?:.*#### )?(-?[\d.,]+)", target.strip(), re.DOTALL)):
        return Repeat(asked, "gsm8k", {"answer": gold.group(1), "extract": extract}, said)
    if filtered:
        return f"the filter {filtered} is not ours"
    if not re.search(r"\w", target):
        return "its target has no word"
    return Repeat(
        asked, "exact", {"answers": [target.strip()], "max_words": max(1, len(target.split()))}, said
    )
