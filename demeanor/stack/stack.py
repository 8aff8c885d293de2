"""The one object: a stack.yaml that was read, checked, hashed and can be varied.

In: a file (and `--set` overrides). Out: a Stack with keys by content, lineage of its stages, variants and their model ids.
It refuses to know how anything is trained or run.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from demeanor.core import registry
from demeanor.core.errors import DemeanorError, SpecError, StaleFileError, UsageError, unknown
from demeanor.core.registry import Spec
from demeanor.core.types import Decoding
from demeanor.stack import validate
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

OBJECTIVES, LAYERS = "demeanor.objectives", "demeanor.layers"


@dataclass(frozen=True, slots=True)
class Layer:
    """One runtime layer of a stack: its name there, its kind, its settings and whether it can change an answer."""

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
    """A checked declaration: which weights answer (`serve`), through which `layers`, as which `model_id`."""

    spec: StackSpec
    root: Path
    path: Path
    objectives: Mapping[str, Spec]
    layers: tuple[Layer, ...]
    serve: str
    model_id: str
    keys: dict[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Keys of stages as first computed: a file edited while a stage trains does not change what is being trained."""
    contents: dict[Path, str] = field(default_factory=dict, compare=False, repr=False)
    """Hashes of named files as first read; all variants of a loaded stack share them, so they are of one moment."""
    _key: list[str] = field(default_factory=list, compare=False, repr=False, init=False)

    # ---- lineage ----

    def stage(self, name: str) -> AnyStage:
        """The declared stage of that name; raises DemeanorError with the known names."""
        for stage in self.spec.weights.stages:
            if stage.name == name:
                return stage
        raise DemeanorError(unknown(name, [s.name for s in self.spec.weights.stages], noun="stage"))

    def objective_kind(self, stage: str) -> str:
        """What made a stage: the kind of its objective, else `import`, `merge` or `quantise`."""
        found = self.stage(stage)
        return str(found.objective["kind"]) if isinstance(found, Stage) else found.kind

    def is_policy(self, stage: str) -> bool:
        """Whether a stage yields something that answers (a reward model does not)."""
        return answering(self.spec)[stage]

    def parent(self, name: str) -> str:
        """The stage that `name` starts from (a merge: the last one it merges): declared, else the policy stage before it, else base."""
        return parents(self.spec)[name]

    def roles(self, name: str) -> dict[str, str]:
        """Frozen ancestors of a stage by role; a role that is not named is played by the parent."""
        stage = self.stage(name)
        if not isinstance(stage, Stage):
            return {}
        module = registry.entry(OBJECTIVES, self.objective_kind(name))
        return {role: stage.uses.get(role, self.parent(name)) for role in module.ROLES}

    def needs(self, name: str) -> dict[str, str]:
        """Stages whose weights must exist before those of `name` can be made, by what they are to it."""
        if name == "base":
            return {}
        stage = self.stage(name)
        if isinstance(stage, MergeStage):
            found = {f"of[{i}]": ancestor for i, ancestor in enumerate(stage.of)}
            return {**found, "origin": self.origin(stage)} if stage.method == "task_arithmetic" else found
        return (
            {"parent": "base"}
            if isinstance(stage, ImportStage)
            else {"parent": self.parent(name), **self.roles(name)}
        )

    def origin(self, stage: MergeStage) -> str:
        """The nearest common ancestor of the stages that are merged."""
        first, *rest = [self.chain(name) for name in stage.of]
        return next(name for name in reversed(first) if all(name in chain for chain in rest))

    def chain(self, name: str) -> list[str]:
        """The weight layers from base to `name`, in order of training."""
        chain = [name]
        while chain[0] != "base":
            chain.insert(0, self.parent(chain[0]))
        return chain

    @property
    def uses_world(self) -> bool:
        """Whether any of its data is the embedded world's."""
        base = self.spec.weights.base
        data = [
            *(base.data if isinstance(base, Scratch) else ()),
            *(s for stage in self.spec.weights.stages if isinstance(stage, Stage) for s in stage.data),
        ]
        return any(s.source.startswith("world:") for s in data)

    @property
    def policies(self) -> list[str]:
        """Every set of weights that can answer: base and the policy stages, in file order."""
        return ["base", *(s.name for s in self.spec.weights.stages if self.is_policy(s.name))]

    # ---- identity ----

    def stage_key(self, name: str) -> str:
        """Hash of everything that determines the weights of `name`: settings, data content, ancestors; labels do not count."""
        if name not in self.keys:
            self.keys[name] = self._stage_key(name)
        return self.keys[name]

    def _stage_key(self, name: str) -> str:
        if name == "base":
            base = self.spec.weights.base
            if isinstance(base, Import):
                return digest({"base": content_key(self.root, base.path)})
            if isinstance(base, Remote):
                return digest({"remote": plain(base, drop={"key_env", "timeout_s", "retries"})})
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
            return digest({"quantise": stage.format, "of": self.stage_key(self.parent(name))})
        module = registry.entry(OBJECTIVES, self.objective_kind(name))
        return digest(
            {
                "objective": {"kind": self.objective_kind(name), **plain(self.objectives[name])},
                "stage": plain(stage, drop={"kind", "name", "objective", "parent", "uses", "data", "probe"}),
                "rows": module.ROWS,
                "data": self._data(stage.data),
                "template": self._template(self.spec.template),
                "parent": self.stage_key(self.parent(name)),
                "uses": {role: self.stage_key(ancestor) for role, ancestor in self.roles(name).items()},
            }
        )

    def key(self) -> str:
        """Hash of everything that can change an answer of this variant, the content of named files included.

        It is computed once: files that change afterwards belong to the next `load`.
        """
        if not self._key:
            self._key.append(self._compute_key())
        return self._key[0]

    def check_files(self, checked: set[Path]) -> None:
        """Raise StaleFileError if a file that a layer names is not what its key was computed from; `checked` ones are skipped."""
        self.key()
        for layer in self.layers:
            for path in self._files(layer.spec):
                if path in checked or path not in self.contents:
                    continue
                if self.contents[path] != file_hash(path):
                    raise StaleFileError(
                        f"{path}: changed after {self.path} was loaded (layer '{layer.name}'); reload the stack to "
                        "use it: start again, or send SIGHUP to `demeanor serve` (or give it --watch)"
                    )
                checked.add(path)

    def stamps(self) -> dict[str, tuple[int, int]]:
        """Modification time (ns) and size of the stack file and of every file and folder that it names."""
        named = [
            self.path,
            *(self.root / text for text in _texts(self.spec.model_dump(mode="json")) if 0 < len(text) < 256),
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
        return digest(
            {
                "weights": self.stage_key(self.serve),
                "template": self._template(self.template),
                "decoding": plain(self.spec.decoding),
                "layers": [{"kind": x.kind, **self._contents(x.spec)} for x in self.layers if x.behaviour],
            }
        )

    @property
    def template(self) -> str:
        """The template this variant is prompted with: the base may have its own, everything trained uses the stack's."""
        own = getattr(self.spec.weights.base, "template", None)  # a remote base has its own, over there
        return (own or self.spec.template) if self.serve == "base" else self.spec.template

    def _template(self, name: str) -> str:
        return self._hash(self.root / name) if name.endswith(".jinja") else name

    def _hash(self, path: Path) -> str:
        if path not in self.contents:
            self.contents[path] = file_hash(path)
        return self.contents[path]

    def _files(self, spec: Spec) -> list[Path]:
        named = (getattr(spec, name) for name in validate.file_fields(type(spec)))
        return [self.root / str(name) for name in named if name is not None]

    def _adapted(self, stage: ImportStage) -> str | None:
        """Content of the weights that an imported PEFT folder goes on; a hub id stands for itself."""
        folder = self.root / stage.path
        name = validate.adapter_base(folder)
        return name and content_key(folder if (folder / name).exists() else Path.cwd(), name)

    def _data(self, sources: Sequence[Source]) -> list[Any]:
        return [
            {**plain(s, drop={"source", "skip_bad", "stream"}), "content": content_key(self.root, s.source)}
            for s in sources
        ]

    def _contents(self, spec: Spec) -> dict[str, Any]:
        values = plain(spec)
        for name in validate.file_fields(type(spec)):
            if values.get(name) is not None:
                values[name] = self._hash(self.root / values[name])
        return values

    # ---- variants ----

    @property
    def switches(self) -> list[str]:
        """Names of the runtime layers that can change an answer, innermost first."""
        return [x.name for x in reversed(self.layers) if x.behaviour]

    def variant(self, *parts: str) -> Stack:
        """The stack reduced to one set of weights (default: the served one) and the named behaviour layers, in file order."""
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
        """Everything but the named layers; a weight stage is replaced by its parent."""
        serve, drop = self.serve, set(names)
        for name in names:
            if name == serve and serve != "base":
                serve = self.parent(serve)
            elif name not in self.switches:
                raise UsageError(unknown(name, [*self.switches, self.serve], noun="layer"))
        found = self.variant(serve, *(n for n in self.switches if n not in drop))
        if serve == self.serve:
            return replace(found, model_id="-".join([self.spec.name, *names]))
        return found

    def with_template(self, name: str) -> Stack:
        """The same weights prompted through another template."""
        self.key()  # stage keys are now known: another template is not another training
        weights = self.spec.weights
        if self.serve == "base":
            weights = weights.model_copy(update={"base": weights.base.model_copy(update={"template": name})})
        return replace(self, spec=self.spec.model_copy(update={"template": name, "weights": weights}))

    def with_layer(self, name: str, layer: Layer) -> Stack:
        """The stack with another layer in the place of the named one."""
        return replace(self, layers=tuple(layer if x.name == name else x for x in self.layers))

    def ladder(self) -> list[Stack]:
        """base, +each weight stage up to the served one, then +each runtime layer from the innermost out."""
        rungs = [self.variant(stage) for stage in self.chain(self.serve)]
        for count in range(1, len(self.switches) + 1):
            rungs.append(self.variant(self.serve, *self.switches[:count]))
        return rungs

    def factorial(self, weights: Sequence[str], layers: Sequence[str]) -> list[Stack]:
        """Every set of weights with every subset of the layers."""
        subsets = itertools.chain.from_iterable(
            itertools.combinations(layers, n) for n in range(len(layers) + 1)
        )
        return [self.variant(w, *subset) for subset in subsets for w in weights]

    def resolve(self, model_id: str) -> Stack:
        """The variant a model id names: NAME, NAME:part+part, NAME-layer (everything but); raises DemeanorError."""
        name = self.spec.name
        if model_id == name:
            return self.variant(*self.switches)
        if model_id.startswith(f"{name}:"):
            return self.variant(*model_id[len(name) + 1 :].split("+"))
        if model_id.startswith(f"{name}-"):
            return self.variant(*self.switches).without(*model_id[len(name) + 1 :].split("-"))
        raise UsageError(unknown(model_id, [v.model_id for v in self.offered()], noun="model"))

    def offered(self) -> list[Stack]:
        """The variants worth listing: the whole, the ladder, and everything but each layer."""
        found = {self.spec.name: self.variant(*self.switches)}
        for stack in [*reversed(self.ladder()), *(self.without(n) for n in self.switches)]:
            found.setdefault(stack.model_id, stack)
        return list(found.values())

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
    raw = validate.expand(
        validate.override(validate.expand(validate.read_yaml(file)), overrides)
    )  # short forms of the file, then of overrides
    spec, problems = validate.parse(StackSpec, raw, str(file))
    objectives: dict[str, Spec] = {}
    layers: list[Layer] = []
    if spec is not None:
        objectives, found = validate.objectives(spec, str(file))
        problems += found
        layers_raw, found = validate.layers(spec, file.parent, str(file))
        problems += found
        layers = [
            Layer(name, kind, layer, registry.entry(LAYERS, kind).BEHAVIOUR)
            for name, kind, layer in layers_raw
        ]
        problems += validate.references(spec, str(file)) + validate.files(
            spec, file.parent, str(file), names or {}
        )
    if problems or spec is None:
        raise SpecError(problems)
    serve = spec.weights.serve or [name for name, policy in answering(spec).items() if policy][-1]
    return Stack(spec, file.parent, file, objectives, tuple(layers), serve, spec.name)


def answering(spec: StackSpec) -> dict[str, bool]:
    """Whether base and every stage, in file order, yield something that answers."""
    found = {"base": True}
    for stage in spec.weights.stages:
        found[stage.name] = validate.answers(stage, found)
    return found


def parents(spec: StackSpec) -> dict[str, str]:
    """Parent of every stage: the declared one, of a merge the last one merged, else the nearest policy stage before it, else base."""
    found: dict[str, str] = {}
    latest, answers = "base", answering(spec)
    for stage in spec.weights.stages:
        found[stage.name] = stage.of[-1] if isinstance(stage, MergeStage) else stage.parent or latest
        if answers[stage.name]:
            latest = stage.name
    return found


# ---- hashing ----


WORLD_REVISION = Path(__file__).parents[1] / "world" / "revision.txt"
"""A hash of every generated row; tests/world/test_world_rows.py keeps it true."""


def digest(value: Any) -> str:
    """16 hex digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plain(spec: Spec, drop: set[str] | frozenset[str] = frozenset()) -> dict[str, Any]:
    """A spec as JSON values; null means off and is left out, so a new optional setting keeps old keys valid."""
    values: dict[str, Any] = spec.model_dump(mode="json", exclude=set(drop), exclude_none=True)
    return values


def content_key(root: Path, source: str) -> str:
    """Identity of a data source: hash of the file or folder; the revision of the world for `world:`; a hub id itself."""
    if source.startswith("world:"):
        return f"{source}@{WORLD_REVISION.read_text(encoding='utf-8').strip()}"
    path = root / source
    return file_hash(path) if path.exists() else source


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, or of the names and contents of a folder's files."""
    total = hashlib.sha256()
    for part in _content_files(path):
        label = "" if part == path else part.relative_to(path).as_posix()
        total.update(label.encode() + b"\0" + hashlib.sha256(part.read_bytes()).digest())
    return total.hexdigest()[:16]


def _content_files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for p in sorted(path.rglob("*")):
        if p.is_file() and "__pycache__" not in p.parts and not p.name.startswith("."):
            yield p


def decoding_of(stack: Stack) -> Decoding:
    """The stack's decoding settings as the noun that travels with a turn."""
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
    """Keys of all runs that a stack's weights come from: base and every stage."""
    base = {stack.stage_key("base")} if isinstance(stack.spec.weights.base, Scratch) else set()
    return base | {stack.stage_key(stage.name) for stage in stack.spec.weights.stages}


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [text for x in inside for text in _texts(x)]
