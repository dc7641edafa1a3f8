"""Many small records, several at once where each answer takes its time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from holdfast.stores.base import Store

# Requests on their way to a store that answers over a network; a local disk is faster without threads.
NUM_AT_ONCE = 16

_T = TypeVar("_T")
_R = TypeVar("_R")


def read_many(store: Store, function: Callable[[_T], _R], items: Sequence[_T]) -> Iterator[_R]:
    """The results in the order of the items; no more of them wait in memory than are asked for at once.

    Args:
        function: Reads what one item names. Safe to call from several threads.

    Raises:
        Exception: What the function raised, at its place in the order.
    """
    if store.local_path() is not None or len(items) < 2:
        yield from map(function, items)
        return
    todo = iter(items)
    with ThreadPoolExecutor(min(NUM_AT_ONCE, len(items)), thread_name_prefix="holdfast-read") as pool:
        ahead: deque[Future[_R]] = deque()
        try:
            ahead.extend(pool.submit(function, item) for item in islice(todo, NUM_AT_ONCE))
            while ahead:
                result = ahead.popleft().result()
                ahead.extend(pool.submit(function, item) for item in islice(todo, 1))
                yield result
        finally:
            # Whoever wants no more of them does not wait for those that nobody has begun to read.
            for future in ahead:
                future.cancel()
