"""What is asked of a streaming compression, what can be said before it begins, and what comes of it: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lowrank_core.plans.plan import RankPlan

if TYPE_CHECKING:
    from lowrank_core.scoring.scores import Score

WINDOWS, TOKENS = 128, 512
"""Windows of the text that factors are fitted to, and tokens of each, unless one says otherwise."""

HELD_OUT = 64
"""Windows that are kept apart to be scored, at most."""

Correction = Literal["thorough", "quick", "whitened", "svd"]
"""What factors are: refitted both, the last one refitted, those of the whitened weight, or those of the weight."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for. folder: of `save_pretrained`; text: a file of UTF-8; out: the folder to write.

    bytes_share: at most this share of the dense network's bytes; plan: ranks that are given instead. held_out: a text
    to score on, without it the tail of `text`, which is kept apart. windows: of the text, each of `tokens` tokens, that
    factors are fitted to. correction: how they are. device: "cpu" or "cuda"; None for CUDA where there is
    one. work: where activations and finished blocks are kept meanwhile, `.OUT.work` beside `out` without it. replace:
    what stands at `out`, though it is no folder of this product.
    """

    folder: Path
    text: Path
    out: Path
    bytes_share: float | None = 0.8
    plan: RankPlan | None = None
    held_out: Path | None = None
    windows: int = WINDOWS
    tokens: int = TOKENS
    correction: Correction = "thorough"
    device: str | None = None
    work: Path | None = None
    replace: bool = False

    @property
    def work_folder(self) -> Path:
        """Where what is done is kept until all is."""
        return self.work or self.out.with_name(f".{self.out.name}.work")


@dataclass(frozen=True, slots=True)
class Outlook:
    """What can be said before any block is read.

    architecture: the class of transformers. blocks: how many; blocks_done: of these, kept by an earlier run of the same
    request. layers: Linear layers in them, which are compressed. dense_bytes: of all parameters as stored; bytes: what
    the result may take, None where a plan is given. windows, held_out: of `tokens` tokens each. memory_bytes: resident,
    at most. disk_bytes: of work and result together, at most. causal: whether the text has a perplexity.
    """

    name: str
    architecture: str
    blocks: int
    blocks_done: int
    layers: int
    dense_bytes: int
    bytes: int | None
    windows: int
    held_out: int
    tokens: int
    memory_bytes: int
    disk_bytes: int
    causal: bool
    device: str


@dataclass(frozen=True, slots=True)
class CompressedFolder:
    """A folder that was written: what `export --format hf` writes, and `from_pretrained` loads with `lowrank_hf`.

    score: on windows that nothing was fitted to, paired with the dense network: perplexity of a causal language model,
    else the cosine similarity of hidden states behind the last block. bytes: of its parameters, exactly. seconds: of
    this run, without what earlier ones did.
    """

    path: Path
    plan: RankPlan
    layers: int
    bytes: int
    dense_bytes: int
    score: Score
    seconds: float


@dataclass(frozen=True, slots=True)
class Step:
    """One more part is done and kept. phase: "looking" (for ranks), "fitting", "scoring" or "done"; done of total parts
    of that phase. seconds: that it took. error: relative error of the hidden states behind a block that is fitted, to
    those of the dense network. answer: once all is done.
    """

    phase: Literal["looking", "fitting", "scoring", "done"]
    done: int
    total: int
    seconds: float
    error: float | None = None
    answer: CompressedFolder | None = None
