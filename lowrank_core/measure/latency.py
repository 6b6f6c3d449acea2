"""Latency: paired timings of compressed and dense work on this machine, and tables of microseconds by layer and rank.

A time on a shared machine means little, the ratio of two that were taken in turn much more. So a dense network and its
variants run round by round; each variant's median is divided by the dense one of the same round, and the median of
these ratios is given with its interquartile range. With one thread the clock is the CPU time of that thread: what other
processes do then shows only through the caches.
"""

from __future__ import annotations

import csv
import io
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from math import ceil, isfinite
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from lowrank_core.errors import InvalidFile, InvalidModel, MissingExtra, cut
from lowrank_core.extras import extra
from lowrank_core.graphs.exporting import onnx_program
from lowrank_core.graphs.openvino import inference
from lowrank_core.layers.data import Inputs, call, evaluating, tensors
from lowrank_core.plans.plan import Choice
from lowrank_core.running.progress import Pace, Progress
from lowrank_core.running.scope import LOOK_SECONDS, raise_if_cancelled, report
from lowrank_core.running.threads import using_threads

Runtime = Literal["onnxruntime", "torch", "openvino"]
RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "torch", "openvino")
OF_ONNX: tuple[Runtime, ...] = ("onnxruntime", "openvino")
"""Runtimes that run what was written as ONNX, int8 too; chains in float32, whatever the network computes in."""

_EXTRAS = {"onnxruntime": "onnx", "openvino": "edge"}

Work = Callable[[], object]
"""One inference."""

UNSTABLE_IQR = 0.1
"""A ratio whose interquartile range is larger is no number to show."""

WARM_UP = 3
ROUNDS = 11
ATTEMPTS = 3
SAMPLE_SECONDS = 100e-6
"""Shorter work is timed several times at once, or reading the clock would count."""

TURN_SECONDS = 10e-3
"""How long each variant runs in each round."""

_one_at_a_time = threading.RLock()


@dataclass(frozen=True, slots=True)
class Timing:
    """Time of one inference beside the dense one's, in microseconds, and the paired ratio of the two.

    ratio: median over the rounds of compressed / dense of the same round; iqr: interquartile range of these ratios.
    dense_between_us, compressed_between_us: the middle half of the rounds; None where there was but one.

    >>> Timing(100.0, 50.0, 0.5, 0.02, 11).unstable, Timing(100.0, 50.0, 0.5, 0.2, 11).unstable
    (False, True)
    """

    dense_us: float
    compressed_us: float
    ratio: float
    iqr: float
    rounds: int
    dense_between_us: tuple[float, float] | None = None
    compressed_between_us: tuple[float, float] | None = None

    @property
    def unstable(self) -> bool:
        """Whether the rounds disagree too much for the ratio to be a number."""
        return not self.iqr <= UNSTABLE_IQR


def timed(timing: Timing) -> dict[str, Any]:
    """A timing as plain values; an unstable ratio is None."""
    values = asdict(timing) | {"unstable": timing.unstable}
    return values | {"ratio": None} if timing.unstable else values


@contextmanager
def turn() -> Iterator[None]:
    """What is timed here, or in a process that this thread waits for, is timed alone. Raises Cancelled."""
    while not _one_at_a_time.acquire(timeout=LOOK_SECONDS):
        raise_if_cancelled()
    try:
        yield
    finally:
        _one_at_a_time.release()


def race(
    dense: Work,
    others: Sequence[Work],
    *,
    threads: int = 1,
    rounds: int = ROUNDS,
    turn_seconds: float = TURN_SECONDS,
) -> tuple[Timing, ...]:
    """Time each of the others beside dense, in turn; one Timing for each.

    Those that come out unstable race again, up to three times in all, and then stay unstable. Raises Cancelled.
    """
    timings: dict[int, Timing] = {}
    with turn(), using_threads(threads):
        for _ in range(ATTEMPTS):
            left = [i for i in range(len(others)) if i not in timings or timings[i].unstable]
            if left:
                works = [dense, *(others[i] for i in left)]
                timings |= zip(left, _race(works, threads, rounds, turn_seconds), strict=True)
    return tuple(timings[i] for i in range(len(others)))


def _race(works: Sequence[Work], threads: int, rounds: int, turn_seconds: float) -> list[Timing]:
    clock = time.thread_time if threads == 1 else time.perf_counter
    turns = [_turn(work, clock, turn_seconds) for work in works]
    medians: list[list[float]] = [[] for _ in works]
    pace = Pace(rounds)
    for number in range(rounds):
        report(Progress(f"timing, round {number + 1} of {rounds}", pace(number)))
        order = range(len(works))
        for i in order if number % 2 == 0 else reversed(order):
            raise_if_cancelled()  # and never give way: a lock is held, and it would be timed
            medians[i].append(turns[i]())
    dense = medians[0]
    timings = []
    for other in medians[1:]:
        ratios = [seconds / dense_seconds for seconds, dense_seconds in zip(other, dense, strict=True)]
        low, high = _middle_half(ratios) or (0.0, float("inf"))
        between = _middle_half([1e6 * seconds for seconds in dense]), _middle_half([1e6 * seconds for seconds in other])
        timings.append(Timing(1e6 * median(dense), 1e6 * median(other), median(ratios), high - low, rounds, *between))
    return timings


def _middle_half(values: Sequence[float]) -> tuple[float, float] | None:
    """The quartiles between which half of the values lie; None for a single one."""
    if len(values) < 2:
        return None
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def _turn(work: Work, clock: Callable[[], float], turn_seconds: float) -> Callable[[], float]:
    """One turn of a variant: seconds of one run, the median of several; the first, untimed, brings its weights back."""

    def seconds(runs: int) -> float:
        start = clock()
        for _ in range(runs):
            work()
        return (clock() - start) / runs

    for _ in range(WARM_UP):
        work()
    once = max(1e-7, min(seconds(1) for _ in range(3)))
    together = ceil(SAMPLE_SECONDS / once)
    samples = min(50, max(3, round(turn_seconds / (once * together))))

    def turn() -> float:
        work()
        return max(1e-9, median(seconds(together) for _ in range(samples)))

    return turn


def network_latency(
    dense: nn.Module,
    compressed: Sequence[nn.Module | bytes],
    inputs: Inputs,
    *,
    runtime: Runtime = "onnxruntime",
    threads: int = 1,
    rounds: int = ROUNDS,
) -> tuple[Timing, ...]:
    """Time whole networks on the same inputs beside the dense one; bytes: an ONNX file.

    PyTorch has a file run by onnxruntime.

    Raises InvalidModel where the runtime cannot.
    """
    with evaluating(dense):
        networks: list[Work] = []
        models = (dense, *compressed)
        pace = Pace(len(models))
        for number, model in enumerate(models):
            raise_if_cancelled()
            report(Progress(f"preparing network {number + 1} of {len(models)} for {runtime}", pace(number)))
            networks.append(_network(model, inputs, runtime, threads))
        return race(networks[0], networks[1:], threads=threads, rounds=rounds)


def _network(model: nn.Module | bytes, inputs: Inputs, runtime: Runtime, threads: int) -> Work:
    if runtime == "torch" and not isinstance(model, bytes):
        model.eval()
        return lambda: call(model, inputs)
    content = model if isinstance(model, bytes) else onnx_program(model, inputs).SerializeToString()
    return onnx_work(content, [value.numpy() for value in tensors(inputs)], runtime, threads)


def onnx_work(content: bytes, values: Sequence[Any], runtime: Runtime, threads: int) -> Work:
    """One run of an ONNX file on NumPy inputs, in their order. Raises InvalidModel where the runtime cannot."""
    if runtime == "openvino":
        infer: Work = inference(content, values, threads).infer
        return infer
    return session(content, values, threads)


def session(program: Any, values: Sequence[Any], threads: int) -> Work:
    """One run of an ONNX model (onnx.ModelProto, or its bytes) by onnxruntime on NumPy inputs, in their order."""
    with extra("onnx", "timing with onnxruntime"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    content = program if isinstance(program, bytes) else program.SerializeToString()
    try:
        opened = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        bound = opened.io_binding()  # calling run() with arrays costs several microseconds more
        for given, value in zip(opened.get_inputs(), values, strict=False):
            bound.bind_cpu_input(given.name, np.ascontiguousarray(value))
        for made in opened.get_outputs():
            bound.bind_output(made.name)
        opened.run_with_iobinding(bound)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InvalidModel(f"onnxruntime cannot run this network: {reason}; measure it with torch instead.") from error
    return lambda: opened.run_with_iobinding(bound)


def runtime_version(runtime: Runtime) -> str:
    """Name and version of a runtime, 'onnxruntime 1.31.0', without importing it; raises MissingExtra."""
    if runtime == "torch":
        return f"torch {torch.__version__}"
    with extra(_EXTRAS[runtime], f"timing with {runtime}"):
        return f"{runtime} {version(runtime)}"


def runtimes_here() -> tuple[Runtime, ...]:
    """Those of `RUNTIMES` that are installed.

    >>> "torch" in runtimes_here()
    True
    """

    def is_here(runtime: Runtime) -> bool:
        try:
            return bool(runtime_version(runtime))
        except MissingExtra:
            return False

    return tuple(filter(is_here, RUNTIMES))


@cache
def cpu_name() -> str:
    """The name by which the system knows this processor, which timings depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


# ---- tables ---------------------------------------------------------------------------------------------------------

COLUMNS = ("layer", "method", "rank", "microseconds")
ORIGIN = ("device", "network", "fingerprint")
DENSE = "dense"


@dataclass(frozen=True, slots=True, eq=False)
class LatencyTable:
    """Microseconds by (layer, method) and rank; the dense layer goes by the method "dense" and no rank.

    device: where they were taken, network: the hash of the file that lay beside, fingerprint: that of the network whose
    layers they are; empty where the table does not say.

    >>> table = LatencyTable.from_csv("layer,method,rank,microseconds\\nfc,dense,,90\\nfc,svd,16,30\\nfc,svd,32,50\\n")
    >>> table("fc", None), table("fc", Choice("svd", (17,)))      # a rank that was not measured costs the next larger
    (90.0, 50.0)
    """

    steps: Mapping[tuple[str, str], tuple[tuple[tuple[int, ...], float], ...]] = field(default_factory=dict)
    device: str = ""
    network: str = ""
    fingerprint: str = ""

    @staticmethod
    def from_csv(text: str | bytes) -> LatencyTable:
        """Columns layer, method, rank (16, or 16x12 for two axes), microseconds; also device, network, fingerprint.

        Raises InvalidFile where it is none, or of several devices or networks.
        """
        origins: dict[tuple[str, ...], int] = {}
        steps_of: dict[tuple[str, str], list[tuple[tuple[int, ...], float]]] = {}
        for number, row in enumerate(_rows(text), start=2):
            try:
                rank = tuple(int(r) for r in (row["rank"] or "").split("x") if r)
                taken = float(row["microseconds"])
            except (TypeError, ValueError) as error:
                raise InvalidFile(
                    f"latency table, line {number}: {error}; give numbers, ranks as 16 or 16x12."
                ) from error
            if not isfinite(taken) or taken < 0 or bool(rank) == (row["method"] == DENSE):
                raise InvalidFile(
                    f"latency table, line {number}: a time of 0 or more and a rank (none for {DENSE!r}) must stand "
                    f"there, but got rank {row['rank']!r} and {row['microseconds']!r} microseconds."
                )
            steps_of.setdefault((row["layer"], row["method"]), []).append((rank, taken))
            origins.setdefault(tuple(row.get(column) or "" for column in ORIGIN), number)
        if len(origins) > 1:
            (one, _), (other, line) = list(origins.items())[:2]
            raise InvalidFile(
                f"latency table, line {line}: all times must be of one device and network, but got "
                f"{_told(one)!r} and {_told(other)!r}; give one table of each."
            )
        steps = {key: tuple(sorted(steps)) for key, steps in steps_of.items()}
        return LatencyTable(steps, *next(iter(origins), ()))

    def to_csv(self) -> str:
        """The table as CSV text, which `from_csv` reads."""
        rows = io.StringIO()
        writer = csv.writer(rows, lineterminator="\n")
        origin = {column: told for column in ORIGIN if (told := getattr(self, column))}
        writer.writerow((*COLUMNS, *origin))
        for (layer, method), steps in self.steps.items():
            writer.writerows(
                (layer, method, "x".join(map(str, rank)), f"{taken:.6g}", *origin.values()) for rank, taken in steps
            )
        return rows.getvalue()

    def __call__(self, layer: str, choice: Choice | None) -> float | None:
        """Microseconds of a layer under a choice: of the smallest measured rank not below it; None where none is."""
        if choice is None:
            return next((taken for _, taken in self.steps.get((layer, DENSE), ())), None)
        measured = self.steps.get((layer, choice.method), ())
        above = [t for rank, t in measured if all(a >= b for a, b in zip(rank, choice.rank, strict=False))]
        return min(above) if above else None

    def check(self, fingerprint: str) -> None:
        """Raise InvalidFile where the table says that it is of another network than the one of this fingerprint."""
        if self.fingerprint not in ("", fingerprint):
            raise InvalidFile(
                f"the latency table was taken of the network {cut(self.fingerprint)[:19]}..., but this network is "
                f"{fingerprint[:19]}...; give a table of this network."
            )

    @property
    def layers(self) -> frozenset[str]:
        """Names of the layers whose dense time is in the table."""
        return frozenset(layer for layer, method in self.steps if method == DENSE)


def _told(origin: tuple[str, ...]) -> str:
    return cut(" ".join(filter(None, origin))) or "none"


def _rows(text: str | bytes) -> Iterator[dict[str, str]]:
    """The lines of a table, by column; a byte order mark, which spreadsheets write, is no part of the first name."""
    try:
        content = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
        rows = csv.DictReader(io.StringIO(content, newline=""))
        if rows.fieldnames is None or not set(COLUMNS) <= set(rows.fieldnames):
            got = ", ".join(rows.fieldnames or ())[:200]
            raise InvalidFile(f"a latency table has the columns {', '.join(COLUMNS)}, but got {got or 'none'}.")
        yield from rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidFile(f"a latency table is a CSV in UTF-8, but this is none ({error}); save it as one.") from error
