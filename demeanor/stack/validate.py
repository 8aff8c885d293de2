"""Checks of a stack file before anything is loaded: every mistake at once, with path and known names.

In: YAML values, specs. Out: parsed specs and a list of problems. Loads no model; of data it checks existence
only.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from demeanor.core import files as core_files
from demeanor.core import registry
from demeanor.core.errors import Problem, SpecError, unknown
from demeanor.core.registry import Spec, parse
from demeanor.stack import foreign_names, imports
from demeanor.stack.schema import (
    AnyStage,
    Import,
    ImportStage,
    ItemReward,
    JudgeReward,
    MergeStage,
    ModelReward,
    OnlineStage,
    PromptSource,
    QuantiseStage,
    Remote,
    RewardTerm,
    RolloutsSpec,
    RuleReward,
    Scratch,
    ServerSpec,
    Source,
    StackSpec,
    Stage,
)

NAME = re.compile(r"^[a-z][a-z0-9_]*$")


def read_yaml(path: Path) -> Any:
    """Parse a stack file; raises SpecError that lists the YAML files of the folder if it does not exist."""
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
    """Apply `--set path=value` (value is YAML; path is dotted, list entries by index, name or kind)."""
    for assignment in assignments:
        path, eq, text = assignment.partition("=")
        if not eq or not path:
            raise SpecError(
                [Problem(f"--set {assignment}", "wanted path=value, e.g. --set decoding.temperature=0")]
            )
        try:
            _assign(raw, path.split("."), core_files.yaml_value(text, f"--set {path}"))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise SpecError([Problem(f"--set {path}", f"no such setting in the file: {error}")]) from None
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
    """Expand short forms: a base, objective or layer given as text; data given as text or a list of texts."""
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
                _expand_stage(stage)
    raw["layers"] = [{"kind": x} if isinstance(x, str) else x for x in raw.get("layers") or []]
    return raw


def _expand_stage(stage: dict[str, Any]) -> None:
    for key in ("objective", "adapter"):
        if isinstance(stage.get(key), str):
            stage[key] = {"kind": stage[key]}
    for key in ("data", "prompts"):
        if key in stage:
            stage[key] = _sources(stage[key])
    ptx, cost = stage.get("ptx"), stage.get("cost")
    if isinstance(ptx, dict) and "data" in ptx:
        ptx["data"] = _sources(ptx["data"])
    if isinstance(stage.get("reward"), str | dict | list):  # `reward: true` is an imported reward model
        stage["reward"] = _terms(stage["reward"])
    if isinstance(cost, dict) and "terms" in cost:
        cost["terms"] = _terms(cost["terms"])
    adapter = stage.get("adapter")
    if isinstance(adapter, dict) and isinstance(adapter.get("targets"), str):
        stage["adapter"] = {**adapter, "targets": [adapter["targets"]]}


def _terms(terms: Any) -> Any:
    """Expand reward terms: a text is a kind, `stages: NAME` one stage."""
    found = []
    for term in terms if isinstance(terms, list) else [terms]:
        term = {"kind": term} if isinstance(term, str) else term
        if isinstance(term, dict) and isinstance(term.get("stages"), str):
            term = {**term, "stages": [term["stages"]]}
        found.append(term)
    return found


def _sources(data: Any) -> Any:
    entries = data if isinstance(data, list) else [data]
    return [{"source": x} if isinstance(x, str) else x for x in entries]


# ---- checks beyond the schema ----


def plugin(
    package: str, raw: Mapping[str, Any], where: str, drop: Sequence[str] = ("kind",)
) -> tuple[Spec | None, list[Problem]]:
    """Check a plug-in entry (`kind` and its own settings) against the Spec of its file."""
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
        problems += [foreign_names.in_objective(problem, stage) for problem in bad]
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
            what = f"got '{name}', wanted a lower-case word (letters, digits, _)"
            problems.append(Problem(f"{here}.name", what))
        if name in [n for n, _, _ in found]:
            what = f"'{name}' is taken by an earlier layer; give this one a `name`"
            problems.append(Problem(f"{here}.name", what))
        if name == "base" or name in [s.name for s in spec.weights.stages]:
            what = f"'{name}' is the name of a weight stage; give this layer a `name`"
            problems.append(Problem(f"{here}.name", what))
        if parsed is None:
            continue
        missing = [
            Problem(f"{here}.{f}", f"no such file or folder: {path}")
            for f in file_fields(type(parsed))
            if getattr(parsed, f) and not (path := registry.file_path(root, str(getattr(parsed, f)))).exists()
        ]
        problems += missing
        deeper = getattr(registry.entry("demeanor.layers", str(raw["kind"])), "check", None)
        if deeper is not None and not missing:
            problems += deeper(parsed, root)
        found.append((name, str(raw["kind"]), parsed))
    return found, problems


def file_fields(spec: type[Spec]) -> list[str]:
    """List the fields of a spec that name files whose content matters (annotated registry.File)."""
    return [n for n, f in spec.model_fields.items() if holds(f, registry.CONTENT)]


def holds(field: FieldInfo, mark: str) -> bool:
    """True if a field, or a part of its type, is annotated with a mark."""
    return mark in field.metadata or _marked(field.annotation, mark)


def _marked(annotation: Any, mark: str) -> bool:
    return mark in getattr(annotation, "__metadata__", ()) or any(
        _marked(a, mark) for a in get_args(annotation)
    )


def references(spec: StackSpec, where: str) -> list[Problem]:
    """Check names that must exist (parents, roles, merged stages, serve) and shapes that must fit."""
    problems: list[Problem] = []
    earlier: dict[str, bool] = {"base": True}
    for i, stage in enumerate(spec.weights.stages):
        here = f"{where}: weights.stages[{i}]"
        if stage.name in earlier:
            what = f"'{stage.name}' is taken; stage names are unique and 'base' is the base"
            problems.append(Problem(f"{here}.name", what))
        if isinstance(stage, Stage):
            problems += _trained(stage, earlier, here)
        elif isinstance(stage, MergeStage):
            problems += _merged(stage, earlier, here)
        elif stage.parent is not None and stage.parent not in earlier:
            problems.append(Problem(f"{here}.parent", unknown(stage.parent, earlier, noun="earlier stage")))
        elif isinstance(stage, QuantiseStage) and stage.parent is not None and not earlier[stage.parent]:
            what = f"'{stage.parent}' is a reward model; only a policy is served in few bits"
            problems.append(Problem(f"{here}.parent", what))
        if isinstance(stage, QuantiseStage) and not stage.in_groups:
            problems += [
                Problem(f"{here}.{name}", f"is read with format q8_0, q4_0 or q4_1; format is {stage.format}")
                for name in ("head", "activations")
                if getattr(stage, name) is not None
            ]
        earlier.setdefault(stage.name, answers(stage, earlier))
    serve = spec.weights.serve
    if serve is not None and serve not in earlier:
        problems.append(Problem(f"{where}: weights.serve", unknown(serve, earlier, noun="stage")))
    elif serve is not None and not earlier[serve]:
        what = f"'{serve}' is a reward model: it scores answers and does not write any"
        problems.append(Problem(f"{where}: weights.serve", what))
    return problems + _shape(spec, where)


def answers(stage: AnyStage, earlier: Mapping[str, bool]) -> bool:
    """True if a stage is a policy (else a reward model); `earlier` has the same of the stages before."""
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
    known = kind in registry.known("demeanor.objectives")
    module = registry.entry("demeanor.objectives", str(kind)) if known else None
    if stage.parent is not None:
        if stage.parent not in earlier:
            problems.append(Problem(f"{here}.parent", unknown(stage.parent, earlier, noun="earlier stage")))
        elif not earlier[stage.parent] and answers(stage, earlier):
            what = f"'{stage.parent}' is a reward model, which cannot be trained on as a policy"
            problems.append(Problem(f"{here}.parent", what))
    if stage.probe is not None and module is not None and not module.POLICY:
        what = f"{kind} trains a reward model: it scores answers and does not write any; leave the probe out"
        problems.append(Problem(f"{here}.probe", what))
    reward = stage.probe.reward if stage.probe is not None else None
    if reward is not None and earlier.get(reward, True):
        rewards = [n for n, policy in earlier.items() if not policy]
        what = unknown(reward, rewards, noun="earlier reward stage")
        problems.append(Problem(f"{here}.probe.reward", what))
    if module is not None and module.ONLINE is not None and not isinstance(stage, OnlineStage):
        what = (
            f"{kind} trains on the policy's own completions, and this stage has none; instead of data write "
            "prompts: [{source: ...}], reward: [...] and, if wanted, rollouts: {...}"
        )
        problems.append(Problem(f"{here}.objective.kind", what))
    if isinstance(stage, OnlineStage):
        problems += _online(stage, module, earlier, here)
    for role, ancestor in stage.uses.items():
        if module is not None and role not in module.ROLES:
            problems.append(
                Problem(f"{here}.uses.{role}", unknown(role, module.ROLES, noun=f"role of {kind}"))
            )
        if ancestor not in earlier:
            problems.append(Problem(f"{here}.uses.{role}", unknown(ancestor, earlier, noun="earlier stage")))
        elif not earlier[ancestor]:
            what = f"'{ancestor}' is a reward model; {kind} wants a policy here"
            problems.append(Problem(f"{here}.uses.{role}", what))
    return problems


def _online(stage: OnlineStage, module: Any, earlier: Mapping[str, bool], here: str) -> list[Problem]:
    """Check what an online stage names, and that its objective can train on rollouts."""
    problems: list[Problem] = []
    kind, rollouts = stage.objective.get("kind"), stage.rollouts
    if stage.data:
        what = (
            "an online stage trains on its own completions; name prompts in `prompts`, a second line in `ptx`"
        )
        problems.append(Problem(f"{here}.data", what))
    if module is not None:
        problems += _online_objective(stage, module, here)
    terms = reward_terms(stage)
    rewards = [name for name, policy in earlier.items() if not policy]
    for place, term in terms.items():
        if isinstance(term, ModelReward):
            problems += [
                Problem(f"{here}.{place}.stages", unknown(name, rewards, noun="earlier reward stage"))
                for name in term.stages
                if earlier.get(name, True)
            ]
            if len(set(term.stages)) < len(term.stages):
                problems.append(Problem(f"{here}.{place}.stages", "names a stage twice; name each once"))
        scored = rollouts.environment is not None or any(source.items for source in stage.prompts)
        if isinstance(term, ItemReward) and not scored:
            what = "reads the prompts' own items, and no prompt source has `items: true`"
            problems.append(Problem(f"{here}.{place}", what))
        if isinstance(term, JudgeReward) and rollouts.count < 2:
            what = "compares the answers of a group; wanted rollouts.count of at least 2"
            problems.append(Problem(f"{here}.{place}", what))
    for i, source in enumerate(stage.prompts):
        problems += _prompt_source(source, f"{here}.prompts[{i}]")
    problems += _rollouts(rollouts, module, f"{here}.rollouts")
    problems += _sizes(stage, here)
    if stage.ptx is not None and not stage.ptx.data:
        problems.append(Problem(f"{here}.ptx.data", "got no source, wanted at least one; or leave ptx out"))
    if stage.keep == "best" and (stage.probe is None or stage.probe.prompts is None):
        what = f"{kind}: best is by the held-out score of the probe; write probe: {{prompts: SUITE}}"
        problems.append(Problem(f"{here}.keep", what))
    if stage.critic_lr is not None and module is not None and not (module.ONLINE and module.ONLINE.critic):
        problems.append(Problem(f"{here}.critic_lr", f"{kind} has no critic; leave it out"))
    if stage.optim.kind == "muon" and module is not None and module.ONLINE and module.ONLINE.critic:
        problems.append(Problem(f"{here}.optim.kind", "the critic has a learning rate of its own; use adamw"))
    return problems


FOR_ROWS = ("config", "split", "columns", "skip_bad", "stream")  # settings of a source that items do not have


def _prompt_source(source: PromptSource, here: str) -> list[Problem]:
    """Check settings of a prompt source that it would not read."""
    problems: list[Problem] = []
    if source.axes and not source.items:
        problems.append(Problem(f"{here}.axes", "is for suites; write items: true, or leave it out"))
    if source.weight > 1 or (source.items and source.weight != 1):
        what = f"got {source.weight:g}, but each prompt is asked once a pass; leave it out, and set steps or epochs"
        problems.append(Problem(f"{here}.weight", what))
    given = [name for name in FOR_ROWS if source.items and getattr(source, name)]
    return problems + [Problem(f"{here}.{name}", "is for rows; a suite has items") for name in given]


MOST_ANSWERS = 2**16  # of one iteration: more is a slip, and all of them are in memory at once


def _sizes(stage: OnlineStage, here: str) -> list[Problem]:
    """Check numbers of an online stage that only make sense together."""
    problems: list[Problem] = []
    if stage.steps is not None and "epochs" in stage.model_fields_set:
        what = f"got steps: {stage.steps} and epochs: {stage.epochs:g}, which say the same; leave one out"
        problems.append(Problem(f"{here}.steps", what))
    if stage.minibatches > stage.batch_rows:
        what = f"got {stage.minibatches}, wanted at most batch_rows = {stage.batch_rows}: a group is not cut"
        problems.append(Problem(f"{here}.minibatches", what))
    if (answers := stage.batch_rows * stage.rollouts.count) > MOST_ANSWERS:
        what = f"got {answers:,} answers an iteration (batch_rows x rollouts.count), wanted at most {MOST_ANSWERS:,}"
        problems.append(Problem(f"{here}.rollouts.count", what))
    cost = stage.cost
    if cost is not None and not cost.least <= cost.initial <= cost.most:
        what = f"got least {cost.least:g}, initial {cost.initial:g}, most {cost.most:g}; wanted them in this order"
        problems.append(Problem(f"{here}.cost.initial", what))
    return problems


def _rollouts(rollouts: RolloutsSpec, module: Any, here: str) -> list[Problem]:
    """Check settings of rollouts that only make sense together."""
    problems: list[Problem] = []
    if rollouts.turns > 1 and rollouts.environment is None:
        what = f"got {rollouts.turns} turns without an environment, which says what follows an answer"
        problems.append(Problem(f"{here}.turns", what))
    if rollouts.url is None and rollouts.server != ServerSpec():
        problems.append(Problem(f"{here}.server", "is for rollouts of a server; set url, or leave it out"))
    if rollouts.url is not None and rollouts.top_k is None and (rollouts.top_p < 1 or rollouts.min_p):
        what = (
            "a vLLM server tells the tokens that it kept only with a top_k; set top_k too (up to 2048), or leave "
            "top_p and min_p out"
        )
        problems.append(Problem(f"{here}.top_k", what))
    if rollouts.importance.mode != "none" and module is not None and module.ONLINE is None:
        what = "weights are for objectives with advantages; this one ranks its rollouts: leave it out"
        problems.append(Problem(f"{here}.importance", what))
    return problems


def _online_objective(stage: OnlineStage, module: Any, here: str) -> list[Problem]:
    kind, count, place = stage.objective.get("kind"), stage.rollouts.count, f"{here}.objective.kind"
    if not module.POLICY or module.ROWS in ("unpaired", "text"):
        what = (
            f"{kind} does not train a policy on rankings or rollouts; use a preference objective, sft or grpo"
        )
        return [Problem(place, what)]
    if module.MOVING is not None:
        return [Problem(place, f"{kind} moves its reference, which an online stage does not; use dpo")]
    needs_group = module.ONLINE.groups if module.ONLINE is not None else True
    if needs_group and count < 2:
        what = (
            f"got {count}; {kind} compares the completions of one prompt, and one alone has no baseline: wanted at "
            "least 2"
        )
        return [Problem(f"{here}.rollouts.count", what)]
    return _critic(stage, module, here)


def _critic(stage: OnlineStage, module: Any, here: str) -> list[Problem]:
    """A critic that starts from the reward model needs exactly one."""
    if module.ONLINE is None or module.ONLINE.value_init is None:
        return []
    settings, problems = plugin("demeanor.objectives", stage.objective, here)
    models = [stage for term in stage.reward if isinstance(term, ModelReward) for stage in term.stages]
    if problems or module.ONLINE.value_init(settings) == "zero" or len(models) == 1:
        return []
    found = f"{len(models)} reward models ({', '.join(models)})" if models else "no reward model"
    what = f"the critic starts from the reward model, and `reward` names {found}; write value_init: zero"
    return [Problem(f"{here}.objective.value_init", what)]


def _merged(stage: MergeStage, earlier: Mapping[str, bool], here: str) -> list[Problem]:
    problems = [
        Problem(f"{here}.of[{i}]", unknown(name, earlier, noun="earlier stage"))
        for i, name in enumerate(stage.of)
        if name not in earlier
    ]
    kinds = {name: earlier[name] for name in stage.of if name in earlier}
    if len(set(kinds.values())) > 1:
        rewards = ", ".join(name for name, policy in kinds.items() if not policy)
        what = f"{rewards} is a reward model; it cannot be merged into a policy"
        problems.append(Problem(f"{here}.of", what))
    if stage.weights is not None and len(stage.weights) != len(stage.of):
        what = f"got {len(stage.weights)} numbers, wanted one for each of {', '.join(stage.of)}"
        problems.append(Problem(f"{here}.weights", what))
    elif stage.method != "task_arithmetic" and abs(sum(stage.weights or (1.0,)) - 1) > 1e-6:
        what = f"got a sum of {sum(stage.weights or ()):g}, wanted 1 for an average"
        problems.append(Problem(f"{here}.weights", what))
    if stage.method == "slerp" and len(stage.of) != 2:
        problems.append(Problem(f"{here}.of", f"got {len(stage.of)} stages, wanted 2 for slerp"))
    return problems


def _shape(spec: StackSpec, where: str) -> list[Problem]:
    base = spec.weights.base
    if isinstance(base, Remote) and spec.weights.stages:
        what = f"'{base.model}' is on another server: nothing can be trained on it or rounded"
        return [Problem(f"{where}: weights.stages", what)]
    if isinstance(base, Remote) and "template" in spec.model_fields_set:
        what = f"'{base.model}' is on another server, which writes its prompts itself; leave template out"
        return [Problem(f"{where}: template", what)]
    if isinstance(base, Remote) and (
        given := sorted({"cache", "compute", "device"} & spec.weights.model_fields_set)
    ):
        what = f"'{base.model}' is on another server, which decodes as it likes; leave {given[0]} out"
        return [Problem(f"{where}: weights.{given[0]}", what)]
    if not isinstance(base, Scratch):
        return []
    problems: list[Problem] = []
    shape, here = base.model, f"{where}: weights.base.model"
    if shape.width % (2 * shape.heads):
        what = f"got {shape.width}, wanted a multiple of 2 x heads = {2 * shape.heads}"
        problems.append(Problem(f"{here}.width", what))
    if shape.kv_heads and shape.heads % shape.kv_heads:
        what = f"got {shape.kv_heads}, wanted a divisor of heads = {shape.heads}"
        problems.append(Problem(f"{here}.kv_heads", what))
    lengths = {"base.row_tokens": base.row_tokens}
    for i, stage in enumerate(spec.weights.stages):
        if isinstance(stage, Stage) and stage.max_tokens:
            lengths[f"stages[{i}].max_tokens"] = stage.max_tokens
        if isinstance(stage, OnlineStage):
            lengths[f"stages[{i}].rollouts.max_tokens"] = stage.rollouts.max_tokens
    for place, length in lengths.items():
        if length > shape.context:
            what = f"got {length}, wanted at most model.context = {shape.context}"
            problems.append(Problem(f"{where}: weights.{place}", what))
    return problems


def files(spec: StackSpec, root: Path, where: str, names: Mapping[str, Sequence[str]]) -> list[Problem]:
    """Check that data, suites, templates and checkpoints exist; `names` lists `world:` rows, and suites."""
    base, stages = spec.weights.base, spec.weights.stages
    sources: list[tuple[str, Sequence[Source]]] = []
    suites = [(f"evaluation.suites[{i}]", suite) for i, suite in enumerate(spec.evaluation.suites)]
    problems: list[Problem] = []
    if isinstance(base, Import):
        problems += imports.checkpoint(base.path, root, f"{where}: weights.base.path")
        problems += imports.too_long(stages, root / base.path, where)
    elif isinstance(base, Scratch):
        sources.append(("weights.base.data", base.data))
    for i, stage in enumerate(stages):
        here = f"weights.stages[{i}]"
        if isinstance(stage, ImportStage):
            problems += imports.imported(stage, root, f"{where}: {here}")
        elif isinstance(stage, Stage):
            sources.append((f"{here}.data", stage.data))
            if isinstance(stage, OnlineStage):
                problems += _online_files(stage, spec, root, f"{where}: {here}")
                sources.append((f"{here}.prompts", [x for x in stage.prompts if not x.items]))
                sources.append((f"{here}.ptx.data", stage.ptx.data if stage.ptx else ()))
                suites += [
                    (f"{here}.prompts[{k}].source", x.source) for k, x in enumerate(stage.prompts) if x.items
                ]
            if stage.probe is not None and stage.probe.prompts is not None:
                suites.append((f"{here}.probe.prompts", stage.probe.prompts))
    for here, data in sources:
        for i, source in enumerate(data):
            problems += _source(source, root, names.get("rows", ()), f"{where}: {here}[{i}]")
    for here, suite in suites:
        problems += _suite(suite, root, names.get("suites", ()), f"{where}: {here}")
    for here, template in (
        ("template", spec.template),
        ("weights.base.template", getattr(base, "template", None)),
    ):
        known = [*registry.known("demeanor.text.templates"), "model"]
        if template is None or template in known:
            continue
        if not template.endswith(".jinja"):
            what = unknown(template, known, noun="template") + " Or name a .jinja file."
            problems.append(Problem(f"{where}: {here}", what))
        elif not (root / template).is_file():
            problems.append(Problem(f"{where}: {here}", f"no such file: {root / template}"))
        if template == "model" and not isinstance(base, Import):
            what = "'model' means an imported base's own template; a scratch base has none"
            problems.append(Problem(f"{where}: {here}", what))
    return problems


OPERATIONAL = ("record", "limits")  # layers that a stack's key does not count


def _online_files(stage: OnlineStage, spec: StackSpec, root: Path, here: str) -> list[Problem]:
    """Check the files and layers that an online stage names."""
    problems: list[Problem] = []
    kinds = {str(raw.get("name") or raw.get("kind")): str(raw.get("kind")) for raw in spec.layers}
    known = list(kinds)
    for name in stage.rollouts.layers:
        if name not in known:
            problems.append(Problem(f"{here}.rollouts.layers", unknown(name, known, noun="layer")))
        elif kinds[name] in OPERATIONAL:
            what = f"'{name}' ({kinds[name]}) is about operation and changes no answer; leave it out"
            problems.append(Problem(f"{here}.rollouts.layers", what))
    file, _, function = (stage.rollouts.environment or ":").partition(":")
    if stage.rollouts.environment and not (file.endswith(".py") and function.isidentifier()):
        what = f"got '{stage.rollouts.environment}', wanted FILE.py:FUNCTION"
        problems.append(Problem(f"{here}.rollouts.environment", what))
    elif file and not (root / file).is_file():
        problems.append(Problem(f"{here}.rollouts.environment", f"no such file: {root / file}"))
    for place, term in reward_terms(stage).items():
        if isinstance(term, RuleReward) and not (root / term.rules).is_file():
            problems.append(Problem(f"{here}.{place}.rules", f"no such file: {root / term.rules}"))
    return problems


def reward_terms(stage: OnlineStage) -> dict[str, RewardTerm]:
    """The terms of a stage's reward and cost by their place in the stage."""
    found: dict[str, RewardTerm] = {f"reward[{i}]": term for i, term in enumerate(stage.reward)}
    return found | {f"cost.terms[{i}]": term for i, term in enumerate(stage.cost.terms if stage.cost else ())}


def _suite(name: str, root: Path, known: Sequence[str], where: str, noun: str = "suite") -> list[Problem]:
    if ":" in name and name.partition(":")[0] in {x.partition(":")[0] for x in known}:
        return [] if name in known else [Problem(where, unknown(name, known, noun=noun))]
    return [] if (root / name).exists() else [Problem(where, f"no such file or folder: {root / name}")]


HUB_ID = re.compile(r"hf:[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
LIBRARIES = {"hf:": "datasets", ".parquet": "pyarrow", ".arrow": "pyarrow"}


def _source(source: Source, root: Path, known: Sequence[str], where: str) -> list[Problem]:
    """Check that a data source exists and is readable here, and that settings of hub ids are used for one."""
    name = source.source
    problems: list[Problem] = []
    if not name.startswith("hf:"):
        worlds = [f"world:{name}" for name in known] or ["world:"]
        problems += _suite(name, root, worlds, f"{where}.source", noun="source")
        for setting in ("config", "split"):
            saved = setting == "split" and (root / name / "dataset_dict.json").is_file()
            if getattr(source, setting) is not None and not saved:
                also = " and datasets with splits, saved to disk" if setting == "split" else ""
                what = f"is for hub ids (hf:owner/name){also}; leave it out for {name}"
                problems.append(Problem(f"{where}.{setting}", what))
    elif not HUB_ID.fullmatch(name):
        what = f"got '{name}', wanted hf:owner/name or hf:owner/name@revision"
        problems.append(Problem(f"{where}.source", what))
    if source.columns is not None and name.startswith("world:"):
        problems.append(Problem(f"{where}.columns", f"is for files and hub ids; {name} has rows, no columns"))
    for mark, library in LIBRARIES.items():
        matches = name.startswith(mark) if mark == "hf:" else name.endswith(mark)
        if matches and importlib.util.find_spec(library) is None:
            what = f"reading {name} needs {library}: pip install 'demeanor[hub]'"
            problems.append(Problem(f"{where}.source", what))
            break
    return problems
