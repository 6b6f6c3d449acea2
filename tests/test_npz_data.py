"""Data in a .npz: read by name, without pickle, and never more than the file holds."""

import io
import zipfile

import numpy as np
import pytest
import torch

from lowrank_core.errors import InvalidData
from lowrank_core.sources._npz_data import read_npz

IMAGES, LABELS = np.arange(24, dtype=np.float32).reshape(4, 6), np.array([0, 1, 2, 1])


def saved(path, **arrays):
    np.savez(path / "m.npz", **arrays)
    return path / "m.npz"


def test_inputs_and_targets_for_evaluation_and_training(tmp_path):
    path = saved(
        tmp_path, inputs=IMAGES, targets=LABELS, train_inputs=IMAGES[:2], train_targets=LABELS[:2], metric="f1"
    )
    found = read_npz(path, ["x"])
    assert torch.equal(found.eval.inputs, torch.from_numpy(IMAGES))
    assert found.eval.targets.tolist() == LABELS.tolist()
    assert (len(found.train), found.metric) == (2, "f1")


def test_several_inputs_go_by_their_names_in_the_networks_order(tmp_path):
    path = saved(tmp_path, b=IMAGES, a=LABELS)
    found = read_npz(path, ["a", "b"])
    assert [tuple(t.shape) for t in found.eval.inputs] == [(4,), (4, 6)]
    assert (found.eval.targets, found.train, found.metric) == (None, None, None)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"targets": LABELS}, "holds targets, but no inputs"),
        ({"inputs": IMAGES, "labels": LABELS}, "it has labels besides"),
        ({"inputs": IMAGES, "targets": LABELS[:3]}, "4 inputs and 3 targets"),
        ({"inputs": np.array(["a", "b"])}, "must be an array of whole numbers or of floats"),
        ({"inputs": np.float32(1)}, "must be an array of whole numbers or of floats"),
        ({"inputs": np.array([{}, {}])}, "holds Python objects, which could run code"),
        ({"metric": "f1"}, "it has no inputs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_named(arrays, told, tmp_path):
    with pytest.raises(InvalidData, match=told):
        read_npz(saved(tmp_path, **arrays), ["x"])


def test_an_input_that_is_missing_is_named(tmp_path):
    with pytest.raises(InvalidData, match="lacks b; the network takes a, b"):
        read_npz(saved(tmp_path, a=IMAGES), ["a", "b"])


def test_headers_that_lie_are_refused(tmp_path):
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("inputs.npy", content.getvalue() + bytes(16))
    with pytest.raises(InvalidData, match=r"claims the shape \(1000000000000,\) of float32, but holds 16 bytes"):
        read_npz(tmp_path / "m.npz", ["x"])


def test_an_archive_that_swells_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "m.npz", inputs=np.zeros((4, 2_000_000), np.float32))
    with pytest.raises(InvalidData, match="would be 32,000,128 bytes in memory"):
        read_npz(tmp_path / "m.npz", ["x"])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"words"])
def test_what_is_no_archive_is_refused(content, tmp_path):
    (tmp_path / "m.npz").write_bytes(content)
    with pytest.raises(InvalidData, match="cannot be read"):
        read_npz(tmp_path / "m.npz", ["x"])
