"""Checking a declaration before anything is loaded: every mistake at once, each with its path, the nearest and all known names.

In: YAML text, a schema. Out: the parsed spec and a list of problems. It loads no model and reads no data but for existence.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from demeanor.core import files as core_files
from demeanor.core import registry
from demeanor.core.errors import Problem, SpecError, unknown
from demeanor.core.registry import Spec
from demeanor.stack.schema import (
    AnyStage,
    Import,
    ImportStage,
    MergeStage,
    QuantiseStage,
    Remote,
    Scratch,
    Source,
    StackSpec,
    Stage,
)

S = TypeVar("S", bound=Spec)
NAME = re.compile(r"^[a-z][a-z0-9_]*$")
TAGS: dict[str, type[Spec]] = {
    "scratch": Scratch,
    "import": Import,
    "train": Stage,
    "merge": MergeStage,
    "quantise": QuantiseStage,
    "remote": Remote,
}
"""Kinds of base and of stage, which stand in pydantic's paths but not in the file's."""


def read_yaml(path: Path) -> Any:
    """Parse a stack file; raises SpecError, where there is none with the YAML files that lie there."""
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise SpecError(
            [
                Problem(
                    str(path),
                    f"no such file. YAML files there: {', '.join(near) or 'none'}. "
                    "`demeanor init FOLDER` writes a stack to start from.",
                )
            ]
        )
    return core_files.read_yaml(path)


def override(raw: Any, assignments: Sequence[str]) -> Any:
    """Apply `--set path=value` (value is YAML; path is dotted, list entries by index or by their name or kind)."""
    for assignment in assignments:
        path, eq, text = assignment.partition("=")
        if not eq or not path:
            raise SpecError(
                [Problem(f"--set {assignment}", "wanted path=value, e.g. --set decoding.temperature=0")]
            )
        try:
            _assign(raw, path.split("."), yaml.safe_load(text))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise SpecError([Problem(f"--set {path}", f"no such place in the file: {error}")]) from None
    return raw


def _assign(node: Any, path: list[str], value: Any) -> None:
    for step in path[:-1]:
        if isinstance(node, list):
            node = node[_index(node, step)]
        elif isinstance(node, dict):
            node = node.setdefault(step, {})
        else:
            raise TypeError(f"'{step}' has nothing below it")
    if isinstance(node, list):
        node[_index(node, path[-1])] = value
    elif isinstance(node, dict):
        node[path[-1]] = value
    else:
        raise TypeError(f"'{path[-1]}' has nothing above it")


def _index(entries: list[Any], step: str) -> int:
    if step.isdigit():
        entries[int(step)]
        return int(step)
    names = [str(e.get("name") or e.get("kind")) if isinstance(e, dict) else str(e) for e in entries]
    if step not in names:
        raise KeyError(unknown(step, names))
    return names.index(step)


def expand(raw: Any) -> Any:
    """Write out the short forms: a base or objective given as a string, data given as a string or a list of strings."""
    if not isinstance(raw, dict):
        return raw
    weights = raw.get("weights")
    if isinstance(weights, dict):
        base = weights.get("base")
        if isinstance(base, str):
            weights["base"] = {"kind": "import", "path": base}
        elif isinstance(base, dict) and "data" in base:
            base["data"] = _sources(base["data"])
        for stage in weights.get("stages") or []:
            if isinstance(stage, dict):
                if isinstance(stage.get("objective"), str):
                    stage["objective"] = {"kind": stage["objective"]}
                if "data" in stage:
                    stage["data"] = _sources(stage["data"])
                adapter = (
                    {"kind": stage["adapter"]}
                    if isinstance(stage.get("adapter"), str)
                    else stage.get("adapter")
                )
                if isinstance(adapter, dict):
                    targets = adapter.get("targets")
                    stage["adapter"] = (
                        {**adapter, "targets": [targets]} if isinstance(targets, str) else adapter
                    )
    raw["layers"] = [{"kind": x} if isinstance(x, str) else x for x in raw.get("layers") or []]
    return raw


def _sources(data: Any) -> Any:
    entries = data if isinstance(data, list) else [data]
    return [{"source": x} if isinstance(x, str) else x for x in entries]


def parse(model: type[S], raw: Any, where: str) -> tuple[S | None, list[Problem]]:
    """Validate raw YAML against a spec: the spec, or every mistake in it."""
    if not isinstance(raw, dict):
        return None, [
            Problem(
                where, f"got {_kind(raw)}, wanted a mapping with the keys {', '.join(model.model_fields)}"
            )
        ]
    try:
        return model.model_validate(raw), []
    except ValidationError as error:
        return None, [_problem(model, e, where) for e in error.errors()]


def _problem(model: type[BaseModel], error: Any, where: str) -> Problem:
    loc = [x for x in error["loc"] if x not in TAGS]
    path = f"{where}: {_path(loc)}" if loc else where
    got = error.get("input")
    if error["type"] == "extra_forbidden":
        return Problem(path, unknown(str(loc[-1]), _fields_at(model, error["loc"][:-1]), noun="setting"))
    if error["type"] == "missing":
        return Problem(path, "missing; it has no default")
    if error["type"] == "union_tag_not_found" or error["type"] == "union_tag_invalid":
        base = "base" in loc
        known = ["scratch", "import", "remote"] if base else ["train", "import", "merge", "quantise"]
        return Problem(
            f"{path}.kind",
            unknown(str((got or {}).get("kind")), known, noun="kind of base" if base else "kind of stage"),
        )
    return Problem(path, f"got {_show(got)}, wanted: {error['msg'][0].lower()}{error['msg'][1:]}")


def _path(loc: Sequence[str | int]) -> str:
    text = ""
    for step in loc:
        text += f"[{step}]" if isinstance(step, int) else (f".{step}" if text else str(step))
    return text


def _fields_at(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """Names a mapping at `loc` may have, found by walking the schema."""
    here: type[BaseModel] = model
    for step in loc:
        if isinstance(step, int):
            continue
        if step in TAGS:
            here = TAGS[step] if "base" in loc or step != "import" else ImportStage
            continue
        field = here.model_fields.get(step)
        found = _model_in(field.annotation) if field else None
        if found is None:
            return []
        here = found
    return list(here.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) is not None:
        return next((m for m in map(_model_in, get_args(annotation)) if m is not None), None)
    return None


def _kind(value: Any) -> str:
    return {dict: "a mapping", list: "a list", str: "text", type(None): "nothing"}.get(
        type(value), type(value).__name__
    )


def _show(value: Any) -> str:
    return repr(value) if isinstance(value, str | int | float | bool | type(None)) else _kind(value)


# ---- what the schema alone cannot know ----


def plugin(
    package: str, raw: Mapping[str, Any], where: str, drop: Sequence[str] = ("kind",)
) -> tuple[Spec | None, list[Problem]]:
    """Check a plug-in entry (`kind` plus its own settings) against the Spec of its file."""
    kind = raw.get("kind")
    noun = f"{package.rsplit('.', 1)[-1].rstrip('s')}"
    if not isinstance(kind, str):
        return None, [Problem(f"{where}.kind", f"missing; known: {', '.join(registry.known(package))}")]
    if kind not in registry.known(package):
        return None, [Problem(f"{where}.kind", unknown(kind, registry.known(package), noun=noun))]
    settings = {k: v for k, v in raw.items() if k not in drop}
    spec, found = parse(registry.spec_of(package, kind), settings, where)
    return spec, [Problem(p.where.replace(f"{where}: ", f"{where}."), p.what) for p in found]


def objectives(spec: StackSpec, where: str) -> tuple[dict[str, Spec], list[Problem]]:
    """Check every stage's objective; returns the settings by stage name."""
    found: dict[str, Spec] = {}
    problems: list[Problem] = []
    for i, stage in enumerate(spec.weights.stages):
        if not isinstance(stage, Stage):
            continue
        parsed, bad = plugin(
            "demeanor.objectives", stage.objective, f"{where}: weights.stages[{i}].objective"
        )
        problems += bad
        if parsed is not None:
            found[stage.name] = parsed
    return found, problems


def layers(spec: StackSpec, root: Path, where: str) -> tuple[list[tuple[str, str, Spec]], list[Problem]]:
    """Check every runtime layer; returns (name, kind, settings) in order."""
    found: list[tuple[str, str, Spec]] = []
    problems: list[Problem] = []
    for i, raw in enumerate(spec.layers):
        here = f"{where}: layers[{i}]"
        parsed, bad = plugin("demeanor.layers", raw, here, drop=("kind", "name"))
        problems += bad
        name = str(raw.get("name") or raw.get("kind"))
        if not NAME.match(name):
            problems.append(
                Problem(f"{here}.name", f"got '{name}', wanted a lower-case word (letters, digits, _)")
            )
        if name in [n for n, _, _ in found]:
            problems.append(
                Problem(f"{here}.name", f"'{name}' is taken by an earlier layer; give this one a `name`")
            )
        if name == "base" or name in [s.name for s in spec.weights.stages]:
            problems.append(
                Problem(f"{here}.name", f"'{name}' is the name of a weight stage; give this layer a `name`")
            )
        if parsed is None:
            continue
        missing = [
            Problem(f"{here}.{f}", f"no such file or folder: {root / str(getattr(parsed, f))}")
            for f in file_fields(type(parsed))
            if getattr(parsed, f) and not (root / str(getattr(parsed, f))).exists()
        ]
        problems += missing
        deeper = getattr(registry.entry("demeanor.layers", str(raw["kind"])), "check", None)
        if deeper is not None and not missing:
            problems += deeper(parsed, root)
        found.append((name, str(raw["kind"]), parsed))
    return found, problems


def file_fields(spec: type[Spec]) -> list[str]:
    """Fields of a spec that name files whose content matters (annotated registry.File)."""
    return [
        n
        for n, f in spec.model_fields.items()
        if registry.CONTENT in f.metadata or _has_content(f.annotation)
    ]


def _has_content(annotation: Any) -> bool:
    return registry.CONTENT in getattr(annotation, "__metadata__", ()) or any(
        _has_content(a) for a in get_args(annotation)
    )


def references(spec: StackSpec, where: str) -> list[Problem]:
    """Names that must exist (parents, roles, merged stages, serve) and shapes that must fit."""
    problems: list[Problem] = []
    earlier: dict[str, bool] = {"base": True}
    for i, stage in enumerate(spec.weights.stages):
        here = f"{where}: weights.stages[{i}]"
        if stage.name in earlier:
            problems.append(
                Problem(
                    f"{here}.name", f"'{stage.name}' is taken; stage names are unique and 'base' is the base"
                )
            )
        if isinstance(stage, Stage):
            problems += _trained(stage, earlier, here)
        elif isinstance(stage, MergeStage):
            problems += _merged(stage, earlier, here)
        elif stage.parent is not None and stage.parent not in earlier:
            problems.append(Problem(f"{here}.parent", unknown(stage.parent, earlier, noun="earlier stage")))
        elif isinstance(stage, QuantiseStage) and stage.parent is not None and not earlier[stage.parent]:
            problems.append(
                Problem(
                    f"{here}.parent",
                    f"'{stage.parent}' is a reward model; only a policy is served in few bits",
                )
            )
        earlier.setdefault(stage.name, answers(stage, earlier))
    serve = spec.weights.serve
    if serve is not None and serve not in earlier:
        problems.append(Problem(f"{where}: weights.serve", unknown(serve, earlier, noun="stage")))
    elif serve is not None and not earlier[serve]:
        problems.append(
            Problem(
                f"{where}: weights.serve", f"'{serve}' is a reward model: it scores answers and writes none"
            )
        )
    return problems + _shape(spec, where)


def answers(stage: AnyStage, earlier: Mapping[str, bool]) -> bool:
    """Whether a stage yields a policy (else a reward model); `earlier` says it of the stages before."""
    if isinstance(stage, Stage):
        kind = stage.objective.get("kind")
        return kind not in registry.known("demeanor.objectives") or bool(
            registry.entry("demeanor.objectives", str(kind)).POLICY
        )
    if isinstance(stage, QuantiseStage):
        return True
    return not stage.reward if isinstance(stage, ImportStage) else earlier.get(stage.of[-1], True)


def _trained(stage: Stage, earlier: Mapping[str, bool], here: str) -> list[Problem]:
    problems: list[Problem] = []
    kind = stage.objective.get("kind")
    module = (
        registry.entry("demeanor.objectives", kind) if kind in registry.known("demeanor.objectives") else None
    )
    if stage.parent is not None:
        if stage.parent not in earlier:
            problems.append(Problem(f"{here}.parent", unknown(stage.parent, earlier, noun="earlier stage")))
        elif not earlier[stage.parent] and answers(stage, earlier):
            problems.append(
                Problem(
                    f"{here}.parent", f"'{stage.parent}' is a reward model, which cannot go on as a policy"
                )
            )
    if stage.probe is not None and module is not None and not module.POLICY:
        problems.append(
            Problem(
                f"{here}.probe",
                f"{kind} trains a reward model: it scores answers and writes none; leave the probe out",
            )
        )
    reward = stage.probe.reward if stage.probe is not None else None
    if reward is not None and earlier.get(reward, True):
        problems.append(
            Problem(
                f"{here}.probe.reward",
                unknown(
                    reward, [n for n, policy in earlier.items() if not policy], noun="earlier reward stage"
                ),
            )
        )
    for role, ancestor in stage.uses.items():
        if module is not None and role not in module.ROLES:
            problems.append(
                Problem(f"{here}.uses.{role}", unknown(role, module.ROLES, noun=f"role of {kind}"))
            )
        if ancestor not in earlier:
            problems.append(Problem(f"{here}.uses.{role}", unknown(ancestor, earlier, noun="earlier stage")))
        elif not earlier[ancestor]:
            problems.append(
                Problem(f"{here}.uses.{role}", f"'{ancestor}' is a reward model; {kind} wants a policy here")
            )
    return problems


def _merged(stage: MergeStage, earlier: Mapping[str, bool], here: str) -> list[Problem]:
    problems = [
        Problem(f"{here}.of[{i}]", unknown(name, earlier, noun="earlier stage"))
        for i, name in enumerate(stage.of)
        if name not in earlier
    ]
    kinds = {name: earlier[name] for name in stage.of if name in earlier}
    if len(set(kinds.values())) > 1:
        rewards = ", ".join(name for name, policy in kinds.items() if not policy)
        problems.append(
            Problem(f"{here}.of", f"{rewards} is a reward model; it cannot be merged into a policy")
        )
    if stage.weights is not None and len(stage.weights) != len(stage.of):
        problems.append(
            Problem(
                f"{here}.weights",
                f"got {len(stage.weights)} numbers, wanted one for each of {', '.join(stage.of)}",
            )
        )
    elif (
        stage.weights is not None and stage.method != "task_arithmetic" and abs(sum(stage.weights) - 1) > 1e-6
    ):
        problems.append(
            Problem(f"{here}.weights", f"got a sum of {sum(stage.weights):g}, wanted 1 for an average")
        )
    if stage.method == "slerp" and len(stage.of) != 2:
        problems.append(Problem(f"{here}.of", f"got {len(stage.of)} stages, wanted 2 for slerp"))
    return problems


def _shape(spec: StackSpec, where: str) -> list[Problem]:
    base = spec.weights.base
    if isinstance(base, Remote) and spec.weights.stages:
        return [
            Problem(
                f"{where}: weights.stages",
                f"'{base.model}' is on another server: nothing can be trained on it or rounded",
            )
        ]
    if not isinstance(base, Scratch):
        return []
    problems: list[Problem] = []
    shape, here = base.model, f"{where}: weights.base.model"
    if shape.width % (2 * shape.heads):
        problems.append(
            Problem(f"{here}.width", f"got {shape.width}, wanted a multiple of 2 x heads = {2 * shape.heads}")
        )
    if shape.kv_heads and shape.heads % shape.kv_heads:
        problems.append(
            Problem(f"{here}.kv_heads", f"got {shape.kv_heads}, wanted a divisor of heads = {shape.heads}")
        )
    if base.row_tokens > shape.context:
        problems.append(
            Problem(
                f"{where}: weights.base.row_tokens",
                f"got {base.row_tokens}, wanted at most model.context = {shape.context}",
            )
        )
    for i, stage in enumerate(spec.weights.stages):
        if isinstance(stage, Stage) and stage.max_tokens and stage.max_tokens > shape.context:
            problems.append(
                Problem(
                    f"{where}: weights.stages[{i}].max_tokens",
                    f"got {stage.max_tokens}, wanted at most model.context = {shape.context}",
                )
            )
    return problems


def files(spec: StackSpec, root: Path, where: str, names: Mapping[str, Sequence[str]]) -> list[Problem]:
    """Data, suites, templates and imported checkpoints must exist; `names` lists the rows of `world:`, and suites by their full names."""
    base = spec.weights.base
    problems: list[Problem] = []
    if isinstance(base, Import):
        problems += _checkpoint(base.path, root, f"{where}: weights.base.path")
    elif isinstance(base, Scratch):
        problems += [
            p
            for i, s in enumerate(base.data)
            for p in _source(s, root, names.get("rows", ()), f"{where}: weights.base.data[{i}]")
        ]
    for i, stage in enumerate(spec.weights.stages):
        if isinstance(stage, ImportStage):
            problems += _imported(stage, root, f"{where}: weights.stages[{i}]")
        if isinstance(stage, Stage) and stage.probe is not None and stage.probe.prompts is not None:
            problems += _suite(
                stage.probe.prompts,
                root,
                names.get("suites", ()),
                f"{where}: weights.stages[{i}].probe.prompts",
            )
        for j, s in enumerate(stage.data if isinstance(stage, Stage) else ()):
            problems += _source(s, root, names.get("rows", ()), f"{where}: weights.stages[{i}].data[{j}]")
    for i, suite in enumerate(spec.evaluation.suites):
        problems += _suite(suite, root, names.get("suites", ()), f"{where}: evaluation.suites[{i}]")
    for here, template in (
        ("template", spec.template),
        ("weights.base.template", getattr(base, "template", None)),
    ):
        known = [*registry.known("demeanor.text.templates"), "model"]
        if template is None or template in known:
            continue
        if not template.endswith(".jinja"):
            problems.append(
                Problem(
                    f"{where}: {here}", unknown(template, known, noun="template") + " Or name a .jinja file."
                )
            )
        elif not (root / template).is_file():
            problems.append(Problem(f"{where}: {here}", f"no such file: {root / template}"))
        if template == "model" and not isinstance(base, Import):
            problems.append(
                Problem(
                    f"{where}: {here}",
                    "'model' means an imported base's own template; a scratch base has none",
                )
            )
    return problems


def _named(source: str, root: Path, known: Sequence[str], where: str) -> list[Problem]:
    if source.startswith("world:"):
        return (
            []
            if source[6:] in known
            else [Problem(where, unknown(source, [f"world:{n}" for n in known], noun="source"))]
        )
    return [] if (root / source).exists() else [Problem(where, f"no such file or folder: {root / source}")]


def _suite(name: str, root: Path, known: Sequence[str], where: str) -> list[Problem]:
    if name.partition(":")[0] in {x.partition(":")[0] for x in known} and ":" in name:
        return [] if name in known else [Problem(where, unknown(name, known, noun="suite"))]
    return [] if (root / name).exists() else [Problem(where, f"no such file or folder: {root / name}")]


HUB_ID = re.compile(r"hf:[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
LIBRARIES = {"hf:": "datasets", ".parquet": "pyarrow", ".arrow": "pyarrow"}


def _source(source: Source, root: Path, known: Sequence[str], where: str) -> list[Problem]:
    """A data source must exist, its kind be readable here, and what is only for hub ids stand at one."""
    name = source.source
    problems: list[Problem] = []
    if not name.startswith("hf:"):
        problems += _named(name, root, known, f"{where}.source")
        for setting in ("config", "split"):
            saved = setting == "split" and (root / name / "dataset_dict.json").is_file()
            if getattr(source, setting) is not None and not saved:
                also = " and datasets with splits, saved to disk" if setting == "split" else ""
                problems.append(
                    Problem(
                        f"{where}.{setting}", f"is for hub ids (hf:owner/name){also}; leave it out for {name}"
                    )
                )
    elif not HUB_ID.fullmatch(name):
        problems.append(
            Problem(f"{where}.source", f"got '{name}', wanted hf:owner/name or hf:owner/name@revision")
        )
    if source.columns is not None and name.startswith("world:"):
        problems.append(Problem(f"{where}.columns", f"is for files and hub ids; {name} has rows, no columns"))
    library = next(
        (
            lib
            for mark, lib in LIBRARIES.items()
            if (name.startswith(mark) if mark == "hf:" else name.endswith(mark))
        ),
        None,
    )
    if library is not None and importlib.util.find_spec(library) is None:
        problems.append(
            Problem(f"{where}.source", f"reading {name} needs {library}: pip install 'demeanor[hub]'")
        )
    return problems


def _imported(stage: ImportStage, root: Path, here: str) -> list[Problem]:
    """An imported stage's folder, without a tokenizer of necessity, and whether it is what `reward` says."""
    problems = _checkpoint(stage.path, root, f"{here}.path", needs=())
    if problems or not (root / stage.path).is_dir():
        return problems
    if is_reward_folder(root / stage.path) != stage.reward:
        got = "a policy" if stage.reward else "a reward model (sequence classification)"
        return [
            Problem(f"{here}.reward", f"got {str(stage.reward).lower()}, but {root / stage.path} holds {got}")
        ]
    return []


def is_reward_folder(folder: Path) -> bool:
    """Whether a Hugging Face or PEFT folder says that it scores texts instead of writing them."""
    adapter = _json(folder / "adapter_config.json")
    names = (
        [str(adapter.get("task_type"))]
        if adapter
        else [str(x) for x in _json(folder / "config.json").get("architectures") or ()]
    )
    return any(name == "SEQ_CLS" or name.endswith("ForSequenceClassification") for name in names)


def adapter_base(folder: Path) -> str | None:
    """The weights that a PEFT folder goes on, as it names them; None for a folder of whole weights."""
    name = _json(folder / "adapter_config.json").get("base_model_name_or_path")
    return str(name) if name else None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _checkpoint(
    path: str, root: Path, where: str, needs: Sequence[str] = ("tokenizer.json",)
) -> list[Problem]:
    folder = root / path
    if folder.is_dir():
        config = "adapter_config.json" if (folder / "adapter_config.json").is_file() else "config.json"
        wanted = [n for n in (config, *needs) if not (folder / n).is_file()]
        weights = list(folder.glob("*.safetensors"))
        if not weights:
            bins = list(folder.glob("*.bin")) + list(folder.glob("*.pt"))
            wanted.append(
                "a .safetensors file"
                + (" (pickled weights are not loaded; convert them first)" if bins else "")
            )
        return (
            [Problem(where, f"{folder} is not a Hugging Face checkpoint: it lacks {', '.join(wanted)}")]
            if wanted
            else []
        )
    if (
        re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", path)
        and not path.startswith((".", "/"))
        and not folder.parent.is_dir()
    ):
        return []
    return [
        Problem(
            where,
            f"no such folder: {folder}; wanted a Hugging Face folder, or a hub id such as Qwen/Qwen3-0.6B@main",
        )
    ]
