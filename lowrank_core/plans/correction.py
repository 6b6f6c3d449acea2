"""The correction that a plan asks for: part of what a score belongs to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

import msgspec

from lowrank_core.errors import InvalidPlan

SAMPLES = 256
"""That a correction is fitted to unless it says otherwise; an answer of a search takes more where they bring something
(`selection._whole.with_more_samples`)."""

MOST_SAMPLES = 1_000_000
"""Calibration samples that a plan may ask for, at most."""

LARGEST_SEED = 2**63 - 1
"""Seed of the order of calibration samples in a plan, at most: what PyTorch's generators take."""

LARGEST_RIDGE = 1e6
"""Ridge of the correction in a plan, at most, relative to features of variance 1."""

Kind = Literal["thorough", "least_squares", "batchnorm", "bias"]


@dataclass(frozen=True, slots=True)
class Correction:
    """How a compressed network is corrected: part of what a score belongs to.

    kind: "thorough" refits all factors, "least_squares" the last ones (the quick correction), "bias" only shifts them,
    "batchnorm" re-estimates the statistics.
    ridge is relative to standardised features; data is the hash of the samples, "" where it is not known.

    >>> Correction.from_dict(Correction(seed=1).to_dict()) == Correction(seed=1)
    True
    """

    kind: Kind = "least_squares"
    samples: int = SAMPLES
    seed: int = 0
    ridge: float = 1e-3
    data: str = ""

    @property
    def depth(self) -> str:
        """What people call it: "quick" or "thorough"; "" for a correction that refits no factor."""
        return {"least_squares": "quick", "thorough": "thorough"}.get(self.kind, "")

    @property
    def quick(self) -> Correction:
        """The quick one in place of the thorough one; others as they are."""
        return replace(self, kind="least_squares") if self.kind == "thorough" else self

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as plan files hold them under "correction"."""
        return asdict(self)

    @staticmethod
    def from_dict(document: object) -> Correction:
        """Read strictly; raises InvalidPlan for unknown keys and impossible values."""
        try:
            read = msgspec.convert(document, _Document)
        except msgspec.ValidationError as error:
            raise InvalidPlan(f"the plan's correction is not valid: {error}. Export the plan again.") from error
        return Correction(read.kind, read.samples, read.seed, read.ridge, read.data)


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    kind: Kind
    samples: Annotated[int, msgspec.Meta(ge=1, le=MOST_SAMPLES)]
    seed: Annotated[int, msgspec.Meta(ge=0, le=LARGEST_SEED)] = 0
    ridge: Annotated[float, msgspec.Meta(ge=0, le=LARGEST_RIDGE)] = 1e-3
    data: str = ""
