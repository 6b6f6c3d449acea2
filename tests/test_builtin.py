"""The networks that ship with the app: honest scores, honest splits, reproducible training."""

import math
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from pydoc_data.topics import topics
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.builtin.splits import tables
from benchmarks.builtin.train import RECIPES, score, shift_images, train
from lowrank_core.builtin import BUILTIN, POINTS, text_lm
from lowrank_core.builtin.samples import TABLES
from lowrank_core.builtin.stored import stored_metadata, weights_path
from lowrank_core.predict.sensitivity import PointFile, asked
from lowrank_core.scoring.metrics import METRICS
from lowrank_core.workspace import Workspace

CLASSIFIERS = [name for name in BUILTIN if name != "text-lm"]
SAME_TEXT = sys.version_info[:2] == (3, 11)
"""Whether this Python has the text that text-lm was trained on; others differ a little."""


@pytest.fixture(params=BUILTIN)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def builtin(name: str) -> ModuleType:
    return import_module(BUILTIN[name])


def rows(inputs: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in inputs}


def test_default_comes_first_and_each_has_a_recipe():
    assert next(iter(BUILTIN)) == "digits-cnn"
    assert set(RECIPES) == set(BUILTIN)


def test_model_is_ready_to_use(builtin):
    model = builtin.build_model()
    assert not any(module.training for module in model.modules())
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.isfinite().all()
    with torch.inference_mode():
        outputs = model(*builtin.example_inputs())
    targets = builtin.eval_data()[1]
    classes = len(text_lm.vocabulary()) if builtin is text_lm else int(targets.max()) + 1
    assert outputs.shape == (1, *targets.shape[1:], classes)
    assert outputs.isfinite().all()
    assert builtin.DESCRIPTION.endswith(".")


def test_score_is_the_one_that_was_recorded(name, builtin):
    metadata = stored_metadata(weights_path(BUILTIN[name]))
    model = builtin.build_model()
    found, samples = score(builtin, model), len(builtin.eval_data()[1])
    if builtin is text_lm:
        assert metadata["metric"] == "perplexity"
        assert found == pytest.approx(metadata["score"], rel=1e-3 if SAME_TEXT else 0.3)
    else:
        assert found == pytest.approx(metadata["score"], abs=max(0.002, 1 / samples) + 1e-6)
    if builtin is not text_lm or SAME_TEXT:
        assert metadata["eval_samples"] == samples
        assert metadata["train_samples"] == len(builtin.train_data()[1])
    assert metadata["parameters"] == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "least"), [("digits-cnn", 0.97), ("digits-lstm", 0.96), ("digits-attention", 0.96)])
def test_digits_are_read_well(name, least):
    digits = import_module(BUILTIN[name])
    assert score(digits, digits.build_model()) >= least


def test_weight_files_are_small(name):
    assert weights_path(BUILTIN[name]).stat().st_size < 2_500_000


def test_train_and_evaluation_share_no_sample(builtin):
    (train_inputs, train_targets), (eval_inputs, eval_targets) = builtin.train_data(), builtin.eval_data()
    assert rows(train_inputs).isdisjoint(rows(eval_inputs))
    for inputs, targets in ((train_inputs, train_targets), (eval_inputs, eval_targets)):
        assert inputs.dtype == (torch.int64 if builtin is text_lm else torch.float32)
        assert targets.dtype == torch.int64
        assert len(inputs) == len(targets) == len(rows(inputs))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_class_is_there_in_no_order(name):
    builtin = import_module(BUILTIN[name])
    for _, targets in (builtin.train_data(), builtin.eval_data()):
        counts = torch.bincount(targets)
        assert counts.min() > 0.8 * counts.max()
        assert (targets.diff() < 0).sum() > len(targets) // 4


def test_data_is_the_same_after_a_new_load(builtin):
    first = builtin.eval_data()
    (getattr(builtin, "_split", None) or builtin.eval_data).cache_clear()
    second = builtin.eval_data()
    assert first[0] is not second[0]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_tables_are_those_of_scikit_learn():
    """And their splits are what it splits with the same seed."""
    assert {path.stem for path in TABLES.glob("*.npz")} == set(tables())
    for name, expected in tables().items():
        with np.load(TABLES / f"{name}.npz") as shipped:
            assert set(shipped) == set(expected)
            for part, values in expected.items():
                assert shipped[part].dtype == values.dtype
                np.testing.assert_array_equal(shipped[part], values, f"{part} of {name}", strict=True)


def test_numbers_are_scaled_to_what_the_networks_learnt_from():
    """Bit by bit: hashes of data, and so points, plans and histories, hang on it."""
    with np.load(TABLES / "digits.npz") as table:
        images = (table["inputs"].astype(np.float64) / 16).astype(np.float32)
        for part, name in (("train", "train_data"), ("held_out", "eval_data")):
            for builtin, shape in (("digits-cnn", (1, 8, 8)), ("digits-lstm", (8, 8)), ("digits-attention", (8, 8))):
                inputs, targets = getattr(import_module(BUILTIN[builtin]), name)()
                assert inputs.shape[1:] == shape
                assert inputs.is_contiguous()
                assert inputs.numpy().tobytes() == images[table[part]].tobytes()
                assert targets.tolist() == table["targets"][table[part]].tolist()
    with np.load(TABLES / "iris.npz") as table:
        for part, name in (("train", "train_data"), ("held_out", "eval_data")):
            inputs, targets = getattr(import_module(BUILTIN["iris-mlp"]), name)()
            assert inputs.numpy().tobytes() == table["inputs"][table[part]].astype(np.float32).tobytes()
            assert targets.tolist() == table["targets"][table[part]].tolist()


def test_measured_points_fit_the_networks_and_their_data(name):
    """Files of points are named by weights and data: without these the first prediction would be a guess."""
    if name == "text-lm" and not SAME_TEXT:
        pytest.skip("this Python has another text")
    workspace = Workspace.open(f"builtin:{name}")
    for correction in (workspace.correction, None):
        points = PointFile.shipped(POINTS, workspace, correction).load()
        assert {(p.layer, p.method, p.rank) for p in points} >= {
            (layer, choice.method, choice.rank) for layer, choice in asked(workspace)
        }


OPEN_ALL = """
import sys
from lowrank_core.builtin import BUILTIN
from lowrank_core.workspace import Workspace

for name in BUILTIN:
    workspace = Workspace.open(f"builtin:{name}")
    workspace.reference, workspace.calibration
print(*sys.modules)
"""


def test_opening_all_imports_no_more_than_it_needs():
    done = subprocess.run([sys.executable, "-c", OPEN_ALL], capture_output=True, text=True, check=True)
    found = set(done.stdout.split())
    assert {"numpy", "torch", "safetensors"} <= found
    heavy = {"sklearn", "pandas", "onnx", "onnxruntime", "onnxscript", "plotly", "streamlit", "transformers", "dask"}
    assert not (heavy | {"torch._dynamo", "torch.onnx", "sympy"}) & found


def test_training_is_reproducible_and_leaves_the_random_state(tmp_path: Path):
    state = torch.get_rng_state()
    files = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        lines: list[str] = []
        (tmp_path / folder).mkdir()
        metadata = train("iris-mlp", seed=seed, epochs=3, folder=tmp_path / folder, say=lines.append)
        path = weights_path("iris_mlp", tmp_path / folder)
        assert lines
        assert stored_metadata(path) == metadata
        assert [file.name for file in path.parent.iterdir()] == [path.name]
        files.append(load_file(path))
    first, same, other = files
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["fc1.weight"], other["fc1.weight"])
    assert torch.equal(state, torch.get_rng_state())


def test_shift_moves_by_at_most_one_pixel():
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 4, 4] = 1
    shifted = shift_images(image.expand(200, 1, 8, 8), torch.Generator().manual_seed(0))
    places = {tuple(place) for place in shifted.nonzero()[:, 2:].tolist()}
    assert places == {(row, column) for row in (3, 4, 5) for column in (3, 4, 5)}


def test_words_are_predicted_better_than_by_how_often_they_occur():
    (_, train_words), (_, words) = text_lm.train_data(), text_lm.eval_data()
    often = torch.bincount(train_words.flatten(), minlength=len(text_lm.vocabulary())).double() + 1
    by_frequency = float((often.sum() / often)[words.flatten()].log().mean().exp())
    assert score(text_lm, text_lm.build_model()) < by_frequency / 3


def test_targets_are_the_words_that_follow():
    for inputs, targets in (text_lm.train_data(), text_lm.eval_data()):
        assert inputs.shape == targets.shape == (len(inputs), text_lm.STEPS)
        assert torch.equal(inputs.flatten()[1:], targets.flatten()[:-1])
        assert 0 <= int(inputs.min()) <= int(targets.max()) < len(text_lm.vocabulary())
        assert 0.02 < float((targets == 0).double().mean()) < 0.1  # unknown words: there, and few


def test_paragraphs_are_there_once_and_keep_their_side():
    text = [topics[name] for name in sorted(topics)]
    train, held_out = text_lm.paragraphs(text)
    assert not set(train) & set(held_out)
    assert len(set(train)) == len(train)
    assert 0.1 < len(held_out) / len(train) < 0.3
    changed = [part.replace("iterable", "collection") for part in reversed(text)] + text[:3]
    train_then, held_out_then = (set(side) for side in text_lm.paragraphs(changed))
    assert not train_then & set(held_out)
    assert not held_out_then & set(train)
    assert train_then != set(train)


def test_vocabulary_comes_with_the_weights_and_serves_other_texts():
    words = text_lm.vocabulary()
    assert list(words) == stored_metadata(weights_path(BUILTIN["text-lm"]))["vocabulary"]
    assert words[:2] == (text_lm.UNKNOWN, text_lm.END)
    assert len(set(words)) == len(words)
    if SAME_TEXT:
        assert words == text_lm.learnt_vocabulary(text_lm.paragraphs(topics[name] for name in sorted(topics))[0])
    other = "The walrus operator binds names.\n\n" * 2 + "A list is a mutable sequence of objects. " * 20
    train, held_out = text_lm.paragraphs([other])
    inputs, targets = text_lm.samples(train + held_out, words)
    assert text_lm.UNKNOWN in {words[i] for i in inputs.flatten().tolist()}  # "walrus"
    with torch.inference_mode():
        outputs = text_lm.build_model()(inputs)
    assert math.isfinite(METRICS["perplexity"].score(outputs, targets))


def test_rare_words_are_left_out_of_a_vocabulary():
    paragraphs = [("b", "a", "b"), ("c", "b", "a", "a", "c")]
    assert text_lm.learnt_vocabulary(paragraphs) == (text_lm.UNKNOWN, text_lm.END, "a", "b")
