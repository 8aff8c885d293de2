"""The schema of stack.yaml: every setting with its type, range, default and unit.

In: values of YAML. Out: frozen specs. Reading, checking and varying a stack is in stack.py; settings of
objectives and layers are declared in their own files.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from demeanor.core.registry import Spec

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0.0, le=1.0)]
STAGE_NAME = r"^[a-z][a-z0-9_]*$"


class Optim(Spec):
    """The optimiser: AdamW (or Muon on the matrices) with a warm-up and a schedule."""

    kind: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: orthogonalised momentum on hidden matrices, AdamW on the rest"
    )
    lr: float = Field(1.0e-4, gt=0, description="peak learning rate")
    betas: tuple[Rate, Rate] = Field((0.9, 0.95), description="AdamW moment decay rates")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay, on matrices only")
    clip_norm: float | None = Field(1.0, gt=0, description="largest global gradient norm; null: no clipping")
    warmup: Rate = Field(0.05, description="share of the steps spent warming up linearly from 0")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="decay after the warm-up")
    final_lr: Rate = Field(0.1, description="learning rate at the end, as a share of the peak")
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of an exponential moving average of the weights, which is saved; null: off",
    )


class TokenizerSpec(Spec):
    """A byte-level BPE tokenizer trained on the base's own data."""

    vocab_size: int = Field(2048, ge=300, description="tokens, special ones included")


class ModelShape(Spec):
    """The shape of a Llama with random weights."""

    layers: Positive = 4
    width: Positive = 256
    heads: Positive = 4
    kv_heads: Positive | None = Field(None, description="null: as many as heads")
    mlp_width: Positive | None = Field(None, description="null: 8/3 of width, rounded up to 16")
    context: int = Field(512, ge=8, description="longest sequence in tokens")
    rope_theta: float = Field(1000.0, gt=0, description="rotary base")
    init: Literal["normal", "mimetic"] = Field(
        "mimetic", description="mimetic: QK and VO near +-identity (Trockman & Kolter)"
    )


class Source(Spec):
    """Rows to train on: `world:NAME`, `hf:owner/name[@revision]`, a data file, or a folder of them."""

    source: str
    config: str | None = Field(None, description="configuration of a hub id; null: its default")
    split: str | None = Field(
        None, description="split of a hub id or a saved dataset; null: train, or the only one"
    )
    columns: dict[str, str] | None = Field(
        None,
        description="our column name: the file's column name, e.g. {prompt: question}; null: as they are",
    )
    skip_bad: bool = Field(
        False, description="leave out unusable rows and report how many; false: they are an error"
    )
    stream: bool = Field(
        False, description="keep token trees in a file instead of memory; the same rows in the same order"
    )
    weight: float = Field(
        1.0, gt=0, description="times each row counts: 2 repeats every row, 0.5 keeps a fixed half"
    )
    limit: Positive | None = Field(None, description="use only the first n rows; null: all")


class Scratch(Spec):
    """A base model pretrained here: tokenizer, random weights, next-token prediction."""

    kind: Literal["scratch"] = "scratch"
    tokenizer: TokenizerSpec = TokenizerSpec()
    model: ModelShape = ModelShape()
    data: tuple[Source, ...] = Field(description="pretraining text")
    tokens: Positive = Field(2_000_000, description="tokens to train on")
    row_tokens: int = Field(128, ge=8, description="length of one packed row")
    batch_rows: Positive = Field(16, description="rows per optimiser step")
    optim: Optim = Optim(lr=2.0e-3)
    seed: int = 0
    template: str | None = Field(
        None, description="how to prompt the base itself; null: the stack's template"
    )


class Import(Spec):
    """An existing base model: a Hugging Face folder (or hub id) of a Llama-family model."""

    kind: Literal["import"] = "import"
    path: str = Field(description="folder, or hub id with optional @revision")
    template: str | None = Field(
        None, description="how to prompt the base itself; null: the stack's template"
    )


class Remote(Spec):
    """Weights on another OpenAI-compatible server (vLLM first): runtime layers apply, nothing trains on
    them."""

    kind: Literal["remote"] = "remote"
    url: str = Field(
        pattern=r"^https?://[^@]+$",
        description="the part before /chat/completions, such as http://127.0.0.1:8000/v1",
    )
    model: str = Field(min_length=1, description="model id there")
    key_env: str | None = Field(
        None, description="environment variable that holds the API key; null: none is sent"
    )
    timeout_s: float = Field(
        60.0, gt=0, description="longest time without a part of the answer, in seconds; comments do not count"
    )
    total_s: float | None = Field(
        None, gt=0, description="longest answer in seconds, all attempts together; null: 10 x timeout_s"
    )
    retries: int = Field(
        2,
        ge=0,
        le=10,
        description="times a request without an answer is sent again (429, 5xx, no connection)",
    )


class Adapter(Spec):
    """A low-rank adapter on frozen weights (Hu et al. 2021), stored as a PEFT folder on the parent's."""

    kind: Literal["lora"] = "lora"
    rank: Positive = 16
    alpha: float = Field(32.0, gt=0, description="scale of the product, before it is divided by the rank")
    targets: tuple[str, ...] = Field(
        ("all-linear",),
        min_length=1,
        description="last names of the linear maps to adapt; all-linear: all but the head",
    )
    rslora: bool = Field(
        False, description="divide alpha by the square root of the rank (Kalajdzievski 2023)"
    )
    quantise: Literal["nf4"] | None = Field(
        None, description="store the frozen maps in 4 bits (QLoRA); CUDA and bitsandbytes only"
    )


class GenerationEvalSpec(Spec):
    """Answers of the policy to fixed prompts, before training and after each fifth; changes no weight and
    no key."""

    prompts: str | None = Field(
        None, description="suite: world:NAME, builtin:NAME or a file; null: the stage's own held-out prompts"
    )
    count: Positive = Field(16, description="prompts: the first that differ and fit")
    max_tokens: Positive = Field(64, description="longest answer in tokens")
    temperature: float = Field(1.0, ge=0, le=5, description="0 is greedy; the KL is estimated at 1 only")
    reward: str | None = Field(
        None, description="earlier reward stage that scores the answers too; null: none"
    )


class Stage(Spec):
    """One training stage: an objective on data, from a parent's weights."""

    kind: Literal["train"] = "train"
    name: str = Field(pattern=STAGE_NAME)
    objective: dict[str, Any] = Field(description="objective kind and its settings")
    data: tuple[Source, ...]
    parent: str | None = Field(
        None, description="stage whose weights it starts from; null: the policy stage before it, or base"
    )
    uses: dict[str, str] = Field(
        default_factory=dict, description="frozen ancestors by role; reference defaults to the parent"
    )
    adapter: Adapter | None = Field(None, description="train low-rank matrices only; null: all weights")
    optim: Optim = Optim()
    epochs: float = Field(1.0, gt=0)
    batch_rows: Positive = Field(16, description="rows (prompts) per optimiser step")
    max_tokens: Positive | None = Field(
        None, description="longer rows are left out and counted; null: the context"
    )
    seed: int = 0
    probe: GenerationEvalSpec | None = Field(
        None, description="answer fixed prompts while training, and report the answers' statistics; null: off"
    )


class ImportStage(Spec):
    """Weights trained elsewhere, as a stage: a Hugging Face or PEFT folder with the base's tokenizer."""

    kind: Literal["import"] = "import"
    name: str = Field(pattern=STAGE_NAME)
    path: str = Field(description="folder, or hub id with optional @revision")
    reward: bool = Field(False, description="it is a reward model (sequence classification with one label)")
    parent: str | None = Field(
        None, description="stage before it in the ladder; null: the policy stage before it, or base"
    )


class MergeStage(Spec):
    """An average of earlier stages, tensor by tensor; of one stage: its adapter merged.

    Source: Lin et al. 2023, arXiv 2309.06256.
    """

    kind: Literal["merge"] = "merge"
    name: str = Field(pattern=STAGE_NAME)
    of: tuple[str, ...] = Field(
        min_length=1, description="earlier stages; the last one is the parent in the ladder"
    )
    weights: tuple[float, ...] | None = Field(
        None, description="one per stage, 1 in sum but for task_arithmetic; null: equal shares"
    )
    method: Literal["linear", "slerp", "task_arithmetic"] = Field(
        "linear",
        description="slerp: along the arc, of two stages; task_arithmetic: differences added to their "
        "nearest common ancestor",
    )


class QuantiseStage(Spec):
    """A policy with matrices rounded to few bits: smaller and faster to serve; measured like any stage."""

    kind: Literal["quantise"] = "quantise"
    name: str = Field(pattern=STAGE_NAME)
    format: Literal["int8", "bf16"] = Field(
        "int8", description="int8: one scale per output; bf16: 8 bits of mantissa"
    )
    parent: str | None = Field(
        None, description="stage that is rounded; null: the policy stage before it, or base"
    )


def _stage_kind(stage: Any) -> str:
    return str(stage.get("kind", "train") if isinstance(stage, dict) else getattr(stage, "kind", "train"))


AnyStage = Annotated[
    Annotated[Stage, Tag("train")]
    | Annotated[ImportStage, Tag("import")]
    | Annotated[MergeStage, Tag("merge")]
    | Annotated[QuantiseStage, Tag("quantise")],
    Discriminator(_stage_kind),
]


class WeightsSpec(Spec):
    """The weight layers: a base and the stages trained on it, in order."""

    base: Scratch | Import | Remote = Field(discriminator="kind")
    stages: tuple[AnyStage, ...] = ()
    serve: str | None = Field(
        None, description="stage that answers users; null: the last one that is a policy"
    )


class DecodingSpec(Spec):
    """Decoding settings of requests that do not set them."""

    temperature: float = Field(0.7, ge=0, le=5, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: Positive = Field(256, description="longest answer in tokens")
    seed: int | None = Field(None, description="null: a fresh draw for each request")
    stop: tuple[str, ...] = Field((), max_length=8)
    top_k: Positive | None = Field(None, description="draw from the k likeliest tokens; null: from all")
    min_p: Rate | None = Field(
        None, description="leave out tokens less likely than this share of the likeliest; null: none"
    )
    presence_penalty: float | None = Field(
        None, ge=-2, le=2, description="nats off a token that the answer holds; null: 0"
    )
    frequency_penalty: float | None = Field(
        None, ge=-2, le=2, description="nats off a token for each time the answer holds it; null: 0"
    )


class JudgeSpec(Spec):
    """A model on an OpenAI-compatible server that scores answers; greedy, each verdict cached
    (docs/judge.md)."""

    url: str = Field(
        pattern=r"^https?://[^@]+$",
        description="the part before /chat/completions, such as http://127.0.0.1:8000/v1",
    )
    model: str = Field(min_length=1, description="model id there")
    key_env: str | None = Field(
        None, description="environment variable that holds the API key; null: none is sent"
    )
    timeout_s: float = Field(
        60.0,
        gt=0,
        description="longest time without a part of the reply, in seconds; all of it takes 10 x at most",
    )
    retries: int = Field(
        2,
        ge=0,
        le=10,
        description="times a request without an answer is sent again (429, 5xx, no connection)",
    )
    temperature: Literal[0] = Field(
        0, description="always greedy: a verdict that differs each time could not be cached"
    )
    max_tokens: Positive = Field(512, description="longest verdict in tokens, its reasons included")
    both_orders: bool = Field(
        True, description="show a pair in both orders; false: in one, which the pair's content decides"
    )


class EvaluationSpec(Spec):
    """What the stack is measured on."""

    suites: tuple[str, ...] = Field(
        ("world:behaviour",),
        description="world:NAME, builtin:NAME, a .jsonl file of items, or a public set's path",
    )
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="one run of every item per seed")
    judge: JudgeSpec | None = Field(
        None, description="model that scores judged items; null: they stay unscored"
    )


class ServeSpec(Spec):
    """What a server with API keys offers."""

    publish: tuple[str, ...] = Field(
        (),
        description="model ids that keys may ask for besides the whole stack, such as NAME:sft; `all`: every variant",
    )


class StackSpec(Spec):
    """The whole of stack.yaml."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._]*(-[a-z0-9._]+)*$", description="model id of the served assistant"
    )
    weights: WeightsSpec
    template: str = Field(
        "turns", description="chat template: turns, chatml, model (the base's own), or a .jinja file"
    )
    decoding: DecodingSpec = DecodingSpec()
    layers: tuple[dict[str, Any], ...] = Field((), description="runtime layers, outermost first")
    evaluation: EvaluationSpec = EvaluationSpec()
    serve: ServeSpec = ServeSpec()
