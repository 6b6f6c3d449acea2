"""Once: what is dear to make is made once for all sessions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from lowrank_core.running.scope import raise_if_cancelled
from lowrank_core.store.room import Recent

LOOK_SECONDS = 0.2
"""Between two looks whether who waits for another one's work has been called off."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Once(Generic[K, V]):
    """The values of the `most` latest keys; who asks for one while it is made waits for it.

    Unlike st.cache_resource it may say on the page how far it is, and be asked whether a value is there.

    >>> squares: Once[int, int] = Once(2)
    >>> squares(3, lambda: 3**2), 3 in squares, 4 in squares
    (9, True, False)
    """

    def __init__(self, most: int) -> None:
        self._made: Recent[K, V] = Recent(most)
        self._locks: Recent[K, threading.Lock] = Recent(100 * most)
        self._guard = threading.Lock()

    def __contains__(self, key: K) -> bool:
        return key in self._made

    def __call__(self, key: K, make: Callable[[], V]) -> V:
        """The value of a key, made if it is not there; what goes wrong is raised, and made anew the next time.

        Raises Cancelled where the work of this thread was cancelled while another one makes the value.
        """
        with self._guard:
            lock = self._locks.get(key)
            if lock is None:
                lock = self._locks[key] = threading.Lock()
        while not lock.acquire(timeout=LOOK_SECONDS):
            raise_if_cancelled()
        try:
            value = self._made[key] if key in self._made else make()
            self._made[key] = value
            return value
        finally:
            lock.release()
