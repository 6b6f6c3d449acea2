"""Numbers that describe a spectrum, on spectra whose answer is known."""

import pytest
import torch

from lowrank_core.algebra.linalg import factorize_matrices, tail_energy
from lowrank_core.algebra.spectra import cumulative_energy, effective_rank, rank_for_energy, stable_rank


def spectrum(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("sigma", "effective", "stable"),
    [
        (spectrum(1, 1, 1, 1), 4, 4),
        (spectrum(5), 1, 1),
        (spectrum(5, 0, 0), 1, 1),
        (spectrum(2, 2, 0), 2, 2),
        (spectrum(3, 1), 4 / 3**0.75, 10 / 9),  # exp(-(3/4 ln 3/4 + 1/4 ln 1/4)) = 4 / 3^(3/4)
        (spectrum(0, 0), 0, 0),
        (spectrum(), 0, 0),
    ],
    ids=str,
)
def test_effective_and_stable_rank(sigma, effective, stable):
    assert effective_rank(sigma) == pytest.approx(effective, rel=1e-12)
    assert stable_rank(sigma) == pytest.approx(stable, rel=1e-12)
    assert effective_rank(sigma * 1e-6) == pytest.approx(effective, rel=1e-12)


@pytest.mark.parametrize(
    ("keep", "rank"), [(0.01, 1), (9 / 14, 1), (0.65, 2), (13 / 14, 2), (0.93, 3), (1.0, 3)], ids=str
)
def test_rank_for_energy(keep, rank):
    assert rank_for_energy(spectrum(3, 2, 1, 0), keep) == rank


@pytest.mark.parametrize("keep", [0, -0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1_is_refused(keep):
    with pytest.raises(ValueError, match=f"keep must be in .*keep={keep}"):
        rank_for_energy(spectrum(1), keep)


def test_cumulative_energy_ends_at_one():
    assert cumulative_energy(spectrum(2, 1, 0)).tolist() == [0.8, 1, 1]
    assert cumulative_energy(spectrum(0, 0)).tolist() == [1, 1]


def test_tails_are_summed_from_the_small_end():
    """From the large end, 1e-24 would be lost beside 1."""
    assert tail_energy(spectrum(1, 1e-12, 1e-13)).tolist() == pytest.approx([1, 1.01e-24, 1e-26, 0], rel=1e-12, abs=0)


@pytest.mark.parametrize("shape", [(40, 25), (25, 40), (30, 30)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_small_singular_values_are_right(shape, dtype):
    """Singular values over eight decades; the Gram matrix squares them, the projection gives them back."""
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0][:, : min(shape)] for n in shape
    )
    sigma = torch.logspace(0, -8, min(shape), dtype=torch.float64)
    nested = factorize_matrices((left @ sigma.diag() @ right.mT).to(dtype)[None])
    torch.testing.assert_close(nested.spectrum, sigma, rtol=1e-6 if dtype == torch.float64 else 0, atol=1e-7)


def test_both_factors_have_the_same_scale():
    nested = factorize_matrices(torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    root = nested.singular_values.sqrt()
    torch.testing.assert_close(nested.left.norm(dim=1), root, rtol=1e-9, atol=0)
    torch.testing.assert_close(nested.right.norm(dim=2), root, rtol=1e-9, atol=0)
