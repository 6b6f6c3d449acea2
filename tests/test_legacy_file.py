"""Files of torch.save before PyTorch 1.6: the same tensors, and nothing that is claimed without being there."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import nn

from lowrank_core.errors import InvalidFile
from lowrank_core.store.trained import alone, read_sets


def saved(content: object, path: Path) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=False)
    assert path.read_bytes()[:2] == b"\x80\x02"
    return path


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    return alone(read_sets(path))


def network() -> dict[str, torch.Tensor]:
    """Every type that a state_dict has, tied tensors, an empty one, one of a single number, one turned around."""
    torch.manual_seed(0)
    state = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)).state_dict()
    state["tied"] = state["2.weight"]
    state["half"], state["wide"] = torch.randn(3, 4).half(), torch.randn(2, 3).to(torch.bfloat16)
    state["turned"], state["none"], state["one"] = torch.randn(4, 6).T, torch.zeros(0, 3), torch.tensor(7)
    return dict(state)


def test_the_tensors_are_those_that_were_saved(tmp_path):
    state = network()
    read, said = read_checkpoint(saved(state, tmp_path / "old.pt"))
    assert not said
    assert read.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(read[name], value), name
        assert read[name].dtype == value.dtype


def test_a_training_checkpoint_is_opened_by_its_usual_key(tmp_path):
    path = saved({"step": 9, "model_state": network(), "optimizer": {"lr": 0.1}}, tmp_path / "old.pt")
    read, said = read_checkpoint(path)
    assert read.keys() == network().keys()
    assert "'model_state'" in said[0]


def test_every_cut_and_every_claim_is_held_against_the_bytes(tmp_path):
    whole = saved(network(), tmp_path / "old.pt").read_bytes()
    path = tmp_path / "cut.pt"
    for length in range(2, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(InvalidFile) as refused:
            read_checkpoint(path)
        assert "\n" not in str(refused.value)
    elements = torch.tensor([8 * 3 * 3 * 3]).numpy().tobytes()
    at = whole.rindex(elements)
    path.write_bytes(whole[:at] + torch.tensor([10**15]).numpy().tobytes() + whole[at + 8 :])
    with pytest.raises(InvalidFile, match="claims a storage of 216 elements that it does not hold"):
        read_checkpoint(path)


def test_a_network_saved_whole_gives_its_weights(tmp_path):
    whole = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    read, said = read_checkpoint(saved(whole, tmp_path / "old.pt"))
    assert read.keys() == whole.state_dict().keys()
    assert all(torch.equal(read[name], value) for name, value in whole.state_dict().items())
    assert "torch.nn.modules.container.Sequential" in said[0]


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}], ids=["list", "numbers"])
def test_what_is_no_state_dict_is_refused(content, tmp_path):
    with pytest.raises(InvalidFile, match=r"state_dict|more than tensors"):
        read_checkpoint(saved(content, tmp_path / "old.pt"))


def test_a_claim_of_more_than_the_file_takes_no_memory(tmp_path):
    """The pickle says a terabyte: refused before anything is made of it."""
    content = io.BytesIO()
    torch.save({"w": torch.zeros(70_000)}, content, _use_new_zipfile_serialization=False)
    whole = content.getvalue()
    small = b"J" + (70_000).to_bytes(4, "little")  # BININT
    assert whole.count(small) >= 1
    path = tmp_path / "old.pt"
    path.write_bytes(whole.replace(small, b"J" + (2**31 - 1).to_bytes(4, "little")))
    with pytest.raises(InvalidFile, match="does not hold"):
        read_checkpoint(path)
