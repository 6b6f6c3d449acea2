"""Spectra shared out to other processes, and previews whose bounds hold."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from conftest import dask_cluster
from safetensors.torch import save_file
from torch import Tensor

from lowrank_core.algebra.gram import operations
from lowrank_core.algebra.preview import COLUMNS, Preview, of_matrix
from lowrank_core.algebra.spectra import cumulative_energy, rank_for_energy
from lowrank_core.commands import _spectra, cli
from lowrank_core.commands._spectra import Spectrum, spectra_of
from lowrank_core.errors import InvalidModel, WorkersLost
from lowrank_core.running.parallel import HERE, Workers
from lowrank_core.sources._inventory import METHOD, Inventory
from lowrank_core.store.cache import Cache
from lowrank_core.workspace import Workspace, open_to_look

pytestmark = pytest.mark.usefixtures("one_thread")


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def falling(rows: int, columns: int, power: float) -> Tensor:
    """A matrix whose singular values fall as 1, 2, 3, ... to minus that power."""
    side = min(rows, columns)
    left, right = (torch.linalg.qr(random(length, side).double()).Q for length in (rows, columns))
    return left * torch.arange(1.0, side + 1, dtype=torch.float64) ** -power @ right.mT


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    tensors = {"a.weight": random(30, 20), "b.weight": random(900, 800), "c.weight": random(40, 8, 3, 3)}
    save_file({**tensors, "d.weight": falling(1000, 800, 1.0).float()}, path)
    return path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("distributed")
    with dask_cluster(tmp_path_factory.mktemp("dask")) as address:
        yield address


def spectra(path: Path, workers: Workers, *, preview: bool = False, cache: Cache | None = None) -> list[Spectrum]:
    stock = open_to_look(str(path), cache)
    assert isinstance(stock, Inventory)
    asks = [(layer, METHOD) for layer in stock.layers]
    return [found for _, found in sorted(spectra_of(stock, asks, workers, preview=preview), key=lambda each: each[0])]


def values(found: Spectrum) -> Tensor:
    ((_, held),) = found.axes
    return held.found if isinstance(held, Preview) else held


@pytest.mark.parametrize("kind", ["processes", "dask"])
def test_other_processes_find_the_same_bits_in_the_same_order(
    kind: str, request: pytest.FixtureRequest, file: Path, tmp_path: Path
) -> None:
    where = Workers(2) if kind == "processes" else Workers(dask=request.getfixturevalue("cluster"))
    cache = Cache(tmp_path / "cache")
    for preview in (False, True):
        here = spectra(file, HERE, preview=preview)
        there = spectra(file, where, preview=preview, cache=cache)
        assert [each.layer for each in there] == [each.layer for each in here] == ["a", "b", "c", "d"]
        assert all(torch.equal(values(one), values(other)) for one, other in zip(here, there, strict=True))
    kept = spectra(file, where, cache=cache)
    assert all(torch.equal(values(one), values(other)) for one, other in zip(kept, spectra(file, HERE), strict=True))
    assert {each.operations for each in kept} == {0.0}, "what was computed by a worker is kept on disk"


def test_operations_are_counted_by_the_formula(file: Path) -> None:
    b = spectra(file, HERE)[1]
    assert b.operations == pytest.approx(operations(900, 800)) == pytest.approx(900 * 800**2 + 4 / 3 * 800**3)


def test_a_worker_that_opens_other_weights_says_so(file: Path) -> None:
    with pytest.raises(InvalidModel, match="opened in a worker has other weights, seen at layer 'a'"):
        _spectra._elsewhere(_spectra._Ask("this call", str(file), "another mark", None, "a", METHOD, False))


def test_a_matrix_that_cannot_be_taken_apart_is_named_by_a_worker(tmp_path: Path) -> None:
    save_file({"good.weight": random(4, 4), "bad.weight": torch.full((4, 4), float("nan"))}, tmp_path / "w.safetensors")
    done = CliRunner().invoke(cli, ["spectra", str(tmp_path / "w.safetensors"), "--workers", "2", "--no-cache"])
    assert done.exit_code == 1
    assert "layer 'bad': a weight holds NaN" in done.stderr


def test_what_dead_workers_left_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(function: object, asks: list[_spectra._Ask], workers: Workers) -> Iterator[tuple[int, Spectrum]]:
        yield 0, _spectra._elsewhere(asks[0])
        raise WorkersLost("worker processes died 3 times.")

    monkeypatch.setattr(_spectra, "map_elsewhere", dies)
    with pytest.raises(WorkersLost, match=r"died 3 times\. Left over: b, c, a\.$"):  # d, the largest, was first
        spectra(file, Workers(2))


def test_a_model_is_shared_out_as_weights_are() -> None:
    runs = [
        CliRunner().invoke(cli, ["spectra", "builtin:iris-mlp", "--json", "--no-cache", *more])
        for more in ([], ["--workers", "2"])
    ]
    one, two = (json.loads(run.stdout)["layers"] for run in runs)
    assert one == two
    assert "GFLOP/s" in runs[1].stderr


# ---- previews ----


MATRICES = {
    "falling": falling(900, 800, 1.0),
    "steep": falling(800, 1000, 3.0),
    "flat": random(850, 800).double(),
    "of low rank": random(900, 5).double() @ random(5, 800).double(),
    "huge": 1e25 * falling(900, 800, 1.0).float(),
    "tiny": 1e-25 * falling(900, 800, 1.0).float(),
    "zeros": torch.zeros(900, 800),
}


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_the_exact_energies_and_ranks_lie_within_the_bounds(matrix: Tensor) -> None:
    seen, sigma = of_matrix(matrix), torch.linalg.svdvals(matrix.double())
    assert (seen.found <= sigma[: len(seen.found)] * (1 + 1e-9) + 1e-12 * sigma[0]).all()
    assert seen.energy == pytest.approx(float(sigma.square().sum()), rel=1e-9, abs=1e-300)
    for rank, share in enumerate(cumulative_energy(sigma).tolist(), 1):
        least, most = seen.share(rank)
        assert least <= share + 1e-12
        assert share <= most + 1e-12
    for keep in (0.3, 0.9, 0.99):
        least_rank, most_rank = seen.rank_for_energy(keep)
        assert least_rank <= rank_for_energy(sigma, keep) <= most_rank
    again = of_matrix(matrix)
    assert torch.equal(seen.found, again.found)
    assert seen.energy == again.energy


def test_of_a_spectrum_that_falls_the_leading_values_are_right() -> None:
    matrix = MATRICES["steep"]
    seen = of_matrix(matrix)
    assert len(seen.found) == COLUMNS
    assert torch.allclose(seen.found[:20], torch.arange(1.0, 21, dtype=torch.float64) ** -3, rtol=1e-9)
    assert seen.rank_for_energy(0.99) == (1, 1) or seen.share(1)[0] < 0.99


def test_bounds_hold_on_real_matrices_and_not_a_number_is_refused() -> None:
    workspace = Workspace.open("builtin:text-lm")
    layer = max(workspace.profile.layers, key=lambda layer: layer.spec.parameters)
    nested = workspace.factors(layer.name, "svd").nested  # type: ignore[attr-defined]
    seen, exact = of_matrix(nested.matrices()[0].detach()), cumulative_energy(nested.spectrum)
    assert all(
        seen.share(r)[0] <= float(exact[r - 1]) + 1e-9 <= seen.share(r)[1] + 2e-9 for r in range(1, seen.side + 1)
    )
    with pytest.raises(InvalidModel, match="NaN or Inf"):
        of_matrix(torch.full((900, 800), torch.nan))


def test_the_command_says_bounds(file: Path) -> None:
    told = CliRunner().invoke(cli, ["spectra", str(file), "--preview", "--no-cache", "--json"])
    b = json.loads(told.stdout)["layers"][1]["previews"][0]
    assert (b["ranks"], len(b["singular_values_at_least"])) == (800, COLUMNS)
    assert b["energy_not_found"] == pytest.approx(b["energy"] - sum(v * v for v in b["singular_values_at_least"]))
    shown = CliRunner().invoke(cli, ["spectra", str(file), "--preview", "--no-cache"]).stdout
    assert "lie within these bounds for certain" in shown
    assert " to " in next(line for line in shown.splitlines() if line.startswith("b "))
