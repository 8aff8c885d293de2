"""One contender at one task, in its own process: `python -m bench.worker WORK WHO DTYPE DEVICE [MODEL]`.

It answers "go\\n" with one JSON line per pass over the rows: seconds and loss of every step, and how much
memory the passes needed beyond the loaded model.
"""

from __future__ import annotations

import sys

from demeanor.core import hardware

WHO = ("demeanor", "trl tuned", "trl padding-free", "trl defaults")

if __name__ == "__main__":
    if sys.argv[2] == "demeanor":
        hardware.prepare()  # before torch; TRL keeps the process as it finds it

import io
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.work import EOS, Row, Work, desirable, grouped, mismatched, model_config, small, works

LR, LR_SMALL = 1e-4, 1e-5
"""Learning rates: of what is timed, and of all real weights where first losses are compared in fp32."""


class Pass(NamedTuple):
    """One pass over the rows."""

    seconds: list[float]
    losses: list[float]


def main() -> None:
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    name, who, dtype, device = sys.argv[1:5]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 2))
    model = Path(sys.argv[5]) if len(sys.argv) > 5 else None
    work = next(w for w in works(device, model) if w.name == name)
    if dtype == "fp32":  # the equality of losses is checked on small steps
        work = small(work)
    rows = work.make()
    if who != "trl defaults":
        rows = grouped(rows, work.batch)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint(work, Path(folder), device)
        lr = LR_SMALL if dtype == "fp32" and work.model is not None else LR
        run = (ours if who == "demeanor" else trl)(work, rows, Path(folder), dtype == "bf16", who, device, lr)
        reply({"ready": True})
        for line in sys.stdin:
            if line.strip() != "go":
                break
            before, busy_s = rss(), time.process_time()
            done = run()
            reply(
                {
                    "cpu_s": time.process_time() - busy_s,
                    "seconds": done.seconds,
                    "losses": done.losses,
                    "memory_mb": memory(device, 0.0 if model else before),
                }
            )


def reply(value: object) -> None:
    sys.__stdout__.write("@" + json.dumps(value) + "\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


def rss() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def memory(device: str, before: float) -> float:
    """Peak memory of the process (CPU) or the GPU in MB, without what was in use before the first step."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6 - before


def checkpoint(work: Work, folder: Path, device: str) -> None:
    """The same weights for everybody, real or random, as Hugging Face folders."""
    if work.model is not None and work.kind != "reward":
        (folder / "policy").symlink_to(work.model)
        return
    from demeanor.model import checkpoints as models
    from demeanor.model.initial import initialise
    from demeanor.model.llama import Llama

    if work.model is not None:
        models.save(models.reward(work.model, 0), folder / "reward")
        return
    policy = Llama(model_config(work.vocabulary, device=device))
    initialise(policy, 0, mimetic=False)
    models.save(policy, folder / "policy")
    models.save(models.reward_from(policy, 0), folder / "reward")


# ---- ours ----


def ours(
    work: Work, rows: Sequence[Row], folder: Path, bf16: bool, who: str, device: str, lr: float
) -> Callable[[], Pass]:
    """The loop of `demeanor train` itself, its metrics log read for loss and time."""
    import shutil
    from functools import partial

    from demeanor.data.trees import Branch, Tree
    from demeanor.model import checkpoints as models
    from demeanor.model.heads import policy_outputs, reward_outputs
    from demeanor.model.tensors import MISMATCHED
    from demeanor.core import registry
    from demeanor.model import adapters
    from demeanor.stack.schema import Adapter, Optim
    from demeanor.training import progress, resume
    from demeanor.training.loop import fit
    from demeanor.training.progress import StageProgress
    from demeanor.training.reference import reference_logprobs, trees_key

    rewards = work.kind == "reward"
    trees = [
        Tree(tuple(p), tuple(Branch(tuple(c), (True,) * len(c)) for c in cs), tuple(range(len(cs))))
        for p, cs in rows
    ]
    if work.kind == "kto":
        trees = [
            Tree(
                tree.prompt,
                (*tree.branches, Branch(tuple(other), (True,) * len(other))),
                (0, 0),
                labels=(label, MISMATCHED),
            )
            for tree, other, label in zip(
                trees, mismatched(list(rows), work.batch), map(int, map(desirable, rows))
            )
        ]
    model: Any = models.load_reward(folder / "reward") if rewards else models.load(folder / "policy")
    if work.lora:
        adapters.attach(model, Adapter(rank=work.lora, alpha=2 * work.lora), 0)
    model.to(device)
    if work.model is not None:  # hundreds of MB; theirs writes no checkpoint either
        resume.save = lambda *given, **more: None  # type: ignore[assignment]
    reference = None
    if work.kind in ("dpo", "kto"):
        reference = reference_logprobs(
            lambda: models.load(folder / "policy"),
            policy_outputs,
            trees,
            folder=folder,
            model_key="policy",
            data_key=trees_key(trees),
            dtype=torch.bfloat16 if bf16 else None,
        )
    objective = registry.entry("demeanor.objectives", work.kind)
    loss = partial(objective.loss, objective.Spec())
    optim = Optim(lr=lr, betas=(0.9, 0.999), schedule="constant", warmup=0.0)
    steps = [[list(range(i, i + work.batch))] for i in range(0, len(trees), work.batch)]

    def run() -> Pass:
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        fit(
            model,
            reward_outputs if rewards else policy_outputs,
            loss,
            trees,
            steps,
            optim,
            out=out,
            watch=StageProgress("bench", stream=io.StringIO()),
            read_last=rewards,
            reference=reference,
            checkpoint_every_s=1e9,
            dtype=torch.bfloat16 if bf16 else None,
            whole_step=objective.WHOLE_STEP,
        )
        found = progress.read_log(out / "ledger.jsonl")
        return Pass([r["seconds"] for r in found], [r["loss"] for r in found])

    return run


# ---- theirs ----


def trl(
    work: Work, rows: Sequence[Row], folder: Path, bf16: bool, who: str, device: str, lr: float
) -> Callable[[], Pass]:
    """TRL's own trainers and `train()`; `tuned`: no checkpointing, grouped lengths, precomputed reference."""
    os.environ.update(HF_HUB_OFFLINE="1", CI="1", TRL_EXPERIMENTAL_SILENCE="1", WANDB_DISABLED="true")
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        PreTrainedTokenizerFast,
        TrainerCallback,
    )
    from trl import (
        DPOConfig,
        DPOTrainer,
        KTOConfig,
        KTOTrainer,
        RewardConfig,
        RewardTrainer,
        SFTConfig,
        SFTTrainer,
    )

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.marks = [time.perf_counter()]

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            self.marks.append(time.perf_counter())

    tuned, batch = who != "trl defaults", work.batch
    write = lambda ids: " ".join(map(str, ids))  # noqa: E731
    columns: dict[str, list[Any]]
    if work.kind == "sft":
        columns = {
            "input_ids": [p + cs[0] for p, cs in rows],
            "completion_mask": [[0] * len(p) + [1] * len(cs[0]) for p, cs in rows],
        }
    elif work.kind == "reward":
        pairs = [(p, a, b) for p, cs in rows for a, b in combinations(cs, 2)]
        columns = {"chosen_ids": [p + a for p, a, _ in pairs], "rejected_ids": [p + b for p, _, b in pairs]}
        batch = work.batch * len(pairs) // len(rows)
    elif work.kind == "kto":
        columns = {
            "prompt": [write(p) for p, _ in rows],
            "completion": [" " + write(cs[0][:-1]) for _, cs in rows],
            "label": [desirable(row) for row in rows],
        }
    else:
        columns = {
            "prompt": [write(p) for p, _ in rows],
            "chosen": [" " + write(cs[0][:-1]) for _, cs in rows],
            "rejected": [" " + write(cs[1][:-1]) for _, cs in rows],
        }
    common: dict[str, Any] = dict(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=batch,
        max_steps=work.steps,
        learning_rate=lr,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
        logging_strategy="steps",
        logging_steps=1,
        disable_tqdm=True,
        use_cpu=device == "cpu",
        bf16=bf16,
        seed=0,
        max_length=None if who == "trl padding-free" else 4096,  # no row is that long
        dataloader_pin_memory=device == "cuda",
    )
    if tuned:
        common |= {"gradient_checkpointing": False, "optim": "adamw_torch_fused"}
    if work.lora:
        from peft import LoraConfig

        task = "SEQ_CLS" if work.kind == "reward" else "CAUSAL_LM"
        lora: Any = LoraConfig(
            r=work.lora,
            lora_alpha=2 * work.lora,
            target_modules="all-linear",
            task_type=task,
            modules_to_save=["score"] if work.kind == "reward" else None,
        )
    else:
        lora = None
    tokenizer = words(work.vocabulary, PreTrainedTokenizerFast)
    data = Dataset.from_dict(columns)
    clock = Clock()
    if work.kind == "reward":
        model = AutoModelForSequenceClassification.from_pretrained(folder / "reward", num_labels=1)
        model.config.pad_token_id = tokenizer.pad_token_id
        trainer: Any = RewardTrainer(
            model=model,
            args=RewardConfig(**common),
            train_dataset=data,
            processing_class=tokenizer,
            peft_config=lora,
            callbacks=[clock],
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(folder / "policy")
        if work.kind == "sft":
            trainer = SFTTrainer(
                model=model,
                args=SFTConfig(**common, completion_only_loss=True, padding_free=who == "trl padding-free"),
                train_dataset=data,
                processing_class=tokenizer,
                peft_config=lora,
                callbacks=[clock],
            )
        else:
            config, kind = (DPOConfig, DPOTrainer) if work.kind == "dpo" else (KTOConfig, KTOTrainer)
            trainer = kind(
                model=model,
                args=config(**common, beta=0.1, precompute_ref_log_probs=tuned),
                train_dataset=data,
                processing_class=tokenizer,
                peft_config=lora,
                callbacks=[clock],
                ref_model=None
                if tuned or work.lora
                else AutoModelForCausalLM.from_pretrained(folder / "policy"),
            )

    def run() -> Pass:
        trainer.state.log_history = []
        trainer.train()
        losses = [r["loss"] for r in trainer.state.log_history if "loss" in r]
        return Pass([b - a for a, b in zip(clock.marks, clock.marks[1:])], losses)

    return run


def words(vocabulary: int, kind: Any) -> Any:
    """A tokenizer whose words are numbers: the text of a row is its token ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = {**{str(i): i for i in range(vocabulary)}}
    names.pop("0"), names.pop(str(EOS))
    inner = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": EOS, **names}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return kind(tokenizer_object=inner, eos_token="</s>", pad_token="<pad>")


if __name__ == "__main__":
    main()
