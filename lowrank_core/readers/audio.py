"""Recordings in a folder, or in a folder for each class: .wav, other formats with the extra `audio`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lowrank_core.readers import Reader, register
from lowrank_core.readers._folders import holds, labelled_files, targets_of
from lowrank_core.readers._sound import sounds
from lowrank_core.samples.preparation import Preparation
from lowrank_core.samples.samples import Samples, Taken

SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".m4a", ".aiff", ".opus"}


def _read(path: Path, takes: Sequence[Taken], preparation: Preparation) -> Samples:
    found = labelled_files(path, SUFFIXES, preparation, "recordings")
    inputs, more = sounds(found.files, takes, preparation, path)
    samples = len(next(iter(inputs.values())))
    return Samples(inputs, targets_of(found, samples), classes=found.classes, more=more)


register(
    Reader("audio", lambda path: holds(path, SUFFIXES), _read, "a folder of recordings, or of such folders by class")
)
