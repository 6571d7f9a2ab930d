"""Rank and world size of a torchrun, and what its first process tells the others."""

import torch


def rank_and_world_size() -> tuple[int, int]:
    """(this process, processes) of a torchrun; (0, 1) without one."""
    on = torch.distributed.is_available() and torch.distributed.is_initialized()
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if on else (0, 1)


def broadcast_from_first(value):
    """The first process's value, on every process of a torchrun."""
    if rank_and_world_size()[1] > 1:
        box = [value]
        torch.distributed.broadcast_object_list(box, 0)
        return box[0]
    return value
