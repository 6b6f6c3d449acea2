"""A bundle: every kind of file in one zip, loader and device timer too, with hashes and a README of how each loads."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

from lowrank_core.compression.precision import DTYPES
from lowrank_core.errors import InvalidFile, LowRankError
from lowrank_core.exports import EXPORTS, VERDICTS, Compressed, Export, Exported, Snippet, loading, register
from lowrank_core.measure.on_device import NAME as DEVICE_FILE
from lowrank_core.measure.on_device import device_file
from lowrank_core.measure.staircases import setting_of
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import report, scope, under
from lowrank_core.store.files import scratch, whole_or_nothing, write_whole
from lowrank_core.store.kinds import file_hash
from lowrank_core.workspace import Workspace

MEMBERS = {
    "safetensors": "model.safetensors",
    "pt2": "model.pt2",
    "onnx": "model.onnx",
    "executorch": "model.pte",
    "openvino": "model.xml",
    "tflite": "model.tflite",
    "c": "model.h",
    "hf": "hf",
    "plan": "plan.json",
}
"""The file of each kind, or its folder; what belongs to a file lies beside it."""

CALLED = {
    "safetensors": "the checkpoint",
    "pt2": "the exported program",
    "onnx": "the ONNX model",
    "executorch": "the ExecuTorch program",
    "openvino": "the OpenVINO model",
    "tflite": "the LiteRT model",
    "hf": "the folder of transformers",
    "c": "the C header",
    "plan": "the plan",
}
"""As the steps of writing them say it."""

LOADER = "load_lowrank.py"
README = "README.md"
SUMS = "SHA256SUMS"
"""The hash of every other file, as `sha256sum -c` takes them."""

_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # so that the same network gives the same bundle


def write(workspace: Workspace, compressed: Compressed, path: Path) -> Exported:
    """Write each file, reloaded and compared as it is alone, into one zip, and read that back.

    A kind that this network has no file of, or that lacks something here, is named in the README with the reason; a
    LiteRT model is there where its environment is named, a folder of transformers where the network came from one.
    Raises InvalidFile where the checkpoint itself cannot be written; then `path` is as it was.
    """
    members = {kind: member for kind, member in MEMBERS.items() if _asked(kind, workspace, compressed)}
    with whole_or_nothing(path) as temporary, scratch() as folder:
        written, missing = {}, {}
        for kind, member in members.items():
            dtype = compressed.storage.dtype
            if kind not in ("safetensors", "plan") and dtype is not None and dtype not in EXPORTS[kind].dtypes:
                missing[member] = f"there is no {dtype} of this kind."
                continue
            try:
                EXPORTS[kind].ready(workspace)
                with scope(report=under(CALLED[kind])):
                    written[member] = EXPORTS[kind].write(workspace, compressed, folder / member)
            except LowRankError as error:
                if kind in ("safetensors", "plan"):
                    raise
                missing[member] = str(error).replace(f"{folder}/", "")
        loads = {
            member: _loads(loading(EXPORTS[kind], workspace, compressed.plan, member))
            for kind, member in members.items()
        }
        try:
            program = device_file(workspace, setting_of(workspace))
        except LowRankError as error:
            missing[DEVICE_FILE] = str(error)
        else:
            write_whole(folder / DEVICE_FILE, program.encode())
        write_whole(folder / LOADER, loads[MEMBERS["safetensors"]].loader.encode())
        write_whole(folder / README, _readme(workspace, compressed, folder, missing, loads).encode())
        report(Progress("packing"))
        hashes = {name: file_hash(folder / name) for name in _inside(folder)}
        write_whole(folder / SUMS, "".join(f"{found}  {name}\n" for name, found in hashes.items()).encode())
        hashes[SUMS] = file_hash(folder / SUMS)
        with zipfile.ZipFile(temporary, "w") as archive:
            for name in hashes:
                archive.writestr(zipfile.ZipInfo(name, _LONG_AGO), (folder / name).read_bytes())
        with zipfile.ZipFile(temporary) as archive:
            if {name: _hash(archive.read(name)) for name in archive.namelist()} != hashes:
                raise InvalidFile(f"{path} was not saved: what was read back is not what was written.")
        size = temporary.stat().st_size
    largest = max(one.max_abs_diff or 0.0 for one in written.values())
    verdict = max((one.verdict for one in written.values()), key=VERDICTS.index)
    notes = dict.fromkeys(f"{name}: {note}" for name, one in written.items() for note in one.notes)
    return Exported(str(path), size, largest, compressed.score, verdict, tuple(notes))


def _asked(kind: str, workspace: Workspace, compressed: Compressed) -> bool:
    """Whether a bundle is to hold a kind."""
    return compressed.litert_python is not None if kind == "tflite" else EXPORTS[kind].offered(workspace)


def _inside(folder: Path) -> list[str]:
    """Names of all files of a folder and those in it, in order."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def together(written: Exported) -> bytes:
    """A file and those that belong to it as the bytes of one zip, for whoever can be handed only one."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in map(Path, (written.path, *written.beside)):
            archive.writestr(zipfile.ZipInfo(file.name, _LONG_AGO), file.read_bytes())
    return packed.getvalue()


def _loads(fitting: list[Snippet]) -> Snippet:
    """The lines that need least to load a member."""
    shortest = next((snippet for snippet in fitting if snippet.loader), fitting[0])
    if not shortest.loader:
        return shortest
    code = shortest.code.removeprefix(shortest.loader).lstrip("\n")
    return Snippet(
        shortest.label,
        f"from {Path(LOADER).stem} import load_lowrank\n{code}",
        shortest.partial,
        shortest.loader,
    )


def _readme(
    workspace: Workspace, compressed: Compressed, folder: Path, missing: dict[str, str], loads: dict[str, Snippet]
) -> str:
    """What is in the bundle, what is not and why, and the lines that load each file."""
    lines = [f"# {workspace.name}, compressed", ""]
    if compressed.score is not None:
        score = compressed.score
        lines += [f"{score.metric}: {score.value:.6g}, dense {score.dense:.6g}.", ""]
    lines += ["| file | bytes | sha256 |", "|---|---|---|"]
    for name in _inside(folder):
        lines.append(f"| `{name}` | {(folder / name).stat().st_size:,} | `{file_hash(folder / name)}` |")
    lines += ["", f"`sha256sum -c {SUMS}` checks them."]
    for member, reason in missing.items():
        lines += ["", f"There is no `{member}`: {reason}"]
    for member, snippet in loads.items():
        if member not in missing:
            lines += ["", f"## {member}, {snippet.label}", "", f"```{snippet.language}", snippet.code.strip(), "```"]
    if DEVICE_FILE not in missing and (onnx := MEMBERS.get("onnx")) in loads.keys() - missing.keys():
        lines += ["", f"## {DEVICE_FILE}, on the device itself, with numpy and onnxruntime alone", "", "```"]
        lines += [f"python {DEVICE_FILE} {onnx} --out table.csv", "```"]
    return "\n".join(lines) + "\n"


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def snippets(ref: str | None, file: str) -> tuple[Snippet, ...]:
    """Unpack it; its README says how each file is loaded."""
    return (Snippet("with Python alone", f"import zipfile\n\nzipfile.ZipFile({file!r}).extractall()\n"),)


register(Export("bundle", "Bundle (zip)", ".zip", write, snippets, tuple(DTYPES), traces=True))
