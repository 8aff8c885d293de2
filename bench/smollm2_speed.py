"""`python -m bench.smollm2_speed`: prompts read, tokens decoded and memory of a real model, against transformers and llama.cpp.

The model is SmolLM2-135M-Instruct (`--model FOLDER`, in Hugging Face's format), in four number formats. Every engine is a
process of its own; those of one format take turns, round after round, over the same random prompts, others in
every round. A ratio is that of one round, and its interval is over rounds; a short scenario is repeated with other prompts until it took
`--least` seconds. Just before our engine reads a prompt, its process measures the best product of its format: the share of the peak. Then:
memory, and greedy answers to real prompts against transformers in fp32. Results are written after every round. Part of `make bench`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.__main__ import ROOT, Contender, interval
from bench.parts import save
from bench.peaks import shares
from demeanor.core.files import origin

FORMATS: dict[str, tuple[str, ...]] = {
    "fp32": ("demeanor fp32", "transformers fp32", "llama.cpp F32", "llama.cpp native F32"),
    "bf16": (
        "demeanor bf16",
        "transformers bf16",
        "llama.cpp F16",
        "llama.cpp native F16",
        "llama.cpp native BF16",
    ),
    "int8": ("demeanor q8_0", "demeanor int8", "llama.cpp Q8_0", "llama.cpp native Q8_0"),
    "4-bit": ("demeanor q4_0", "llama.cpp Q4_0", "llama.cpp native Q4_0"),
}
"""Ours first, then those that it is compared with."""
WHEEL = "pip install xllamacpp in bench/.venv"
NATIVE = 'CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" pip install --no-binary llama-cpp-python llama-cpp-python there'
OWN = "demeanor, fp32 sums"
"""Our engine on the model's folder as it is."""
PLACES = ("SMOLLM2", "/tmp/smol/hf", str(ROOT / "runs" / "smollm2"))
"""Where the model is looked for: a variable, then folders."""


def decode(at_once: int, prompt: int, *, known: bool = False) -> dict[str, Any]:
    return {"do": "decode", "at_once": at_once, "prompt": prompt, "new": 64, "known": known}


SCENARIOS: dict[str, dict[str, Any]] = {
    "read 128": {"do": "prefill", "tokens": 128},
    "read 1,024": {"do": "prefill", "tokens": 1024},
    "read 4,096": {"do": "prefill", "tokens": 4096},
    "decode 1": decode(1, 32),
    "decode 8": decode(8, 32),
    "decode 32": decode(32, 32),
    "decode 1 after 1,024": decode(1, 1024, known=True),
    "decode 8 after 1,024": decode(8, 1024, known=True),
    "decode 32 after 1,024": decode(32, 1024, known=True),
}
USUAL = [name for name in SCENARIOS if name not in ("decode 8 after 1,024", "decode 32 after 1,024")]
"""What is measured by default: the others read 8,000 and 33,000 tokens first."""
REPEATS = 6
"""Most calls of one measurement."""


def tokens(asked: dict[str, Any]) -> int:
    """Tokens that a scenario's speed counts: those read, or those decoded."""
    return int(asked["tokens"] if asked["do"] == "prefill" else asked["at_once"] * asked["new"])


def prepared(model: Path, scratch: Path, kind: str) -> Path:
    """The model's folder in one of our formats.

    The file holds bfloat16 values. For fp32 every matrix is multiplied by 1.0001, so that no narrower format
    holds it exactly; the other formats are those of a `quantise` stage.
    """
    from demeanor.model import checkpoints, quantize

    out = scratch / kind
    if (out / "config.json").is_file():
        pass  # another part of the benchmark made it
    elif kind in ("q8_0", "q4_0"):  # the head as llama-quantize leaves it where a width is no multiple of 256
        quantize.write_groups(model, out, kind, head="q8_0", activations="int8")  # type: ignore[arg-type]
    elif kind == "fp32":
        import torch

        policy = checkpoints.policy(model)
        with torch.no_grad():
            for weight in policy.parameters():
                if weight.dim() == 2:
                    weight *= 1.0001
        checkpoints.save_checkpoint(policy, out)
    else:
        quantize.write(model, out, kind)  # type: ignore[arg-type]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (out / name).exists():
            (out / name).write_bytes((model / name).read_bytes())
    return out


def gguf_file(model: Path, folder: Path, form: str) -> Path:
    """The model as a GGUF file in llama.cpp's format `form`, written by `demeanor export` if it is not in the folder."""
    from demeanor.model import checkpoints
    from demeanor.text import tokenizer
    from demeanor.text.template import load_template
    from demeanor.training import export_gguf

    out = folder / f"{form}.gguf"
    if not out.is_file():
        dtype = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}.get(form, form.lower())
        policy: Any = checkpoints.policy(model)
        vocabulary = tokenizer.load(model)
        chat = load_template("model", vocabulary, folder=model, root=model)
        about = export_gguf.settings(policy, vocabulary, chat, name=form, dtype=dtype, texts=())
        export_gguf.write(out, policy, about, dtype)
    return out


OTHER_PROMPTS = 100_000  # between the seeds of two attempts


class Measurer:
    """Processes of the engines of one format, and what was measured with them."""

    def __init__(
        self, paths: dict[str, Path], threads: int, tries: int, model: Path, kind: str, least_s: float
    ) -> None:
        self._tries, self._model, self._kind, self._least_s = tries, model, kind, least_s
        self.contenders = {
            who: Contender([who, str(path)], who, threads, module="bench.smollm2_worker")
            for who, path in paths.items()
        }
        self.rates: dict[tuple[str, str], list[dict[str, Any]]] = {}

    def measure(self, who: str, name: str, seed: int) -> None:
        """Time one scenario; where others used over a tenth of the machine, again with other prompts (ours knows those it read), and the
        quietest counts."""
        asked, found, extra = SCENARIOS[name], [], {}
        if asked["do"] == "prefill" and who == FORMATS[self._kind][0]:
            line = {"do": "peak", "model": str(self._model), "format": self._kind}
            extra = {"gflops": self.contenders[who].go(json.dumps(line))}
        for attempt in range(self._tries):
            found.append(self._repeated(who, asked, seed + OTHER_PROMPTS * attempt))
            if found[-1]["others"] <= 0.1:
                break
        best = min(found, key=lambda x: float(x["others"]))
        rate = tokens(asked) * best["calls"] / best["seconds"]
        print(
            f"{who}, {name}: {rate:,.0f} tokens/s (others used {best['others']:.0%})",
            file=sys.stderr,
            flush=True,
        )
        row = {"rate": round(rate, 1), "others": best["others"], "calls": best["calls"], **extra}
        self.rates.setdefault((who, name), []).append(row)

    def _repeated(self, who: str, asked: dict[str, Any], seed: int) -> dict[str, Any]:
        """Calls with prompts of their own until they took long enough: their number, seconds together, and what others used."""
        seconds, others, calls = 0.0, 0.0, 0
        while calls < REPEATS and (not calls or seconds < self._least_s):
            told = self.contenders[who].go(json.dumps({**asked, "seed": 1000 * calls + seed}))
            seconds, others, calls = seconds + told["seconds"], max(others, told["others"]), calls + 1
        return {"seconds": seconds, "others": round(others, 3), "calls": calls}

    def memory(self) -> dict[str, dict[str, float]]:
        """MB beyond the process before it had a model: after loading, now, and at the peak."""
        found = {}
        for who, contender in self.contenders.items():
            now, ready = contender.go(json.dumps({"do": "memory"})), contender.ready
            base = ready["base"]["VmRSS"]
            found[who] = {
                "process": round(base),
                "loaded": round(ready["loaded"]["VmRSS"] - base),
                "after": round(now["VmRSS"] - base),
                "peak": round(now["VmHWM"] - base),
            }
        return found

    def close(self) -> None:
        for contender in self.contenders.values():
            contender.close()


def peak_shares(model: Path, name: str, mine: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares of the peak at which prompts were read, one a round, each by the peak measured just before; empty where none was."""
    rows = [x for x in mine if "gflops" in x]
    if not rows:
        return {}
    found = [shares(model, SCENARIOS[name]["tokens"], x["rate"], x["gflops"]["peak"]) for x in rows]
    return {
        "gflops": [x["gflops"] for x in rows],
        **{key: [round(v, 4) for v in interval([x[key] for x in found])] for key in found[0]},
    }


def line(
    kind: str, name: str, rates: dict[tuple[str, str], list[dict[str, Any]]], whos: list[str]
) -> dict[str, Any]:
    """One scenario in one format: everybody's speeds, and ours as a multiple of the best peer's."""
    speeds = {who: [x["rate"] for x in rates[who, name]] for who in whos if (who, name) in rates}
    peers = [
        who for who in speeds if not who.startswith("demeanor")
    ]  # ours that is not the first is shown only
    row: dict[str, Any] = {
        "format": kind,
        "scenario": name,
        "tokens_per_s": speeds,
        "others": max(x["others"] for who in speeds for x in rates[who, name]),
    }
    mine = speeds.get(whos[0])
    if mine and peers:
        row["times"] = {
            who: [round(x, 3) for x in interval([a / b for a, b in zip(mine, speeds[who])])] for who in peers
        }
        row["best_peer"] = max(peers, key=lambda who: statistics.fmean(speeds[who]))
    return row


def show(lines: list[dict[str, Any]], title: str) -> None:
    """Print a row for each scenario and format."""
    table = Table(title=title, title_justify="left", box=None)
    heads = ("", "", "demeanor", "of the peak", "products only", "times best peer", "best peer", "others")
    for head in heads:
        table.add_column(head, justify="left" if not head or head == "others" else "right")
    for x in lines:
        speeds = x["tokens_per_s"]
        mine = next((v for k, v in speeds.items() if k.startswith("demeanor")), None)
        best = x.get("best_peer")
        ratio = "{:.2f} [{:.2f}, {:.2f}]".format(*x["times"][best]) if best else ""
        rest = ", ".join(
            f"{k} {statistics.median(v):,.0f}"
            for k, v in speeds.items()
            if k != best and not k.startswith("demeanor")
        )
        table.add_row(
            x["scenario"],
            x["format"],
            f"{statistics.median(mine):,.0f}" if mine else "-",
            *(
                "{:.0%} [{:.0%}, {:.0%}]".format(*x[k]) if k in x else ""
                for k in ("of_peak", "of_peak_products_only")
            ),
            ratio,
            f"{best} {statistics.median(speeds[best]):,.0f}" if best else "",
            rest,
        )
    Console(width=170).print(table)


def real_prompts(model: Path, count: int) -> list[list[int]]:
    """Prompts of the built-in suites in the model's template, one of each cluster in turn."""
    from demeanor.evaluation import suites
    from demeanor.text import tokenizer
    from demeanor.text.template import load_template

    vocabulary, found = tokenizer.load(model), []
    chat = load_template("model", vocabulary, folder=model, root=model)
    for suite in ("helpfulness", "instructions", "capability", "honesty"):
        items = list(suites.items(suites.PREFIX + suite, model))
        for item in items[:: max(1, len(items) * 4 // count)][: -(-count // 4)]:
            found.append(list(chat.render(item.messages, (), generate=True).tokens))
    return found[:count]


def compare_answers(found: dict[str, list[list[int]]], gaps: list[list[float]]) -> dict[str, dict[str, Any]]:
    """Against transformers in fp32: answers that are equal, tokens before the first difference, and the gap of its two
    best logits there."""
    truth = found["transformers fp32"]
    told = {}
    for who, answers in found.items():
        firsts = [
            next((i for i, (a, b) in enumerate(zip(x, y)) if a != b), None) for x, y in zip(answers, truth)
        ]
        told[who] = {
            "prompts": len(truth),
            "equal": sum(i is None for i in firsts),
            "same_before": statistics.fmean(
                len(y) if i is None else i for i, y in zip(firsts, truth, strict=True)
            ),
            "gaps_at_difference": [round(gaps[k][i], 5) for k, i in enumerate(firsts) if i is not None],
        }
    return told


def found_model(given: Path | None) -> Path | None:
    """The model's folder, or None."""
    for place in [given, os.environ.get(PLACES[0]), *PLACES[1:]]:
        if place and (Path(place) / "model.safetensors").is_file():
            return Path(place)
    return None


def runnable(who: str) -> bool:
    """True if a contender's program is here."""
    if not who.startswith("llama.cpp"):
        return True
    module = "llama_cpp" if who.startswith("llama.cpp native") else "xllamacpp"
    return importlib.util.find_spec(module) is not None


def contenders_of(kind: str, options: argparse.Namespace) -> list[str]:
    """Who is measured in a format: ours, and peers that can be the best.

    Left out, unless `--every`: our int8 beside q8_0, and llama.cpp's wheel where llama.cpp compiled for this CPU is here, which is faster.
    """
    found = [who for who in FORMATS[kind] if not any(who.startswith(x) for x in options.without)]
    if options.every:
        return found
    native = {who.replace("native ", "") for who in found if " native " in who and runnable(who)}
    return [who for who in found if who != "demeanor int8" and who not in native]


def paths_of(kind: str, model: Path, made: Path, options: argparse.Namespace) -> dict[str, Path]:
    """The weights of each contender of a format that can run here; the others are named with the reason."""
    paths: dict[str, Path] = {}
    for who in contenders_of(kind, options):
        if who.startswith("demeanor"):
            try:
                paths[who] = prepared(model, made, who.rsplit(" ", 1)[1])
            except (KeyError, ValueError, AttributeError) as error:
                print(f"bench: {who} is left out: {error!r}")
        elif not runnable(who):
            print(f"bench: {who} is left out: it is not installed; {NATIVE if 'native' in who else WHEEL}")
        elif who.startswith("transformers"):
            paths[who] = model
        else:
            paths[who] = gguf_file(model, options.gguf or made, who.rsplit(" ", 1)[1])
    return paths


def answers_of(
    kind: str, measurer: Measurer, model: Path, texts: list[list[int]], options: argparse.Namespace
) -> tuple[dict[str, list[list[int]]], list[list[float]]]:
    """Greedy answers of the contenders of a format, and the gaps of transformers' two best logits in fp32."""
    asked = json.dumps({"do": "answers", "prompts": texts, "new": 64})
    found: dict[str, list[list[int]]] = {}
    gaps: list[list[float]] = []
    for who, contender in measurer.contenders.items():
        if who == "demeanor fp32" or (who.startswith("llama.cpp") and "native" not in who):
            continue  # other weights; text without tokens
        print(f"{who}: {len(texts)} answers", file=sys.stderr, flush=True)
        told = contender.go(asked)
        found[who] = told["answers"]
        gaps = told["gaps"] or gaps if who == "transformers fp32" else gaps
    if kind == "fp32":  # its folder above has other weights; here are the file's own
        plain = Contender(["demeanor", str(model)], OWN, options.threads, "bench.smollm2_worker")
        found[OWN] = plain.go(asked)["answers"]
        plain.close()
    return found, gaps


def measured(
    kind: str,
    measurer: Measurer,
    options: argparse.Namespace,
    model: Path,
    write: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """All rounds of a format: its lines, written after every round."""
    whos = list(measurer.contenders)
    rows: list[dict[str, Any]] = []
    for round_ in range(options.rounds):
        for name in options.scenarios:
            for who in whos:
                measurer.measure(who, name, round_)
        rows = [
            line(kind, name, measurer.rates, whos)
            | peak_shares(model, name, measurer.rates.get((FORMATS[kind][0], name), []))
            for name in options.scenarios
        ]
        write(rows)
    return rows


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.smollm2_speed", description=__doc__)
    parser.add_argument(
        "--model", type=Path, help="SmolLM2-135M-Instruct, a folder; $SMOLLM2 or runs/smollm2 if not given"
    )
    parser.add_argument(
        "--gguf", type=Path, help="folder of F32.gguf, Q8_0.gguf ...; those that lack are written there"
    )
    parser.add_argument(
        "--made", type=Path, help="keep our folders here, and use those that are here already"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--least", type=float, default=0.5, help="seconds that a measurement takes at least")
    parser.add_argument("--tries", type=int, default=2, help="of a measurement that others disturbed")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["int8", "4-bit", "bf16", "fp32"])
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=USUAL)
    parser.add_argument("--without", nargs="+", default=[], help="leave out contenders whose name begins so")
    parser.add_argument(
        "--every",
        action="store_true",
        help="also contenders that cannot be the best, and answers in each format",
    )
    parser.add_argument(
        "--answers", type=int, default=32, help="real prompts for the comparison of answers; 0: none"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "smollm2-speed.json")
    return parser.parse_args()


def main(alone: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext) -> int:
    """Run the chosen parts, print the tables, write results/smollm2-speed.json.

    `alone`: what the rounds of a format run in; a caller who can keep other work away gives it here.
    """
    options = arguments()
    model = found_model(options.model)
    if model is None:
        print(
            "bench.smollm2_speed: SmolLM2-135M-Instruct is not here; left out. docs/smollm2-grpo.md makes the folder, "
            "--model names it"
        )
        return 0
    lines: list[dict[str, Any]] = []
    kept: dict[str, Any] = {"model": str(model), "threads": options.threads, "rounds": options.rounds}

    def write(more: list[dict[str, Any]]) -> None:
        save(options.out, {"lines": lines + more, **kept, "load": os.getloadavg(), **origin()})

    texts = real_prompts(model, options.answers) if options.answers else []
    answers: dict[str, list[list[int]]] = {}
    gaps: list[list[float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for kind in options.formats:
            paths = paths_of(kind, model, options.made or Path(scratch), options)
            measurer = Measurer(paths, options.threads, options.tries, model, kind, options.least)
            with alone():
                rows = measured(kind, measurer, options, model, write)
            lines += rows
            kept.setdefault("memory_mb", {}).update(measurer.memory())
            show(rows, f"{kind}: tokens/s, {options.rounds} rounds, {options.threads} threads")
            if texts and (options.every or kind == "fp32"):
                said, near = answers_of(kind, measurer, model, texts, options)
                answers, gaps = answers | said, near or gaps
            measurer.close()
            if "transformers fp32" in answers:
                kept["answers"] = compare_answers(answers, gaps)
            write([])
    told(kept)
    print(f"written: {options.out}")
    return 0


def told(kept: dict[str, Any]) -> None:
    """Print memory and the comparison of answers."""
    for who, x in kept["memory_mb"].items():
        print(
            f"{who:<24} MB beyond the empty process: loaded {x['loaded']:,}, after {x['after']:,}, peak {x['peak']:,}"
        )
    for who, x in kept.get("answers", {}).items():
        print(
            f"{who:<24} {x['equal']} of {x['prompts']} answers equal transformers fp32; gaps of its logits where not: "
            f"{x['gaps_at_difference'][:8]}"
        )


if __name__ == "__main__":
    sys.exit(main())
