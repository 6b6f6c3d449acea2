"""Room: memory for results that can be computed again, shared by all who keep some; what was used least lately goes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, TypeVar
from weakref import WeakSet

K = TypeVar("K")
V = TypeVar("V")

LIMIT_BYTES = 2**30
"""All that is kept in one room takes at most this."""


class Room:
    """At most `limit_bytes` for all its parts together, whatever their number. Safe to share between threads.

    >>> room = Room(limit_bytes=100)
    >>> squares, cubes = room.part(), room.part()
    >>> squares.put(2, 4, 60)
    >>> cubes.put(2, 8, 60)
    >>> squares.get(2), cubes.get(2), room.bytes
    (None, 8, 60)
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._lock = threading.RLock()
        self._clock = count()
        self._parts: WeakSet[Part] = WeakSet()

    @property
    def bytes(self) -> int:
        """Taken by all parts; never more than the limit."""
        with self._lock:
            return sum(part.bytes for part in self._parts)

    def part(self, limit_bytes: int | None = None) -> Part:
        """A part with a limit of its own; it gives its memory back when nobody holds it any more."""
        with self._lock:
            made = Part(self, self.limit_bytes if limit_bytes is None else limit_bytes)
            self._parts.add(made)
            return made

    def _oldest(self, but: _Shelf) -> Part | None:
        """The part with the shelf used least lately."""
        candidates = [(shelf.used, part) for part in self._parts if (shelf := part._first(but)) is not None]
        return min(candidates, key=lambda one: one[0])[1] if candidates else None


@dataclass(slots=True)
class _Shelf:
    """What goes together when room is needed: {item: (bytes, value)}."""

    items: dict[Hashable, tuple[int, Any]] = field(default_factory=dict)
    bytes: int = 0
    used: int = 0


class Part:
    """One store's shelves, the least lately used first. What does not fit beside its own shelf is not kept."""

    def __init__(self, room: Room, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self._room = room
        self._shelves: OrderedDict[Hashable, _Shelf] = OrderedDict()

    def get(self, shelf: Hashable, item: Hashable = None) -> Any:
        """The value kept on a shelf under a name; None where there is none."""
        with self._room._lock:
            if shelf not in self._shelves:
                return None
            _, value = self._used(shelf).items.get(item, (0, None))
            return value

    def put(self, shelf: Hashable, value: Any, size: int, *, item: Hashable = None) -> None:
        """Keep a value of so many bytes, in the place of an earlier one; other shelves go where room is needed."""
        room = self._room
        with room._lock:
            mine = self._used(shelf)
            before, _ = mine.items.pop(item, (0, None))
            self._shrink(mine, before)
            if mine.bytes + size > min(self.limit_bytes, room.limit_bytes):
                return
            while self.bytes + size > self.limit_bytes:
                self._drop(mine)
            while room.bytes + size > room.limit_bytes and (part := room._oldest(mine)) is not None:
                part._drop(mine)
            mine.items[item] = size, value
            self._shrink(mine, -size)

    def shelves(self) -> list[Any]:
        """The names of all shelves of this part."""
        with self._room._lock:
            return list(self._shelves)

    def clear(self) -> None:
        """Forget everything in this part and give its room back."""
        with self._room._lock:
            self._shelves.clear()
            self.bytes = 0

    def _used(self, name: Hashable) -> _Shelf:
        shelf = self._shelves.setdefault(name, _Shelf())
        self._shelves.move_to_end(name)
        shelf.used = next(self._room._clock)
        return shelf

    def _first(self, but: _Shelf) -> _Shelf | None:
        return next((shelf for shelf in self._shelves.values() if shelf is not but), None)

    def _drop(self, but: _Shelf) -> None:
        """Forget the shelf that was used least lately."""
        name = next(name for name, shelf in self._shelves.items() if shelf is not but)
        self.bytes -= self._shelves.pop(name).bytes

    def _shrink(self, shelf: _Shelf, size: int) -> None:
        shelf.bytes -= size
        self.bytes -= size


class Recent(dict[K, V], Generic[K, V]):
    """A dict of so many entries at most: the one that was set first goes first.

    >>> recent = Recent(2)
    >>> for number in range(4): recent[number] = number**2
    >>> recent
    {2: 4, 3: 9}
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most, self._lock = most, threading.Lock()

    def __setitem__(self, key: K, value: V) -> None:
        with self._lock:
            self.pop(key, None)
            super().__setitem__(key, value)
            while len(self) > self._most:
                del self[next(iter(self))]
