"""Weights as they are stored: heads that were trained, adapters of every kind, damaged and hostile folders."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from demeanor.core import files, hardware
from demeanor.core.errors import CheckpointError
from demeanor.data.trees import Branch, Tree, collate
from demeanor.model import adapters, checkpoints, hf, merge, quantize
from demeanor.model.heads import policy_outputs
from demeanor.model.stored import StoredTensors
from demeanor.stack.schema import ModelShape
from demeanor.text import tokenizer as tokenizers

VOCAB = 61
SHAPE = ModelShape(layers=2, width=32, heads=4, kv_heads=2, context=64)
ROW = torch.randint(1, VOCAB, (20,), generator=torch.Generator().manual_seed(1))
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / 4


def logprobs(folder: Path) -> Tensor:
    """Log-probs of ROW under our model of a folder, one a token."""
    tree = Tree(tuple(ROW[:1].tolist()), (Branch(tuple(ROW[1:].tolist()), (True,) * 19),))
    with torch.no_grad():
        found = policy_outputs(checkpoints.policy(folder), collate([tree])).logprobs_C
    assert found is not None
    return found


def truth(model: Any) -> Tensor:
    """The same under a model of transformers."""
    with torch.no_grad():
        rows: Tensor = model(ROW[None]).logits[0].log_softmax(-1)
    return rows[:-1].gather(1, ROW[1:, None])[:, 0]


def transformers(folder: Path) -> Tensor:
    return truth(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())


def base(folder: Path, *, tied: bool = True) -> Path:
    model = checkpoints.create(SHAPE, VOCAB, 0)
    if not tied:
        model.untie()
        model.lm_head.weight.data.add_(drawn(VOCAB, 32))
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.add_(drawn(*parameter.shape, seed=parameter.numel()))
    checkpoints.save(model, folder)
    return folder


def changed(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    found = load_file(folder / "model.safetensors")
    change(found)
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def adapter(folder: Path, tensors: dict[str, Tensor], **settings: object) -> Path:
    """An adapter folder as PEFT writes it, with rank 3 and alpha 6 on the base in `../a`."""
    folder.mkdir()
    save_file({f"base_model.model.{n}": t for n, t in tensors.items()}, folder / adapters.WEIGHTS)
    plain = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 3,
        "lora_alpha": 6,
        "init_lora_weights": True,
    }
    plain |= {"base_model_name_or_path": "../a", "bias": "none", "peft_version": "0.21.2"}
    (folder / adapters.ADAPTER).write_text(json.dumps({**plain, **settings}))
    return folder


QUERY = "model.layers.0.self_attn.q_proj"
LORA = {f"{QUERY}.lora_A.weight": drawn(3, 32, seed=5), f"{QUERY}.lora_B.weight": drawn(32, 3, seed=6)}
LORA_HEAD = {"lm_head.lora_A.weight": drawn(3, 32, seed=7), "lm_head.lora_B.weight": drawn(VOCAB, 3, seed=8)}
PRODUCT = 2 * LORA[f"{QUERY}.lora_B.weight"] @ LORA[f"{QUERY}.lora_A.weight"]
HEAD_PRODUCT = 2 * LORA_HEAD["lm_head.lora_B.weight"] @ LORA_HEAD["lm_head.lora_A.weight"]
NEW = drawn(VOCAB, 32, seed=9)


def by_hand(folder: Path, *, embedding: Tensor | None = None, head: Tensor | None = None) -> Tensor:
    """transformers' model of a base with the query's product added and given vocabulary matrices."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    own = model.lm_head.weight.detach().clone()
    model.lm_head.weight = torch.nn.Parameter(own if head is None else head)
    if embedding is not None:
        model.model.embed_tokens.weight = torch.nn.Parameter(embedding)
    model.model.layers[0].self_attn.q_proj.weight.data.add_(PRODUCT)
    return truth(model)


# ---- heads ----


def test_a_head_that_differs_from_a_tied_embedding_is_kept_and_one_that_equals_it_is_not(
    tmp_path: Path,
) -> None:
    trained = changed(base(tmp_path / "a"), lambda t: t.update({HEAD: NEW.clone()}))
    assert json.loads((trained / "config.json").read_text())["tie_word_embeddings"]
    assert torch.allclose(logprobs(trained), transformers(trained), atol=1e-5)
    checkpoints.save(checkpoints.load(trained), tmp_path / "again")
    assert torch.allclose(transformers(tmp_path / "again"), transformers(trained), atol=1e-5)
    equal = changed(base(tmp_path / "b"), lambda t: t.update({HEAD: t[EMBEDDING].clone()}))
    assert checkpoints.load(equal).config.tie_word_embeddings
    assert torch.equal(logprobs(equal), logprobs(base(tmp_path / "c")))
    assert not torch.allclose(logprobs(equal), logprobs(trained), atol=0.1)


def test_a_trained_head_goes_through_merging_rounding_and_moving_averages(tmp_path: Path) -> None:
    one = changed(base(tmp_path / "a"), lambda t: t.update({HEAD: NEW.clone()}))
    merge.merge([one, one], [0.5, 0.5], tmp_path / "merged")
    quantize.write(one, tmp_path / "rounded", "bf16")
    for name in ("merged", "rounded"):
        close = 1e-5 if name == "merged" else 0.05
        assert torch.allclose(logprobs(tmp_path / name), transformers(tmp_path / name), atol=1e-5)
        assert torch.allclose(logprobs(tmp_path / name), logprobs(one), atol=close), name
    rounded = load_file(tmp_path / "rounded" / "model.safetensors")
    assert torch.equal(rounded[HEAD], NEW.bfloat16().float())
    assert torch.equal(rounded[EMBEDDING], load_file(one / "model.safetensors")[EMBEDDING])
    with pytest.raises(CheckpointError, match=r"in only one of them, first lm_head\.weight"):
        merge.merge([one, base(tmp_path / "b")], [0.5, 0.5], tmp_path / "out")


def test_a_single_file_beside_an_older_index_is_what_transformers_reads(tmp_path: Path) -> None:
    folder = base(tmp_path / "a", tied=False)
    old = {n: t + 0.3 for n, t in load_file(folder / "model.safetensors").items()}
    save_file(old, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    where = {"metadata": {}, "weight_map": dict.fromkeys(old, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(where))
    assert torch.allclose(logprobs(folder), transformers(folder), atol=1e-5)
    assert checkpoints.num_weights(folder) == sum(t.numel() for t in old.values())
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors").rename(folder / "part-1.safetensors")
    with pytest.raises(
        CheckpointError, match=r"another one in model-00001-of-00001\.safetensors than in part-1"
    ):
        checkpoints.load(folder)


# ---- adapters ----


def test_modules_to_save_on_a_tied_base_leave_the_other_matrix_as_it_was(tmp_path: Path) -> None:
    """As PEFT: a trained copy of the embedding leaves the head; `ensure_weight_tying` changes both."""
    a = base(tmp_path / "a")
    saved = {**LORA, EMBEDDING: NEW}
    cases = {
        "embedding": (adapter(tmp_path / "1", saved, modules_to_save=["embed_tokens"]), {"embedding": NEW}),
        "head": (adapter(tmp_path / "2", {**LORA, HEAD: NEW}, modules_to_save=["lm_head"]), {"head": NEW}),
        "tied": (
            adapter(tmp_path / "3", saved, modules_to_save=["embed_tokens"], ensure_weight_tying=True),
            {"embedding": NEW, "head": NEW},
        ),
        "both": (
            adapter(tmp_path / "4", {**saved, HEAD: -NEW}, modules_to_save=["embed_tokens", "lm_head"]),
            {"embedding": NEW, "head": -NEW},
        ),
        "not named": (adapter(tmp_path / "5", saved), {"embedding": NEW, "head": NEW}),
    }
    found = {name: logprobs(folder) for name, (folder, _) in cases.items()}
    for name, (_, matrices) in cases.items():
        assert torch.allclose(found[name], by_hand(a, **matrices), atol=2e-5), name
    assert not torch.allclose(found["embedding"], found["tied"], atol=0.1)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_an_adapter_of_the_head_is_added_to_the_head_alone_also_when_it_is_served(
    tied: bool, tmp_path: Path
) -> None:
    a = base(tmp_path / "a", tied=tied)
    before = checkpoints.load(a).head().detach()
    own = {"lm_head.base_layer.weight": before.clone()}  # PEFT stores the frozen matrix too
    b = adapter(tmp_path / "b", {**LORA, **LORA_HEAD, **own}, target_modules=["q_proj", "lm_head"])
    wanted = by_hand(a, head=before + HEAD_PRODUCT)
    assert torch.allclose(logprobs(b), wanted, atol=2e-5)
    assert not torch.allclose(logprobs(b), logprobs(a), atol=0.1)
    served = checkpoints.serving(b)
    assert isinstance(served, checkpoints.Llama)
    assert torch.allclose(served.head(), before + HEAD_PRODUCT, atol=1e-5)
    assert [name for name, _ in adapters.adapters(served)] == [QUERY]


def test_an_adapters_own_embedding_on_a_foreign_tied_base_leaves_its_head(tmp_path: Path) -> None:
    """A GPT-2 with tied matrices, through transformers; saved and loaded again it stays untied."""
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    ).eval()
    gpt2.save_pretrained(tmp_path / "a")
    plain = truth(gpt2)
    head = gpt2.lm_head.weight.detach().clone()
    gpt2.transformer.wte.weight = torch.nn.Parameter(NEW)
    gpt2.lm_head.weight = torch.nn.Parameter(head)
    wanted = truth(gpt2)
    b = adapter(tmp_path / "b", {"transformer.wte.weight": NEW}, modules_to_save=["wte"])
    assert torch.allclose(logprobs(b), wanted, atol=1e-5)
    assert not torch.allclose(wanted, plain, atol=0.1)
    checkpoints.save_checkpoint(checkpoints.policy(b), tmp_path / "c")
    assert torch.allclose(logprobs(tmp_path / "c"), wanted, atol=1e-5)
    assert torch.allclose(transformers(tmp_path / "c"), wanted, atol=1e-5)


ODD: dict[str, dict[str, object]] = {
    "PiSSA": {"init_lora_weights": "pissa"},
    "fast PiSSA": {"init_lora_weights": "pissa_niter_16"},
    "OLoRA": {"init_lora_weights": "olora"},
    "LoftQ": {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}},
    "DoRA": {"use_dora": True},
    "a rank for each map": {"rank_pattern": {"q_proj": 2}},
    "rows of the embedding": {"trainable_token_indices": [3]},
    "a setting of a later PEFT": {"use_quantum": {"qubits": 2}},
    "no rank": {"r": None},
    "a rank that is a word": {"r": "three"},
}


@pytest.mark.parametrize("what", ODD)
def test_an_adapter_that_is_not_plain_lora_is_refused_by_the_setting(what: str, tmp_path: Path) -> None:
    base(tmp_path / "a")
    b = adapter(tmp_path / "b", LORA, **ODD[what])
    name, value = next(iter(ODD[what].items()))
    with pytest.raises(CheckpointError) as error:
        checkpoints.policy(b)
    assert f"{name} is {value!r}" in str(error.value)
    assert str(b / adapters.ADAPTER) in str(error.value)
    assert "r" in ODD[what] or "merge_and_unload()" in str(error.value)


def test_rslora_gaussian_starts_and_unknown_settings_that_are_off_are_read(tmp_path: Path) -> None:
    a = base(tmp_path / "a")
    b = adapter(tmp_path / "b", LORA, use_rslora=True, lora_alpha=2 * 3**0.5, init_lora_weights="gaussian")
    c = adapter(tmp_path / "c", LORA, later_setting=None, other_setting=False, third={}, bias=None)
    assert torch.allclose(logprobs(b), by_hand(a), atol=2e-5)
    assert torch.allclose(logprobs(c), by_hand(a), atol=2e-5)


def test_tensors_that_are_no_plain_lora_and_other_ranks_are_refused(tmp_path: Path) -> None:
    base(tmp_path / "a")
    magnitude = {f"{QUERY}.lora_magnitude_vector": torch.ones(32)}
    with pytest.raises(CheckpointError, match="this kind of adapter is not read here; merge it first"):
        checkpoints.policy(adapter(tmp_path / "b", {**LORA, **magnitude}))
    with pytest.raises(
        CheckpointError, match=r"the adapter of model\.layers\.0\.self_attn\.q_proj does not fit"
    ):
        checkpoints.policy(adapter(tmp_path / "c", LORA, r=8))
    d = adapter(tmp_path / "d", LORA)
    save_file({}, d / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds an adapter and whole weights"):
        checkpoints.policy(d)
    adapter(tmp_path / "e", LORA, base_model_name_or_path="../f")
    with pytest.raises(CheckpointError, match="this adapter is the base of its own base"):
        checkpoints.checkpoint_info(adapter(tmp_path / "f", LORA, base_model_name_or_path="../e"))


# ---- damaged and hostile folders ----


def test_a_flipped_byte_in_finished_weights_is_one_error_with_the_file(tmp_path: Path) -> None:
    folder = base(tmp_path / "abc" / "model")
    record = {"key": "abc", files.SUMS: files.checksums(folder)}
    (folder / files.RECORD).write_text(json.dumps(record))
    before = logprobs(folder)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"abc/model/model\.safetensors: was changed or damaged"):
        checkpoints.policy(folder)
    (tmp_path / "copy").mkdir()
    for path in folder.iterdir():
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    assert len(logprobs(tmp_path / "copy")) == len(before)  # a copy is the user's own to edit
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="was changed or damaged"):
        StoredTensors(folder)


SIZES: dict[str, tuple[dict[str, object], str]] = {
    "layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, wanted at most 4096"),
    "a few too many layers": ({"num_hidden_layers": 4000}, "declares 4000 layers"),
    "vocabulary": ({"vocab_size": 10**9}, "at least 32000"),
    "width": ({"hidden_size": 10**12}, "hidden_size is 1000000000000"),
    "head": ({"head_dim": 10**8}, "at least"),
    "no context": ({"max_position_embeddings": -1}, "max_position_embeddings is -1; wanted a number above 0"),
    "negative key heads": ({"num_key_value_heads": -2}, "num_key_value_heads is -2"),
    "a vocabulary that is a claim": ({"vocab_size": True}, "vocab_size is True"),
    "an odd head": ({"head_dim": 7}, "head_dim is 7; wanted"),
    "a rotary base below 0": ({"rope_parameters": {"rope_theta": -1.0}}, "rope_theta is -1.0"),
    "context": ({"max_position_embeddings": 10**15}, "max_position_embeddings is 1000000000000000"),
}


@pytest.mark.parametrize("what", SIZES)
def test_absurd_sizes_are_refused_before_memory_is_taken(what: str, tmp_path: Path) -> None:
    changes, message = SIZES[what]
    folder = base(tmp_path / "a")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **changes}))
    with pytest.raises(CheckpointError, match=message):
        checkpoints.policy(folder)


def test_absurd_sizes_of_a_foreign_model_are_refused_too(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    for name, value, message in (
        ("n_layer", 10**9, "n_layer is 1000000000"),
        ("n_positions", 10**8, r"declares at least \d{9,} weights; the files hold 28 tensors"),
        ("vocab_size", 10**8, r"declares at least \d{9,} weights; the files hold 28 tensors"),
        ("n_head", 0, "transformers cannot load it"),
        ("quantization_config", {"quant_method": "gptq"}, "quantization_config"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**raw, name: value}))
        with pytest.raises(CheckpointError, match=message):
            checkpoints.policy(tmp_path)


def test_a_context_whose_keys_and_values_do_not_fit_memory_is_refused_before_it_is_taken(
    tmp_path: Path,
) -> None:
    from demeanor.model.llama import Config, KVCache

    config = replace(Config.load(base(tmp_path / "a")), max_position_embeddings=2**31)
    with pytest.raises(CheckpointError, match=r"32 slots of 2147483648 tokens need 16384\.0 GiB"):
        KVCache(config, 32, config.max_position_embeddings)
    assert KVCache(config, 3, 64).num_bytes == 2 * 2 * 3 * 2 * 64 * 8 * 4


def test_weights_larger_than_memory_and_broken_headers_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = base(tmp_path / "a")
    with monkeypatch.context() as patched:
        patched.setattr(hardware, "memory_bytes", lambda: 1000)
        with pytest.raises(
            CheckpointError,
            match=r"needs 0\.0 GiB in fp32, as training holds weights; this machine has 0\.0 GiB",
        ):
            checkpoints.policy(folder)
    assert (hardware.memory_bytes() or 2**31) > 2**30
    whole = (folder / "model.safetensors").read_bytes()
    for content in (b"", whole[:100], (2**62).to_bytes(8, "little") + whole[8:], whole[:-100]):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: not a readable safetensors file"):
            checkpoints.policy(folder)


def test_a_foreign_folder_that_lacks_a_tensor_is_refused_and_not_filled_at_random(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2)).save_pretrained(tmp_path)
    changed(tmp_path, lambda t: t.pop("transformer.ln_f.weight"))
    with pytest.raises(CheckpointError, match=r"1 tensors are missing, first transformer\.ln_f\.weight"):
        checkpoints.policy(tmp_path)


HOSTILE = "import pathlib\npathlib.Path({place!r}).write_text('ran')\nclass X: pass\n"
LOAD = """
import sys
from pathlib import Path
from demeanor.model import checkpoints, hf
from demeanor.text import tokenizer
for folder in sys.argv[1:]:
    for read in (checkpoints.checkpoint_info, checkpoints.policy, hf.config, hf.load, tokenizer.load):
        try:
            read(Path(folder))
        except Exception as error:
            print(type(error).__name__, error)
        else:
            print("read")
"""


def test_code_of_a_checkpoint_is_never_run_nor_asked_for(tmp_path: Path) -> None:
    """`auto_map` in either file, with a module that writes a file; standard input would say yes."""
    ran = tmp_path / "ran"
    kinds = ("llama", "gpt2", "unknown_to_all")
    for kind in kinds:
        folder = base(tmp_path / kind)
        (folder / "evil.py").write_text(HOSTILE.format(place=str(ran)))
        code = {f"Auto{x}": "evil.X" for x in ("Config", "Model", "ModelForCausalLM", "Tokenizer")}
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**raw, "model_type": kind, "auto_map": code}))
        (folder / "tokenizer.json").write_text("{}")
        asked = {"auto_map": {"AutoTokenizer": ["evil.X", None]}}
        (folder / "tokenizer_config.json").write_text(json.dumps(asked))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *(str(tmp_path / kind) for kind in kinds)],
        input="y\n" * 30,
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["CheckpointError"] * 15, done.stdout + done.stderr
    assert ["auto_map names Python code" in line for line in lines] == [True] * 15
    assert not ran.exists()


def test_transformers_is_always_told_not_to_trust_code() -> None:
    """Every call in the package that could load a checkpoint's code says so."""
    package = Path(hf.__file__).parent.parent
    calls = [
        (path.name, call.split(")")[0])
        for path in sorted(package.rglob("*.py"))
        for call in path.read_text(encoding="utf-8").split(".from_pretrained(")[1:]
    ]
    loading = [(name, inside) for name, inside in calls if inside[:3] not in ("...", "BAS")]  # in messages
    assert [name for name, inside in loading if "**LOCAL" in inside] == [
        "hf.py",
        "hf.py",
        "export.py",
        "export.py",
        "export.py",
    ]
    rest = [(name, inside) for name, inside in loading if "**LOCAL" not in inside]
    assert rest == [
        ("text_encoder.py", "str(source"),  # its options say so
        ("text_encoder.py", "str(source"),
        ("export.py", "whole, folder"),  # PEFT's, of an adapter that was written here
    ]
    assert hf.LOCAL["trust_remote_code"] is False


# ---- tokenizers and their models ----


def test_a_tokenizer_larger_than_the_embedding_is_refused_also_under_an_adapter(tmp_path: Path) -> None:
    from demeanor.stack.schema import TokenizerSpec

    made = tokenizers.train(["a text to train on, of some length"], TokenizerSpec(vocab_size=300))
    checkpoints.save(checkpoints.create(SHAPE, made.vocab_size, 0), tmp_path / "a")
    made.save(tmp_path / "a")
    assert tokenizers.load(tmp_path / "a").vocab_size == made.vocab_size
    adapter(tmp_path / "b", LORA)
    raw = json.loads((tmp_path / "a" / "tokenizer.json").read_text())
    raw["added_tokens"].append({**raw["added_tokens"][-1], "id": made.vocab_size, "content": "<|extra|>"})
    for name in "ab":
        made.save(tmp_path / name)
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(raw))
        message = f"tokenizer {made.vocab_size + 1} > embedding {made.vocab_size}"
        with pytest.raises(CheckpointError, match=message):
            tokenizers.load(tmp_path / name)


def test_padding_ends_no_answer_and_is_a_token_of_the_tokenizer() -> None:
    from demeanor.stack.schema import TokenizerSpec

    made = tokenizers.train(["a text"], TokenizerSpec(vocab_size=300))
    ends = {made.eos_id, made.special["<|im_end|>"]}
    assert made.padding(ends) == "<|system|>"
    named = tokenizers.Tokenizer(made.source, {**made.config, "pad_token": "<|tool|>"})
    assert named.padding(ends) == "<|tool|>"
    same = tokenizers.Tokenizer(made.source, {**made.config, "pad_token": "<|end|>", "bos_token": "<|data|>"})
    assert same.padding(ends) == "<|data|>"
    assert made.padding(set(made.special.values())) is None


def test_untying_twice_is_untying_once() -> None:
    model = checkpoints.create(SHAPE, VOCAB, 0)
    model.untie()
    head = model.lm_head.weight
    model.untie()
    assert model.lm_head.weight is head
    assert torch.equal(head, model.model.embed_tokens.weight)
    assert head.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    assert model.config == replace(model.config, tie_word_embeddings=False)
