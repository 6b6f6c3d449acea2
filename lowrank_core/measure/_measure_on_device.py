"""Time the layers of a network at their ranks on this device: python measure_on_device.py NETWORK --out table.csv

Needs Python 3.9 with numpy and onnxruntime, or with torch alone, as the file was made for. NETWORK is the exported file
that lies beside: its hash goes into the table, and it is timed as a whole. Rank Explorer made this file and reads the
table: search --microseconds --latency-table table.csv. It asks no network, and writes the table alone.
"""

# ruff: noqa: B905 - zip(strict=...) is of Python 3.10

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import json
import logging
import lzma
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

WORK = ""  # what is timed: JSON, lzma, base64

COLUMNS = ("layer", "method", "rank", "microseconds", "device", "network", "fingerprint")
WRITTEN = ",".join(COLUMNS[:6])  # how a table of this file begins, also one of before
ROUNDS, TURN_SECONDS, SAMPLE_SECONDS, UNSTABLE_IQR, ATTEMPTS = 7, 5e-3, 100e-6, 0.1, 3


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("network", help="the exported network")
    given.add_argument("--out", default="table.csv", help="the table; default table.csv")
    given.add_argument("--device", default="", help="name of this device; default what the system calls it")
    given.add_argument("--threads", type=int, default=1, help="default 1, timed by the CPU time of the thread")
    asked = given.parse_args()
    if asked.threads < 1:
        sys.exit(f"--threads must be 1 or more, but got {asked.threads}.")
    may_write(asked.out)
    work = json.loads(lzma.decompress(base64.b64decode(WORK)))
    try:
        with open(asked.network, "rb") as file:
            network = hashlib.sha256(file.read()).hexdigest()
    except OSError as error:
        sys.exit(f"{asked.network} cannot be read ({error.strerror}); give the exported network.")
    runs = ".pt2" if work["runtime"] == "torch" else ".onnx"
    if not asked.network.lower().endswith(runs):
        sys.exit(
            f"{asked.network} is not run: this file times with {work['runtime']}, which takes a network as {runs}."
        )
    with tempfile.TemporaryDirectory() as folder:
        try:
            runtime = (Torch if work["runtime"] == "torch" else Onnx)(work, folder, asked.threads)
        except ImportError as error:
            sys.exit(f"this file times with {work['runtime']}, and {error}; install it here.")
        try:
            whole = runtime.whole(asked.network)
            whole()
        except Exception as error:  # each runtime has its own
            reason = " ".join(str(error).split())[:300]
            sys.exit(f"{asked.network} cannot be run by {runtime.version} ({reason}); give the exported network.")
        threads = f"{asked.threads} thread{'s' * (asked.threads > 1)}"
        device = f"{asked.device or name()}, {runtime.version}, {threads}"
        say(f"{work['model']}: {device}")
        rows: list[tuple[str, str, str, float]] = []
        first = 0.0
        for number, layer in enumerate(work["layers"], 1):
            say(f"{number} of {len(work['layers'])}: {', '.join(layer['names'][:3])}")
            for method, chains in layer["methods"].items():
                timed = race(
                    [runtime.chain(chain, layer) for chain in [layer["dense"]] + chains["chains"]], asked.threads
                )
                dense = timed[0][0]
                if method == next(iter(layer["methods"])):
                    first = dense
                    rows += [(each, "dense", "", dense) for each in layer["names"]]
                for rank, (_, ratio, iqr) in zip(chains["ranks"], timed[1:]):
                    told = "x".join(map(str, rank))
                    if iqr <= UNSTABLE_IQR:
                        rows += [(each, method, told, ratio * first) for each in layer["names"]]
                    else:
                        say(f"rank {told} is left out: its rounds disagree by {iqr:.2f}")
        say(f"the network itself: {race([whole], asked.threads)[0][0]:.6g} microseconds")
    origin = (device, network, work["fingerprint"])
    write(asked.out, [(*row[:3], f"{row[3]:.6g}", *origin) for row in rows])
    say(f"{asked.out}: {len(rows)} times of {device}")


def race(works: list[Callable[[], object]], threads: int) -> list[tuple[float, float, float]]:
    """(microseconds, ratio to the first, interquartile range of that) of each: in turn, round by round."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    found: dict[int, tuple[float, float, float]] = {}
    left = list(range(1, len(works)))
    for _ in range(ATTEMPTS):
        turns = {at: turn(works[at], clock) for at in [0, *left]}
        rounds = []
        for number in range(ROUNDS):
            order = list(turns) if number % 2 == 0 else list(turns)[::-1]
            taken = {at: turns[at]() for at in order}
            rounds.append([taken[at] for at in turns])
        for at, seconds in zip(turns, zip(*rounds)):
            ratios = sorted(one / each[0] for one, each in zip(seconds, rounds))
            low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
            if at or 0 not in found:
                found[at] = 1e6 * statistics.median(seconds), statistics.median(ratios), high - low
        left = [at for at in left if found[at][2] > UNSTABLE_IQR]
        if not left:
            break
    return [found[at] for at in range(len(works))]


def turn(work: Callable[[], object], clock: Callable[[], float]) -> Callable[[], float]:
    """One turn of some work: seconds of one run, the median of several."""

    def seconds(runs: int) -> float:
        start = clock()
        for _ in range(runs):
            work()
        return (clock() - start) / runs

    for _ in range(3):
        work()
    once = max(1e-7, min(seconds(1) for _ in range(3)))
    together = max(1, round(SAMPLE_SECONDS / once))
    samples = min(50, max(3, round(TURN_SECONDS / (once * together))))

    def one() -> float:
        work()
        return max(1e-9, statistics.median(seconds(together) for _ in range(samples)))

    return one


class Onnx:
    """Chains as ONNX models whose weights are the beginning of one file of random numbers."""

    def __init__(self, work: dict[str, Any], folder: str, threads: int) -> None:
        import numpy
        import onnxruntime

        self.numpy, self.runtime, self.folder, self.work = numpy, onnxruntime, folder, work
        self.version = "onnxruntime " + onnxruntime.__version__
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads, self.options.inter_op_num_threads = threads, 1
        self.options.log_severity_level = 3
        with open(os.path.join(folder, "weights"), "wb") as file:
            file.write(numpy.random.default_rng(0).uniform(-0.1, 0.1, work["weights"]).astype("float32").tobytes())

    def chain(self, passes: list[Any], layer: dict[str, Any]) -> Callable[[], object]:
        works = []
        for model, shape, kind, calls in zip(passes, layer["shapes"], layer["kinds"], layer["calls"]):
            path = os.path.join(self.folder, "chain.onnx")
            with open(path, "wb") as file:
                file.write(model.encode("latin-1"))
            works.append((self.session(path, [(shape, kind)]), calls))
        return together(works)

    def whole(self, path: str) -> Callable[[], object]:
        return self.session(path, self.work["inputs"])

    def session(self, path: str, inputs: list[Any]) -> Callable[[], object]:
        session = self.runtime.InferenceSession(path, self.options, providers=["CPUExecutionProvider"])
        bound = session.io_binding()
        for given, (shape, kind) in zip(session.get_inputs(), inputs):
            bound.bind_cpu_input(given.name, self.numpy.ones(sizes(given, shape), kind))
        for made in session.get_outputs():
            bound.bind_output(made.name)
        return lambda: session.run_with_iobinding(bound)


def sizes(given: Any, shape: list[int]) -> list[int]:
    """The sizes that a network has fixed for an input, as a batch of its own; those asked for where it leaves them."""
    if len(given.shape) != len(shape):
        return shape
    taken = [own if isinstance(own, int) else size for own, size in zip(given.shape, shape)]
    if taken != list(shape):
        say(f"the network takes {given.name} as {taken}; its layers are timed at {list(shape)}")
    return taken


class Torch:
    """Chains of the layers of torch.nn."""

    def __init__(self, work: dict[str, Any], folder: str, threads: int) -> None:
        import torch

        logging.getLogger("torch.export").setLevel(logging.CRITICAL)  # a file it cannot read it tells at length
        self.torch, self.work = torch, work
        self.version = "torch " + torch.__version__
        torch.set_num_threads(threads)

    def chain(self, passes: list[Any], layer: dict[str, Any]) -> Callable[[], object]:
        torch, works = self.torch, []
        for parts, shape, kind, calls in zip(passes, layer["shapes"], layer["kinds"], layer["calls"]):
            network = torch.nn.Sequential(*(getattr(torch.nn, op)(**args) for op, args in parts))
            works.append((self.call(network.to(getattr(torch, self.work["dtype"])), [(shape, kind)]), calls))
        return together(works)

    def whole(self, path: str) -> Callable[[], object]:
        return self.call(self.torch.export.load(path).module(), self.work["inputs"])

    def call(self, network: Any, inputs: list[Any]) -> Callable[[], object]:
        given = [self.torch.ones(shape, dtype=getattr(self.torch, kind)) for shape, kind in inputs]
        network.requires_grad_(False)

        def work() -> object:
            with self.torch.no_grad():
                return network(*given)

        return work


def together(works: list[tuple[Callable[[], object], int]]) -> Callable[[], object]:
    """One inference of a layer that is called several times."""
    if [calls for _, calls in works] == [1]:
        return works[0][0]

    def work() -> None:
        for one, calls in works:
            for _ in range(calls):
                one()

    return work


def name() -> str:
    """What the system calls this device."""
    for path, key in (("/proc/device-tree/model", ""), ("/proc/cpuinfo", "model name"), ("/proc/cpuinfo", "Hardware")):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                lines = [line.strip("\0 \n") for line in file]
        except OSError:
            continue
        for line in lines:
            if line.startswith(key):
                return line.partition(":")[2].strip() or line
    return platform.processor() or platform.machine()


def may_write(path: str) -> None:
    """Stop where something else than a table of this file is there."""
    if not os.path.lexists(path):
        return
    ours = False
    if os.path.isfile(path):  # a pipe would be waited for
        try:
            with open(path, "rb") as file:
                ours = file.read(len(WRITTEN)) == WRITTEN.encode()
        except OSError as error:
            sys.exit(f"{path} cannot be read ({error.strerror}); give --out another name.")
    if not ours:
        sys.exit(f"{path} is there and is no table of this file; give --out another name.")


def write(path: str, rows: list[Any]) -> None:
    """The table, whole or not at all."""
    may_write(path)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "x", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
        os.replace(temporary, path)
    except OSError as error:
        sys.exit(f"{path} cannot be written: {error.strerror}")


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    main()
