"""Logs of Inspect (inspect-ai): .json, or .eval, which is a zip of JSON. In: a path. Out: samples.

A model that Inspect reached through its `openai-api/SERVICE/` provider is named without that prefix. Epochs are seeds.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demeanor.core import registry
from demeanor.core.errors import DataError
from demeanor.core.types import Completion, Message, Messages, PromptRead, Score
from demeanor.evaluation.public_files import MOST_BYTES, File
from demeanor.evaluation.result_rows import whole
from demeanor.evaluation.scorers._words import number_alone, words
from demeanor.stack.stack import digest

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


def is_inspect_log(path: Path) -> bool:
    """Whether a file is a log of Inspect: an .eval, or a .json that begins with its version and status."""
    if path.suffix != ".json":
        return path.suffix == ".eval"
    with path.open(encoding="utf-8-sig", errors="ignore") as file:
        head = file.read(200)
    return re.match(r'\s*\{\s*"version":\s*\d+,\s*"status":', head) is not None


def read_inspect_log(path: Path, metric: str | None, cluster: str | None) -> list[Sample]:
    """Every sample of a log; raises DataError."""
    log = _zipped(path) if path.suffix == ".eval" else _json(File(path).text, str(path))
    with _read(str(path), "a log of Inspect"):
        return _inspect_samples(log, path, metric, cluster)


def _inspect_samples(
    log: dict[str, Any], path: Path, metric: str | None, cluster: str | None
) -> list[Sample]:
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
    task, found = about["task"].rpartition("/")[2], []
    for number, s in enumerate(log["samples"]):
        with _read(f"{path}: samples[{number}]", "a sample of Inspect"):
            found.append(_inspect_sample(s, path, model, key, task, options, metric, cluster))
    return found


@contextmanager
def _read(where: str, noun: str) -> Iterator[None]:
    """Turn what a foreign shape raises while it is read into DataError that names the place."""
    try:
        yield
    except KeyError as error:
        raise DataError(f"{where}: not {noun}: the field {error} is missing") from error
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"{where}: not {noun}: {type(error).__name__}: {error}") from error


def _inspect_sample(
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
    text = _text(output.get("completion")) or _text(
        ((output.get("choices") or [{}])[0].get("message") or {}).get("content")
    )
    asked, answers = _inspect_messages(s)
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
        prompt_tokens=int(usage.get("input_tokens") or 0),
        completion_tokens=int(usage.get("output_tokens") or 0),
        error=error,
        repeat=_repeat(name, options.get(name, {}), asked, answers, [str(w) for w in wanted], text),
    )


def _value(value: object, where: str) -> float:
    return share(GRADES.get(value, value) if isinstance(value, str) else value, where)


def _inspect_messages(s: dict[str, Any]) -> tuple[Messages, int]:
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
            max(len(words(w)) for w in wanted) if location == "exact" and name != "includes" else ANY_LENGTH
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
    found = number_alone(text)
    return None if found is None else int(found) if found == found.to_integral_value() else float(found)


def _zipped(path: Path) -> dict[str, Any]:
    """A .eval log as the tree of its .json form; raises DataError where its compression is not in this Python."""
    try:
        with zipfile.ZipFile(path) as log:
            names = log.namelist()
            if (size := sum(file.file_size for file in log.infolist())) > MOST_BYTES:
                raise DataError(f"{path}: unpacks to {size} bytes, more than {MOST_BYTES}; split it")
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
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, RuntimeError, EOFError) as error:
        raise DataError(f"{path}: not a log of Inspect ({error})") from error


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    if re.search(r"\\ud[89a-f]", text, re.IGNORECASE):  # half a surrogate pair cannot be written again
        tree = json.loads(whole(json.dumps(tree, ensure_ascii=False)))
    if not isinstance(tree, dict):
        raise DataError(f"{where}: got a {type(tree).__name__}, wanted the object that the harness writes")
    return tree


_NAME = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d.:-]+)\.jsonl")


def is_lm_eval_log(path: Path) -> bool:
    """Whether a file is named as lm-eval names its samples."""
    return _NAME.fullmatch(path.name) is not None


def read_lm_eval_log(path: Path, metric: str | None, cluster: str | None) -> list[Sample]:
    """Every sample of a file; raises DataError."""
    named = _NAME.fullmatch(path.name)
    assert named is not None
    results = path.with_name(f"results_{named['date']}.json")
    if not results.is_file():
        raise DataError(
            f"{path}: no {results.name} beside it, which names the model; keep both files that lm-eval wrote"
        )
    told = _json(File(results).text, str(results))
    if not isinstance(told.get("model_name"), str):
        raise DataError(f"{results}: model_name: got {told.get('model_name')!r:.80}, wanted the model's name")
    found = []
    for number, line in File(path).lines():
        with _read(f"{path}:{number}", "a sample of lm-eval"):
            found.append(
                _sample(
                    _json(line, f"{path}:{number}"), f"{path}:{number}", told, named["task"], metric, cluster
                )
            )
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
    if any(math.isnan(x) for x in logs):
        raise ValueError("filtered_resps: a log-likelihood is NaN")
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
        asked, "exact", {"answers": [target.strip()], "max_words": max(1, len(words(target)))}, said
    )


@dataclass(frozen=True, slots=True)
class Repeat:
    """How we would ask and judge it; `completion`: the logged answer as our scorer reads it."""

    messages: Messages
    scorer: str
    target: Mapping[str, Any]
    completion: Completion

    def problem(self) -> str | None:
        """Why our scorer does not take the target; None if it does."""
        module = registry.entry("demeanor.evaluation.scorers", self.scorer)
        try:
            module.Spec.model_validate(dict(self.target))
        except ValueError:  # of pydantic too
            return f"our `{self.scorer}` takes no such target"
        return None


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer of a variant; `content` hashes question and target, `repeat` is a reason where our scorers cannot repeat it."""

    variant: str
    stack_key: str
    log: str
    id: str
    axis: str
    cluster: str
    epoch: int
    content: str
    messages: Messages
    wanted: tuple[str, ...]
    scorer: str
    metric: str
    value: float | None
    text: str
    extracted: str = ""
    explanation: str = ""
    ms: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""
    repeat: Repeat | str = "no scorer of ours"

    def __post_init__(self) -> None:
        """Raise TypeError or ValueError where a log holds another type than its harness writes."""
        for name in ("variant", "text", "metric", "extracted", "explanation", "error"):
            if not isinstance(value := getattr(self, name), str):
                raise TypeError(f"{name}: got {value!r:.80}, wanted text")
        for name in ("ms", "prompt_tokens", "completion_tokens", "epoch"):
            if not 0 <= (number := getattr(self, name)) < math.inf:
                raise ValueError(f"{name}: got {number!r:.80}, wanted a number from 0")

    def differs(self) -> bool:
        """Whether our scorer gives the logged answer another value; False where the harness gave none."""
        if isinstance(self.repeat, str) or self.value is None:
            return False
        module = registry.entry("demeanor.evaluation.scorers", self.repeat.scorer)
        score: Score = module.score(
            module.Spec.model_validate(dict(self.repeat.target)), self.repeat.completion
        )
        return score.value != self.value


def share(value: object, where: str) -> float:
    """A value as a share; raises DataError naming what is none."""
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DataError(
            f"{where}: got {value!r}, wanted a value from 0 to 1, higher is better; choose another with --metric"
        )
    return float(value)


def source(fields: Mapping[str, Any], named: str | None, where: str, document: str) -> str:
    """The cluster of a sample: the named field, else `cluster` or `group`, else the document alone."""
    if named is not None and named not in fields:
        raise DataError(f"{where}: --cluster {named}: no such field. Known: {', '.join(fields) or 'none'}")
    name = named or next((n for n in ("cluster", "group") if fields.get(n) not in (None, "")), None)
    return str(fields[name]) if name else document
