"""Samples and answers as a browser is told them: what data are, from the arrays that the network sees."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lowrank_core.measure.answers import answers_of
from lowrank_core.measure.depth import DepthErrors, LayerError
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.samples.preparation import Preparation
from lowrank_core.workspace import Workspace
from pages.ui.answers import HEIGHT, depth_fields, fields, form_of, samples_shown

pytestmark = pytest.mark.usefixtures("one_thread")


class Flat(nn.Module):
    """Class scores from whatever the inputs are."""

    def __init__(self, inputs: int, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2 = nn.Linear(inputs, 16), nn.Linear(16, classes)

    def forward(self, x: Tensor, mask: Tensor | None = None, extra: Tensor | None = None) -> Tensor:
        scores: Tensor = self.fc2(torch.relu(self.fc1(x.flatten(1).float())))
        return scores


def opened(inputs: Tensor | dict[str, Tensor], **network: int) -> Workspace:
    x = inputs["x"] if isinstance(inputs, dict) else inputs
    return Workspace.of(Flat(x[0].numel(), **network), inputs, inputs)


def pixels(picture: str) -> Tensor:
    """(height, width, 3) of a BMP, red first and the top row first."""
    raw = base64.b64decode(picture.partition(",")[2])
    width, height = (int.from_bytes(raw[at : at + 4], "little") for at in (18, 22))
    line = width * 3 + -3 * width % 4
    rows = [raw[54 + line * y : 54 + line * y + 3 * width] for y in range(height)]
    return torch.tensor([list(row) for row in reversed(rows)]).reshape(height, width, 3).flip(2)


def test_an_image_is_the_same_whatever_its_layout() -> None:
    image = torch.zeros(5, 3, 6, 9)
    image[0, 0, 0, 1] = 1.0  # red, on top
    image[1, 2, 5, 8] = 1.0  # blue, at the bottom on the right
    shown = []
    for inputs in (image, image.permute(0, 2, 3, 1).contiguous()):
        workspace = opened(inputs)
        place = [int((workspace.reference.dataset.inputs == inputs[i]).flatten(1).all(1).nonzero()[0]) for i in (0, 1)]
        form, pictures, about = samples_shown(workspace, place)
        assert (form, about) == ("image", "")
        shown.append([pixels(picture["image"]) for picture in pictures])
    for first, second in shown:
        assert first.shape == (6, 9, 3)
        assert first[0, 1].tolist() == [255, 0, 0]
        assert second[5, 8].tolist() == [0, 0, 255]
        assert int((first > 0).sum()) == int((second > 0).sum()) == 1


def test_normalised_images_are_scaled_channel_by_channel_and_large_ones_are_small() -> None:
    torch.manual_seed(0)
    image = torch.rand(8, 3, 300, 150) * torch.tensor([4.0, 1.0, 2.0]).view(3, 1, 1) - 2
    workspace = opened(image)
    _, (shown,), _ = samples_shown(workspace, [2])
    picture = pixels(shown["image"])
    assert picture.shape == (64, 32, 3)
    assert [int(picture[..., c].float().mean()) for c in range(3)] == pytest.approx([127] * 3, abs=12)


def test_a_recording_is_a_line_with_its_extremes() -> None:
    wave = torch.zeros(6, 1, 4000)
    wave[:, 0, 1234], wave[:, 0, 3000] = 5.0, -5.0
    form, (shown,), _ = samples_shown(opened(wave), [3])
    (line,) = shown["lines"]
    assert form == "signal"
    assert (min(line), max(line), line[0]) == (0, HEIGHT, HEIGHT // 2)
    assert len(line) <= 96
    form, (shown,), about = samples_shown(opened(torch.randn(6, 50, 2)), [0])
    assert (form, len(shown["lines"]), len(shown["lines"][0]), about) == ("signal", 2, 50, "")


def test_tokens_are_decoded_where_the_source_says_how() -> None:
    workspace = opened(torch.arange(60).reshape(6, 10))
    place = int((workspace.reference.dataset.inputs[:, 0] == 20).nonzero()[0])
    assert samples_shown(workspace, [place])[:2] == ("tokens", [{"text": "20 21 22 23 24 25 26 27 28 29"}])
    for text, said in ((lambda n: "<i>".join(map(str, n)), "<i>".join(map(str, range(20, 30)))),
                       (lambda n: 1 / 0, "20 21 22 23 24 25 26 27 28 29")):  # fmt: skip
        workspace.opened = replace(workspace.opened, preparation=Preparation(text=text))
        assert samples_shown(workspace, [place])[1] == [{"text": said}]


def test_of_several_inputs_the_one_that_can_be_shown_is() -> None:
    inputs = {"x": torch.randn(6, 4), "mask": torch.ones(6, 20), "extra": torch.randn(6, 1, 12, 12)}
    form, shown, about = samples_shown(opened(inputs), [0])
    assert (form, about) == ("image", "Of several inputs extra is shown.")
    assert pixels(shown[0]["image"]).shape == (12, 12, 3)


def test_what_cannot_be_drawn_is_shown_by_its_numbers_with_one_line() -> None:
    workspace = opened(torch.arange(6 * 2 * 5 * 7 * 6).reshape(6, 2, 5, 7, 6).float())
    form, (shown,), about = samples_shown(workspace, [0])
    first = float(workspace.reference.dataset.inputs[0, 0, 0, 0, 0])
    assert form == "numbers"
    assert shown["numbers"].startswith(f"{first:.4g}, ")
    assert about == "Samples of 2×5×7×6 numbers cannot be drawn: the first 6 of 420 are shown."


@pytest.mark.parametrize(
    ("shape", "dtype", "form"),
    [((8,), torch.bool, "numbers"), ((), torch.int64, "numbers"), ((16, 16), torch.uint8, "image"),
     ((8, 8), torch.float32, "image"), ((12, 40, 40), torch.float32, "image"), ((400, 3, 3), torch.float32, "numbers"),
     ((20,), torch.complex64, "numbers"), ((6, 400), torch.float32, "image"), ((2, 3), torch.float32, "numbers")],
)  # fmt: skip
def test_forms(shape, dtype, form) -> None:
    assert form_of(shape, dtype) == form


def test_classes_go_by_their_names_and_the_message_is_plain_json() -> None:
    torch.manual_seed(1)
    workspace = opened(torch.randn(90, 1, 8, 8))
    workspace.opened = replace(workspace.opened, preparation=Preparation(labels=("<b>cat</b>", "dog", "cow")))
    plan = RankPlan.of(workspace.profile.fingerprint, {"fc1": Choice("svd", (1,))})
    found = fields(workspace, answers_of(workspace, Candidate(plan)))
    assert found["summary"] == f"{found['changed']} of 90 measured samples changed"
    first = found["shown"][0]
    assert first["changed"]
    assert first["dense"][0] != first["ours"][0]
    assert {sample["dense"][0] for sample in found["shown"]} <= {"<b>cat</b>", "dog", "cow"}
    assert first["dense"][1].endswith("\u202f%")
    assert "target" not in first, "there are no labels"
    json.dumps(found, allow_nan=False)


def test_words_of_a_language_model_are_decoded() -> None:
    workspace = Workspace.open("builtin:text-lm")
    plan = RankPlan.of(workspace.profile.fingerprint, {"fc": Choice("svd", (20,))})
    found = fields(workspace, answers_of(workspace, Candidate(plan), samples=64))
    first = found["shown"][0]
    words = set(workspace.opened.preparation.text(range(found_classes(workspace))).split(" "))
    assert first["note"].endswith("of 32 tokens changed")
    assert all({was, now} <= words for _, was, now in first["places"])
    assert set(first["text"].rstrip("…").split(" ")[:-1]) <= words
    json.dumps(found, allow_nan=False)


def found_classes(workspace: Workspace) -> int:
    return int(workspace.model.fc.out_features)


def test_an_error_that_is_not_finite_is_no_number_for_a_browser() -> None:
    told = depth_fields(DepthErrors(16, (LayerError("a", 0.5, 0.25), LayerError("b", float("inf"), 0.1))))
    assert told == {"samples": 16, "layers": [["a", 0.5, 0.25, ""], ["b", None, 0.1, "not finite"]]}
    json.dumps(told, allow_nan=False)
