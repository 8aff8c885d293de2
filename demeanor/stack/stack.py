"""The stack: a stack.yaml that was read, checked and hashed, with its variants.

In: a file (and `--set` overrides). Out: a Stack with keys by content, lineage of its stages, variants and
model ids. Knows nothing of training or serving.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from demeanor.core import registry
from demeanor.core.errors import Problem, SpecError, StaleFileError, UsageError, unknown
from demeanor.core.files import identity, names_gguf
from demeanor.core.registry import Spec, parse
from demeanor.core.types import Decoding
from demeanor.stack import foreign_names, imports, prices, validate
from demeanor.stack.schema import (
    AnyStage,
    Import,
    ImportStage,
    MergeStage,
    ModelReward,
    OnlineStage,
    QuantiseStage,
    Remote,
    RuleReward,
    Scratch,
    Source,
    StackSpec,
    Stage,
)

OBJECTIVES, LAYERS = "demeanor.objectives", "demeanor.layers"
ALL = "all"
CHANGED = {"bf16": "bf16, multiplied in bf16"}
"""Formats of keys and values whose arithmetic changed, as keys name them: answers of before are not those of now."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One runtime layer of a stack: name, kind, settings, and whether it can change an answer."""

    name: str
    kind: str
    spec: Spec
    behaviour: bool

    @property
    def module(self) -> ModuleType:
        module: ModuleType = registry.entry(LAYERS, self.kind)
        return module


@dataclass(frozen=True, slots=True)
class Stack:
    """A checked declaration: the weights (`serve`) that answer through `layers` as `model_id`."""

    spec: StackSpec
    root: Path
    path: Path
    objectives: Mapping[str, Spec]
    layers: tuple[Layer, ...]
    serve: str
    model_id: str
    # What an imported base is found to be (engine/placement.py looks): not a Llama that can be read here, or one whose
    # matrices are exact or rounded.
    imported: Literal["other", "exact", "rounded"] = "other"
    # Stage keys as first computed: a file edited during training does not change what is being trained.
    keys: dict[str, str] = field(default_factory=dict, compare=False, repr=False)
    # Hashes of named files as first read, shared by all variants, so they belong to one moment.
    contents: dict[Path, str] = field(default_factory=dict, compare=False, repr=False)
    _key: list[str] = field(default_factory=list, compare=False, repr=False, init=False)

    # ---- lineage ----

    def stage(self, name: str) -> AnyStage:
        """Return the declared stage of that name; raises DemeanorError with the known names."""
        for stage in self.spec.weights.stages:
            if stage.name == name:
                return stage
        raise UsageError(unknown(name, [s.name for s in self.spec.weights.stages], noun="stage"))

    def objective_kind(self, stage: str) -> str:
        """Return the kind of a stage's objective, else `import`, `merge` or `quantise`."""
        found = self.stage(stage)
        return str(found.objective["kind"]) if isinstance(found, Stage) else found.kind

    def is_policy(self, stage: str) -> bool:
        """True if a stage is a policy and not a reward model."""
        return answering(self.spec)[stage]

    def parent(self, name: str) -> str:
        """Return the stage that `name` starts from: the declared or last merged one, else the policy
        before it, or base."""
        return parents(self.spec)[name]

    def roles(self, name: str) -> dict[str, str]:
        """Return the frozen ancestors of a stage by role; a role without a declared stage is the parent."""
        stage = self.stage(name)
        if not isinstance(stage, Stage):
            return {}
        module = registry.entry(OBJECTIVES, self.objective_kind(name))
        return {role: stage.uses.get(role, self.parent(name)) for role in module.ROLES}

    def needs(self, name: str) -> dict[str, str]:
        """Return the stages whose weights must exist before `name` can be trained, with their roles."""
        if name == "base":
            return {}
        stage = self.stage(name)
        if isinstance(stage, MergeStage):
            found = {f"of[{i}]": ancestor for i, ancestor in enumerate(stage.of)}
            return {**found, "origin": self.origin(stage)} if stage.method == "task_arithmetic" else found
        if isinstance(stage, ImportStage):
            return {"parent": "base"}
        rewards = {f"reward {x}": x for x in reward_stages(stage)} if isinstance(stage, OnlineStage) else {}
        return {"parent": self.parent(name), **self.roles(name), **rewards}

    def origin(self, stage: MergeStage) -> str:
        """Return the nearest common ancestor of the merged stages."""
        first, *rest = [self.chain(name) for name in stage.of]
        return next(name for name in reversed(first) if all(name in chain for chain in rest))

    def chain(self, name: str) -> list[str]:
        """Return the weight layers from base to `name`, in order of training."""
        chain = [name]
        while chain[0] != "base":
            chain.insert(0, self.parent(chain[0]))
        return chain

    @property
    def uses_world(self) -> bool:
        """True if any of its data is generated by the embedded world."""
        base = self.spec.weights.base
        data = [
            *(base.data if isinstance(base, Scratch) else ()),
            *(
                s
                for stage in self.spec.weights.stages
                if isinstance(stage, Stage)
                for s in (*stage.data, *(stage.prompts if isinstance(stage, OnlineStage) else ()))
            ),
        ]
        return any(s.source.startswith("world:") for s in data)

    @property
    def policies(self) -> list[str]:
        """All sets of weights that can answer: base and the policy stages, in file order."""
        return ["base", *(s.name for s in self.spec.weights.stages if self.is_policy(s.name))]

    # ---- identity ----

    def stage_key(self, name: str) -> str:
        """Return a hash of everything that determines the weights of `name`: settings, data and ancestors, but no
        labels."""
        if name not in self.keys:
            self.keys[name] = self._stage_key(name)
        return self.keys[name]

    def _stage_key(self, name: str) -> str:
        if name == "base":
            base = self.spec.weights.base
            if isinstance(base, Import):
                return import_key(self.root, base.path)
            if isinstance(base, Remote):
                return digest({"remote": _remote(base)})
            return digest({"base": plain(base, drop={"template", "data"}), "data": self._data(base.data)})
        stage = self.stage(name)
        if isinstance(stage, ImportStage):
            return digest(
                {
                    "import": content_key(self.root, stage.path),
                    "on": self._adapted(stage),
                    "reward": stage.reward,
                    "tokenizer": self.stage_key("base"),
                    "template": self._template(self.spec.template),
                }
            )
        if isinstance(stage, MergeStage):
            return digest(
                {
                    "merge": plain(stage, drop={"name", "of"}),
                    "template": self._template(self.spec.template),
                    "of": [self.stage_key(ancestor) for ancestor in self.needs(name).values()],
                }
            )
        if isinstance(stage, QuantiseStage):
            groups = {"head": stage.head or "q8_0", "activations": stage.activations or "int8"}
            groups = groups if stage.in_groups else {}
            return digest({"quantise": stage.format, **groups, "of": self.stage_key(self.parent(name))})
        module = registry.entry(OBJECTIVES, self.objective_kind(name))
        online = self._online(stage) if isinstance(stage, OnlineStage) else {}
        revision = {"revision": module.REVISION} if module.REVISION else {}
        dropped = {"kind", "name", "objective", "parent", "uses", "data", "probe", "recompute", *ONLINE_FILES}
        return digest(
            {
                "objective": {"kind": self.objective_kind(name), **plain(self.objectives[name]), **revision},
                "stage": plain(stage, drop=dropped),
                "rows": module.ROWS,
                "data": self._data(stage.data),
                "template": self._template(self.spec.template),
                "parent": self.stage_key(self.parent(name)),
                "uses": {role: self.stage_key(ancestor) for role, ancestor in self.roles(name).items()},
                **online,
            }
        )

    def _online(self, stage: OnlineStage) -> dict[str, Any]:
        """What else determines the weights of an online stage: prompts, rewards, layers, the judge, user code."""
        terms = [*stage.reward, *(stage.cost.terms if stage.cost else ())]
        judged = any(term.kind == "judge" for term in terms)
        code = (stage.rollouts.environment or "").partition(":")[0]
        layers = [x for x in self.layers if x.name in stage.rollouts.layers]
        found: dict[str, Any] = {
            "prompts": self._data(stage.prompts),
            "ptx": stage.ptx and {**plain(stage.ptx, drop={"data"}), "data": self._data(stage.ptx.data)},
            "rewards": {name: self.stage_key(name) for name in reward_stages(stage)},
            "rules": [self._hash(self.root / term.rules) for term in terms if isinstance(term, RuleReward)],
            "judge": plain(self.spec.evaluation.judge) if judged and self.spec.evaluation.judge else None,
            "environment": self._hash(self.root / code) if code else None,
            "layers": [{"kind": x.kind, **self._contents(x.spec)} for x in layers],
            "rollouts": plain(stage.rollouts, drop={"url", "server"}),
            "server": stage.rollouts.url is not None,  # not which one, or how often it is asked again
            "probe": plain(stage.probe) if stage.keep == "best" and stage.probe else None,
        }
        return {"online": {name: value for name, value in found.items() if value}}

    def key(self) -> str:
        """Return a hash of everything that can change an answer of this variant, with the content of its
        files.

        It is computed once; files that change later take effect with the next `load`.
        """
        if not self._key:
            self._key.append(self._compute_key())
        return self._key[0]

    def check_files(self, checked: set[Path]) -> None:
        """Raise StaleFileError if a layer's file differs from what the key was computed from; skips
        `checked`."""
        self.key()
        for layer in self.layers:
            for path in self._files(layer.spec):
                if path in checked or path not in self.contents:
                    continue
                if self.contents[path] != file_hash(path):
                    raise StaleFileError(
                        f"{path}: changed after {self.path} was loaded (layer '{layer.name}'); "
                        "reload the stack to use it: start again, "
                        "or send SIGHUP to `demeanor serve` (or give it --watch)"
                    )
                checked.add(path)

    def stamps(self) -> dict[str, tuple[int, int]]:
        """Return modification time (ns) and size of the stack file and of every file and folder it names."""
        named = [
            self.path,
            *(self.root / text for text in _texts(self.spec.model_dump(mode="json")) if 0 < len(text) < 256),
            *(
                self.root / str(getattr(x.spec, name))
                for x in self.layers
                for name, about in type(x.spec).model_fields.items()
                if validate.holds(about, registry.SOURCE) and getattr(x.spec, name) is not None
            ),  # a default that is a file's name does not stand in the file
            *(path for layer in self.layers for path in layer.spec.further_files(self.root)),
        ]
        found: dict[str, tuple[int, int]] = {}
        for path in named:
            try:
                if path.resolve() in (self.root.resolve(), *self.root.resolve().parents):
                    continue
                for file in [path, *(path.rglob("*") if path.is_dir() else ())]:
                    about = file.stat()
                    found[str(file)] = about.st_mtime_ns, about.st_size
            except (OSError, ValueError):
                continue
        return found

    def _compute_key(self) -> str:
        weights = self.spec.weights
        numbers = {
            "compute": weights.compute,
            "cache": CHANGED.get(cache := self.cache_format(self.serve), cache),
            "device": weights.device or "cpu",
        }
        return digest(
            {
                **{name: chosen for name, chosen in numbers.items() if chosen not in ("fp32", "cpu")},
                "weights": self.stage_key(self.serve),
                "template": self._template(self.template),
                "decoding": plain(self.spec.decoding),
                "layers": [{"kind": x.kind, **self._contents(x.spec)} for x in self.layers if x.behaviour],
            }
        )

    def cache_format(self, stage: str) -> Literal["fp32", "bf16", "fp16"]:
        """The number format of a stage's keys and values: `weights.cache`, else bf16 where weights or products are rounded, and fp32 where
        they are exact."""
        narrow = self._rounded(stage) or (self.spec.weights.compute == "bf16" and self._known_shape)
        return self.spec.weights.cache or ("bf16" if narrow else "fp32")

    @property
    def _known_shape(self) -> bool:
        """False if the base may run through transformers, which keeps keys and values in its own format."""
        return isinstance(self.spec.weights.base, Scratch) or self.imported != "other"

    def _rounded(self, name: str) -> bool:
        """True if a stage's matrices decode in few bits: they are rounded, or an adapter stands on such."""
        if name == "base":
            return self.imported == "rounded"
        stage = self.stage(name)
        if isinstance(stage, QuantiseStage):
            if stage.in_groups:
                return stage.activations != "fp32"
            return stage.format == "int8" and self._known_shape  # bf16 multiplies in fp32
        return isinstance(stage, Stage) and stage.adapter is not None and self._rounded(self.parent(name))

    @property
    def template(self) -> str:
        """The chat template of this variant: the base may have its own, trained stages use the stack's."""
        own = getattr(self.spec.weights.base, "template", None)  # a remote base has none
        return (own or self.spec.template) if self.serve == "base" else self.spec.template

    def _template(self, name: str) -> str:
        return self._hash(self.root / name) if name.endswith(".jinja") else name

    def _hash(self, path: Path) -> str:
        if path not in self.contents:
            self.contents[path] = file_hash(path)
        return self.contents[path]

    def _files(self, spec: Spec) -> list[Path]:
        named = (getattr(spec, name) for name in validate.file_fields(type(spec)))
        own = [registry.file_path(self.root, str(name)) for name in named if name is not None]
        return [*own, *spec.further_files(self.root)]

    def _adapted(self, stage: ImportStage) -> str | None:
        """Return the content key of the weights that an imported PEFT folder needs; a hub id is its own
        key."""
        folder = self.root / stage.path
        name = imports.adapter_base(folder)
        return name and content_key(folder if (folder / name).exists() else Path.cwd(), name)

    def _data(self, sources: Sequence[Source]) -> list[Any]:
        return [
            {**plain(s, drop={"source", "skip_bad", "stream"}), "content": content_key(self.root, s.source)}
            for s in sources
        ]

    def contents_of(self, layer: Layer) -> dict[str, Any]:
        """Return the settings of a layer with the content of its files instead of their names."""
        return self._contents(layer.spec)

    def _contents(self, spec: Spec) -> dict[str, Any]:
        values = plain(spec)
        for name in validate.file_fields(type(spec)):
            if values.get(name) is not None:
                values[name] = self._hash(registry.file_path(self.root, values[name]))
        if further := spec.further_files(self.root):
            values["further_files"] = [self._hash(path) for path in further]
        for name, about in type(spec).model_fields.items():
            value = getattr(spec, name)
            if isinstance(value, Spec):
                values[name] = self._contents(value)
            elif value is not None and validate.holds(about, registry.SOURCE):
                values[name] = content_key(self.root, value)
        return values

    # ---- variants ----

    @property
    def switches(self) -> list[str]:
        """Names of the runtime layers that can change an answer, innermost first."""
        return [x.name for x in reversed(self.layers) if x.behaviour]

    def variant(self, *parts: str) -> Stack:
        """Return the variant of one set of weights (default: the served) and the named layers, in file
        order."""
        known = [*self.policies, *self.switches]
        for part in parts:
            if part not in known:
                raise UsageError(f"variant {'+'.join(parts)}: {unknown(part, known, noun='layer')}")
        weights = [p for p in parts if p in self.policies]
        if len(weights) > 1:
            raise UsageError(f"variant {'+'.join(parts)}: got {len(weights)} sets of weights, wanted one")
        serve = weights[0] if weights else self.serve
        keep = [p for p in parts if p not in weights]
        layers = tuple(x for x in self.layers if not x.behaviour or x.name in keep)
        names = [n for n in self.switches if n in keep]
        whole = serve == self._default_serve and len(names) == len(self.switches)
        model_id = self.spec.name if whole else f"{self.spec.name}:{'+'.join([serve, *names])}"
        return replace(self, serve=serve, layers=layers, model_id=model_id)

    def without(self, *names: str) -> Stack:
        """Return the variant without the named layers; a weight stage is replaced by its parent."""
        serve, drop = self.serve, set(names)
        for name in names:
            if name == serve and serve != "base":
                serve = self.parent(serve)
            elif name not in self.switches:
                raise UsageError(unknown(name, [*self.switches, self.serve], noun="layer"))
        found = self.variant(serve, *(n for n in self.switches if n not in drop))
        if serve == self.serve:  # one id however the names are ordered or repeated
            dropped = [x.name for x in self.layers if x.name in drop]
            return replace(found, model_id="-".join([self.spec.name, *dropped]))
        return found

    def with_template(self, name: str) -> Stack:
        """Return the same weights with another chat template."""
        self.key()  # computes stage keys first: another template does not mean another training
        weights = self.spec.weights
        if self.serve == "base":
            weights = weights.model_copy(update={"base": weights.base.model_copy(update={"template": name})})
        return replace(self, spec=self.spec.model_copy(update={"template": name, "weights": weights}))

    def with_layer(self, name: str, layer: Layer) -> Stack:
        """Return the stack with another layer in place of the named one."""
        return replace(self, layers=tuple(layer if x.name == name else x for x in self.layers))

    def ladder(self) -> list[Stack]:
        """Return base, + each weight stage up to the served one, then + each runtime layer, innermost
        first."""
        steps = [self.variant(stage) for stage in self.chain(self.serve)]
        for count in range(1, len(self.switches) + 1):
            steps.append(self.variant(self.serve, *self.switches[:count]))
        return steps

    def factorial(self, weights: Sequence[str], layers: Sequence[str]) -> list[Stack]:
        """Return every set of weights with every subset of the layers."""
        subsets = itertools.chain.from_iterable(
            itertools.combinations(layers, n) for n in range(len(layers) + 1)
        )
        return [self.variant(w, *subset) for subset in subsets for w in weights]

    def resolve(self, model_id: str) -> Stack:
        """Return the variant of a model id: NAME, NAME:part+part, NAME-layer (without it); raises
        DemeanorError."""
        name = self.spec.name
        if model_id == name:
            return self.variant(*self.switches)
        if model_id.startswith(f"{name}:"):
            return self.variant(*model_id[len(name) + 1 :].split("+"))
        if model_id.startswith(f"{name}-"):
            return self.variant(*self.switches).without(*model_id[len(name) + 1 :].split("-"))
        raise UsageError(unknown(model_id, [v.model_id for v in self.offered()], noun="model"))

    def offered(self) -> list[Stack]:
        """Return the variants to list: the whole stack, the ladder, and the stack without each layer."""
        found = {self.spec.name: self.variant(*self.switches)}
        for stack in [*reversed(self.ladder()), *(self.without(n) for n in self.switches)]:
            found.setdefault(stack.model_id, stack)
        return list(found.values())

    @property
    def published(self) -> list[str]:
        """Return the model ids that `serve: publish` names."""
        ids = self.spec.serve.publish
        every = [v.model_id for v in self.offered()] if ALL in ids else []
        return every + [self.resolve(model_id).model_id for model_id in ids if model_id != ALL]

    @property
    def _default_serve(self) -> str:
        return self.spec.weights.serve or self.policies[-1]


def load(
    path: Path | str, overrides: Sequence[str] = (), *, names: Mapping[str, Sequence[str]] | None = None
) -> Stack:
    """Read and check a stack file; `names` lists what `world:` offers (rows, suites).

    Raises SpecError with every mistake: its path in the file, what was got, the nearest and all known names.
    """
    file = Path(path)
    # Short forms are expanded in the file, then in the overrides.
    raw = validate.expand(validate.override(validate.expand(validate.read_yaml(file)), overrides))
    spec, problems = parse(StackSpec, raw, str(file))
    objectives: dict[str, Spec] = {}
    layers: list[Layer] = []
    if spec is not None:
        objectives, found = validate.objectives(spec, str(file))
        problems += found
        layers_raw, found = validate.layers(spec, file.parent, str(file))
        problems += found
        for name, kind, layer in layers_raw:
            layers.append(Layer(name, kind, layer, registry.entry(LAYERS, kind).BEHAVIOUR))
        problems += validate.references(spec, str(file))
        problems += validate.files(spec, file.parent, str(file), names or {})
        problems += prices.problems(spec, file.parent)
    if problems or spec is None:
        raise SpecError(foreign_names.at_stages(problems, raw))
    serve = spec.weights.serve or [name for name, policy in answering(spec).items() if policy][-1]
    stack = Stack(spec, file.parent, file, objectives, tuple(layers), serve, spec.name)
    for i, model_id in enumerate(spec.serve.publish):
        try:
            _ = model_id == ALL or stack.resolve(model_id)
        except UsageError as error:
            problems.append(Problem(f"{file}: serve.publish[{i}]", str(error)))
    if problems:
        raise SpecError(problems)
    return stack


ONLINE_FILES = {"prompts", "ptx", "rollouts"}
"""Fields of an online stage that do not enter its key by their values."""


def reward_stages(stage: OnlineStage) -> list[str]:
    """Return the reward stages that an online stage's reward and cost read, each once."""
    terms = [*stage.reward, *(stage.cost.terms if stage.cost else ())]
    return list(
        dict.fromkeys(name for term in terms if isinstance(term, ModelReward) for name in term.stages)
    )


def answering(spec: StackSpec) -> dict[str, bool]:
    """Return for base and every stage, in file order, whether it is a policy."""
    found = {"base": True}
    for stage in spec.weights.stages:
        found[stage.name] = validate.answers(stage, found)
    return found


def parents(spec: StackSpec) -> dict[str, str]:
    """Return the parent of every stage: declared, the last merged, else the nearest policy before it, or
    base."""
    found: dict[str, str] = {}
    latest, answers = "base", answering(spec)
    for stage in spec.weights.stages:
        found[stage.name] = stage.of[-1] if isinstance(stage, MergeStage) else stage.parent or latest
        if answers[stage.name]:
            latest = stage.name
    return found


# ---- hashing ----


# Line 1: a hash of the rows and the suite that every source of the world counts as. Further lines: NAME HASH of
# what came later and counts on its own. tests/world/test_world_rows.py keeps them current.
WORLD_REVISION = Path(__file__).parents[1] / "world" / "revision.txt"


def digest(value: Any) -> str:
    """Return 16 hex digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plain(spec: Spec, drop: set[str] | frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return a spec as JSON values without nulls, so that a new optional setting keeps old keys valid."""
    values: dict[str, Any] = spec.model_dump(mode="json", exclude=set(drop), exclude_none=True)
    return values


OF_OPERATION = {"key_env", "timeout_s", "total_s", "retries", "name", "first_s", "breaker", "retry_budget"}
"""Settings of upstreams that decide when one is used, but do not change its answers."""


def _remote(base: Remote) -> dict[str, Any]:
    """A remote base as the identity of its weights: every model that may answer, and how often."""
    found = plain(base, drop=OF_OPERATION | {"fallbacks"})
    others = [plain(each, drop={"key_env", "name"}) for each in base.fallbacks or ()]
    return {**found, "fallbacks": others} if others else found


def content_key(root: Path, source: str) -> str:
    """Return the identity of a data source: hash of file or folder; `world:` with its revision; a hub id
    itself."""
    if source.startswith("world:"):
        first, *later = WORLD_REVISION.read_text(encoding="utf-8").split("\n")
        own = dict(line.split() for line in later if line)
        return f"{source}@{own.get(source.removeprefix('world:'), first)}"
    path = root / source
    return file_hash(path) if path.exists() else source


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's content, or of the names and contents of a folder's files."""
    total = hashlib.sha256()
    for part in _content_files(path):
        label = "" if part == path else part.relative_to(path).as_posix()
        total.update(label.encode() + b"\0" + bytes.fromhex(identity(part)))
    return total.hexdigest()[:16]


def _content_files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for p in sorted(path.rglob("*")):
        if p.is_file() and "__pycache__" not in p.parts and not p.name.startswith("."):
            yield p


def decoding_of(stack: Stack) -> Decoding:
    """Return the stack's decoding settings as a Decoding."""
    spec = stack.spec.decoding
    return Decoding(
        spec.temperature,
        spec.top_p,
        spec.max_tokens,
        spec.seed,
        spec.stop,
        top_k=spec.top_k,
        min_p=spec.min_p or 0.0,
        presence_penalty=spec.presence_penalty or 0.0,
        frequency_penalty=spec.frequency_penalty or 0.0,
    )


def training_keys(stack: Stack) -> set[str]:
    """Return the keys of all runs that a stack's weights come from: base and every stage."""
    base, stages = stack.spec.weights.base, stack.spec.weights.stages
    found = {stack.stage_key("base")} if isinstance(base, Scratch) else set()
    imported = [x.path for x in (base, *stages) if isinstance(x, Import | ImportStage)]
    found |= {import_key(stack.root, path) for path in imported if names_gguf(stack.root / path)}
    return found | {stack.stage_key(stage.name) for stage in stages}


def import_key(root: Path, path: str) -> str:
    """Return the key of imported weights: a hash of their content."""
    return digest({"base": content_key(root, path)})


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [text for x in inside for text in _texts(x)]
