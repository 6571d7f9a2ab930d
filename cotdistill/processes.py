"""Tell the processes of a torchrun apart, and share a value of the first with the others."""

import torch


def rank_and_world_size() -> tuple[int, int]:
    """Return (rank, number of processes) of a torchrun; (0, 1) without one."""
    running = torch.distributed.is_available() and torch.distributed.is_initialized()
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if running else (0, 1)


def broadcast_from_first(value):
    """Return the first process's value on every process of a torchrun."""
    if rank_and_world_size()[1] > 1:
        box = [value]
        torch.distributed.broadcast_object_list(box, 0)
        return box[0]
    return value
