"""Architectures outside the Llama family (GPT-2, Phi-3, Gemma 2, ...): transformers' own forward on padded
rows.

In: a folder; a batch of token trees. Out: log-probabilities of the scored tokens, or rewards, in the batch's
order. A tree becomes one row per branch, so a shared prompt is computed once per branch: slower than
`llama.py`, with equal results. No dropout.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demeanor.core.errors import CheckpointError
from demeanor.model import adapters, grouped
from demeanor.model.adapters import merge
from demeanor.model.drawn import conditioned, drawn_of, entropy
from demeanor.model.llama import read_config
from demeanor.model.stored import StoredTensors, is_adapter
from demeanor.model.tensors import Outputs, TokenBatch

PREFIX = "inner."
LOCAL = {"local_files_only": True, "trust_remote_code": False}
"""How transformers reads a folder: no network, and no code of the folder, not even after a question."""


class ForeignModel(nn.Module):
    """A causal language model of transformers; computes log-probabilities for a batch of token trees."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner: Any = inner
        self.config: Any = inner.config

    def vocabulary(self) -> tuple[str, str]:
        """Names of the embedding and of the head."""
        names = {id(module): name for name, module in self.inner.named_modules()}
        ends = self.inner.get_input_embeddings(), self.inner.get_output_embeddings()
        return names[id(ends[0])], names.get(id(ends[1]), "")

    def untie(self) -> None:
        """Give the head a matrix of its own, equal to the embedding until one of them changes."""
        head, embedding = self.inner.get_output_embeddings(), self.inner.get_input_embeddings()
        if head is not None and head.weight is embedding.weight:
            head.weight = nn.Parameter(head.weight.detach().clone())
            self.inner.all_tied_weights_keys = {}  # what save_pretrained leaves out
            for config in (self.config, self.config.get_text_config()):
                config.tie_word_embeddings = False

    def outputs(self, batch: TokenBatch, *, statistics: Collection[str] = ()) -> Outputs:
        """Return log-probabilities (nats, fp32) of `targets_C`, and the `statistics` (collision, entropy) there."""
        rows_RL, mask_RL, row_S, place_S = unrolled(batch, batch.scored_C)
        logits_RLV = self.inner(input_ids=rows_RL, attention_mask=mask_RL, use_cache=False).logits
        logits_CV = logits_RLV[row_S, place_S]
        wide_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
        drawn_CV = conditioned(wide_CV, drawn_of(batch))
        whole = "collision" in statistics
        return Outputs(
            logprobs_C=drawn_CV.log_softmax(-1).gather(1, batch.targets_C[:, None])[:, 0],
            collision_C=(2 * wide_CV.detach().log_softmax(-1)).logsumexp(-1) if whole else None,
            entropy_C=entropy(drawn_CV.detach()) if "entropy" in statistics else None,
        )


class ForeignReward(nn.Module):
    """A sequence classifier of transformers with one label and no bias, read at a completion's last token."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        score = getattr(inner, "score", None)
        if not isinstance(score, nn.Linear) or score.weight.shape[0] != 1 or score.bias is not None:
            raise CheckpointError(
                f"{type(inner).__name__}: wanted a linear `score`, one label and no bias, as a reward model"
            )
        self.inner: Any = inner
        self.config: Any = inner.config

    def rewards(self, batch: TokenBatch) -> Tensor:
        """Return one reward per branch, rewards_B."""
        rows_RL, mask_RL, row_S, place_S = unrolled(batch, batch.last_B)
        hidden_RLD = self.inner.base_model(input_ids=rows_RL, attention_mask=mask_RL, use_cache=False)[0]
        hidden_BD = hidden_RLD[row_S, place_S]
        with torch.autocast(hidden_BD.device.type, enabled=False):  # as in reward_model.py
            return F.linear(hidden_BD.to(self.inner.score.weight.dtype), self.inner.score.weight).squeeze(-1)


def unrolled(batch: TokenBatch, wanted_S: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return padded rows of every segment with a wanted position, and where the wanted positions are in them.

    Out: tokens and mask (R, L), row and column of each wanted position (S,). A row is a segment's context and
    the segment; padding is on the right, where a causal model does not look.
    """
    wanted = wanted_S.tolist()
    starts = {segment.start: segment for segment in batch.segments}
    by_position = {position: s.start for s in batch.segments for position in range(s.start, s.end)}
    owner = [by_position[position] for position in wanted]  # start of the segment of each wanted position
    order = {start: row for row, start in enumerate(dict.fromkeys(owner))}
    paths = [
        torch.cat([torch.arange(a, b) for a, b in (*starts[s].context, (s, starts[s].end))]) for s in order
    ]
    longest = max(map(len, paths), default=0)
    device = batch.tokens_T.device
    index_RL = torch.stack([F.pad(path, (0, longest - len(path))) for path in paths]).to(device)
    mask_RL = torch.stack([torch.arange(longest) < len(path) for path in paths]).to(device)
    before = {s: sum(b - a for a, b in starts[s].context) for s in order}
    places = [before[s] + position - s for s, position in zip(owner, wanted)]
    return (
        batch.tokens_T[index_RL] * mask_RL,
        mask_RL.long(),
        torch.tensor([order[s] for s in owner], device=device),
        torch.tensor(places, device=device),
    )


# ---- folders ----


def known(folder: Path) -> bool:
    """True if transformers has a model of this folder's type."""
    from transformers import CONFIG_MAPPING

    return read_config(folder).get("model_type") in CONFIG_MAPPING


def config(folder: Path, **settings: Any) -> Any:
    """Read config.json with transformers, which never runs code of the folder; raises CheckpointError."""
    from transformers import AutoConfig

    if read_config(folder).get("quantization_config"):
        raise CheckpointError(
            f"{folder / 'config.json'}: quantization_config of this checkpoint is not supported; "
            f"{grouped.INSTEAD}"
        )
    with _loading(folder):
        return AutoConfig.from_pretrained(folder, **LOCAL, **settings)


def load(folder: Path) -> ForeignModel:
    """Load a policy in fp32 with any adapter merged; raises CheckpointError with transformers' reason."""
    if is_adapter(folder):
        model = load(adapters.base_folder(folder))
        merge(adapters.add(model, folder, PREFIX))
        return model
    from transformers import AutoModelForCausalLM

    return ForeignModel(_loaded(AutoModelForCausalLM, folder))


def load_reward(folder: Path, seed: int = 0) -> ForeignReward:
    """Load a reward model in fp32; from a policy's folder its score is drawn from `seed`."""
    if is_adapter(folder):
        model = load_reward(adapters.base_folder(folder))
        merge(adapters.add(model, folder, PREFIX))
        return model
    from transformers import AutoModelForSequenceClassification

    names = read_config(folder).get("architectures")
    new = not any(str(name).endswith("ForSequenceClassification") for name in names or ())
    kind = AutoModelForSequenceClassification
    found = ForeignReward(_loaded(kind, folder, ("score.weight",) if new else (), num_labels=1))
    if new:
        draw_score(found.inner.score.weight, seed)
    return found


@torch.no_grad()
def draw_score(weight_1D: Tensor, seed: int) -> None:
    """Fill a score with N(0, 1/(D+1)) from `seed` (Stiennon et al. 2020, appendix B), in place."""
    drawn = torch.randn(weight_1D.shape, generator=torch.Generator().manual_seed(seed))
    weight_1D.copy_(drawn / (weight_1D.shape[1] + 1) ** 0.5)


def save(model: ForeignModel | ForeignReward, folder: Path) -> None:
    """Write what `save_pretrained` writes; the caller renames the finished folder."""
    model.inner.save_pretrained(folder)


def _loaded(kind: Any, folder: Path, new: Sequence[str] = (), **settings: Any) -> Any:
    """A model of transformers in fp32, every weight read from the files, those named in `new` apart."""
    found = config(folder, **settings)
    with _loading(folder), torch.device("meta"):
        skeleton = kind.from_config(found, trust_remote_code=False)
    declared = sum(p.numel() for name, p in skeleton.named_parameters() if name not in new)
    StoredTensors(folder).bounded(declared // 2)  # names may differ and matrices be tied: a coarse bound
    with _loading(folder), torch.random.fork_rng(devices=[]):
        model, info = kind.from_pretrained(
            folder, config=found, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **LOCAL
        )
    missing = sorted(set(info["missing_keys"]) - set(new))
    if missing:
        raise CheckpointError(f"{folder}: {len(missing)} tensors are missing, first {missing[0]}")
    return model.eval()


@contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """Turn transformers' errors into CheckpointError, and keep it from printing."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # Silences "some weights were newly initialized": the score, which load_reward draws itself.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    except Exception as error:  # its readers raise whatever a strange config.json leads to
        raise CheckpointError(
            f"{folder}: transformers cannot load it ({' '.join(str(error).split())[:300]})"
        ) from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
