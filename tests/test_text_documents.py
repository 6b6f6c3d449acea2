"""Perplexity of a text has its interval over documents: what one is, which parts belong to it, and too few of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lowrank_core.commands._terminal import score_line
from lowrank_core.errors import InvalidData, InvalidSettings
from lowrank_core.layers.data import Dataset, data_hash
from lowrank_core.readers._running_text import read_text
from lowrank_core.samples.preparation import Preparation
from lowrank_core.samples.preprocess import prepared
from lowrank_core.samples.samples import Samples, Taken
from lowrank_core.scoring.metrics import METRICS
from lowrank_core.scoring.scores import Reference, Score, evaluate, final_score
from lowrank_core.sources._given import _documents_said

WORDS = Preparation(ids=lambda text: torch.tensor([len(word) for word in text.split()]), length=4)


def read(path: Path, preprocess: str = "") -> Samples:
    return read_text(path, [Taken("ids", (4,), torch.int64)], prepared(preprocess, WORDS))


def documents(path: Path, preprocess: str = "") -> list[int]:
    found = read(path, preprocess).documents
    assert found is not None
    return found.tolist()


def test_documents_are_paragraphs_lines_a_file_or_the_files_of_a_folder(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a b c d e f g h i\nj k l\n\n \nm n o p\n\nq r")
    assert documents(text) == documents(text, "documents=paragraphs") == [0, 0, 0, 1, 2]
    assert documents(text, "documents=lines") == [0, 0, 1, 2, 3]
    assert documents(text, "documents=file") == [0] * 5
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "b.txt").write_text("x y\n\nz z")
    (folder / "a.txt").write_text("a b c d e f")
    (folder / "c.txt").write_text(" \n")
    (folder / "notes.md").write_text("no text of these")
    assert documents(folder) == [0, 0, 1]
    with pytest.raises(InvalidData, match="in a folder each file is a document"):
        read(folder, "documents=lines")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidData, match=r"holds no \.txt"):
        read(tmp_path / "empty")
    with pytest.raises(InvalidSettings, match="must be lines, paragraphs or file; got 'chapters'"):
        prepared("documents=chapters", WORDS)


def test_what_counts_as_a_document_is_said_and_where_there_are_too_few(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a b c\n\n" * 29)
    (few,) = _documents_said(read(text), "text.txt")
    assert few.startswith(
        "text.txt: 29 documents, blank lines are between them. Intervals are over documents, of which"
    )
    assert "takes 30, so there are none" in few
    text.write_text("a b c\n" * 30)
    (enough,) = _documents_said(read(text, "documents=lines"), "text.txt")
    assert "30 documents, each line is one. Intervals are over documents. " in enough


class Said(nn.Module):
    """What a network is given to say: one column of its inputs."""

    def __init__(self, column: int) -> None:
        super().__init__()
        self.column = column

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.column]


def data(count: int, parts: int) -> Dataset:
    """Documents of so many parts of 5 words; the surprise of a document's parts is alike."""
    g = torch.Generator().manual_seed(count)
    of = torch.arange(count).repeat_interleave(parts)
    said = torch.randn(len(of), 2, 5, 7, generator=g)
    said[..., 0] += torch.randn(count, generator=g)[of][:, None, None]
    return Dataset(said, torch.zeros(len(of), 5, dtype=torch.long), documents=of)


def score(given: Dataset, batch: int = 16) -> Score:
    return final_score(evaluate(Said(0), Reference(Said(1), given, METRICS["perplexity"], batch=batch)))


def ends(found: Score) -> list[float | None]:
    return [found.low, found.high, found.drop_low, found.drop_high]


def test_parts_of_a_document_count_as_one() -> None:
    """The interval is that of whole documents, whatever they are cut into, and wider than that of loose parts."""
    cut = data(60, 6)  # fewer than groups, so that each document is one in any order
    inputs = cut.inputs.reshape(60, 6, 2, 5, 7).transpose(1, 2).reshape(60, 2, 30, 7)
    apart, together = score(cut), score(Dataset(inputs, torch.zeros(60, 30, dtype=torch.long)))
    assert (apart.samples, apart.documents, together.samples) == (360, 60, 60)
    assert ends(apart) == pytest.approx(ends(together), rel=1e-6)
    loose = score(replace(cut, documents=None))
    assert loose.value == apart.value
    assert apart.high - apart.low > 1.5 * (loose.high - loose.low)  # type: ignore[operator]
    assert ends(score(cut, batch=7)) == pytest.approx(ends(apart), rel=1e-9)


def test_too_few_documents_have_no_interval_and_a_line_says_so() -> None:
    few = score(data(12, 20))
    assert (few.samples, few.documents, few.low, few.drop_low) == (240, 12, None, None)
    said = score_line(few, alone=False)
    assert "on 240 samples of 12 documents" in said
    assert "(12 documents: too few for an interval, which takes 30)" in said
    assert few.too_few
    assert score(data(30, 2)).drop_low is not None


def test_scores_are_kept_by_their_documents() -> None:
    cut = data(10, 3)
    loose = replace(cut, documents=None)
    assert loose.hash == data_hash((cut.inputs, cut.targets, None)), "as it was before there were documents"
    assert cut.hash not in (loose.hash, replace(cut, documents=torch.arange(30)).hash)
    assert cut.pick(torch.tensor([5, 0])).documents.tolist() == [1, 0]  # type: ignore[union-attr]
