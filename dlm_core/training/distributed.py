"""One process or many: under torchrun, weights are sharded with torch's FSDP2.

Every rank reads batches of its own, and gradients are those of all batches together.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..model import Model


@contextmanager
def process_group() -> Iterator[torch.device]:
    """The device of this process; joins torchrun's processes if it was started by it."""
    cuda = torch.cuda.is_available()
    if "RANK" not in os.environ:
        yield torch.device("cuda" if cuda else "cpu")
        return
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def shard(model: Model, device: torch.device) -> None:
    """Split the weights over all processes, a layer at a time; nothing with one process.

    device: of this process; the model may still be on meta, and then takes its share alone.
    """
    if not dist.is_initialized():
        return
    mesh = init_device_mesh(device.type, (world_size(),))
    for layer in model.encoder.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model.encoder, mesh=mesh)
    fully_shard(model.diffusion_head, mesh=mesh)


def fill(parameter: nn.Parameter, value: Tensor) -> None:
    """Set a parameter, sharded or not, to a whole value that every process has."""
    with torch.no_grad():
        if isinstance(parameter, DTensor):
            value = distribute_tensor(
                value.to(parameter.device), parameter.device_mesh, parameter.placements
            )
        parameter.copy_(value)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from all processes, which must all ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def total(counts: Tensor) -> Tensor:
    """The sum of `counts` over all processes."""
    if dist.is_initialized():
        counts = counts.clone()
        dist.all_reduce(counts)
    return counts
