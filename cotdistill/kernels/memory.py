"""Keep the memory of freed tensors instead of handing it back to the system at every step."""

import ctypes
import platform


def _glibc():
    """Return the C library, where it is glibc; else None."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def keep_memory(keep: bool = True) -> None:
    """Keep what tensors free for the next ones, until `release_memory`.

    The kernel clears every page that it takes back and gives again: a third of a training step of
    gemma, whose gradients are large. glibc only; elsewhere nothing happens. keep=False: the
    thresholds at which glibc's own adaptation ends, where blocks of 32 MB are given back.
    """
    mmap_threshold, trim_threshold, mmap_max = -3, -1, -4  # mallopt(3)
    if libc := _glibc():
        for name, value in (
            (mmap_max, 0 if keep else 65536),
            (trim_threshold, -1),
            (mmap_threshold, 2**25),
        ):
            libc.mallopt(name, value)


def release_memory() -> None:
    """Hand free memory back to the system between runs, for others on the machine."""
    if libc := _glibc():
        libc.malloc_trim(0)
