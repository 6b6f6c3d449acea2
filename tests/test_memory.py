"""Memory of one inference: live storages as PyTorch itself frees them, and closed forms."""

import weakref
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lowrank_core.graphs.exporting import exported_program
from lowrank_core.graphs.memory import EXPORTED, RAN, exported_trace, flash_bytes, memory, peak, run_trace, trace
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.methods import METHODS
from lowrank_core.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_thread")


class Live(TorchDispatchMode):
    """After each operation: the bytes of all storages that operations have made and nothing has freed yet.

    It knows nothing of graphs or last uses: what lives is what PyTorch holds. The input, which the caller keeps, counts
    up to the operation `input_until`.
    """

    def __init__(self, model: nn.Module, given: torch.Tensor, input_until: int | None = None) -> None:
        super().__init__()
        self.weights = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        self.given, self.input_until = given.untyped_storage()._cdata, input_until
        self.input_bytes = given.untyped_storage().nbytes()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes: list[int] = []
        self.last_read = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        read = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        if self.given in read:
            self.last_read = len(self.bytes)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.weights | {self.given} | set(self.made):
                    self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        live = sum(size for ref, size in self.made.values() if not ref.expired())
        kept = self.input_until is None or len(self.bytes) <= self.input_until
        self.bytes.append(live + (self.input_bytes if kept else 0))
        return result


def live_peak(model: nn.Module, given: torch.Tensor) -> int:
    until = None
    for _ in range(2):
        with torch.no_grad(), Live(model, given, until) as live:
            model(given)
        until = live.last_read
    return max(live.bytes)


class Block(nn.Module):
    def __init__(self, wide: int, out: int) -> None:
        super().__init__()
        stride = 1 if wide == out else 2
        self.a, self.an = nn.Conv2d(wide, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.b, self.bn = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.skip = nn.Conv2d(wide, out, 1, stride) if wide != out else None


class Residual(nn.Module):
    """Names are given up as soon as they are not needed: a frame that holds one would keep its storage alive."""

    def __init__(self, widths: tuple[int, ...], inplace: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, 1, 1)
        self.blocks = nn.ModuleList([Block(a, b) for a, b in pairwise(widths)])
        self.relu, self.inplace = nn.ReLU(inplace), inplace
        self.fc = nn.Linear(widths[-1], 10)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            y = block.bn(block.b(self.relu(block.an(block.a(x)))))
            x = x if block.skip is None else block.skip(x)
            if self.inplace:
                y += x
            else:
                y = y + x
            del x
            x = self.relu(y)
            del y
        return self.fc(x.mean((2, 3)).flatten(1))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("widths", [(8, 8, 16), (4, 32, 32, 64), (16, 16, 16)], ids=str)
@pytest.mark.parametrize("way", [exported_trace, run_trace])
def test_the_peak_is_what_pytorch_holds_on_a_residual_network(widths, inplace: bool, way) -> None:
    model, given = Residual(widths, inplace).eval(), torch.zeros(2, 3, 16, 12)
    assert peak(way(model, given)).bytes == live_peak(model, given)


def test_the_peak_names_the_layer_in_which_it_occurs() -> None:
    found = memory(Residual((8, 8, 16), True).eval(), torch.zeros(1, 3, 16, 16))
    assert found.how == EXPORTED
    assert found.peak.node == "blocks.0.an: batch_norm"


@pytest.mark.parametrize(("first", "bytes_"), [(32, 98_304), (64, 131_072)])
@pytest.mark.parametrize("itemsize", [1, 2, 4])
def test_a_wide_first_factor_before_a_stride_needs_a_third_more(first: int, bytes_: int, itemsize: int) -> None:
    spec = LayerSpec(64, 128, (3, 3), (2, 2), (1, 1), (1, 1))
    given = torch.zeros(1, 64, 32, 32)
    assert peak(trace(spec.build(), given), itemsize=itemsize).bytes == 98_304 * itemsize
    chain = nn.Sequential(*(stage.build() for stage in METHODS["tucker2"].stages(spec, (64, first))))
    assert peak(trace(chain, given), itemsize=itemsize).bytes == bytes_ * itemsize


def test_bytes_moved_are_weights_once_and_activations_as_they_are_used() -> None:
    fc = nn.Linear(10, 4)
    model = nn.Sequential(fc, nn.ReLU(), nn.Linear(4, 4), nn.Flatten())
    found = memory(model, torch.zeros(3, 10))
    assert found.weight_bytes_read == 4 * (44 + 20)
    assert found.activation_bytes_moved == 4 * 3 * (10 + 4 + 4 + 4 + 4 + 4)  # the view at the end moves nothing
    assert found.intensity(3 * (40 + 16)) == pytest.approx(168 / found.moved_bytes)
    assert memory(model, torch.zeros(3, 10), itemsize=1).moved_bytes * 4 == found.moved_bytes


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6, bias=False)
        self.b = nn.Linear(6, 6, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


def test_tied_weights_are_stored_and_read_once() -> None:
    assert flash_bytes(Twice()) == 4 * 36
    assert flash_bytes(Twice(), itemsize=1) == 36
    assert memory(Twice(), torch.zeros(1, 6)).weight_bytes_read == 4 * 36


def test_integers_keep_their_size() -> None:
    table = nn.Embedding(5, 4)
    tokens = torch.zeros(1, 3).long()
    assert memory(table, tokens).peak.bytes == 3 * 8 + 3 * 4 * 4
    assert memory(table, tokens, itemsize=1).peak.bytes == 3 * 8 + 3 * 4


class Choosing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x):
        return self.fc(x) if float(x.sum()) >= 0 else x


def test_a_network_that_cannot_be_exported_is_run_and_says_so() -> None:
    found = memory(Choosing(), torch.zeros(1, 6))
    assert found.how == RAN
    assert found.peak.bytes >= 2 * 6 * 4


class Looking(nn.Module):
    """Notes, while it is traced, what somebody else would find in the network itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.look = [lambda: None]

    def forward(self, x):
        self.look[0]()
        return self.fc(x)


@pytest.mark.parametrize("export", [exported_trace, exported_program])
def test_others_may_run_a_network_while_it_is_exported(export) -> None:
    network, found = Looking(), []
    original = weakref.ref(network)
    network.look[0] = lambda: found.append(type(original().fc.weight))
    export(network, torch.zeros(2, 6))
    assert set(found) == {nn.Parameter}


@pytest.mark.parametrize("name", ["digits-cnn", "digits-lstm", "fft-mlp", "iris-mlp"])
def test_built_in_networks_have_one_answer_either_way(name: str) -> None:
    workspace = Workspace.open(f"builtin:{name}")
    found = [peak(way(workspace.model, workspace.opened.example_inputs)).bytes for way in (exported_trace, run_trace)]
    assert found[0] == found[1]
