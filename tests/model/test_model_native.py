"""The compiled forward equals the lean one and transformers, and one row's bits never depend on the others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from demeanor.model import adapters, checkpoints, native
from demeanor.model.llama import KVCache, Llama
from demeanor.model.pages import PagedCache
from demeanor.stack.schema import Adapter

pytestmark = pytest.mark.skipif(native.build() is None, reason="no C++ compiler here")

SMALL: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 72,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
MODELS: dict[str, tuple[Any, Any]] = {
    "llama, untied": (LlamaForCausalLM, LlamaConfig(**SMALL)),
    "llama, tied, biased": (
        LlamaForCausalLM,
        LlamaConfig(**SMALL, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    ),
    "mistral": (MistralForCausalLM, MistralConfig(**SMALL, sliding_window=None, head_dim=16)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SMALL)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SMALL, head_dim=34)),
    "smollm": (
        LlamaForCausalLM,
        LlamaConfig(**{**SMALL, "num_key_value_heads": 3}, tie_word_embeddings=True, rope_theta=1e5),
    ),
}


def pair(name: str, folder: Path) -> tuple[Any, Llama]:
    """transformers' model with random weights and ours with the same."""
    torch.manual_seed(3)
    kind, config = MODELS[name]
    theirs = kind(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))  # biases and norms that do something
    theirs.save_pretrained(folder)
    return theirs, checkpoints.load(folder)


def tokens(n: int, seed: int = 0) -> list[int]:
    return torch.randint(1, 131, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs, ours = pair(name, tmp_path)
    asked = tokens(40)
    compiled = native.Native(ours, PagedCache(ours.config, 3, 64))
    with torch.no_grad():
        wanted = theirs(torch.tensor([asked])).logits[0]
    said = compiled.forward(asked, [1] * 40, range(40), range(40))
    assert torch.allclose(said.logits_RV, wanted, atol=2e-4 * float(wanted.abs().max()))
    assert said.best_R.tolist() == wanted.argmax(-1).tolist()
    assert torch.allclose(said.total_R, wanted.logsumexp(-1), atol=1e-4)
    with torch.no_grad():
        lean = ours.prefill(torch.tensor(asked), 0, 0, KVCache(ours.config, 1, 64))
    hidden = compiled.hidden(asked, [2] * 40, range(40), [3, 39])
    assert torch.allclose(hidden, lean[[3, 39]], atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_those_generate_gives(name: str, tmp_path: Path) -> None:
    theirs, ours = pair(name, tmp_path)
    asked = tokens(9, seed=4)
    wanted = theirs.generate(
        torch.tensor([asked]),
        attention_mask=torch.ones(1, 9, dtype=torch.long),
        max_new_tokens=40,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[0, 9:].tolist()
    compiled = native.Native(ours, PagedCache(ours.config, 2, 64))
    found = [int(compiled.forward(asked, [1] * 9, range(9), [8]).best_R)]
    for at in range(9, 48):
        found.append(int(compiled.forward([found[-1]], [1], [at], [0]).best_R))
    assert found == wanted
    assert len(set(found)) > 5, "the model says something"


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_row_has_the_same_bits_alone_in_chunks_and_among_others(threads: int, tmp_path: Path) -> None:
    _, ours = pair("qwen3", tmp_path)
    asked, cache = tokens(30), PagedCache(ours.config, 40, 64)
    compiled = native.Native(ours, cache)
    alone = compiled.forward(asked, [0] * 30, range(30), range(30), threads=1).logits_RV
    for size in (1, 7, 13):
        parts = [
            compiled.forward(
                asked[at : at + size],
                [5] * len(asked[at : at + size]),
                range(at, min(30, at + size)),
                range(len(asked[at : at + size])),
                threads=threads,
            ).logits_RV
            for at in range(0, 30, size)
        ]
        assert torch.equal(torch.cat(parts), alone), size
    mixed_tokens, mixed_slots, mixed_positions, read = [], [], [], []
    for slot in range(1, 38):
        others = tokens(1 + slot % 5, seed=slot)
        mixed_tokens += others
        mixed_slots += [slot] * len(others)
        mixed_positions += range(len(others))
        if slot == 20:
            read = list(range(len(mixed_tokens), len(mixed_tokens) + 30))
            mixed_tokens, mixed_slots, mixed_positions = (
                mixed_tokens + asked,
                mixed_slots + [39] * 30,
                [*mixed_positions, *range(30)],
            )
    among = compiled.forward(mixed_tokens, mixed_slots, mixed_positions, read, threads=threads).logits_RV
    assert torch.equal(among, alone)


def test_rounded_weights_are_held_in_few_bits_and_give_the_same_answers(tmp_path: Path) -> None:
    """8 and 16 bits are formats, not roundings: what they hold, they hold exactly."""
    _, ours = pair("llama, tied, biased", tmp_path)
    asked = tokens(20)
    for kind, change in (
        ("int8", lambda w: (x := native.rounded(w))[0] * x[1][:, None]),
        ("bf16", lambda w: w.bfloat16().float()),
    ):
        with torch.no_grad():
            for parameter in ours.parameters():
                if parameter.ndim == 2:
                    parameter.copy_(change(parameter))
        held = native.Native(ours, PagedCache(ours.config, 1, 64))
        assert set(held.formats) == {kind}
        with torch.no_grad():
            wanted = ours.prefill(torch.tensor(asked), 0, 0, KVCache(ours.config, 1, 64)) @ ours.head().T
        assert torch.allclose(
            held.forward(asked, [0] * 20, range(20), range(20)).logits_RV,
            wanted,
            atol=2e-4 * float(wanted.abs().max()),
        )


def test_rounding_to_8_bits_is_within_half_a_step() -> None:
    weight = torch.randn(50, 70, generator=torch.Generator().manual_seed(0))
    small, scale = native.rounded(weight)
    assert small.dtype == torch.int8
    assert float(((small * scale[:, None] - weight).abs() / scale[:, None]).max()) <= 0.5 + 1e-4
    assert native.narrowest(weight) == "fp32"


def test_broken_weights_show(tmp_path: Path) -> None:
    _, ours = pair("llama, untied", tmp_path)
    with torch.no_grad():
        ours.head()[3, 5] = torch.nan
    said = native.Native(ours, PagedCache(ours.config, 1, 64)).forward(tokens(3), [0] * 3, range(3), [2])
    assert bool(said.total_R.isnan().all())


def test_without_a_compiler_it_says_so_and_torch_decodes(tmp_path: Path) -> None:
    code = (
        "import logging; logging.basicConfig(); from demeanor.model import native; from demeanor.engine.forward import forward_of, Torch\n"
        "from demeanor.model import checkpoints; from demeanor.stack.schema import ModelShape\n"
        "assert native.build() is None\n"
        "assert isinstance(forward_of(checkpoints.create(ModelShape(layers=1, width=32, heads=2), 300, 0), 2, 64), Torch)"
    )
    for settings, said in (({"CXX": "/nowhere/g++"}, "could not compile"), ({"DEMEANOR_NATIVE": "0"}, "")):
        ran = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), **settings},
        )
        assert ran.returncode == 0, ran.stderr
        assert said in ran.stderr


def test_compiled_code_is_not_loaded_from_a_folder_others_can_write_to(tmp_path: Path) -> None:
    (tmp_path / "demeanor").mkdir(mode=0o777)
    (tmp_path / "demeanor").chmod(0o777)
    code = "import logging; logging.basicConfig(); from demeanor.model import native; assert native.build() is None"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    )
    assert ran.returncode == 0, ran.stderr
    assert "other users can write" in ran.stderr


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("o_proj", "up_proj"), ("all-linear",)])
def test_an_adapter_beside_its_trunk_is_the_adapter_folded_in_and_the_trunk_is_held_once(
    targets: tuple[str, ...], tmp_path: Path
) -> None:
    _, trunk = pair("llama, tied, biased", tmp_path / "trunk")
    model = checkpoints.load(tmp_path / "trunk")
    adapters.attach(model, Adapter(rank=3, alpha=7.0, targets=targets), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, module in adapters.adapters(model):
            module.lora_B.normal_(generator=generator)
    adapters.save(
        model, Adapter(rank=3, alpha=7.0, targets=targets), tmp_path / "trunk", tmp_path / "low", reward=False
    )
    asked = tokens(20)
    folded = native.Native(checkpoints.load(tmp_path / "low"), PagedCache(trunk.config, 1, 64)).forward(
        asked, [0] * 20, range(20), range(20)
    )
    base = native.Native(trunk, PagedCache(trunk.config, 1, 64))
    apart = native.Native(checkpoints.load_unmerged(tmp_path / "low"), PagedCache(trunk.config, 1, 64))
    said = apart.forward(asked, [0] * 20, range(20), range(20))
    assert torch.allclose(said.logits_RV, folded.logits_RV, atol=1e-4 * float(folded.logits_RV.abs().max()))
    assert not torch.allclose(
        said.logits_RV, base.forward(asked, [0] * 20, range(20), range(20)).logits_RV, atol=0.1
    ), "the adapter does something"
    for threads in (2, 3):
        assert torch.equal(
            apart.forward(asked, [0] * 20, range(20), range(20), threads=threads).logits_RV, said.logits_RV
        )
    trunk_tensors = {x.data_ptr() for x in base._kept}
    assert trunk_tensors <= {x.data_ptr() for x in apart._kept}, "the trunk is held once"
    own = {x.data_ptr(): x.numel() for x in apart._kept if x.data_ptr() not in trunk_tensors}
    panel = native.build().panel_width()  # type: ignore[union-attr]
    thin = [(len(m.lora_A), m.lora_A.shape[1], len(m.lora_B)) for _, m in adapters.adapters(model)]
    most = sum(
        -(-rank // panel) * panel * (-(-ins // panel) * panel + 1)
        + (-(-outs // panel) + 1) * (panel * 3 * rank + 3)
        for rank, ins, outs in thin
    )
    assert 0 < sum(own.values()) <= most, "only the thin matrices, in panels, are its own"


def test_what_was_packed_does_not_change_when_the_model_is_trained_on(tmp_path: Path) -> None:
    _, ours = pair("llama, tied, biased", tmp_path)
    packed = native.Native(ours, PagedCache(ours.config, 1, 64))
    before = packed.forward(tokens(9), [0] * 9, range(9), range(9)).logits_RV
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1)
    assert torch.equal(packed.forward(tokens(9), [0] * 9, range(9), range(9)).logits_RV, before)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity here")
def test_decoding_threads_run_on_every_core_though_the_main_thread_is_bound() -> None:
    """OpenMP binds the main thread to one core; threads that it makes would stay there and wait for each other."""
    script = """
import os
from demeanor.core import hardware
allowed = hardware.cores()
os.sched_setaffinity(0, {min(allowed)})
import torch
from demeanor.model import native
native.build()
torch.set_num_threads(2)
logits, targets = torch.zeros(64, 8192), torch.zeros(64, dtype=torch.long)
before = set(os.listdir("/proc/self/task"))
native.drawn_logprobs(logits, targets)
new = set(os.listdir("/proc/self/task")) - before
print(len(new), all(os.sched_getaffinity(int(task)) == allowed for task in new))
"""
    command = [sys.executable, "-c", script]
    found = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).resolve().parents[2]
    )
    count, free = found.stdout.split()
    assert int(count) >= 1
    assert free == "True"
