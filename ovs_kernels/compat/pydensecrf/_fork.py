"""One thread in forked processes: pydensecrf is called from those of `multiprocessing.Pool`, and has one anyway.

OpenMP's threads do not survive a fork, and GNU's OpenMP waits for them forever if the parent ever had them, which it
has after most functions of torch. A forked process is one whose number is not that of the import, or that
multiprocessing has forked before the import.
"""

import functools
import multiprocessing
import os
from collections.abc import Callable

import torch


def _forked_by_multiprocessing() -> bool:
    """Spawned processes have their start method set before anything is imported."""
    if multiprocessing.parent_process() is None:
        return False
    return multiprocessing.get_start_method(allow_none=True) in ("fork", None)


_imported_in = None if _forked_by_multiprocessing() else os.getpid()


def one_thread_after_fork(method: Callable) -> Callable:
    """Decorator of whatever computes."""

    @functools.wraps(method)
    def wrapper(*args, **kwargs):
        count = torch.get_num_threads()
        if os.getpid() == _imported_in or count == 1:
            return method(*args, **kwargs)
        torch.set_num_threads(1)
        try:
            return method(*args, **kwargs)
        finally:
            torch.set_num_threads(count)

    return wrapper
