"""Audio as a network takes it: waves of one channel, at one rate, of one length."""

from __future__ import annotations

import io
import wave
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from math import ceil, gcd, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv1d, pad

from lowrank_core.errors import InvalidData, InvalidSettings, LowRankError, cut
from lowrank_core.extras import extra
from lowrank_core.readers._processed import processed
from lowrank_core.samples.limits import counted, most_of
from lowrank_core.samples.preparation import Arrays, Preparation
from lowrank_core.samples.samples import Taken, only_taker

MOST_SECONDS = 3_600
"""Seconds of one recording that are read, at most."""

LOOKED_AT = 64
"""Recordings whose longest says how long all are, where nobody does."""

AT_ONCE = 16
"""Waves that the processor of a network is given together."""

ZEROS = 6
"""Zero crossings of the filter that changes a rate, on each side."""

Sound = Path | bytes
"""A file, or what is in one."""


def sounds(
    given: Sequence[Sound], takes: Sequence[Taken], preparation: Preparation, where: object
) -> tuple[Arrays, bool]:
    """(inputs, whether there were more) of recordings for the first input that takes waves; raises InvalidData."""
    if preparation.waves is not None:
        return _by_processor(given, preparation, preparation.waves, where)
    taken = only_taker(takes, _takes_waves, "wave (N, samples) or (N, 1, samples)", where)
    length = _length(given, taken, preparation, where)
    most = most_of(4 * length)
    inputs = torch.zeros(min(len(given), most), length)
    for number, samples in enumerate(_waves(given[:most], preparation.rate, where)):
        inputs[number, : min(length, len(samples))] = samples[:length]
    shaped = inputs if len(taken.sizes) == 1 else inputs.unsqueeze(1)
    return {taken.name: shaped.to(taken.dtype)}, len(given) > most


def _takes_waves(taken: Taken) -> bool:
    return taken.dtype.is_floating_point and (len(taken.sizes) == 1 or (len(taken.sizes) == 2 and taken.sizes[0] == 1))


def _length(given: Sequence[Sound], taken: Taken, preparation: Preparation, where: object) -> int:
    """Samples of each wave: what the file fixes or a person says, or those of the longest of the first recordings."""
    known, said = taken.sizes[-1], preparation.length
    if said is not None and taken.exact and known not in (None, said):
        raise InvalidSettings(f"--preprocess: length is {said:,}, but the network takes {taken}.")
    return said or known or max(map(len, _waves(given[:LOOKED_AT], preparation.rate, where)))


def _waves(given: Sequence[Sound], rate: int | None, where: object) -> Iterator[Tensor]:
    """Each recording, (samples,), at that rate; without one all must have the same. Raises InvalidData."""
    faults, first = [], None
    for number, sound in enumerate(counted(given, "recordings", len(given))):
        name = sound.name if isinstance(sound, Path) else f"row {number + 1}"
        try:
            samples, own = _decoded(sound)
        except InvalidData as error:
            faults.append(f"{name}: {error}")
            continue
        first = first or own
        if rate is None and own != first:
            raise InvalidData(
                f"{where}: recordings have {first:,} samples per second and {own:,} ({name}); --preprocess rate=16000 "
                "says how many the network takes."
            )
        if not faults:
            yield samples if rate in (None, own) else resampled(samples, own, rate or own)
    if faults:
        raise InvalidData(
            f"{where}: {len(faults):,} of {len(given):,} recordings cannot be read ({'; '.join(faults[:3])}); remove "
            "or replace them."
        )


def _decoded(sound: Sound) -> tuple[Tensor, int]:
    """(samples from -1 to 1 of all channels together, how many there are in a second)."""
    try:
        opened = sound.open("rb") if isinstance(sound, Path) else io.BytesIO(sound)
        with opened as file:
            try:
                with wave.open(file) as recording:
                    frames, rate = recording.getnframes(), recording.getframerate()
                    raw = recording.readframes(min(frames, MOST_SECONDS * max(1, rate)))
                    channels, width = recording.getnchannels(), recording.getsampwidth()
                values = _numbers(raw, width)
            except (wave.Error, EOFError) as error:  # of another kind, or damaged
                if isinstance(sound, Path) and sound.suffix.lower() == ".wav" and "format" not in str(error):
                    raise
                file.seek(0)
                with extra("audio", "audio other than .wav of whole numbers"):
                    import soundfile
                found, rate = soundfile.read(file, dtype="float32", always_2d=True)
                values, channels = found.reshape(-1), found.shape[1]
    except FileNotFoundError as error:
        raise InvalidData("it is gone since the folder was listed") from error
    except LowRankError:
        raise
    except Exception as error:  # whatever a decoder makes of damaged bytes
        raise InvalidData(f"it is damaged ({cut(' '.join(str(error).split()))})") from error
    whole = len(values) // channels * channels
    if not whole or rate < 1:
        raise InvalidData("it holds no samples")
    return torch.from_numpy(values[:whole].reshape(-1, channels).mean(1)), rate


def _numbers(raw: bytes, width: int) -> Any:
    """What .wav has in so many bytes, as floats from -1 to 1: unsigned in one, signed in two, three and four."""
    raw = raw[: len(raw) // width * width]
    if width == 1:
        return (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:
        high = np.zeros((len(raw) // 3, 4), np.uint8)
        high[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        return (high.reshape(-1).view("<i4") / 2**31).astype(np.float32)
    return (np.frombuffer(raw, f"<i{width}") / 2 ** (8 * width - 1)).astype(np.float32)


def resampled(samples: Tensor, rate: int, wanted: int) -> Tensor:
    """The same wave with `wanted` instead of `rate` samples per second, (samples,).

    A sinc of six zero crossings on each side under a Hann window, as Smith, "Digital Audio Resampling Home Page", has
    it.

    >>> resampled(torch.ones(100), 2, 1).shape
    torch.Size([50])
    """
    shared = gcd(rate, wanted)
    old, new = rate // shared, wanted // shared
    if old == new:
        return samples
    passed = min(old, new) * 0.99
    width = ceil(ZEROS * old / passed)
    times = torch.arange(0, -new, -1)[:, None] / new + torch.arange(-width, width + old) / old
    times = (times * passed).clamp(-ZEROS, ZEROS)
    kernels = torch.sinc(times) * torch.cos(times * pi / ZEROS / 2) ** 2 * passed / old
    padded = pad(samples, (width, width + old))
    found = conv1d(padded[None, None], kernels[:, None].to(samples.dtype), stride=old)
    return found[0].T.reshape(-1)[: ceil(new * len(samples) / old)]


def _by_processor(
    given: Sequence[Sound], preparation: Preparation, processor: Callable[[Sequence[Any], int], Arrays], where: object
) -> tuple[Arrays, bool]:
    """What the network's own processor makes of the recordings, at the rate that it takes."""
    rate = preparation.rate or 16_000
    waves = _waves(given, rate, where)
    parts = iter(lambda: [samples.numpy() for samples in islice(waves, AT_ONCE)], [])
    return processed(parts, lambda part: processor(part, rate), "audio processor", len(given), where)
