"""One contender at one online objective, in its own process: `python -m bench.online_worker KIND WHO`.

It answers "go\n" with one JSON line: the seconds of every step of a pass, split into generate, score and
train, and the process's memory. Everybody has the same random weights, prompts, lengths and reward.
"""

from __future__ import annotations

import sys

from demeanor.core import hardware

KINDS = ("grpo", "rloo", "ppo-ptx")
OURS, OURS_HALF, DEFAULTS, TUNED, BATCHING, HALF, PLAIN, PLAIN_HALF = (
    "demeanor",
    "demeanor bf16",
    "trl defaults",
    "trl tuned",
    "trl batching",
    "trl tuned bf16",
    "plain torch",
    "plain torch bf16",
)

if __name__ == "__main__":
    if sys.argv[2:3] in ([OURS], [OURS_HALF]):
        hardware.prepare()  # before torch; the others keep the process as they find it

import os
import random
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.worker import reply, rss

GROUP = int(os.environ.get("BENCH_GROUP", "8"))  # completions a prompt; 1 is for ppo-ptx only
PROMPTS = 32 // GROUP
PROMPT, NEW, VOCAB, CONTEXT = 128, 128, 4096, 512
EOS = VOCAB  # beyond the model's vocabulary: no answer ends early, so all sides train on equal lengths
LR, BETA, STEPS = 1e-6, 0.05, 2
PTX_ROWS, PTX_TOKENS = 8, 256


class Step(NamedTuple):
    """Seconds of one step; `score` is everything between the last token drawn and the first loss."""

    total: float
    generate: float
    score: float

    @property
    def train(self) -> float:
        return self.total - self.generate - self.score


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    kind, who = sys.argv[1:3]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 2))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint(folder / "policy")
        run = {OURS: ours, OURS_HALF: ours, PLAIN: plain, PLAIN_HALF: plain}.get(who, trl)(kind, folder, who)
        reply({"ready": True})
        before = rss()
        for line in sys.stdin:
            if line.strip() != "go":
                break
            steps = run()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
            reply(
                {
                    "steps": [{**s._asdict(), "train": s.train} for s in steps],
                    "peak_mb": peak,
                    "loaded_mb": before,
                }
            )


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Random prompts of one length."""
    rng = random.Random(seed)
    return [[rng.randrange(3, VOCAB) for _ in range(PROMPT)] for _ in range(count)]


def texts(seed: int) -> list[list[int]]:
    """Rows of the pretraining mix of one step."""
    rng = random.Random(1000 + seed)
    return [[rng.randrange(3, VOCAB) for _ in range(PTX_TOKENS)] for _ in range(PTX_ROWS)]


def reward(completion: Sequence[int]) -> float:
    """The share of even tokens: a reward that takes no time."""
    return sum(t % 2 == 0 for t in completion) / len(completion)


def checkpoint(folder: Path) -> None:
    """The same random weights for everybody, as a Hugging Face folder: 8.7M, 6 layers x 320."""
    from demeanor.model import checkpoints
    from demeanor.stack import schema

    shape = schema.ModelShape(layers=6, width=320, heads=5, mlp_width=864, context=CONTEXT, init="normal")
    checkpoints.save(checkpoints.create(shape, VOCAB, 0), folder)


# ---- ours ----


def ours(kind: str, folder: Path, who: str) -> Callable[[], list[Step]]:
    """The loop of `demeanor train` itself, its metrics log read for the times.

    Time of the reference's and the critic's forward is in `train` there; here it is left where it is.
    """
    import io
    import shutil
    from dataclasses import replace

    from demeanor.core import registry
    from demeanor.core.types import Decoding
    from demeanor.data.trees import Branch, Tree
    from demeanor.engine.rollouts import sample_groups
    from demeanor.model import checkpoints as models
    from demeanor.model.exact import exact_policy_outputs
    from demeanor.model.reward_model import ActorCritic
    from demeanor.stack.schema import OnlineStage
    from demeanor.training.online import Setup, fit_online
    from demeanor.training.progress import StageProgress, read_log
    from demeanor.training.rewards import Rollout, Task

    stage = OnlineStage.model_validate(STAGES[kind])
    objective = registry.entry("demeanor.objectives", stage.objective["kind"])
    settings = objective.Spec(**{k: v for k, v in stage.objective.items() if k != "kind"})
    load = lambda: models.load(folder / "policy")  # noqa: E731
    model: Any = load()
    if kind == "ppo-ptx":
        critic = models.reward_from(load(), 0)
        torch.nn.init.zeros_(critic.score.weight)
        model = ActorCritic(model, critic)

    def roll(policy: Any, tasks: Sequence[Task], seeds: Sequence[Sequence[int]]) -> list[list[Rollout]]:
        """As demeanor.app samples, which the peers' environment cannot import."""
        found = sample_groups(
            policy,
            Numbers(),  # type: ignore[arg-type]
            [task.tokens for task in tasks],
            count=GROUP,
            decoding=Decoding(1.0, max_tokens=NEW),
            stop_tokens=frozenset(),
            seeds=lambda n, g: seeds[n][g],
        )
        return [
            [Rollout(task, x.tokens, (True,) * len(x.tokens), x.sampled, x.text, x.ended) for x in group]
            for task, group in zip(tasks, found)
        ]

    reads_reference = objective.ONLINE.reference(settings)
    setup = Setup(
        stage=stage,
        objective=objective,
        settings=settings,
        tasks=[Task((), tuple(ids)) for ids in prompts(PROMPTS * STEPS)],
        roll=roll,
        score=Even,
        forward=exact_policy_outputs,
        untrained=load,
        reference=load().requires_grad_(False) if reads_reference else None,
    )
    if stage.ptx is not None:
        rows = [row for i in range(STEPS) for row in texts(i)]
        trees = [Tree(tuple(r[:1]), (Branch(tuple(r[1:]), (True,) * (len(r) - 1)),), (0,)) for r in rows]
        setup = replace(setup, ptx=trees)

    def run() -> list[Step]:
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        watch = StageProgress("bench", stream=io.StringIO())
        dtype = torch.bfloat16 if who == OURS_HALF else None
        fit_online(model, setup, out=out, watch=watch, checkpoint_every_s=1e9, dtype=dtype)
        found = read_log(out / "ledger.jsonl")
        assert [row["completions/mean_length"] for row in found] == [NEW] * STEPS, found
        return [Step(row["seconds"], row["time/generate"], row["time/score"]) for row in found]

    return run


COMMON: dict[str, Any] = {
    "prompts": [{"source": "random"}],
    "reward": [{"kind": "repetition"}],  # declared only: the loop is given `Even`
    "rollouts": {"count": GROUP, "max_tokens": NEW},
    "batch_rows": PROMPTS,
    "steps": STEPS,
    "optim": {"lr": LR, "betas": [0.9, 0.999], "schedule": "constant", "warmup": 0.0},
}
STAGES: dict[str, dict[str, Any]] = {
    "grpo": {
        "name": "grpo",
        "objective": {"kind": "grpo", "std": "group", "clip_low": 0.2, "clip_high": 0.2},
        **COMMON,
    },
    "rloo": {"name": "rloo", "objective": {"kind": "rloo", "kl_coef": BETA}, **COMMON},
    "ppo-ptx": {
        "name": "ppo",
        "objective": {"kind": "ppo", "kl_coef": BETA, "value_init": "zero"},
        "ptx": {"data": [{"source": "random"}], "batch_rows": PTX_ROWS},
        **COMMON,
    },
}


class Even(NamedTuple):
    """The reward of rollouts, as the loop reads it."""

    rollouts: Sequence[Any]

    @property
    def total(self) -> list[float | None]:
        return [reward(rollout.tokens) for rollout in self.rollouts]

    def metrics(self) -> dict[str, float]:
        return {}


class Numbers:
    """A tokenizer whose words are numbers."""

    vocab_size = VOCAB

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(f" {t}" for t in tokens)


# ---- TRL ----


def trl(kind: str, folder: Path, who: str) -> Callable[[], list[Step]]:
    """TRL's own trainer and `train()`.

    Defaults: gradient checkpointing, micro-batches of 8 rows, `generate`. Tuned: no checkpointing, fused
    AdamW, all rows in one micro-batch (4% faster here than 8). Batching: tuned, with continuous batching.
    """
    os.environ.update(HF_HUB_OFFLINE="1", CI="1", TRL_EXPERIMENTAL_SILENCE="1", WANDB_DISABLED="true")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    marks: dict[str, list[float]] = {"total": [], "generate": [], "prepare": []}

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            marks["total"].append(time.perf_counter() - self.began)

    rows = GROUP * PROMPTS
    each = rows if who != DEFAULTS else 8
    settings: dict[str, Any] = dict(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=each,
        gradient_accumulation_steps=rows // each,
        num_generations=GROUP,
        max_completion_length=NEW,
        max_steps=STEPS,
        learning_rate=LR,
        beta=BETA if kind == "rloo" else 0.0,
        lr_scheduler_type="constant",
        save_strategy="no",
        report_to="none",
        logging_steps=1000,
        disable_tqdm=True,
        use_cpu=True,
        bf16=who == HALF,
        seed=0,
        dataloader_pin_memory=False,
    )
    if who != DEFAULTS:
        settings |= {"gradient_checkpointing": False, "optim": "adamw_torch_fused"}
    if who == BATCHING:
        settings["use_transformers_continuous_batching"] = True
        settings["transformers_continuous_batching_config"] = {
            "page_size": 32,
            "num_blocks": rows * (PROMPT + NEW) // 32 + 64,
            "max_batch_tokens": 4096,
        }
    Config, Trainer = (GRPOConfig, GRPOTrainer) if kind == "grpo" else (RLOOConfig, RLOOTrainer)
    trainer: Any = Trainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32),
        args=Config(**settings),
        reward_funcs=lambda completion_ids, **_: [reward(ids) for ids in completion_ids],
        train_dataset=Dataset.from_dict(
            {"prompt": [" ".join(map(str, ids)) for ids in prompts(PROMPTS * STEPS)]}
        ),
        processing_class=words(PreTrainedTokenizerFast),
        callbacks=[Clock()],
    )
    timed(trainer, "_generate_single_turn", marks["generate"])
    timed(trainer, "_generate_and_score_completions", marks["prepare"])
    lengths: list[int] = []
    inner = trainer._generate_single_turn

    def watched(*args: Any, **named: Any) -> Any:
        found = inner(*args, **named)
        lengths.extend(map(len, found[0] if kind == "grpo" else found))
        return found

    trainer._generate_single_turn = watched

    def run() -> list[Step]:
        for values in marks.values():
            values.clear()
        lengths.clear()
        trainer.train()
        assert lengths == [NEW] * (rows * STEPS), sorted(set(lengths))
        assert len(marks["generate"]) == len(marks["prepare"]) == len(marks["total"]) == STEPS, marks
        return [Step(t, g, p - g) for t, g, p in zip(marks["total"], marks["generate"], marks["prepare"])]

    return run


def timed(owner: Any, name: str, into: list[float]) -> None:
    """Write the seconds of every call of a method to a list."""
    inner = getattr(owner, name)

    def call(*args: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return inner(*args, **named)
        finally:
            into.append(time.perf_counter() - began)

    setattr(owner, name, call)


def words(kind: Any) -> Any:
    """A tokenizer whose words are numbers, with an end token that the model cannot say."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = {"<pad>": 0, **{str(i): i for i in range(1, VOCAB)}, "</s>": EOS}
    inner = Tokenizer(models.WordLevel(names, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return kind(tokenizer_object=inner, eos_token="</s>", pad_token="<pad>")


# ---- PPO-ptx in plain torch ----


def plain(kind: str, folder: Path, who: str) -> Callable[[], list[Step]]:
    """A straightforward loop; the reference's KL is in the reward."""
    from bench.plain_ppo import PlainPPO

    trainer = PlainPPO(folder / "policy", LR, BETA, NEW, GROUP, rows=8, half=who == PLAIN_HALF)
    asked = prompts(PROMPTS * STEPS)

    def run() -> list[Step]:
        return [
            Step(*trainer.step(asked[i * PROMPTS : (i + 1) * PROMPTS], texts(i), reward))
            for i in range(STEPS)
        ]

    return run


if __name__ == "__main__":
    main()
