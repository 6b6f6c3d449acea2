"""Text through a network block by block: what a block is given beside hidden states is what the network itself gives.

The network's own `forward` runs with blocks that only listen, so that masks and positions are those that it makes;
hidden states lie in files between two blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from lowrank_core.errors import InvalidFile, InvalidModel
from lowrank_core.running.scope import give_way
from lowrank_core.sources._contract import told
from lowrank_core.store.files import whole_or_nothing, writing
from lowrank_core.streaming.skeleton import Skeleton

NAMES = ("hidden_states", "x", "hidden")
"""What blocks call the hidden states that they are given, where not the first argument."""


class Enough(Exception):
    """The network has been asked what was to be known."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """Hidden states (windows, tokens, width) in a file, float32."""

    path: Path
    shape: tuple[int, int, int]

    def read(self, start: int, stop: int, device: torch.device) -> Tensor:
        """Those of some windows; raises InvalidFile where the file is shorter."""
        each = self.shape[1] * self.shape[2]
        found = np.fromfile(self.path, np.float32, count=(stop - start) * each, offset=4 * start * each)
        if found.size != (stop - start) * each:
            raise InvalidFile(f"{self.path} is shorter than it was written; remove its folder, and begin anew.")
        return torch.from_numpy(found).reshape(stop - start, *self.shape[1:]).to(device)

    @contextmanager
    def written(self) -> Iterator[Callable[[Tensor], None]]:
        """A function that adds windows; the file is there at the end, whole. Raises InvalidFile, of a full disk say."""
        with whole_or_nothing(self.path) as temporary, writing(temporary) as file:

            def add(states: Tensor) -> None:
                file.write(states.contiguous().cpu().numpy().data.cast("B"))

            yield add


Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(slots=True, eq=False)
class Flow:
    """Runs blocks of a network on batches of windows. batch: windows at once, at most.

    calls: {windows of a batch: what each block is given beside hidden states}. beside: what blocks hand on behind
    hidden states, where they answer with a tuple.
    """

    skeleton: Skeleton
    device: torch.device
    batch: int
    calls: dict[int, list[Call]] = field(default_factory=dict)
    beside: tuple[Any, ...] | None = None

    def batches(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """(first, one behind the last) window of each batch; gives way before each."""
        for first in range(start, stop, self.batch):
            give_way()
            yield first, min(first + self.batch, stop)

    @torch.no_grad()
    def embedded(self, tokens: Tensor) -> Tensor:
        """What goes into the first block. Of the first batch of each size all that blocks are given is noted.

        The tensors outside of the blocks and those of the first block must be there. Raises InvalidModel where blocks
        are given what depends on the text, or give on more than hidden states.
        """
        blocks = [*self.skeleton.blocks.values()]
        new, noted, found = len(tokens) not in self.calls, list[Call](), list[Tensor]()

        def heard(number: int, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            hidden, call = _parted(args, kwargs)
            noted.append(call)
            if number == 0:
                found.append(hidden)
                if not new:
                    raise Enough
                self.beside = self._beside(own(*args, **kwargs))
            if number == len(blocks) - 1:
                raise Enough
            return self._formed(hidden)

        try:
            with _heard(blocks, heard), suppress(Enough):
                self.skeleton.model(input_ids=tokens.to(self.device))
        except InvalidModel:
            raise
        except Exception as error:  # whatever the code of one of some hundred architectures says
            raise InvalidModel(
                f"{self.skeleton.folder}: {self.skeleton.architecture} does not run block by block "
                f"({told(error, None)}); open it as a whole."
            ) from error
        if any(hidden.shape != (*tokens.shape, self.skeleton.width) for hidden in found):
            raise InvalidModel(
                f"{self.skeleton.folder}: the blocks of {self.skeleton.architecture} are given "
                f"{tuple(found[0].shape)}, not (windows, tokens, width), so it cannot be compressed block by block; "
                "open it as a whole."
            )
        if any(isinstance(one, Tensor) and one.is_meta for one in tree_flatten(noted)[0]):
            raise self._hands_on()
        if new and len(noted) == len(blocks):
            self.calls[len(tokens)] = noted
        if len(found) != 1 or len(tokens) not in self.calls or not _alike(noted[0], self.calls[len(tokens)][0]):
            raise InvalidModel(
                f"{self.skeleton.folder}: what {self.skeleton.architecture} gives its blocks beside hidden states "
                "depends on the text, so it cannot be compressed block by block; open it as a whole."
            )
        return found[0]

    @torch.no_grad()
    def run(self, number: int, block: nn.Module, hidden: Tensor) -> Tensor:
        """What a block, or what stands for it, makes of hidden states (windows, tokens, width)."""
        args, kwargs = self.calls[len(hidden)][number]
        after = block(hidden, *args, **kwargs)
        return after[0] if isinstance(after, tuple) else after  # type: ignore[no-any-return]

    @torch.no_grad()
    def answers(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Logits (windows, tokens, words) from what came out of the last block; tensors outside must be there."""

        def heard(number: int, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            return self._formed(hidden)

        with _heard([*self.skeleton.blocks.values()], heard):
            answers: Tensor = self.skeleton.model(input_ids=tokens.to(self.device)).logits
        return answers

    def _formed(self, hidden: Tensor) -> Any:
        return hidden if self.beside is None else (hidden, *self.beside)

    def _beside(self, after: Any) -> tuple[Any, ...] | None:
        """What a block hands on behind hidden states; raises InvalidModel where that depends on the text.

        Tensors, as attention that nobody asked for, are handed on without values: nothing can be made of them unseen.
        """
        if isinstance(after, Tensor):
            return None
        if not (isinstance(after, tuple) and after and isinstance(after[0], Tensor)):
            raise self._hands_on()
        return tree_map(lambda one: one.to("meta") if isinstance(one, Tensor) else one, after[1:])  # type: ignore[no-any-return]

    def _hands_on(self) -> InvalidModel:
        return InvalidModel(
            f"{self.skeleton.folder}: the blocks of {self.skeleton.architecture} hand on more than hidden states, so "
            "it cannot be compressed block by block; open it as a whole."
        )


def _parted(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Call]:
    """(hidden states, all else that a block is given)."""
    if args:
        return args[0], (args[1:], kwargs)
    name = next(name for name in NAMES if name in kwargs)
    return kwargs[name], ((), {key: value for key, value in kwargs.items() if key != name})


@contextmanager
def _heard(blocks: list[nn.Module], heard: Callable[..., Any]) -> Iterator[None]:
    """Blocks that answer with heard(number, their own forward, ...)."""

    def listening(number: int, block: nn.Module) -> Callable[..., Any]:
        own = type(block).forward.__get__(block)
        return lambda *args, **kwargs: heard(number, own, *args, **kwargs)

    try:
        for number, block in enumerate(blocks):
            block.__dict__["forward"] = listening(number, block)
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def _alike(one: Call, other: Call) -> bool:
    first, second = (tree_flatten(call)[0] for call in (one, other))
    return len(first) == len(second) and all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else type(a) is type(b)
        for a, b in zip(first, second, strict=True)
    )
