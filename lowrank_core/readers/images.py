"""Images in a folder, or in a folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lowrank_core.readers import Reader, register
from lowrank_core.readers._folders import holds, labelled_files, targets_of
from lowrank_core.readers._pictures import pictures
from lowrank_core.samples.preparation import Preparation
from lowrank_core.samples.samples import Samples, Taken

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".gif"}


def _read(path: Path, takes: Sequence[Taken], preparation: Preparation) -> Samples:
    found = labelled_files(path, SUFFIXES, preparation, "images")
    inputs, more = pictures(found.files, takes, preparation, path)
    samples = len(next(iter(inputs.values())))
    return Samples(inputs, targets_of(found, samples), classes=found.classes, more=more)


register(Reader("images", lambda path: holds(path, SUFFIXES), _read, "a folder of images, or of such folders by class"))
