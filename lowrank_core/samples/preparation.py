"""Preparation: how raw samples (images, texts, waves) become what a network takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Arrays = dict[str, Tensor]
"""Inputs of a network by their names, samples first."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """How raw samples become what a network takes; what is None is not done, or follows from the network's inputs.

    Images: values of 0 to 255 times `rescale`, less `mean`, divided by `std`, one number per channel each. The shorter
    side is brought to `shorter` pixels (to what `size` needs without it), and the middle of `size`, (height, width), is
    cut out; with `stretch` the image is brought to `size` whatever its proportions.
    Waves: `rate` samples per second, cut or filled with zeros to `length` samples.
    Tables: `target` is the column that holds what is right, "none" for none; `header` says whether the first row holds
    names.
    labels: names of the classes in the order of their numbers; () where nobody says.

    tokens(texts, second texts or None): a batch of tokens, padded to one length, with all else that the network takes.
    images(images of Pillow) and waves(arrays (samples,), their rate): the same of images and audio; where one is given
    it does all of the work, and the numbers above are not used for that kind.
    documents: how those of a text are told apart: "lines", "paragraphs", "file"; None where nobody says.
    ids(text): the numbers of the tokens of one long text, (n,), whole: neither cut nor padded nor with tokens added at
    its ends. text(numbers): the other way round, what tokens of these numbers stand for. context: tokens that the
    network takes at once, at most.

    >>> Preparation(mean=(0.5,), std=(0.5,), size=(28, 28)).rescale * 255
    1.0
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    shorter: int | None = None
    stretch: bool = False
    rescale: float = 1 / 255
    rate: int | None = None
    length: int | None = None
    labels: tuple[str, ...] = ()
    target: str | None = None
    header: bool | None = None
    documents: str | None = None
    tokens: Callable[[Sequence[str], Sequence[str] | None], Arrays] | None = None
    images: Callable[[Sequence[Any]], Arrays] | None = None
    waves: Callable[[Sequence[Any], int], Arrays] | None = None
    ids: Callable[[str], Tensor] | None = None
    text: Callable[[Sequence[int]], str] | None = None
    context: int | None = None
