"""A model is opened again when a file has changed that it read, and for no other; its figures are then new."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import truth
from lowrank_core.measure.staircases import Rung, Staircase, StairFile, setting_of
from lowrank_core.predict.survey import Learnt
from lowrank_core.store.cache import Cache
from pages.ui import board_values
from pages.ui.files_read import FilesRead, listening
from pages.ui.state import comparisons, measurements, models

MODEL = """
from pathlib import Path
import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

HERE = Path(__file__).parent

def build_model():
    model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 6))
    model.load_state_dict(load_file(HERE / "weights.safetensors"))
    return model.eval()

def example_inputs():
    return (torch.randn(1, 24),)  # others whenever it is opened

def eval_data():
    return torch.from_numpy(np.load(HERE / "data" / "inputs.npy"))

def train_data():
    return torch.load(HERE / "train.pt")
"""


def opened(path: Path):
    return models.open_model(str(path), models.stamp(str(path)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    import numpy as np

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(24, 32), torch.nn.ReLU(), torch.nn.Linear(32, 6))
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "inputs.npy", torch.randn(40, 24).numpy())
    torch.save(torch.randn(50, 24), tmp_path / "train.pt")
    (tmp_path / "model.py").write_text(MODEL)
    return tmp_path / "model.py"


def touched(file: Path) -> None:
    about = file.stat()
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns + 10**6))


@pytest.mark.parametrize("file", ["model.py", "weights.safetensors", "data/inputs.npy", "train.pt"])
def test_a_file_that_was_read_opens_the_model_again(path, file):
    first = opened(path)
    assert opened(path) is first
    touched(path.parent / file)
    again = opened(path)
    assert again is not first
    assert models.key(again) == models.key(first), "what did not change keeps its figures"
    assert opened(path) is again


def test_an_edited_neighbour_opens_the_model_again_under_another_key(tmp_path):
    path = truth.written(tmp_path / "model")
    first = opened(path)
    truth.INPUTS["`forward` in a neighbour"](path.parent)
    again = opened(path)
    assert again.profile.fingerprint == first.profile.fingerprint
    assert models.key(again) != models.key(first)


def test_what_only_lies_beside_a_model_file_does_not_count(path):
    first = opened(path)
    for name in ("plan.json", "compressed.safetensors", "notes.py", "data/more.npy"):
        (path.parent / name).write_bytes(b"{}")
    assert opened(path) is first
    (path.parent / "plan.json").unlink()
    assert opened(path) is first


def test_a_folder_of_many_files_is_not_looked_through(path, monkeypatch):
    seen: list[str] = []

    class Entries:
        def __init__(self, folder):
            self.number = 0

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def __iter__(self):
            return self

        def __next__(self):
            self.number += 1
            seen.append("")
            return type("Entry", (), {"name": f"{self.number}.png"})

    monkeypatch.setattr("pages.ui.files_read.os.scandir", Entries)
    first = opened(path)
    assert len(seen) <= 1_001
    before = len(seen)
    assert opened(path) is first
    assert len(seen) == before, "a page that is drawn again looks at the files that were read alone"


def test_files_that_are_written_and_those_of_python_are_not_heard(tmp_path):
    files, mine = FilesRead(), tmp_path / "mine.txt"
    with listening(files):
        (tmp_path / "log.txt").write_text("new")
        mine.write_text("1")
        mine.read_text()
        (Path(os.__file__)).read_text()
    (tmp_path / "log.txt").read_text()  # not any more
    assert list(files) == [mine]
    assert not files.changed
    mine.unlink()
    assert files.changed


def test_a_model_file_that_failed_is_opened_once_it_is_mended(path):
    path.write_text("1 / 0")
    with pytest.raises(Exception, match="ZeroDivisionError"):
        opened(path)
    path.write_text(MODEL)
    assert opened(path).name == "model"


def test_after_an_edit_of_the_data_prediction_survey_and_board_are_new(tmp_path):
    path = truth.written(tmp_path / "model")
    first = opened(path)
    before = models.noise(first), board_values.constants(first, models.dense_score(first)[0], models.noise(first))
    edited = path.read_text().replace('SAVED["labels"]', '(SAVED["labels"] + 1) % 6')
    path.write_text(edited)
    again = opened(path)
    table, constants = (
        models.noise(again),
        board_values.constants(again, models.dense_score(again)[0], models.noise(again)),
    )
    assert before[0].score != table.score
    assert before[1]["metric"]["dense"] != constants["metric"]["dense"]
    assert constants["key"] != before[1]["key"]
    assert constants["prediction"]["table"]["score"] == table.score
    assert models.noise(first) is before[0]
    jobs = [measurements._survey(one, models.key(one), False, False) for one in (first, again, first)]
    assert jobs[0] is jobs[2] is not jobs[1]
    found = [Learnt.of(job.wait()) for job in jobs[:2]]
    assert [one.score for one in found[0].uniform] != [one.score for one in found[1].uniform]


def test_staircases_that_are_measured_next_are_shown_too(tmp_path, monkeypatch):
    """They are added to a file that is there already."""
    monkeypatch.setattr(models, "cache", lambda: Cache(tmp_path / "cache"))
    workspace = opened(truth.written(tmp_path / "model"))
    layer = workspace.profile.layer("second")
    file = StairFile(models.cache().points, layer, setting_of(workspace))
    assert comparisons.stairs(workspace, "onnxruntime") == ()
    for microseconds in (1.0, 2.0):
        file.save(Staircase(layer.name, "svd", microseconds, (Rung((1,), 0.5, 0.0),)))
        assert {stairs.dense_us for stairs in comparisons.stairs(workspace, "onnxruntime")} == {microseconds}
