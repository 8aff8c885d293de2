"""The schema of stack.yaml: every setting with its type, range, default and unit.

In: values of YAML. Out: frozen specs. Reading, checking and varying a stack is in stack.py; settings of
objectives and layers are declared in their own files.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from demeanor.core import registry
from demeanor.core.registry import Spec
from demeanor.stack.serving_schema import ServeSpec as ServeSpec
from demeanor.stack.upstreams import Breaker as Breaker
from demeanor.stack.upstreams import Fallback as Fallback
from demeanor.stack.upstreams import Price
from demeanor.stack.upstreams import Remote as Remote
from demeanor.stack.upstreams import upstream_name as upstream_name

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
    """An existing base model of the Llama family: a Hugging Face folder (or hub id), or a GGUF file."""

    kind: Literal["import"] = "import"
    path: str = Field(description="folder, .gguf file, or hub id with optional @revision")
    template: str | None = Field(
        None, description="how to prompt the base itself; null: the stack's template"
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
    recompute: bool | None = Field(
        None,
        description="activation checkpointing: less memory, about a third more computing, the same weights to the bit; null: "
        "where a step is estimated to need more memory than this machine has",
    )
    probe: GenerationEvalSpec | None = Field(
        None, description="answer fixed prompts while training, and report the answers' statistics; null: off"
    )


class PromptSource(Source):
    """Prompts of an online stage: rows (the messages before the answer) or the items of a suite."""

    source: str = Field(description="rows as in `data`, or with `items` a suite as in `evaluation`")
    items: bool = Field(
        False, description="`source` is a suite: world:NAME, builtin:NAME or a file; its scorers can verify"
    )
    axes: tuple[str, ...] = Field((), description="with `items`: only these axes; empty: all")


class ModelReward(Spec):
    """A trained reward model, or several: their mean, their lowest, or mean - penalty x variance.

    Source: Coste et al. 2024, arXiv 2310.02743.
    """

    kind: Literal["model"] = "model"
    stages: tuple[str, ...] = Field(min_length=1, description="earlier reward stages")
    combine: Literal["mean", "worst", "uncertainty"] = Field(
        "mean", description="of several: worst is the lowest; uncertainty: mean - penalty x variance"
    )
    penalty: float = Field(0.5, ge=0, description="of the variance, with combine: uncertainty")
    normalise: Literal["none", "reference", "demonstrations"] = Field(
        "none",
        description="reference: mean 0 and deviation 1 over the reference's answers (Ziegler et al. 2019); "
        "demonstrations: shifted so that they score 0 (Ouyang et al. 2022)",
    )
    weight: float = 1.0


class ItemReward(Spec):
    """The verdict of each prompt's own item: exact answers, numbers, formats, checks of instructions."""

    kind: Literal["item"] = "item"
    weight: float = 1.0


class ScorerReward(Spec):
    """One scorer of docs/scorers.md with one target for every answer."""

    kind: Literal["scorer"] = "scorer"
    scorer: str
    target: dict[str, Any] = Field(default_factory=dict)
    weight: float = 1.0


class RuleReward(Spec):
    """A weighted sum of yes-or-no propositions, each a scorer; weights fitted on graded answers.

    Source: Mu et al. 2024, arXiv 2411.01111.
    """

    kind: Literal["rules"] = "rules"
    rules: registry.File = Field(description="YAML: propositions with weights (`demeanor data fit-rules`)")
    weight: float = 1.0


class JudgeReward(Spec):
    """The judge of `evaluation`: the share of the group's other answers that each beats, in both orders."""

    kind: Literal["judge"] = "judge"
    criterion: str = Field("Which answer is more helpful?", description="what the judge is asked")
    weight: float = 1.0


class LengthReward(Spec):
    """Minus the tokens beyond a length, as a share of it: soft punishment of long answers."""

    kind: Literal["length"] = "length"
    free: Positive = Field(description="tokens that cost nothing")
    weight: float = 1.0


class RepetitionReward(Spec):
    """Minus the share of 3-grams that occurred before in the answer."""

    kind: Literal["repetition"] = "repetition"
    weight: float = 1.0


RewardTerm = Annotated[
    ModelReward | ItemReward | ScorerReward | RuleReward | JudgeReward | LengthReward | RepetitionReward,
    Field(discriminator="kind"),
]


class CostSpec(Spec):
    """A constraint: the mean cost of answers stays at or below `limit`; its multiplier follows ln lambda.

    Source: Dai et al. 2024 (Safe RLHF), arXiv 2310.12773, section 3.3.
    """

    terms: tuple[RewardTerm, ...] = Field(
        min_length=1, description="the cost of an answer, written as rewards"
    )
    limit: float = Field(0.0, description="largest mean cost")
    lr: float = Field(
        0.1, gt=0, description="step of ln lambda per iteration, times max(lambda, 1) x (cost - limit)"
    )
    initial: float = Field(1.0, gt=0, description="first lambda")
    most: float = Field(100.0, gt=0, description="largest lambda")
    least: float = Field(1.0e-3, gt=0, description="smallest lambda, which keeps it able to grow again")


class PtxSpec(Spec):
    """A second data line in every step: plain text or rows, against forgetting.

    Source: Ouyang et al. 2022, arXiv 2203.02155, equation 2.
    """

    data: tuple[Source, ...]
    weight: float = Field(1.0, gt=0, description="gamma: of its mean loss per token")
    batch_rows: Positive = Field(16, description="rows per optimiser step")


class ImportanceSpec(Spec):
    """How a mismatch of sampler and trainer is corrected: importance weights pi_trainer / pi_sampler.

    The modes are those of TRL and verl. Source: Yao et al. 2025, "Your efficient RL framework secretly brings
    you off-policy RL training".
    """

    mode: Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = Field(
        "none", description="none is exact with this engine in fp32; truncate caps a weight, mask drops it"
    )
    cap: float = Field(3.0, gt=1, description="largest weight")


class ServerSpec(Spec):
    """How a vLLM server that samples rollouts gets the weights of each iteration, and when it is given up."""

    model: str | None = Field(None, description="its model id; null: the first one that it lists")
    folder: str | None = Field(
        None,
        description="where the server sees the folder that weights are written to; null: at the same path",
    )
    key_env: str | None = Field(None, description="environment variable that holds its API key; null: none")
    timeout_s: float = Field(600.0, gt=0, description="longest wait for one answer or one load, in seconds")
    retries: int = Field(4, ge=0, le=20, description="times that a failed request is sent again")
    tolerance: float = Field(
        0.1,
        gt=0,
        description="largest mean difference (nats a token) of its log-probs to the trainer's after an update",
    )


class RolloutsSpec(Spec):
    """How the policy answers while it is trained."""

    count: Positive = Field(8, description="completions a prompt (G), which share its tokens")
    max_tokens: Positive = Field(64, description="longest completion in tokens")
    temperature: float = Field(1.0, gt=0, le=5, description="of sampling and of training alike")
    top_p: float = Field(1.0, gt=0, le=1, description="below 1, training renormalises on the same tokens")
    top_k: Positive | None = Field(None, description="the same, for the k likeliest tokens; null: all")
    min_p: Rate | None = Field(None, description="the same, relative to the likeliest token; null: none")
    truncated: Literal["keep", "mask", "penalise"] = Field(
        "keep",
        description="an answer without a stop token: scored as it is; left out; or its reward less `penalty`",
    )
    penalty: float = Field(1.0, gt=0, description="with truncated: penalise")
    layers: tuple[str, ...] = Field((), description="runtime layers of this stack that rollouts go through")
    environment: str | None = Field(
        None, description="file.py:name of a function that answers the policy between turns; null: one turn"
    )
    turns: Positive = Field(1, description="most answers of the policy in one episode")
    timeout_s: float | None = Field(
        None, gt=0, description="seconds that one episode may take, else it has no reward; null: no limit"
    )
    url: str | None = Field(
        None,
        pattern=r"^https?://[^@\s]+$",
        description="vLLM server that samples, without a password; null: the engine of this process",
    )
    server: ServerSpec = ServerSpec()
    importance: ImportanceSpec = ImportanceSpec()


class OnlineStage(Stage):
    """A training stage on the policy's own completions: prompts -> completions -> rewards -> steps.

    An objective for comparisons trains on the best and the worst of a group (online DPO), one for examples on
    the best (rejection sampling).
    """

    kind: Literal["online"] = "online"  # type: ignore[assignment]
    data: tuple[Source, ...] = ()
    prompts: tuple[PromptSource, ...] = Field(min_length=1, description="what the policy answers")
    reward: tuple[RewardTerm, ...] = Field(min_length=1, description="weighted terms of the reward")
    rollouts: RolloutsSpec = RolloutsSpec()
    batch_rows: Positive = Field(16, description="prompts per iteration")
    steps: Positive | None = Field(None, description="iterations; null: `epochs` passes over the prompts")
    minibatches: Positive = Field(1, description="optimiser steps that one iteration's groups are cut into")
    inner_epochs: Positive = Field(1, description="passes over one iteration's completions")
    critic_lr: float | None = Field(None, gt=0, description="of the value model of ppo; null: optim.lr")
    ptx: PtxSpec | None = Field(None, description="pretraining mix; null: off")
    cost: CostSpec | None = Field(None, description="constraint on a second reward; null: off")
    keep: Literal["last", "best"] = Field(
        "last", description="best: the weights of the evaluation with the best held-out score of the probe"
    )


class ImportStage(Spec):
    """Weights trained elsewhere, as a stage: a Hugging Face or PEFT folder, or a GGUF file, with the base's
    tokenizer."""

    kind: Literal["import"] = "import"
    name: str = Field(pattern=STAGE_NAME)
    path: str = Field(description="folder, .gguf file, or hub id with optional @revision")
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
    format: Literal["int8", "bf16", "q8_0", "q4_0", "q4_1"] = Field(
        "int8",
        description="int8: one scale per output; bf16: 8 bits of mantissa; q8_0, q4_0, q4_1: GGUF's 8 or 4 bits with "
        "a scale (q4_1: and a minimum) for every 32 inputs",
    )
    head: Literal["q8_0", "q4_0", "q4_1"] | None = Field(
        None,
        description="with q8_0, q4_0, q4_1: format of the head and of an embedding tied to it; null: q8_0",
    )
    activations: Literal["int8", "fp32"] | None = Field(
        None,
        description="with q8_0, q4_0, q4_1: what the matrices multiply; fp32 rounds no activation and is slower; "
        "null: int8",
    )
    parent: str | None = Field(
        None, description="stage that is rounded; null: the policy stage before it, or base"
    )

    @property
    def in_groups(self) -> bool:
        """True for the formats with a scale for every 32 inputs."""
        return self.format not in ("int8", "bf16")


ONLINE = ("prompts", "rollouts")  # settings that make a stage an online one


def _stage_kind(stage: Any) -> str:
    if not isinstance(stage, dict):
        return str(getattr(stage, "kind", "train"))
    return str(stage.get("kind", "online" if any(name in stage for name in ONLINE) else "train"))


AnyStage = Annotated[
    Annotated[Stage, Tag("train")]
    | Annotated[OnlineStage, Tag("online")]
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
    compute: Literal["fp32", "bf16", "auto"] = Field(
        "fp32",
        description="products when answers are decoded on a CPU: fp32 is exact; bf16 rounds weights and rows, sums are "
        "fp32; auto: bf16 where this machine multiplies faster in it",
    )
    device: Literal["cpu", "cuda"] | None = Field(
        None, description="where answers are decoded; null: on CUDA when present, else on the CPU"
    )
    cache: Literal["fp32", "bf16", "fp16"] | None = Field(
        None,
        description="what keys and values are kept in when answers are decoded; bf16 and fp16 take half the memory and round; "
        "null: bf16 for weights that are rounded too (int8, q8_0, q4_0, q4_1, a GGUF file's blocks) and with `compute: bf16`, else fp32, "
        "exact",
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
    rubric: str | None = Field(
        None,
        min_length=1,
        description="what counts, in your words; it stands before every question to the judge; null: nothing more",
    )
    verdict_only: bool | None = Field(
        None,
        description="true: the judge may say nothing but a verdict (a JSON schema of it), for a small model that finds no last "
        "line; null: reasons first",
    )
    price: Price | None = Field(
        None,
        description="USD per million tokens, such as {input: 0.5, output: 1.5}; null: costs are not shown",
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
