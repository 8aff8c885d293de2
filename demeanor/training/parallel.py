"""Training in several processes (FSDP2 under `torchrun`) or one, with the same loop and the same loss.

In: the environment that torchrun sets. Out: a ProcessGroup (rank, sums over processes) and a sharded model.
It knows no optimizer and no objective. On CPU the backend is gloo: correct, and no faster than one process.
"""

from __future__ import annotations

import atexit
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from demeanor.core.errors import DemeanorError
from demeanor.model.reward_model import ActorCritic
from demeanor.model.tensors import Outputs, TokenBatch, concatenate

T = TypeVar("T")
FORWARDS = ("tree", "hidden", "rewards", "values", "prefill", "step")
"""Methods of our models that read weights; FSDP must gather the weights before each."""


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The processes of one run; alone, every method is the identity."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes of a small tensor."""
        if self.size > 1:
            values = values.clone()
            torch.distributed.all_reduce(values)
        return values

    def total(self, count: int) -> int:
        return count if self.size == 1 else int(self.sum(torch.tensor(float(count), dtype=torch.float64)))

    def any(self, claim: bool) -> bool:
        """Whether it is true in any process: a Ctrl-C that reached one stops all at the same step."""
        return bool(self.total(int(claim)))

    def wait(self) -> None:
        """Wait until every process is here, and knows it.

        Counted in the store that the processes met in: a collective barrier ends after 30 minutes, and a process
        that exits while another one is still inside it aborts that one (exit code -6). The first leaves last,
        since the store may be its own.
        """
        if self.size > 1:
            store, here = torch.distributed.distributed_c10d._get_default_store(), f"demeanor/{next(_WAITS)}"
            store.add(here, 1)
            _until(store, here, self.size)
            if self.first:
                _until(store, f"{here}/left", self.size - 1)
            else:
                store.add(f"{here}/left", 1)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process runs the block, then all others do, so that they can read what it wrote."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes; the others receive a copy."""
        if self.size == 1:
            return make()
        found: list[Any] = [make() if self.first else None]
        torch.distributed.broadcast_object_list(found)
        made: T = found[0]
        return made

    def share(self, rows: Sequence[int]) -> list[int]:
        """This process's part of a step's rows: every size-th, so that lengths are spread evenly."""
        return list(rows[self.rank :: self.size])

    def gather(self, outputs: Outputs, batch: TokenBatch) -> tuple[Outputs, TokenBatch, int]:
        """Outputs and rows of all processes in order of rank, and the index of our first scored value."""
        if self.size == 1:
            return outputs, batch, 0
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, (_plain(outputs), _plain(batch)))
        parts = [Outputs(*x) for x, _ in found]
        rows = concatenate([TokenBatch(*x) for _, x in found])
        values = [x.logprobs_C if x.logprobs_C is not None else x.rewards_B for x in parts]
        first = sum(v.numel() for v in values[: self.rank] if v is not None)
        columns = zip(*parts)
        return Outputs(*(None if any(x is None for x in c) else torch.cat(c) for c in columns)), rows, first


ALONE = ProcessGroup()
_WAITS, POLL_S = itertools.count(), 0.005


def _until(store: Any, name: str, wanted: int) -> None:
    pause_s = POLL_S
    while store.add(name, 0) < wanted:
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 20 * POLL_S)


def _plain(values: Outputs | TokenBatch) -> tuple[Any, ...]:
    return tuple(x.detach().cpu() if isinstance(x, Tensor) else x for x in values)


def join() -> ProcessGroup:
    """The processes that torchrun started (WORLD_SIZE > 1), else ALONE; NCCL with CUDA, gloo without."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return ALONE
    import torch.distributed as distributed

    if not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(leave, wait=False)  # after an error no process waits for the others
    return ProcessGroup(distributed.get_rank(), distributed.get_world_size())


def leave(wait: bool = True) -> None:
    """End the group; `wait`: all together, since a process that exits early can end the threads of others."""
    import torch.distributed as distributed

    if distributed.is_available() and distributed.is_initialized():
        if wait:
            ProcessGroup(distributed.get_rank(), distributed.get_world_size()).wait()
        distributed.destroy_process_group()


def shard(model: nn.Module, group: ProcessGroup) -> None:
    """Shard every layer's weights, gradients and moments over the processes, in place.

    Gradients are summed, not averaged: the loop divides once, by the count of all processes.
    Source: FSDP, Zhao et al. 2023, arXiv 2304.11277.
    """
    if group.size == 1:
        return
    if isinstance(model, ActorCritic):  # each is run on its own
        shard(model.policy, group)
        shard(model.critic, group)
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (group.size,))
    layers = [
        layer for module in model.modules() for layer in (module if isinstance(module, nn.ModuleList) else ())
    ]
    if not layers:
        raise DemeanorError(
            f"a {type(model).__name__} has no layers to cut into shards; train it in one process"
        )
    for module in (*layers, model):
        fully_shard(module, mesh=mesh, reshard_after_forward=module is not model)
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo cannot multiply while it sums
        for name in FORWARDS:
            if hasattr(module, name):
                register_fsdp_forward_method(module, name)


def settle(model: nn.Module) -> None:
    """Shard every weight again; without a backward pass the outermost stay gathered."""
    from torch.distributed.fsdp import FSDPModule

    for part in model.children() if isinstance(model, ActorCritic) else (model,):
        if isinstance(part, FSDPModule):
            part.reshard()


def gathered(model: nn.Module, plain: nn.Module) -> nn.Module:
    """`plain` (the same model without shards) with the gathered weights; every process must call it."""
    weights = {name: whole(p.detach()) for name, p in model.named_parameters()}
    for name, parameter in plain.named_parameters():
        put(parameter, weights[name].to(parameter.device))
    return plain


def whole(value: Tensor) -> Tensor:
    """A sharded tensor in full (every process must call it), any other as it is."""
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value


@torch.no_grad()
def put(target: Tensor, value: Tensor) -> None:
    """Write a full tensor into a parameter, sharded or not."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """A saved moment in the layout of its parameter: the same shards, the same device."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value.to(parameter.device)
