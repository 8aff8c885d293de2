"""Logs of Inspect (inspect-ai): .json, or .eval, which is a zip of JSON. In: a path. Out: samples.

A model that Inspect reached through its `openai-api/SERVICE/` provider is named without that prefix. Epochs are seeds.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from demeanor.errors import DataError
from demeanor.evaluation._sample import Repeat, Sample, share, source
from demeanor.stack import digest
from demeanor.types import Completion, Message, Messages

GRADES: Mapping[str, float] = {
    "C": 1.0,
    "P": 0.5,
    "I": 0.0,
    "N": 0.0,
    "yes": 1.0,
    "true": 1.0,
    "no": 0.0,
    "false": 0.0,
}
"""Inspect's own value_to_float."""
ANY_LENGTH = 100_000
_ROLES = ("system", "user", "assistant", "tool")


def is_log(path: Path) -> bool:
    """Whether a file is a log of Inspect: an .eval, or a .json that begins with its version and status."""
    if path.suffix != ".json":
        return path.suffix == ".eval"
    with path.open(encoding="utf-8", errors="ignore") as file:
        head = file.read(200)
    return re.match(r'\s*\{\s*"version":\s*\d+,\s*"status":', head) is not None


def read(path: Path, metric: str | None, cluster: str | None) -> list[Sample]:
    """Every sample of a log; raises DataError."""
    log = _zipped(path) if path.suffix == ".eval" else _json(path.read_text(encoding="utf-8"), str(path))
    about = log["eval"]
    model = re.sub(r"^openai-api/[^/]+/", "", about["model"])
    key = digest(
        [
            "inspect",
            about["model"],
            about.get("task_args"),
            about.get("model_generate_config"),
            log.get("plan"),
        ]
    )
    options = {s["name"]: s.get("options") or {} for s in about.get("scorers") or ()}
    if not log.get("samples"):
        raise DataError(
            f"{path}: the log holds no samples (status {log.get('status')}); run Inspect without --no-log-samples"
        )
    return [
        _sample(s, path, model, key, about["task"].rpartition("/")[2], options, metric, cluster)
        for s in log["samples"]
    ]


def _sample(
    s: dict[str, Any],
    path: Path,
    variant: str,
    key: str,
    task: str,
    options: Mapping[str, Any],
    metric: str | None,
    cluster: str | None,
) -> Sample:
    where, scores = f"{path}: sample {s['id']}", s.get("scores") or {}
    name = metric if metric is not None and metric in scores else next(iter(scores), "")
    score, output = scores.get(name) or {}, s.get("output") or {}
    usage, wanted = output.get("usage") or {}, s["target"] if isinstance(s["target"], list) else [s["target"]]
    text = output.get("completion") or _text(
        ((output.get("choices") or [{}])[0].get("message") or {}).get("content")
    )
    asked, answers = _asked(s)
    error = (s.get("error") or {}).get("message", "") or ("" if scores else "no score in the log")
    document = f"{task}/{s['id']}"
    return Sample(
        variant=variant,
        stack_key=key,
        log=str(path),
        id=document,
        axis=task,
        cluster=source(s.get("metadata") or {}, cluster, where, document),
        epoch=int(s.get("epoch", 1)) - 1,
        content=digest([s["input"], s["target"], s.get("choices")]),
        messages=asked,
        wanted=tuple(map(str, wanted)),
        scorer=f"inspect {name}",
        metric=name,
        value=None if error else _value(score.get("value"), f"{where}: {name}"),
        text=text,
        extracted=_text(score.get("answer")),
        explanation=_text(score.get("explanation")),
        ms=1000 * float(s.get("working_time") or s.get("total_time") or 0.0),
        prompt_tokens=int(usage.get("input_tokens", 0)),
        completion_tokens=int(usage.get("output_tokens", 0)),
        error=error,
        repeat=_repeat(name, options.get(name, {}), asked, answers, [str(w) for w in wanted], text),
    )


def _value(value: object, where: str) -> float:
    return share(GRADES.get(value, value) if isinstance(value, str) else value, where)


def _asked(s: dict[str, Any]) -> tuple[Messages, int]:
    """What the model was first asked, and how often it answered."""
    given = s.get("messages") or []
    answers = [n for n, m in enumerate(given) if m["role"] == "assistant" and m.get("source") == "generate"]
    if answers:
        given = given[: answers[0]]
    elif not given:
        given = [{"role": "user", "content": s["input"]}] if isinstance(s["input"], str) else s["input"]
    messages = tuple(Message(m["role"], _text(m["content"])) for m in given if m["role"] in _ROLES)
    return messages, len(answers)


def _text(content: Any) -> str:
    """A content as text: parts joined, what is no text named by its type."""
    if isinstance(content, list):
        return "".join(
            p.get("text", f"[{p.get('type')}]") if isinstance(p, dict) else str(p) for p in content
        )
    return "" if content is None else content if isinstance(content, str) else json.dumps(content)


def _repeat(
    name: str, options: Mapping[str, Any], asked: Messages, answers: int, wanted: Sequence[str], text: str
) -> Repeat | str:
    """The scorer of ours that does the same, or why there is none."""
    if answers > 1:
        return "the model answered more than once (tools or turns)"
    if any(re.search(r"\[(image|audio|video|document)\]", m.content) for m in asked):
        return "it shows more than text"
    said = Completion(text, "stop")
    location = "exact" if name == "exact" else options.get("location", "end")
    if name == "includes" or (
        name in ("exact", "match") and location in ("exact", "any") and not options.get("numeric")
    ):
        most = (
            max(len(w.split()) for w in wanted) if location == "exact" and name != "includes" else ANY_LENGTH
        )
        if not all(re.search(r"\w", w) for w in wanted):
            return "its target has no word"
        return Repeat(asked, "exact", {"answers": list(wanted), "max_words": max(1, most)}, said)
    if (
        name == "match"
        and options.get("numeric")
        and location == "end"
        and len(wanted) == 1
        and _number(wanted[0]) is not None
    ):
        return Repeat(asked, "number", {"value": _number(wanted[0])}, said)
    if name == "choice":
        return "choice reads a letter that the model writes; our `choice` reads likelihoods"
    if name == "match":
        return f"match at the {location} of a text; ours look anywhere"
    return f"no scorer of ours does what {name or 'none'} does"


def _number(text: str) -> int | float | None:
    plain = text.replace(",", "").strip()
    if re.fullmatch(r"-?\d+", plain):
        return int(plain)
    return float(plain) if re.fullmatch(r"-?\d+\.\d+", plain) else None


def _zipped(path: Path) -> dict[str, Any]:
    """A .eval log as the tree of its .json form; raises DataError where its compression is not in this Python."""
    try:
        with zipfile.ZipFile(path) as log:
            names = log.namelist()
            head = "header.json" if "header.json" in names else "_journal/start.json"
            tree = _json(log.read(head).decode(), f"{path}:{head}")
            samples = [
                _json(log.read(n).decode(), f"{path}:{n}")
                for n in names
                if n.startswith("samples/") and n.endswith(".json")
            ]
            return {**tree, "samples": samples}
    except NotImplementedError as error:
        raise DataError(
            f"{path}: compressed in a way that this Python cannot read ({error}). Convert it: "
            f"inspect log convert {path} --to json --output-dir FOLDER"
        ) from error
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{path}: not a log of Inspect ({error})") from error


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        tree = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    if not isinstance(tree, dict):
        raise DataError(f"{where}: got a {type(tree).__name__}, wanted the object that Inspect writes")
    return tree
