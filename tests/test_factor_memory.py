"""What is kept of factorisations counts in the room: tensors that are alive never take more than its limit."""

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from lowrank_core.compression.calibration import MomentStore, input_moments
from lowrank_core.compression.factors import FactorStore
from lowrank_core.layers.data import Dataset
from lowrank_core.methods import METHODS
from lowrank_core.networks.discover import discover
from lowrank_core.networks.profile import ModelProfile
from lowrank_core.store.room import Room

pytestmark = pytest.mark.usefixtures("one_thread")

LIMIT_BYTES = 300_000
SLOW = ("cp3_parafac", "tucker2_hooi")


class Kinds(nn.Module):
    """Kernels of 37 kB and more of every kind whose factors hold a copy: permuted, rearranged, computed, stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(300, 32)
        self.gates = nn.LSTM(32, 32, batch_first=True)
        self.plain = nn.Conv2d(1, 32, 3, padding=1)
        self.wide = nn.Conv2d(32, 32, 3, padding=1)
        self.normed = weight_norm(nn.Conv2d(32, 32, 3, padding=1))
        self.up = nn.ConvTranspose2d(32, 32, 3, padding=1)
        self.grouped = nn.ConvTranspose2d(32, 64, 3, padding=1, groups=2)

    def forward(self, ids: Tensor) -> Tensor:
        out, _ = self.gates(self.table(ids))
        x = self.wide(self.plain(out[:, None, :8, :8]))
        return self.grouped(self.up(self.normed(x)))


def alive() -> dict[int, int]:
    """{address: bytes} of the memory of all tensors that somebody holds, but of those that are frozen."""
    gc.collect()
    held = [each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter) and not each.is_meta]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, ModelProfile, Dataset]:
    torch.manual_seed(0)
    model, ids = Kinds().eval(), torch.randint(300, (4, 8))
    with torch.no_grad():
        model(ids)
    return model, discover(model, (ids[:1],)), Dataset(ids)


@pytest.fixture
def unfrozen() -> Iterator[ExitStack]:
    with ExitStack() as at_the_end:
        yield at_the_end


@pytest.mark.parametrize("data_aware", [False, True])
def test_what_is_alive_never_takes_more_than_the_room(
    network: tuple[nn.Module, ModelProfile, Dataset], data_aware: bool, unfrozen: ExitStack
) -> None:
    model, profile, data = network
    room = Room(LIMIT_BYTES)
    moments = MomentStore(model, profile, lambda: data, limit_bytes=10**6, room=room)
    factors = FactorStore(model, profile, lambda name: moments(name).second, room=room)
    input_moments(model, profile.layers, data)  # which positions it draws is kept for all networks together
    before, tried = alive(), set()
    unfrozen.callback(gc.unfreeze)
    gc.freeze()  # other tests may have left millions of objects in this process
    for layer in profile.layers:
        for method in layer.methods:
            if method.data_aware == data_aware and not method.reference:
                tried.add(method.name)
                for rank in (2, 3):
                    top = method.max_rank(layer.spec)
                    factors(layer.name, method.name).weights(tuple(min(rank, most) for most in top))
                    factors(layer.name, method.name).error(top)
                kept = sum(size for at, size in alive().items() if at not in before)
                assert kept <= room.bytes <= LIMIT_BYTES, f"{layer.name} by {method.name}"
    expected = {m.name for m in METHODS.values() if m.data_aware == data_aware and not m.reference}
    assert tried == expected


@pytest.mark.parametrize("name", ["tucker2", "cp3", "svd", "spatial_svd_aware", "svd_aware"])
def test_what_had_to_go_is_the_same_when_it_is_made_again(
    network: tuple[nn.Module, ModelProfile, Dataset], name: str
) -> None:
    model, profile, data = network

    def moments(room: Room) -> Callable[[str], Tensor]:
        store = MomentStore(model, profile, lambda: data, room=room)
        return lambda at: store(at).second

    none, enough = Room(0), Room()
    tight, wide = (FactorStore(model, profile, moments(room), room=room) for room in (none, enough))
    rank = tuple(2 for _ in METHODS[name].axes)
    for layer in ("wide", "normed"):
        for _ in range(2):
            ours, theirs = (store(layer, name).weights(rank) for store in (tight, wide))
            assert all(map(torch.equal, ours, theirs))
    assert none.bytes == 0 < enough.bytes
