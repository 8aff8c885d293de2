"""`make bench`: training and decoding against transformers, on the same work in one run, interleaved.

Shapes are the demo's. Peers that need their own environment (TRL, ONNX Runtime GenAI) are the business of later benchmarks.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from demeanor import hardware

THREADS = hardware.prepare()

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from demeanor.data.trees import Branch, Tree, collate  # noqa: E402
from demeanor.model import checkpoint  # noqa: E402
from demeanor.model.cache import KVCache  # noqa: E402
from demeanor.model.llama import Llama  # noqa: E402
from demeanor.model.outputs import policy_outputs  # noqa: E402
from demeanor.spec import ModelShape  # noqa: E402
from demeanor.train.lineage import origin  # noqa: E402

VOCAB, ROUNDS = 2048, 7


def models() -> tuple[Llama, LlamaForCausalLM]:
    """Our model and transformers' with the same weights."""
    ours = checkpoint.create(ModelShape(), VOCAB, 0)
    config = ours.config
    theirs = LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCAB, hidden_size=config.hidden_size, intermediate_size=config.intermediate_size, tie_word_embeddings=True,
        num_hidden_layers=config.num_hidden_layers, num_attention_heads=config.num_attention_heads, rope_theta=config.rope_theta,
        rms_norm_eps=config.rms_norm_eps, max_position_embeddings=config.max_position_embeddings))
    theirs.load_state_dict(ours.state_dict(), strict=False)
    return ours, theirs


def interleaved(runs: dict[str, Callable[[], None]]) -> dict[str, tuple[float, float]]:
    """Best and median seconds of each run, taken in turns so that noise hits all alike."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    return {name: (min(t), statistics.median(t)) for name, t in times.items()}


def training(rows: list[tuple[int, int]], name: str) -> dict[str, object]:
    """One optimiser step on rows of (prompt, answer) tokens, loss on the answer: trees against right-padded rows."""
    ours, theirs = models()
    generator = torch.Generator().manual_seed(1)
    trees = []
    for prompt, answer in rows:
        tokens = torch.randint(3, VOCAB, (prompt + answer,), generator=generator).tolist()
        trees.append(Tree(tuple(tokens[:prompt]), (Branch(tuple(tokens[prompt:]), (True,) * answer),), (0,), None, name))
    batch = collate(trees)
    longest = max(p + a for p, a in rows)
    ids, labels = torch.zeros(len(rows), longest, dtype=torch.long), torch.full((len(rows), longest), -100)
    for i, tree in enumerate(trees):
        whole = torch.tensor([*tree.prompt, *tree.branches[0].tokens])
        ids[i, :len(whole)], labels[i, len(tree.prompt):len(whole)] = whole, whole[len(tree.prompt):]
    mask = torch.zeros_like(ids)
    for i, (p, a) in enumerate(rows):
        mask[i, :p + a] = 1
    optimizers = [torch.optim.AdamW(m.parameters(), 1e-4, fused=True) for m in (ours, theirs)]
    losses: dict[str, list[float]] = {"demeanor": [], "transformers": []}

    def step_ours() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            logprobs = policy_outputs(ours, batch).logprobs_C
        assert logprobs is not None
        loss = -logprobs.mean()
        finish(loss, optimizers[0], "demeanor")

    def step_theirs() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = theirs(ids, attention_mask=mask, labels=labels).loss
        finish(loss, optimizers[1], "transformers")

    def finish(loss: torch.Tensor, optimizer: torch.optim.Optimizer, who: str) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses[who].append(float(loss.detach()))

    times = interleaved({"demeanor": step_ours, "transformers": step_theirs})
    tokens = sum(p + a for p, a in rows)
    gap = abs(losses["demeanor"][0] - losses["transformers"][0])
    return {"work": name, "tokens": tokens, "padded": len(rows) * longest, "loss_gap_first": gap,
            **{f"{who}_tokens_per_s": round(tokens / best) for who, (best, _) in times.items()},
            "speed_up": round(times["transformers"][0] / times["demeanor"][0], 2),
            "speed_up_median": round(times["transformers"][1] / times["demeanor"][1], 2)}


@torch.no_grad()
def decoding(batch: int, new_tokens: int = 64, prompt: int = 40) -> dict[str, object]:
    """Greedy decoding of `batch` equal-length prompts: KV slots against `generate`, fp32, token for token."""
    ours, theirs = models()
    ids = torch.randint(3, VOCAB, (batch, prompt), generator=torch.Generator().manual_seed(2))
    answers: dict[str, list[list[int]]] = {}

    def run_ours() -> None:
        cache = KVCache(ours.config, batch, prompt + new_tokens)
        last = torch.stack([ours.prefill(row, slot, 0, cache)[-1] for slot, row in enumerate(ids)])
        slots, found = torch.arange(batch), []
        for at in range(prompt, prompt + new_tokens):
            token = (last @ ours.head().T).argmax(-1)
            found.append(token)
            if at < prompt + new_tokens - 1:
                last = ours.step(token, slots, torch.full((batch,), at), cache)
        answers["demeanor"] = torch.stack(found, 1).tolist()

    def run_theirs() -> None:
        found = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, min_new_tokens=new_tokens,
                                do_sample=False, pad_token_id=0, eos_token_id=None)
        answers["transformers"] = found[:, prompt:].tolist()

    times = interleaved({"demeanor": run_ours, "transformers": run_theirs})
    return {"work": f"decode, {batch} at once", "tokens": batch * new_tokens, "equal": answers["demeanor"] == answers["transformers"],
            **{f"{who}_tokens_per_s": round(batch * new_tokens / best) for who, (best, _) in times.items()},
            "speed_up": round(times["transformers"][0] / times["demeanor"][0], 2),
            "speed_up_median": round(times["transformers"][1] / times["demeanor"][1], 2)}


def main() -> int:
    """Run all, print the table, write results/bench.json."""
    torch.set_num_threads(THREADS)
    generator = torch.Generator().manual_seed(0)
    prompts, answers = (torch.randint(low, high, (32,), generator=generator).tolist() for low, high in ((15, 80), (2, 20)))
    short = list(zip(prompts, answers))
    found = [training([(1, 127)] * 16, "train, 16 packed rows of 128"), training(short, "train, 32 short chats, loss on answers")]
    found += [decoding(n) for n in (1, 8, 32)]
    table = Table(title=f"bf16 training, fp32 decoding, {THREADS} threads, best of {ROUNDS} interleaved", title_justify="left", box=None)
    for name in ("work", "demeanor tok/s", "transformers tok/s", "times faster", "median"):
        table.add_column(name, justify="left" if name == "work" else "right")
    for row in found:
        table.add_row(str(row["work"]), f"{row['demeanor_tokens_per_s']:,}", f"{row['transformers_tokens_per_s']:,}", str(row["speed_up"]),
                      str(row["speed_up_median"]))
    Console(width=120).print(table)
    out = Path("results") / "bench.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"rows": found, "load": os.getloadavg(), **origin()}, indent=1) + "\n")
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
