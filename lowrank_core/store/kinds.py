"""Kinds of files that this product writes for people, each told by what is in it: what may take another's place.

An empty file counts as every kind: there is nothing to lose.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import sqlite3
import zipfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

MOST_BYTES = 2**26
"""A JSON or CSV file above this is none of ours."""


@dataclass(frozen=True, slots=True)
class FileKind:
    """name: 'a rank plan'. text: whether it may go to standard output. tells(path): whether a file holds one.

    folder: whether it is a folder, unless the name ends as that of a file that holds the same. beside: whether it is
    always two files, the other with its weights, which `tells` knows by their name too.
    """

    name: str
    tells: Callable[[Path], bool]
    text: bool = False
    folder: bool = False
    beside: bool = False

    def __call__(self, path: Path) -> bool:
        """Whether a file is empty or one of these, written by this product; anything that cannot be read is none."""
        try:
            return (path.is_file() and path.stat().st_size == 0) or self.tells(path)
        except Exception:  # whatever the bytes of a person's file make a reader say
            return False


def _is_plan(path: Path) -> bool:
    return bool(_document(path)["format"] == "lowrank-plan")


def _is_profile(path: Path) -> bool:
    return {"layers", "evaluations", "samples"} <= set(_document(path))


def _document(path: Path) -> dict[str, object]:
    found = json.loads(_beginning(path, MOST_BYTES + 1)) if path.stat().st_size <= MOST_BYTES else {}
    return found if isinstance(found, dict) else {}


def _is_table(path: Path) -> bool:
    first = _beginning(path, 1000).decode("utf-8-sig").splitlines()[0]
    return {"layer", "method", "rank", "microseconds"} <= set(first.split(","))


def _is_device_file(path: Path) -> bool:
    return b"python measure_on_device.py NETWORK" in _beginning(path, 200)


def _is_front(path: Path) -> bool:
    if _beginning(path, 40).startswith(b"share,multiplies,bytes,parameters,loss"):
        return True
    return bool(_document(path)["format"] == "lowrank-front")


def _is_report(path: Path) -> bool:
    if path.suffix.lower() in (".md", ".markdown"):
        return b"\n\n## Figures\n" in _beginning(path, 4_000)
    return b'content="Rank Explorer"' in _beginning(path, 1_000)


def _is_log(path: Path) -> bool:
    with path.open("rb") as file:
        first = json.loads(file.readline(MOST_BYTES))
    return {"time", "command", "figures", "files"} <= set(first)


STUDY_MARK = "rank_explorer_fingerprint"
"""An attribute of our studies: the network that they are of."""


def _is_study(path: Path) -> bool:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as file:
        asked = file.execute("SELECT count(*) FROM study_user_attributes WHERE key = ?", (STUDY_MARK,))
        return bool(asked.fetchone()[0])


NODE_QUANTITIES = ("graph", "bytes", "multiplies", "rank", "error", "microseconds")
"""Of which node data are written, a file each; and the graph that they are about."""


def _is_node_data(path: Path) -> bool:
    document = _document(path)
    graph = document.get("graph")
    return "graphs" in document or (isinstance(graph, dict) and "results" in graph)


def _is_checkpoint(path: Path) -> bool:
    length = int.from_bytes(_beginning(path, 8), "little")
    return length <= MOST_BYTES and "lowrank" in json.loads(_beginning(path, 8 + length)[8:])["__metadata__"]


def _is_program(path: Path) -> bool:
    return any(name.endswith("/extra/plan.json") for name in zipfile.ZipFile(path).namelist())


def _is_onnx(path: Path) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content[:1] == b"\x08" and content.find(b"lowrank_plan") > 0  # it begins with its version


def _is_pte(path: Path) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content[4:6] == b"ET" and content.find(b"lowrank_plan") > 0


def _is_openvino(path: Path) -> bool:
    """Whether a graph is ours, or weights are those of such a graph: they end where it says that its last one ends."""
    if path.suffix == ".bin":
        graph = path.with_suffix(".xml")
        found = re.findall(rb'<data [^>]*offset="(\d+)" size="(\d+)"', graph.read_bytes())
        ends = max(int(offset) + int(size) for offset, size in found)
        return ends == path.stat().st_size and _is_openvino(graph)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return b"<net " in content[:200] and content.find(b"<lowrank_plan ") > 0


def _is_told(path: Path) -> bool:
    """Never: such a file has no room to say whose it is, so none is replaced unasked."""
    return False


def _is_bundle(path: Path) -> bool:
    return {"load_lowrank.py", "plan.json"} <= set(zipfile.ZipFile(path).namelist())


HF_FILES = "files"
"""Key of a plan's provenance: the other files of its folder, {name: SHA-256}."""


def _is_hf(path: Path) -> bool:
    """Whether a folder holds what an export wrote and nothing else, or a zip does."""
    if path.is_file():
        return {"config.json", "plan.json", "README.md"} <= set(zipfile.ZipFile(path).namelist())
    inside = [one for one in path.iterdir() if one.name != "plan.json"]
    if not inside:
        return not (path / "plan.json").exists()
    written = json.loads(_beginning(path / "plan.json", MOST_BYTES))["provenance"][HF_FILES]
    return bool({one.name: file_hash(one) for one in inside} == written)


ADAPTER_KEY = "rank_explorer_adapter"
"""Among the metadata of an adapter's weights that this product has written."""


def _is_adapter(path: Path) -> bool:
    if path.is_dir():
        names = {one.name for one in path.iterdir()}
        weights = path / "adapter_model.safetensors"
        return not names or (names == {"adapter_config.json", weights.name} and _is_adapter(weights))
    if path.suffix.lower() == ".zip":
        return set(zipfile.ZipFile(path).namelist()) == {"adapter_config.json", "adapter_model.safetensors"}
    length = int.from_bytes(_beginning(path, 8), "little")
    return length <= MOST_BYTES and ADAPTER_KEY in json.loads(_beginning(path, 8 + length)[8:])["__metadata__"]


def file_hash(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_header(path: Path) -> bool:
    return _beginning(path, 40).startswith(b"/* rank-explorer network:")


def _is_state(path: Path) -> bool:
    if _beginning(path, 200).startswith(b'{"kind": "training state"'):  # damaged it may be, and is set aside
        return True
    return any(name.endswith("/data.pkl") for name in zipfile.ZipFile(path).namelist())


def _beginning(path: Path, length: int) -> bytes:
    with path.open("rb") as file:
        return file.read(length)


PLAN = FileKind("a rank plan (JSON)", _is_plan, text=True)
PROFILE = FileKind("what `profile` measured (JSON)", _is_profile, text=True)
DEVICE_FILE = FileKind("a program that measures on a device (Python)", _is_device_file, text=True)
TABLE = FileKind("a latency table (CSV)", _is_table, text=True)
FRONT = FileKind("a front of plans (JSON or CSV)", _is_front, text=True)
REPORT = FileKind("a report of this product (HTML or Markdown)", _is_report, text=True)
LOG = FileKind("a log of this product (JSON lines)", _is_log, text=True)
NODES = FileKind("a graph or node data for Model Explorer (JSON)", _is_node_data)
STUDY = FileKind("an Optuna study of this product", _is_study)
ADAPTER = FileKind("an adapter that this product resized", _is_adapter, folder=True)
STATE = FileKind("the state of a training", _is_state)
EXPORTED = {
    "safetensors": FileKind("a checkpoint of this product", _is_checkpoint),
    "pt2": FileKind("a program that this product exported", _is_program),
    "onnx": FileKind("an ONNX model that this product exported", _is_onnx),
    "executorch": FileKind("an ExecuTorch program that this product exported", _is_pte),
    "openvino": FileKind("an OpenVINO model that this product exported", _is_openvino, beside=True),
    "tflite": FileKind("a LiteRT model that says it is this product's", _is_told),
    "bundle": FileKind("a bundle", _is_bundle),
    "hf": FileKind("a folder that this product exported, as it wrote it", _is_hf, folder=True),
    "plan": PLAN,
    "c": FileKind("a C header of this product", _is_header),
}
"""By the names of the exports."""
