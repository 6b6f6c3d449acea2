"""Images as a network takes them, whether they lie in files or in the rows of a table."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowrank_core.errors import InvalidData, InvalidSettings
from lowrank_core.extras import extra
from lowrank_core.readers._processed import processed
from lowrank_core.samples.limits import counted, most_of
from lowrank_core.samples.preparation import Arrays, Preparation
from lowrank_core.samples.samples import Taken, only_taker

MOST_PIXELS = 90_000_000
"""Pixels of one image, at most: a small file can claim any number."""

AT_ONCE = 32
"""Images that the processor of a network is given together."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Of Pillow, by how many channels a network takes."""

Picture = Path | bytes
"""A file, or what is in one."""


def pictures(
    given: Sequence[Picture], takes: Sequence[Taken], preparation: Preparation, where: object
) -> tuple[Arrays, bool]:
    """(inputs, whether there were more) of images for the first input that takes some; raises InvalidData.

    Broken images are refused together, by the names of the first ones.
    """
    with extra("data", f"{where}: reading images"):
        from PIL import Image  # noqa: F401
    if preparation.images is not None:
        return _by_processor(given, preparation.images, where)
    taken = only_taker(takes, lambda each: _channels(each, preparation) is not None, "image", where)
    channels, axis = _channels(taken, preparation) or (3, 0)
    height, width = _size(taken, axis, preparation, where)
    as_float = taken.dtype.is_floating_point
    shape = (channels, height, width) if axis == 0 else (height, width, channels)
    dtype = torch.float32 if as_float else taken.dtype
    most = most_of(int(np.prod(shape)) * dtype.itemsize)
    inputs = torch.empty((min(len(given), most), *shape), dtype=dtype)
    scale = _scale(preparation, channels, where) if as_float else None
    for number, pixels in enumerate(_decoded(given[:most], channels, where)):
        array = np.array(_fitted(pixels, height, width, preparation), dtype=np.float32 if as_float else np.uint8)
        value = torch.from_numpy(array).reshape(height, width, channels)
        if scale is not None:
            value = value.mul_(scale[0]).sub_(scale[1]).div_(scale[2])
        inputs[number] = value.movedim(-1, 0) if axis == 0 else value
    return {taken.name: inputs if dtype == taken.dtype else inputs.to(taken.dtype)}, len(given) > most


def _channels(taken: Taken, preparation: Preparation) -> tuple[int, int] | None:
    """(channels, their axis in a sample) of an input that takes images; None of any other."""
    sizes = taken.sizes
    if len(sizes) != 3 or taken.dtype == torch.bool or taken.dtype.is_complex:
        return None
    for axis in (0, 2):
        if sizes[axis] in MODES:
            return int(sizes[axis] or 0), axis
    if sizes[0] is None:
        wanted = len(preparation.mean or ())
        return (wanted if wanted in MODES else 3), (2 if sizes[2] in MODES else 0)
    return None


def _size(taken: Taken, axis: int, preparation: Preparation, where: object) -> tuple[int, int]:
    """Height and width of what the network is given."""
    height, width = taken.sizes[1:] if axis == 0 else taken.sizes[:2]
    said = preparation.size
    if said is None:
        if height is None or width is None:
            raise InvalidData(f"{where}: the network takes images of any size, {taken}; --preprocess //224 names one.")
        return height, width
    if taken.exact and any(n not in (None, m) for n, m in zip((height, width), said, strict=True)):
        raise InvalidSettings(f"--preprocess: size is {said[0]}x{said[1]}, but the network takes {taken}.")
    return said


def _scale(preparation: Preparation, channels: int, where: object) -> tuple[float, Tensor, Tensor]:
    """What values are multiplied by, and mean and deviation of each channel."""
    both = []
    for name, numbers, usual in (("mean", preparation.mean, 0.0), ("std", preparation.std, 1.0)):
        given = numbers or (usual,)
        if len(given) not in (1, channels):
            raise InvalidSettings(
                f"{where}: the network takes {channels} channel{'s' * (channels > 1)}, but {name} has {len(given)} "
                f"numbers; --preprocess says others."
            )
        both.append(torch.tensor(given))
    return preparation.rescale, both[0], both[1]


def _fitted(image: Any, height: int, width: int, preparation: Preparation) -> Any:
    """An image of that size: its shorter side brought to a length, and the middle cut out; as torchvision does it."""
    from PIL.Image import Resampling

    wide, high = image.size
    if preparation.stretch:
        return image if (wide, high) == (width, height) else image.resize((width, height), Resampling.BILINEAR)
    shorter = preparation.shorter
    if shorter is not None:
        scaled = (shorter, int(shorter * high / wide)) if wide <= high else (int(shorter * wide / high), shorter)
    else:  # as large as it must be to cover the size
        factor = max(width / wide, height / high)
        scaled = (max(width, round(wide * factor)), max(height, round(high * factor)))
    if scaled != (wide, high):
        image = image.resize(scaled, Resampling.BILINEAR)
    left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _decoded(given: Sequence[Picture], channels: int, where: object) -> Iterator[Any]:
    """Each image in the mode of so many channels; raises InvalidData at the end where some could not be read.

    Nothing is given any more after the first that could not.
    """
    faults: list[str] = []
    for number, picture in enumerate(counted(given, "images", len(given))):
        try:
            image = _opened(picture, MODES[channels])
        except InvalidData as error:
            name = picture.name if isinstance(picture, Path) else f"row {number + 1}"
            faults.append(f"{name}: {error}")
            continue
        if not faults:
            yield image
    if faults:
        raise InvalidData(
            f"{where}: {len(faults):,} of {len(given):,} images cannot be read ({'; '.join(faults[:3])}); remove or "
            "replace them."
        )


def _opened(picture: Picture, mode: str) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(picture if isinstance(picture, Path) else io.BytesIO(picture)) as image:
            wide, high = image.size
            if wide * high > MOST_PIXELS:
                raise InvalidData(f"{wide:,} x {high:,} pixels are more than {MOST_PIXELS:,}")
            return image.convert(mode)
    except InvalidData:
        raise
    except Image.DecompressionBombError as error:
        raise InvalidData(f"more than {MOST_PIXELS:,} pixels") from error
    except FileNotFoundError as error:
        raise InvalidData("it is gone since the folder was listed") from error
    except UnidentifiedImageError as error:
        raise InvalidData("it is no image") from error
    except Exception as error:  # whatever a decoder makes of damaged bytes
        raise InvalidData(f"it is damaged ({' '.join(str(error).split())[:80]})") from error


def _by_processor(
    given: Sequence[Picture], processor: Callable[[Sequence[Any]], Arrays], where: object
) -> tuple[Arrays, bool]:
    """What the network's own processor makes of the images."""
    images = _decoded(given, 3, where)
    parts = iter(lambda: list(islice(images, AT_ONCE)), [])
    return processed(parts, processor, "image processor", len(given), where)
