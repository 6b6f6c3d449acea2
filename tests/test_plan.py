"""RankPlan: a value and a file; strict when read, stable when written."""

import json
from pathlib import Path

import pytest
from msgspec import UNSET

from lowrank_core.errors import InvalidPlan
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.plan import LARGEST_BYTES, VERSION, Choice, RankPlan, read_plan
from lowrank_core.version import versions

GOLDEN = Path(__file__).parent / "golden"
PLAN = RankPlan.of("sha256:0", {"fc1": Choice("svd", (64,)), "conv": Choice("tucker2", (16, 12))})


def document(**changes: object) -> str:
    """A small valid plan file with some keys changed; None removes one."""
    valid = {
        "format": "lowrank-plan",
        "version": 1,
        "model": {"fingerprint": "sha256:0", "name": "net"},
        "layers": {"fc1": {"method": "svd", "rank": [64]}},
    }
    return json.dumps({key: value for key, value in (valid | changes).items() if value is not None})


def with_rank(rank: str) -> str:
    return document(layers={"fc1": {"method": "svd", "rank": [1234]}}).replace("[1234]", rank)


@pytest.mark.parametrize("plan", [PLAN, RankPlan("sha256:0"), RankPlan.of("f", {'ü "\\\n.0': Choice("svd", (1,))})])
def test_round_trip(plan):
    assert RankPlan.from_json(plan.to_json()) == plan
    assert RankPlan.from_json(plan.to_json().encode()) == plan


def test_only_a_plan_with_free_ranks_is_of_version_2():
    """So that older programs read all others; and one without any says nothing of them."""
    free = PLAN.with_choice("fc1", Choice("svd", (64,), free=True))
    assert [json.loads(plan.to_json())["version"] for plan in (PLAN, free, free.plain)] == [1, 2, 1]
    assert RankPlan.from_json(free.to_json()) == free != PLAN == free.plain
    assert json.loads(free.to_json())["layers"]["conv"] == {"method": "tucker2", "rank": [16, 12]}
    assert read_plan(document(version=2)).plan == read_plan(document()).plan


def test_what_is_written_beside_the_plan_comes_back():
    correction, provenance = {"samples": 256}, {"score": 0.5, "versions": {"torch": "2.13.0"}}
    found = read_plan(PLAN.to_json(model_name="net", correction=correction, provenance=provenance))
    assert (found.plan, found.model_name) == (PLAN, "net")
    assert (found.correction, found.provenance) == (correction, provenance)


def test_every_version_ever_written_has_a_golden_file():
    assert {path.name for path in GOLDEN.glob("plan-v*.json")} == {f"plan-v{v}.json" for v in range(1, VERSION + 1)}


@pytest.mark.parametrize("version", range(1, VERSION + 1))
def test_golden_file_survives_reading_and_writing(version):
    text = (GOLDEN / f"plan-v{version}.json").read_text()
    found = read_plan(text)
    assert found.plan.get("layer3.0.conv2") == Choice("tucker2", (16, 12), free=version == 2)
    assert not found.plan.get("fc1").free
    again = found.plan.to_json(model_name=found.model_name, correction=found.correction, provenance=found.provenance)
    assert again == text
    assert Correction.from_dict(found.correction).samples == 256


def test_a_plan_says_which_version_wrote_it_and_one_that_does_not_is_read():
    assert json.loads(PLAN.to_json())["provenance"]["versions"] == versions()
    assert read_plan(PLAN.to_json(provenance={})).provenance == {}


def test_correction_provenance_and_name_may_be_absent():
    found = read_plan(document(model={"fingerprint": "sha256:0"}))
    assert (found.model_name, found.correction, found.provenance) == ("", UNSET, {})
    assert found.plan.get("fc1") == Choice("svd", (64,))


def test_no_correction_is_not_the_same_as_saying_nothing():
    assert "correction" not in json.loads(PLAN.to_json())
    assert read_plan(PLAN.to_json()).correction is UNSET
    assert json.loads(PLAN.to_json(correction=None))["correction"] is None
    assert read_plan(PLAN.to_json(correction=None)).correction is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not a valid plan file"),
        ("{", "not a valid plan file"),
        ("[1]", "Expected `object`"),
        ("null", "Expected `object`"),
        (b"\xff\xfe\x00", "not a valid plan file"),
        ("\ud800", "not a valid plan file"),
        ("{}", "format"),
        (document(format="other"), "'other'"),
        (document(version=3), "version must be 1 or 2, but got 3; open the file with the Rank Explorer that wrote it"),
        (document(version=3, layers=7, surprise=1), "version must be 1 or 2, but got 3"),
        (document(version="1"), "Expected `int`"),
        (document(version=None), "version must be 1 or 2, but got 0"),
        (document(layers={"a": {"method": "svd", "rank": [1], "free": True}}), "layer 'a' (line 1)"),
        (document(version=2, layers={"a": {"method": "svd", "rank": [1], "free": 1}}), "Expected `bool`"),
        (document(surprise=1), "unknown field `surprise`"),
        (document(model={"fingerprint": "f", "hash": "x"}), "unknown field `hash`"),
        (document(model={"name": "net"}), "missing required field `fingerprint`"),
        (document(model=None), "missing required field `model`"),
        (document(layers=None), "missing required field `layers`"),
        (document(layers=[]), "Expected `object`"),
        (document(layers={"a": {"method": "svd", "rank": [1], "keep": 0.9}}), "unknown field `keep`"),
        (document(layers={"a": {"rank": [1]}}), "missing required field `method`"),
        (document(layers={"a": {"method": 3, "rank": [1]}}), "Expected `str`"),
        (document(correction=[1]), "Expected `object | null`"),
        *(
            (with_rank(rank), "layer 'fc1' (line 1)")
            for rank in ("0", "6.5", "[]", "[0]", "[-1]", "[64.5]", "[1e300]", "[true]", '["64"]', "[null]", "null")
        ),
        (with_rank(str([1] * 9)), "rank"),
        (document().replace('"fc1": {', '"fc1": {"method": "svd", "rank": [1]}, "fc1": {'), "says 'fc1' twice"),
        (document().replace('"version": 1', '"version": 1, "version": 1'), "says 'version' twice"),
        (document().replace('"rank": [64]', '"rank": [64], "rank": [6]'), "says 'rank' twice"),
        ("[" * 1_000_000, "not a valid plan file"),
        (document()[:-1] + ',"provenance":{"a":' + "[" * 500_000 + "]" * 500_000 + "}}", "not a valid plan file"),
        (" " * (LARGEST_BYTES + 1), "at most 16 MB"),
    ],
    ids=lambda value: repr(value[:60]),
)
def test_what_is_no_plan_is_refused_with_the_reason(text, told):
    with pytest.raises(InvalidPlan) as caught:
        read_plan(text)
    assert told in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_plan_is_read_however_an_editor_saves_it(encoding):
    named = RankPlan.of("sha256:0", {"größe": Choice("svd", (3,))})
    assert read_plan(named.to_json().encode(encoding)).plan == named


@pytest.mark.parametrize("rank", ["64", "64.0", "[64.0]", "[6.4e1]"])
def test_whole_ranks_are_read_however_they_are_written(rank):
    ((_, choice),) = read_plan(with_rank(rank)).plan.choices
    assert choice == Choice("svd", (64,))
    assert type(choice.rank[0]) is int


def test_a_fault_is_told_with_its_layer_and_line():
    """So that an edit is put right where it stands, and not thrown away."""
    lines = PLAN.to_json().splitlines()
    at = lines.index("        16,")
    lines[at] = "        16.5,"
    with pytest.raises(InvalidPlan, match=r"layer 'conv' \(line 4\): rank must be whole .* \[16.5, 12\]; correct it"):
        read_plan("\n".join(lines))
    lines[at] = "        16,,"
    with pytest.raises(InvalidPlan, match=f"line {at + 1}, column 12: .*; correct it there"):
        read_plan("\n".join(lines))


def test_a_rank_of_a_thousand_digits_is_an_error_and_no_crash():
    with pytest.raises(InvalidPlan):
        read_plan(with_rank(f"[{'9' * 10_000}]"))


def test_order_does_not_matter():
    one, two = ("a", Choice("svd", (1,))), ("b", Choice("svd", (2,)))
    plans = {RankPlan("f", (one, two)), RankPlan("f", (two, one)), RankPlan.of("f", dict([two, one]))}
    assert len(plans) == 1
    assert len({plan.to_json() for plan in plans}) == 1


def test_a_plan_is_a_value():
    changed = PLAN.with_choice("fc1", Choice("svd", (32,)))
    assert PLAN.get("fc1") == Choice("svd", (64,))
    assert changed.get("fc1") == Choice("svd", (32,))
    assert changed.with_choice("fc1", Choice("svd", (64,))) == PLAN
    assert hash(changed.with_choice("fc1", Choice("svd", (64,)))) == hash(PLAN)
    assert PLAN.with_choice("fc1", None).get("fc1") is None
    assert PLAN.with_choice("absent", None) == PLAN
    with pytest.raises(AttributeError):
        PLAN.fingerprint = "other"


def test_a_file_is_sorted_and_ends_in_a_newline():
    text = PLAN.to_json()
    assert text.endswith("}\n")
    assert json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n" == text
