"""Rows shared out among threads, for compiled kernels that let go of the interpreter's lock. Knows no kernel."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from ssd_kernels.errors import InvalidInput


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers() -> int:
    """How many threads share the rows: SSD_KERNELS_THREADS, else the cores that this process may use.

    Raises:
        InvalidInput: the variable is no number from 1.
    """
    asked = os.environ.get("SSD_KERNELS_THREADS")
    if asked is None:
        return cores()
    if not asked.isdigit() or int(asked) < 1:
        raise InvalidInput(f"SSD_KERNELS_THREADS must be a whole number from 1, not {asked!r}.")
    return int(asked)


def over_rows(rows: int, work: Callable[[int, int], None], *, least: int = 1) -> None:
    """Call work(first, last) so that together the calls cover all rows; returns when all are done.

    Args:
        rows: how many.
        work: what is done to the rows first .. last - 1.
        least: rows that are worth a thread of their own: handing them over takes some tens of microseconds.
    """
    parts = min(workers(), rows // least)
    if parts <= 1:
        work(0, rows)
        return
    edges = [rows * i // parts for i in range(parts + 1)]
    rest = [_pool(parts - 1).submit(work, edges[i], edges[i + 1]) for i in range(1, parts)]
    try:
        work(edges[0], edges[1])
    finally:
        for one in rest:
            one.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="ssd-kernels")
