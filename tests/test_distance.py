"""How far two outputs are apart: one measure for the check on opening and for every export."""

import pytest
import torch

from lowrank_core.layers.data import distance

INF, NAN = torch.inf, torch.nan


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([1.0, -4.0], [1.0, -3.0], (1.0, 0.25)),
        ([0.0, 0.0], [0.0, 0.5], (0.5, 0.5)),
        ([], [], (0.0, 0.0)),
        ([-INF, 2.0, NAN], [-INF, 1.0, NAN], (1.0, 0.5)),
        ([-INF], [-INF], (0.0, 0.0)),
        ([-INF, 2.0], [INF, 2.0], (INF, INF)),
        ([NAN, 2.0], [INF, 2.0], (INF, INF)),
        ([NAN, 2.0], [1.0, 2.0], (INF, INF)),
        ([1.0], [1.0, 1.0], (INF, INF)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.complex64])
def test_distances(ours: list[float], theirs: list[float], expected: tuple[float, float], dtype: torch.dtype) -> None:
    assert distance(torch.tensor(ours, dtype=dtype), torch.tensor(theirs, dtype=dtype)) == expected
