"""Data as people have it: each kind from a file or folder on the command line to a measured plan, without Python."""

import csv
import json
import os
import re
import struct
import sys
import wave
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from pyarrow import ipc

from lowrank_core import Workspace
from lowrank_core.commands import cli
from lowrank_core.errors import InvalidData, InvalidSettings, LowRankError, MissingExtra
from lowrank_core.readers import READERS, _pictures, _running_text, _sound, read
from lowrank_core.readers._folders import fair_order
from lowrank_core.running.scope import scope
from lowrank_core.samples import limits
from lowrank_core.samples.preparation import Preparation
from lowrank_core.samples.preprocess import prepared
from lowrank_core.samples.samples import Taken
from lowrank_core.store.reference import Address, address_of, in_its_folder, with_parts
from pages.ui.at_start import STARTED_IN, at_start
from pages.ui.state import models

CLASSES = ("ants", "bees", "cats")
SAMPLES = 24
RNG = np.random.default_rng(0)


# ---- networks and data -----------------------------------------------------------------------------------------------


def onnx_file(path: Path, inputs: dict[str, list[Any]], nodes: list[Any], weights: dict[str, Any]) -> Path:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *sizes]) for name, sizes in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "classes"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def drawn(*shape: int) -> np.ndarray:
    return (np.random.default_rng(1).normal(size=shape) / 4).astype(np.float32)


def of_images(path: Path, *sizes: Any) -> Path:
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "w"], ["y"]),
    ]
    return onnx_file(path, {"x": list(sizes or (3, 8, 8))}, nodes, {"k": drawn(16, 3, 3, 3), "w": drawn(16, 3)})


def of_numbers(path: Path, outputs: int = 3) -> Path:
    nodes = [
        helper.make_node("Gemm", ["x", "v"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "w"], ["y"]),
    ]
    return onnx_file(path, {"x": [4]}, nodes, {"v": drawn(4, 32), "w": drawn(32, outputs)})


def of_waves(path: Path) -> Path:
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["a"], strides=[8]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "w"], ["y"]),
    ]
    return onnx_file(path, {"x": [1, 400]}, nodes, {"k": drawn(16, 1, 64), "w": drawn(16, 3)})


def by_two_names(path: Path) -> Path:
    nodes = [
        helper.make_node("Gemm", ["size", "v"], ["a"]),
        helper.make_node("Gemm", ["age", "u"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "w"], ["y"]),
    ]
    weights = {"v": drawn(2, 32), "u": drawn(1, 32), "w": drawn(32, 3)}
    return onnx_file(path, {"size": [2], "age": [1]}, nodes, weights)


def pixels(side: int = 12) -> np.ndarray:
    return RNG.integers(0, 255, (side, side + 2, 3), dtype=np.uint8)


def images(folder: Path, classes: tuple[str, ...] = CLASSES, each: int = SAMPLES // 3) -> Path:
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(pixels()).save(folder / name / f"{i}.png")
    return folder


def table(path: Path, names: list[str] | None, last: Callable[[int], Any], columns: int = 4) -> Path:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerows([names] if names else [])
        rows.writerows([*RNG.normal(size=columns).round(3), last(i)] for i in range(SAMPLES))
    return path


def recording(path: Path, samples: np.ndarray, width: int = 2, rate: int = 8000) -> Path:
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    whole = np.round(samples.reshape(-1) * (2 ** (8 * width - 1) - 1)).astype("<i4")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(whole.view(np.uint8).reshape(-1, 4)[:, :width].tobytes())
    return path


def recordings(folder: Path) -> Path:
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for i in range(SAMPLES // 3):
            recording(folder / name / f"{i}.wav", RNG.uniform(-1, 1, 300 + 40 * i))
    return folder


def saved(folder: Path, columns: dict[str, Any], features: dict[str, Any]) -> Path:
    """As `datasets` writes it with save_to_disk."""
    folder.mkdir(parents=True)
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    rows = pyarrow.table(columns).replace_schema_metadata(about)
    with (
        pyarrow.OSFile(str(folder / "data.arrow"), "wb") as file,
        ipc.new_stream(file, rows.schema) as out,
    ):
        out.write_table(rows)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    return folder


def saved_images(folder: Path) -> Path:
    lies = images(folder.parent / "to save")
    cells = [{"bytes": file.read_bytes(), "path": None} for file in sorted(lies.rglob("*.png"))]
    named = {"label": {"_type": "ClassLabel", "names": list(CLASSES)}, "image": {"_type": "Image"}}
    return saved(folder, {"image": cells, "label": [i * 3 // SAMPLES for i in range(SAMPLES)]}, named)


def arrays(folder: Path) -> Path:
    folder.mkdir()
    np.save(folder / "inputs.npy", drawn(SAMPLES, 4))
    np.save(folder / "targets.npy", np.arange(SAMPLES) % 3)
    return folder


def array(path: Path) -> Path:
    np.save(path, drawn(SAMPLES, 4))
    return path


def archive(path: Path) -> Path:
    np.savez(path, inputs=drawn(SAMPLES, 4), targets=np.arange(SAMPLES) % 3)
    return path


ACCURACY, R2, AGREEMENT = "top-1 accuracy", "R2", "agreement with the dense network"
KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Path], str, str]] = {
    "images by class": (of_images, lambda folder: images(folder / "pictures"), "half", ACCURACY),
    "images of a processor": (of_images, lambda folder: images(folder / "pictures"), "PROCESSOR", ACCURACY),
    "images of any size": (
        lambda path: of_images(path, 3, "h", "w"),
        lambda folder: images(folder / "pictures"),
        "//10:8",
        ACCURACY,
    ),
    "saved images": (of_images, lambda folder: saved_images(folder / "saved"), "", ACCURACY),
    "csv of classes": (
        of_numbers,
        lambda f: table(f / "d.csv", [*"abcd", "kind"], lambda i: CLASSES[i % 3]),
        "",
        ACCURACY,
    ),
    "csv without names": (of_numbers, lambda f: table(f / "d.csv", None, lambda i: i % 3), "", ACCURACY),
    "csv of numbers": (
        lambda path: of_numbers(path, 1),
        lambda f: table(f / "d.csv", [*"abcd", "price"], lambda i: i / 7),
        "target=price",
        R2,
    ),
    "csv of two inputs": (
        by_two_names,
        lambda f: table(f / "d.csv", ["size_0", "size_1", "age", "label"], lambda i: i % 3, 3),
        "",
        ACCURACY,
    ),
    "folder of npy": (of_numbers, lambda folder: arrays(folder / "arrays"), "", ACCURACY),
    "npy": (of_numbers, lambda folder: array(folder / "a.npy"), "", AGREEMENT),
    "npz": (of_numbers, lambda folder: archive(folder / "a.npz"), "", ACCURACY),
    "recordings by class": (of_waves, lambda folder: recordings(folder / "sounds"), "rate=4000", ACCURACY),
}


def run(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(cli, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [*map(str, arguments)])
    assert result.exit_code == 1, result.output
    line = result.stderr.strip().splitlines()[-1]  # lines of progress come before it
    assert line.startswith("Error: "), result.stderr
    return line


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_goes_from_the_command_line_to_a_measured_plan(kind: str, tmp_path: Path) -> None:
    network, data, preprocess, metric = KINDS[kind]
    path = network(tmp_path / "net.onnx")
    if preprocess == "PROCESSOR":
        preprocess = str(tmp_path / "processor.json")
        said = {
            "image_mean": [0.4, 0.4, 0.5],
            "image_std": [0.2, 0.2, 0.3],
            "size": {"shortest_edge": 10},
            "crop_size": 8,
        }
        Path(preprocess).write_text(json.dumps(said))
    how = ["--preprocess", preprocess] if preprocess else []
    found = run(
        *("search", path, "--data", data(tmp_path), *how, "--rule", "uniform", "--multiplies", "0.6", "--no-cache"),
        *("--out", tmp_path / "plan.json"),
    )
    assert found["score"]["metric"] == metric
    assert found["score"]["samples"] == SAMPLES
    assert found["plan"]["layers"]


# ---- what comes out --------------------------------------------------------------------------------------------------

PICTURE = Taken("x", (3, 8, 8), torch.float32, exact=True)


def test_images_are_resized_cut_and_scaled_as_torchvision_does_it(tmp_path: Path) -> None:
    raw = pixels(20)
    Image.fromarray(raw).save(tmp_path / "a.png")
    found = read(tmp_path, [PICTURE], prepared("0.4,0.5,0.6/0.2,0.3,0.4/10:8", Preparation())).inputs["x"]
    scaled = np.asarray(Image.fromarray(raw).resize((11, 10), Image.Resampling.BILINEAR))
    cut = scaled[1:9, round(1.5) : round(1.5) + 8] / 255
    wanted = (cut - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4]
    torch.testing.assert_close(found[0], torch.from_numpy(wanted).float().movedim(-1, 0))
    stretched = read(tmp_path, [PICTURE], prepared("stretch", Preparation())).inputs["x"]
    wanted = np.asarray(Image.fromarray(raw).resize((8, 8), Image.Resampling.BILINEAR)) / 255
    torch.testing.assert_close(stretched[0], torch.from_numpy(wanted).float().movedim(-1, 0))


@pytest.mark.parametrize(
    ("taken", "shape"),
    [
        (Taken("x", (8, 8, 3), torch.float32), (1, 8, 8, 3)),
        (Taken("x", (1, 8, 8), torch.float32), (1, 1, 8, 8)),
        (Taken("x", (4, 8, 6), torch.uint8), (1, 4, 8, 6)),
        (Taken("x", (8, 8, 3), torch.float16), (1, 8, 8, 3)),
    ],
)
def test_images_come_with_the_axes_channels_and_type_that_the_network_takes(
    taken: Taken, shape: tuple[int, ...], tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8), (51, 51, 51)).save(tmp_path / "a.png")
    found = read(tmp_path, [taken], Preparation()).inputs["x"]
    assert (tuple(found.shape), found.dtype) == (shape, taken.dtype)
    assert float(found.flatten()[0]) == pytest.approx(51 if taken.dtype == torch.uint8 else 0.2, abs=1e-3)


def test_classes_are_numbered_as_imagefolder_does_or_as_the_network_names_them(tmp_path: Path) -> None:
    images(tmp_path / "p", each=2)
    assert read(tmp_path / "p", [PICTURE], Preparation()).classes == CLASSES
    own = ("Cats", "dogs", "bees", "ants, emmet")
    found = read(tmp_path / "p", [PICTURE], Preparation(labels=own))
    assert found.classes == own
    assert found.targets is not None
    assert sorted(found.targets.tolist()) == [0, 0, 2, 2, 3, 3]
    (tmp_path / "names.txt").write_text("bees\ncats\nants\n")
    said = prepared(f"labels={tmp_path / 'names.txt'}", Preparation())
    assert read(tmp_path / "p", [PICTURE], said).classes == ("bees", "cats", "ants")


def test_a_leading_part_has_every_class_and_the_rest_as_it_is_in_the_whole() -> None:
    numbers = [0] * 900 + [1] * 90 + [2]
    order = fair_order(numbers)
    assert sorted(order) == list(range(991))
    assert {numbers[place] for place in order[:3]} == {0, 1, 2}
    assert sum(numbers[place] for place in order[:200]) == pytest.approx(20, abs=3)


def test_reading_stops_at_the_limit_with_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = of_images(tmp_path / "net.onnx"), images(tmp_path / "p")
    monkeypatch.setattr(limits, "MOST_BYTES", 10 * 3 * 8 * 8 * 4)
    workspace = Workspace.open(str(path), data=data)
    assert len(workspace.reference) == 10
    assert any("more evaluation samples than are read" in notice for notice in workspace.notices)
    assert set(workspace.reference.dataset.targets.tolist()) == {0, 1, 2}


def test_reading_says_how_far_it_is_and_can_be_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SAY_SECONDS", -1)
    heard: list[str] = []
    with scope(report=lambda progress: heard.append(progress.words)):
        read(images(tmp_path / "p"), [PICTURE], Preparation())
    assert f"reading images: 4 of {SAMPLES}" in heard


def test_parts_for_training_and_evaluation_are_told_by_their_names(tmp_path: Path) -> None:
    images(tmp_path / "train", each=4)
    images(tmp_path / "val", each=2)
    found = read(tmp_path, [PICTURE], Preparation())
    assert len(found.inputs["x"]) == 6
    assert found.train is not None
    assert len(found.train.inputs["x"]) == 12
    workspace = Workspace.open(str(of_images(tmp_path.parent / f"{tmp_path.name}.onnx")), data=tmp_path)
    assert workspace.train_data is not None
    assert len(workspace.train_data) == 12


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_recordings_of_every_width_and_of_two_channels(width: int, tmp_path: Path) -> None:
    wanted = RNG.uniform(-0.9, 0.9, (50, 2))
    path = recording(tmp_path / "a.wav", wanted, width)
    if width == 1:  # which alone is unsigned
        raw = bytearray(path.read_bytes())
        raw[44:] = bytes((byte + 128) % 256 for byte in raw[44:])
        path.write_bytes(raw)
    samples, rate = _sound._decoded(path)
    assert rate == 8000
    torch.testing.assert_close(
        samples.double(), torch.from_numpy(wanted.mean(1)), atol=max(1.5 / 2 ** (8 * width - 1), 1e-6), rtol=0
    )


def test_another_rate_keeps_what_is_heard() -> None:
    """A tone of 440 Hz is one at any rate; one too high for the new rate is gone."""
    at = lambda rate, tone: torch.sin(2 * torch.pi * tone * torch.arange(rate // 4) / rate)  # noqa: E731
    for rate, wanted in ((44_100, 16_000), (8_000, 16_000)):
        found = _sound.resampled(at(rate, 440), rate, wanted)
        assert len(found) == wanted // 4
        inner = slice(200, -200)
        torch.testing.assert_close(found[inner], at(wanted, 440)[inner], atol=0.02, rtol=0)
    assert _sound.resampled(at(44_100, 15_000), 44_100, 16_000)[200:-200].abs().max() < 0.05


def test_a_table_is_brought_to_the_shape_and_the_standard_of_the_network(tmp_path: Path) -> None:
    path = table(tmp_path / "d.csv", None, lambda i: i % 2)
    raw = np.genfromtxt(path, delimiter=",")[:, :4]
    found = read(path, [Taken("x", (1, 2, 2), torch.float32)], prepared("1,2,3,4/2/", Preparation()))
    wanted = torch.from_numpy((raw - [1, 2, 3, 4]) / 2).float().reshape(-1, 1, 2, 2)
    torch.testing.assert_close(found.inputs["x"], wanted)
    alone = read(path, [Taken("x", (5,), torch.float32)], Preparation())
    assert alone.targets is None  # as many columns as the network takes


def fake_tokens(texts: Any, seconds: Any) -> dict[str, torch.Tensor]:
    whole = [f"{text} {second}" for text, second in zip(texts, seconds or [""] * len(texts), strict=True)]
    rows = [torch.tensor([len(word) for word in text.split()]) for text in whole]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


TEXT = Preparation(tokens=fake_tokens, ids=lambda text: torch.tensor([len(w) for w in text.split()]), context=16)
TOKENS = [Taken("input_ids", (4,), torch.int64)]


def test_texts_go_through_the_tokenizer_alone_or_in_pairs(tmp_path: Path) -> None:
    lines = tmp_path / "d.txt"
    lines.write_text("a bb ccc\tgood\n\ndddd\tbad\n")
    found = read(lines, TOKENS, TEXT)
    assert found.classes == ("bad", "good")
    assert found.targets is not None
    by_class = dict(zip(found.targets.tolist(), found.inputs["input_ids"].tolist(), strict=True))
    assert by_class == {0: [4, 0, 0], 1: [1, 2, 3]}
    pairs = tmp_path / "d.csv"
    pairs.write_text('idx,sentence1,sentence2,label\n0,a,"bb ccc",1\n1,a,a,0\n')
    found = read(pairs, TOKENS, TEXT)
    assert sorted(found.inputs["input_ids"].tolist()) == [[1, 1, 0], [1, 2, 3]]
    held = saved(tmp_path / "s", {"text": ["a bb", "ccc"], "label": [1, 0]}, {})
    assert sorted(read(held, TOKENS, TEXT).inputs["input_ids"].tolist()) == [[1, 2], [3, 0]]


def test_a_running_text_predicts_each_next_token_and_none_across_documents(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("a bb ccc dddd eeeee\n\nffffff a\n\nbb\n")
    found = _running_text.read_text(path, TOKENS, prepared("length=2", TEXT))
    assert found.metric == "perplexity"
    assert found.inputs["input_ids"].tolist() == [[1, 2], [3, 4], [6, 1]]
    assert found.targets is not None
    assert found.targets.tolist() == [[2, 3], [4, 5], [1, -100]]
    whole = _running_text.read_text(path, TOKENS, TEXT)
    assert whole.inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]


# ---- how samples are prepared, in words ------------------------------------------------------------------------------


def test_words_say_how_samples_are_prepared(tmp_path: Path) -> None:
    made = prepared("0.5/0.25/160x240", Preparation(images=lambda images: {}))
    assert (made.mean, made.std, made.size, made.images) == ((0.5,), (0.25,), (160, 240), None)
    assert prepared("target='my label' header=no", Preparation()).target == "my label"
    assert prepared("raw", Preparation()).rescale == 1
    kept = prepared("target=y", Preparation(images=print)).images
    assert kept is print  # what is said of tables leaves images alone
    processor = tmp_path / "p.json"
    processor.write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [1] * 3, "size": {"height": 9, "width": 7}}))
    made = prepared(str(processor), Preparation())
    assert (made.size, made.stretch) == ((9, 7), True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("bla", "none of mean/std/size"),
        ("a,b/1", "mean must be numbers"),
        ("0/0", "std must be above 0"),
        ("//0", "size must be"),
        ("//8x8x8", "size must be"),
        ("rate=fast", "rate must be a number"),
        ("header=maybe", "yes or no"),
        ("labels=/nowhere", "cannot be read"),
        ("/nowhere.json", "cannot be read"),
        ("target", "none of"),
    ],
)
def test_words_that_say_nothing_are_refused(words: str, said: str) -> None:
    with pytest.raises(InvalidSettings, match=said):
        prepared(words, Preparation())


# ---- references ------------------------------------------------------------------------------------------------------


def test_a_reference_names_all_that_a_figure_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ref = with_parts("net.onnx", data="my images", preprocess="imagenet 'labels=my names.txt'", weights="w.pt#ema")
    assert address_of(ref) == Address(
        "net.onnx",
        f"{tmp_path}/w.pt#ema",
        f"{tmp_path}/my images",
        preprocess=f"imagenet 'labels={tmp_path}/my names.txt'",
    )
    assert str(address_of(ref)) == ref
    alone = "net.onnx --weights w.pt#ema --data my images --preprocess imagenet 'labels=my names.txt'"
    assert in_its_folder(ref) == alone
    words = ["net.onnx", "--data", "d.csv", "--preprocess=target=y", "--export-folder", "out"]
    assert at_start(words).model == f"net.onnx --data {STARTED_IN / 'd.csv'} --preprocess target=y"


def test_the_app_opens_a_model_again_when_its_data_change(tmp_path: Path) -> None:
    path, data = of_images(tmp_path / "net.onnx"), images(tmp_path / "p", each=2)
    ref = with_parts(str(path), data=data)
    first = models.open_model(ref, models.stamp(ref))
    assert models.open_model(ref, models.stamp(ref)) is first
    os.utime(next(data.rglob("*.png")), (1, 1))
    again = models.open_model(ref, models.stamp(ref))
    assert again is not first
    assert isinstance(first, Workspace)
    assert isinstance(again, Workspace)
    assert first.key == again.key  # the same pixels
    Image.fromarray(pixels()).save(data / "ants" / "new.png")
    more = models.open_model(ref, models.stamp(ref))
    assert isinstance(more, Workspace)
    assert len(more.reference) == 7
    assert more.key != first.key


def test_how_samples_are_prepared_makes_another_key(tmp_path: Path) -> None:
    path, data = of_images(tmp_path / "net.onnx"), images(tmp_path / "p", each=2)
    keys = {Workspace.open(str(path), data=data, preprocess=how).key for how in ("half", "imagenet", "//9:8")}
    assert len(keys) == 3


def test_data_replace_those_of_a_model_that_has_some(tmp_path: Path) -> None:
    data = table(tmp_path / "d.csv", None, lambda i: i % 3)
    workspace = Workspace.open("builtin:iris-mlp", data=data)
    assert len(workspace.reference) == SAMPLES
    assert workspace.train_data is not None  # its own: no others were given
    assert "eval_data" in workspace.opened.provides


def test_what_a_command_writes_is_never_its_data(tmp_path: Path) -> None:
    path, data = of_numbers(tmp_path / "net.onnx"), table(tmp_path / "d.csv", None, lambda i: i % 3)
    said = refused("search", path, "--data", data, "--rule", "uniform", "--multiplies", "0.5", "--out", data, "--force")
    assert "is the file of --data, which this command reads" in said


# ---- what is refused, in one line ------------------------------------------------------------------------------------


def bad_images(folder: Path) -> Path:
    images(folder, each=3)
    (folder / "ants" / "broken.png").write_bytes(b"no image")
    whole = (folder / "bees" / "1.png").read_bytes()
    (folder / "bees" / "1.png").write_bytes(whole[: len(whole) // 2])
    return folder


def bomb(folder: Path) -> Path:
    images(folder, each=1)
    whole = (folder / "ants" / "0.png").read_bytes()
    header = b"IHDR" + struct.pack(">II", 20_000, 20_000) + whole[24:29]
    (folder / "ants" / "bomb.png").write_bytes(whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:])
    return folder


def loop(folder: Path) -> Path:
    folder.mkdir()
    (folder / "a.png").symlink_to(folder / "b.png")
    (folder / "b.png").symlink_to(folder / "a.png")
    return folder


def around(folder: Path) -> Path:
    """Folders that lead to themselves are walked once."""
    images(folder, each=1)
    (folder / "ants" / "again").symlink_to(folder)
    (folder / "ants" / "broken.png").write_bytes(b"no image")
    return folder


def mixed(folder: Path) -> Path:
    images(folder, each=1)
    Image.fromarray(pixels()).save(folder / "beside.png")
    return folder


def made(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder / next(iter(files)).replace("_", ".") if len(files) == 1 else folder


def csv_of(text: str) -> Callable[[Path], Path]:
    return lambda folder: made(folder, d_csv=text)


BAD: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Path], str]] = {
    "broken images": (of_images, bad_images, r"2 of 10 images cannot be read \((broken|1)\.png"),
    "a bomb": (of_images, bomb, "1 of 4 images cannot be read .*pixels"),
    "links to themselves": (of_images, loop, "2 of 2 images cannot be read"),
    "folders in themselves": (of_images, around, "1 of 4 images cannot be read"),
    "one class": (of_images, lambda folder: images(folder, ("ants",)), "one class alone, 'ants'"),
    "an empty folder": (of_images, made, "is empty"),
    "images beside folders": (of_images, mixed, "itself and in its folders"),
    "an unknown kind": (of_images, lambda folder: made(folder, d_doc="x"), "no data of a known kind"),
    "images for numbers": (of_numbers, images, r"x \(N, 4\), which can be no image"),
    "text for numbers": (of_numbers, csv_of("a,b,c,d,y\n1,2,3,4,0\n1,2,male,4,1\n"), "row 3, column 'c': 'male' is no"),
    "an empty cell": (of_numbers, csv_of("1,2,3,4,0\n1,2,,4,1\n"), "row 2, column '2': the cell is empty"),
    "rows of two lengths": (of_numbers, csv_of("1,2,3,4,0\n1,2,3,4\n"), "row 2: it has 4 cells"),
    "too few columns": (of_numbers, csv_of("1,2,0\n1,2,1\n"), "has 2 columns of numbers"),
    "an empty table": (of_numbers, csv_of(""), "is empty"),
    "names alone": (of_numbers, csv_of("a,b,c,d,y\n"), "names of columns alone"),
    "one class in a table": (of_numbers, csv_of("1,2,3,4,1\n1,2,3,5,1\n"), "all samples are of one class, 1"),
    "no tokenizer": (of_numbers, lambda f: made(f, d_txt="good\t1\nbad\t0\n"), "no tokenizer is known"),
    "a damaged recording": (of_waves, lambda f: made(f, a_wav="RIFF", b_wav="no"), "2 of 2 recordings cannot be read"),
    "a damaged table of Arrow": (of_numbers, lambda f: made(f, d_parquet="PAR1"), "cannot be read"),
    "a damaged array": (of_numbers, lambda f: made(f, d_npy="NUMPY"), "cannot be read"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_data_are_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    network, data, said = BAD[kind]
    path = network(tmp_path / "net.onnx")
    line = refused("evaluate", path, "--data", data(tmp_path / "data"), "--no-cache")
    assert re.search(said, line), line


def test_files_that_vanish_while_they_are_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = images(tmp_path / "p", each=2)
    opened = _pictures._opened

    def vanishing(picture: Any, mode: str) -> Any:
        (folder / "cats" / "1.png").unlink(missing_ok=True)
        return opened(picture, mode)

    monkeypatch.setattr(_pictures, "_opened", vanishing)
    with pytest.raises(InvalidData, match=r"1 of 6 images cannot be read \(1\.png: it is gone"):
        read(folder, [PICTURE], Preparation())


def test_without_the_packages_of_an_extra_its_name_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = saved(tmp_path / "s", {"a": [1.0, 2.0], "label": [0, 1]}, {})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"rank-explorer\[data\]"):
        read(held, [Taken("x", (1,), torch.float32)], Preparation())


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"preprocess": "half"}, "needs --data"),
        ({"train_data": "d.csv"}, "needs --data"),
        ({"data": "d.csv", "text": "t.txt"}, "give one of them"),
        ({"text": "t.txt"}, "causal language model with its tokenizer"),
    ],
)
def test_parts_that_do_not_go_together(parts: dict[str, str], said: str, tmp_path: Path) -> None:
    with pytest.raises(LowRankError, match=said):
        Workspace.open(str(of_numbers(tmp_path / "net.onnx")), **parts)  # type: ignore[arg-type]


def test_every_reader_is_shown_here() -> None:
    assert set(READERS) == {"arrays", "audio", "images", "lines", "saved", "table"}
