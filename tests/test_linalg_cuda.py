"""Large matrices on a CUDA device, where there is one: the same answers; and without room there, the CPU's."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lowrank_core.algebra import linalg
from lowrank_core.algebra.linalg import WORTH_MOVING, factorize_matrices, singular_values
from lowrank_core.sources import _inventory as inventory
from lowrank_core.sources import open_any
from lowrank_core.sources._inventory import take_stock
from lowrank_core.sources._weights import Weights

SHAPES = [(1, WORTH_MOVING, WORTH_MOVING), (1, 2 * WORTH_MOVING, WORTH_MOVING), (2, WORTH_MOVING, WORTH_MOVING + 7)]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """A device without room; what was to be moved there."""
    asked: list[tuple[int, ...]] = []

    def move(matrices: Tensor) -> Tensor:
        asked.append(tuple(matrices.shape))
        raise torch.cuda.OutOfMemoryError("no room")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Tensor, "cuda", move)
    return asked


def planted(shape: tuple[int, int, int]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def on_the_cpu(work: Callable[[], Tensor], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    with monkeypatch.context() as patch:
        patch.setattr(linalg, "WORTH_MOVING", 10**9)
        return work()


def test_without_room_on_the_device_the_cpu_answers(
    full: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    large = planted(SHAPES[0])
    expected = on_the_cpu(lambda: singular_values(large), monkeypatch)
    assert torch.equal(singular_values(large), expected)
    assert full == [SHAPES[0]]


def test_a_stored_tensor_without_room_on_the_device_is_worked_on_by_the_cpu(
    full: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "large.safetensors"
    save_file({"layer.weight": planted(SHAPES[0])[0]}, file)
    weights = open_any(str(file))
    assert isinstance(weights, Weights)
    expected = on_the_cpu(lambda: take_stock(weights).spectrum("layer"), monkeypatch)

    def no_room(side: int, **_: object) -> None:
        full.append((side, side))
        raise torch.cuda.OutOfMemoryError("no room")

    monkeypatch.setattr(inventory, "DeviceGram", no_room)
    assert torch.equal(take_stock(weights).spectrum("layer"), expected)
    assert full == [(WORTH_MOVING, WORTH_MOVING)]


def test_small_matrices_stay_where_they_are(full: list[tuple[int, ...]]) -> None:
    small = planted((1, WORTH_MOVING - 1, WORTH_MOVING + 1))
    assert singular_values(small).shape == (1, WORTH_MOVING - 1)
    assert not full


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_device_gives_the_same_factors(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = planted(shape)
    expected = on_the_cpu(lambda: singular_values(matrices), monkeypatch)
    found = factorize_matrices(matrices)
    largest = float(expected.max())
    assert found.singular_values.device.type == found.left.device.type == "cpu"
    assert torch.allclose(found.singular_values, expected, rtol=0, atol=1e-7 * largest)
    assert torch.allclose(found.left @ found.right, matrices, rtol=0, atol=1e-5 * largest)
