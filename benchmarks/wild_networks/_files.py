"""Files of packages, each opened as it lies there in a process of its own: what it is, or why it is refused."""

from __future__ import annotations

import hashlib
import multiprocessing
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.wild_networks._packages import PATIENCE, NotInstalled, ending, installed, limit_to, pinned, plain
from lowrank_core.errors import LowRankError
from lowrank_core.plans.cost import dense_cost
from lowrank_core.workspace import Workspace, open_to_look

FILES_HEAD = "| package | file | bytes | result | of |\n|---|---|---|---|---|"

ENDINGS = (".onnx", ".pt", ".pth", ".ckpt", ".safetensors", ".pth.tar", ".jit")
SMALLEST = 5_000
"""Bytes of a file that holds a network."""

NO_NETWORKS = "resample_"
"""In the names of files of onnx-asr that change the rate of sound and hold no weights."""

CONTEXT = multiprocessing.get_context("forkserver")
SAMPLES = 4


@dataclass(frozen=True, slots=True)
class Whole:
    """Whole numbers from `low` on, below `high`, of a size."""

    low: int
    high: int
    size: tuple[int, ...] = ()


SIZES: dict[str, dict[str, tuple[int, ...] | Whole]] = {
    r"nudenet/320n": {"images": (3, 320, 320)},
    r"ddddocr/common(_old)?\.": {"input1": (1, 64, 128)},
    r"det(_infer|_small)?\.onnx|slanet": {"x": (3, 320, 320)},
    r"rec(_infer|_small)?\.onnx": {"x": (3, 48, 320)},
    r"_cls_": {"x": (3, 48, 192)},
    r"onnx_asr": {"waveforms": (16_000,), "waveforms_lens": Whole(16_000, 16_001)},
    r"silero_vad_openvino|ddddocr/common_det": {},
    r"silero_vad_(v6|16k_sequence)": {"input": (5, 576)},
    r"silero_vad": {"input": (512,)},
    r"aecmos": {"input": (3, 20, 160)},
    r"swift_f0": {"audio": (16_000,)},
    r"attacut-c\.onnx": {"input": Whole(0, 139, (30,))},
    r"attacut-sc\.onnx": {"input": Whole(0, 139, (2, 30))},
    r"nakdimon": {"input_1": Whole(0, 43, (16,))},
    r"tashkeel": {
        "char_inputs": Whole(0, 30, (20,)),
        "diac_inputs": Whole(0, 15, (20,)),
        "input_lengths": Whole(12, 21),
    },
    r"model(A_paper|B_full)\.onnx": {"x": (100, 30)},
    r"rxnmap": {
        "atoms": Whole(0, 121, (24,)),
        "neighbors": Whole(0, 17, (24,)),
        "distances": Whole(0, 13, (24, 24)),
        "roles": Whole(2, 4, (24,)),
    },
    r"melspectrogram": {"input": (4_000,)},
    r"plcmos": {"degraded_audio": (1, 100, 257), "rater_embed": (64,)},
}
"""Of inputs that a file leaves free, what its package gives it, without the batch; as a person would write the data."""


def file_rows(only: list[str], folder: Path, seconds: float, of: str) -> Iterator[list[str]]:
    """One row for each file of the packages; a file that another package has too is opened once."""
    opened: dict[str, str] = {}
    for package, line in pinned().items():
        if only and package not in only:
            continue
        shown = line.partition(" ")[0].replace("==", " ")
        try:
            home = installed([package], folder)
        except NotInstalled as error:
            yield [shown, "", "", plain(f"not installed: {error}"), of]
            continue
        paths = sorted(p for p in home.rglob("*") if p.name.endswith(ENDINGS) and NO_NETWORKS not in p.name)
        paths = [path for path in paths if path.stat().st_size >= SMALLEST]
        for path in paths:
            name, content = path.relative_to(home).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()
            if content not in opened:
                result = _result(path, name, seconds)
                opened[content] = f"{name} of {shown}"
            else:
                result = f"the same as {opened[content]}"
            print(f"{name}: {result}", file=sys.stderr, flush=True)
            yield [shown, name, f"{path.stat().st_size:,}", result, of]


def _result(path: Path, name: str, seconds: float) -> str:
    """What opening the file gives, in words; from a process that has all that is needed imported when it begins."""
    with tempfile.TemporaryDirectory() as work:
        copy, found = Path(work, path.name), Path(work, "found")
        shutil.copy(path, copy)  # no link: data are looked for beside the file that it leads to
        CONTEXT.set_forkserver_preload([__name__])
        process = CONTEXT.Process(target=_look_alone, args=(copy, name, seconds, found))
        process.start()
        process.join(PATIENCE * seconds)
        if process.is_alive():
            process.kill()
            process.join()
            return f"ended after {PATIENCE * seconds:.0f} s"
        return plain(found.read_text()) if found.exists() else ending(process.exitcode or 0, seconds)


def _look_alone(path: Path, name: str, seconds: float, found: Path) -> None:
    """Look at a file in this process, which ends after so much processor time, and write what it is."""
    limit_to(seconds)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        text = look(path, name)
    except Exception as error:
        text = f"failed with {type(error).__name__}: {error}"
    found.write_text(text)


def look(path: Path, name: str) -> str:
    """Open a file and say what it is; a refusal is an answer, too."""
    given: dict[str, Any] = _data(name) if path.suffix == ".onnx" else {}
    if given:
        np.savez(path.with_suffix(".npz"), **given)
    try:
        opened = open_to_look(str(path))
        kind = "opens" if isinstance(opened, Workspace) else "weights alone"
        profile: Any = opened.profile if isinstance(opened, Workspace) else opened
        weights = sum(dense_cost(layer).parameters for layer in profile.layers)
        total = weights + profile.rest.parameters
        sizes = f", {' and '.join(sorted(given))} of a stated size" if given else ""
        return f"{kind}: {len(profile.layers)} layers, {weights / max(1, total):.0%} of {total:,}{sizes}"
    except LowRankError as error:
        text = str(error).removeprefix(str(path)).removeprefix(":").strip()
        return f"refused: {text}"


def _free(name: str) -> dict[str, tuple[int, ...] | Whole]:
    return next((sizes for pattern, sizes in SIZES.items() if re.search(pattern, name)), {})


def _data(name: str) -> dict[str, np.ndarray]:
    """A few random samples of the inputs in SIZES; all others the product finds by itself."""
    draw = np.random.default_rng(0)
    return {
        value: draw.integers(size.low, size.high, (SAMPLES, *size.size))
        if isinstance(size, Whole)
        else draw.standard_normal((SAMPLES, *size), dtype=np.float32)
        for value, size in _free(name).items()
    }
