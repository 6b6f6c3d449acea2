"""Goals: the device a plan must fit into, the number format it is stored in, and the worst score that is allowed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any

import torch

from lowrank_core.errors import InvalidSettings
from lowrank_core.figures import of_device, of_floor, times_fewer
from lowrank_core.measure.formats import AS_IT_IS, FORMATS, dense_flash_bytes, plan_flash_bytes
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import RankPlan
from lowrank_core.scoring.scores import Score
from lowrank_core.workspace import Workspace

from . import devices, words
from .devices import Device


@dataclass(frozen=True, slots=True)
class Goals:
    """None each where nothing was chosen. number: one of FORMATS; floor: a score in its own unit."""

    device: Device | None = None
    number: str | None = None
    floor: float | None = None

    @property
    def format(self) -> str:
        """The number format that bytes are counted in."""
        return self.number or AS_IT_IS

    @property
    def elsewhere(self) -> Goals:
        """What of it holds for another network, too: not the score, which has that one's unit."""
        return replace(self, floor=None)

    def to_dict(self) -> dict[str, Any]:
        """As JSON; what was not chosen is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, document: Any) -> Goals:
        """The goals in a document of `to_dict`; raises InvalidSettings."""
        try:
            given = dict(document)
            device = given.pop("device", None)
            goals = cls(None if device is None else _device(device), **given)
            floor = goals.floor
            if goals.number not in (None, *FORMATS) or goals.number == AS_IT_IS:
                raise ValueError(goals.number)
            if floor is not None and (isinstance(floor, bool) or not isfinite(floor)):
                raise ValueError(floor)
        except (TypeError, ValueError, OverflowError):
            raise InvalidSettings("goals are a device, a number format and a floor, as they were written.") from None
        return goals if floor is None else replace(goals, floor=float(floor))


def _device(document: dict[str, Any]) -> Device:
    device = Device(**document)
    sizes = (device.flash_bytes, 1 if device.ram_bytes is None else device.ram_bytes)
    named = isinstance(device.name, str) and 0 < len(device.name) <= devices.NAME_LETTERS and device.name.isprintable()
    if not named or not all(type(size) is int and 0 < size <= devices.MOST_BYTES for size in sizes):
        raise ValueError(document)
    return device


@dataclass(frozen=True, slots=True)
class Judged:
    """One goal beside what a plan has: `says` as people read it; kept: None where nothing is asked."""

    name: str
    says: str
    kept: bool | None

    @property
    def line(self) -> str:
        """With its mark.

        >>> Judged("flash", "66 of 64 KiB flash", False).line
        '⚠ 66 of 64 KiB flash'
        """
        return self.says if self.kept is None else f"{'✓' if self.kept else '⚠'} {self.says}"


def flash_bytes(workspace: Workspace, plan: RankPlan, number: str) -> int:
    """What the plan's network takes in flash in a number format: the one figure of all pages."""
    return plan_flash_bytes(workspace.model, workspace.profile, plan, number)


def own_format(workspace: Workspace) -> str:
    """The number format of a network whose weights all have one, else words for whatever they have."""
    types = {parameter.dtype for parameter in workspace.model.parameters() if parameter.is_floating_point()}
    named = {torch.float32: "float32", torch.float16: "float16"}
    return named.get(types.pop(), AS_IT_IS) if len(types) == 1 else AS_IT_IS


def in_own_format(number: str | None, own: str = "float32") -> str:
    """What is said behind a score that was measured in the network's own numbers; number: what is stored.

    >>> in_own_format("int8"), in_own_format(None)
    ('in float32; measure in int8 on Compare', 'in float32')
    """
    said = "as the network is" if own == AS_IT_IS else f"in {own}"
    return said if number in (None, own) else f"{said}; measure in {number} on Compare"


def judged(
    workspace: Workspace, goals: Goals, plan: RankPlan, score: Score | None = None, peak_bytes: int | None = None
) -> tuple[Judged, ...]:
    """What becomes of each goal that was set; of RAM and score only where they are known."""
    found = []
    device = goals.device
    if device is not None:
        need = flash_bytes(workspace, plan, goals.format)
        how = "" if goals.number is None else f" in {goals.number}"
        fits = not devices.over(need, device.flash_bytes)
        found.append(Judged("flash", f"{of_device(need, device.flash_bytes)} flash{how}", fits))
        if device.ram_bytes is not None and peak_bytes is None:
            found.append(Judged("RAM", "RAM: see Ranks or Compare", None))
        elif device.ram_bytes is not None and peak_bytes is not None:
            fits = not devices.over(peak_bytes, device.ram_bytes)
            found.append(Judged("RAM", f"RAM {of_device(peak_bytes, device.ram_bytes)}", fits))
    if goals.floor is not None and score is not None:
        found.append(floor_judged(workspace, goals, score.value, in_own_format(goals.number, own_format(workspace))))
    if found:
        now, dense = plan_cost(workspace.profile, plan).multiplies, plan_cost(workspace.profile).multiplies
        found.append(Judged("multiplies", times_fewer(now, dense, "multiplies"), None))
    return tuple(found)


def floor_judged(workspace: Workspace, goals: Goals, value: float, how: str) -> Judged:
    """A score beside the worst that is allowed; how: in which numbers it was measured."""
    assert goals.floor is not None
    percent, rises = words.shares(workspace), words.rises(workspace)
    if not isfinite(value):
        return Judged(words.metric_name(workspace), "answers are not finite", False)
    kept = value <= goals.floor if rises else value >= goals.floor
    says = f"{of_floor(value, goals.floor, percent=percent, rises=rises)} {how}"
    return Judged(words.metric_name(workspace), says, kept)


def bytes_within(workspace: Workspace, goals: Goals) -> int | None:
    """The largest `plan_cost().bytes` whose flash fits into the device in the number format; None without a device.

    Where weights are stored in several types it is a little less, so that any plan within it fits. Not above the dense
    network's, and 0 where not even the rest fits.
    """
    if goals.device is None:
        return None
    size, dense = FORMATS[goals.format], plan_cost(workspace.profile).bytes
    missing = dense_flash_bytes(workspace.model, goals.format) - goals.device.flash_bytes
    if missing <= 0:
        return dense
    each = min(((size or layer.itemsize) / layer.itemsize for layer in workspace.profile.layers), default=1.0)
    return max(0, int(dense - missing / each))


def largest_loss(floor: float, dense: float, *, rises: bool) -> float:
    """How much of the dense network's score may be lost, 0 where it is itself beyond the floor.

    >>> largest_loss(22.5, 21.0, rises=True), largest_loss(0.98, 0.5, rises=False)
    (1.5, 0.0)
    """
    return max(0.0, floor - dense if rises else dense - floor)
