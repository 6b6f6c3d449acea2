"""Home in real Chromium: a network is dropped and used, one is opened by its path, and what is refused is said."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from playwright.sync_api import Browser, Locator, Page, expect

from lowrank_core.plans.cost import check_plan
from lowrank_core.plans.plan import read_plan
from lowrank_core.workspace import Workspace
from tests.conftest import running_app, slow_network, watched_page
from tests.hands import point


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the server is started."""
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_app(tmp_path_factory.mktemp("log") / "log", folder=folder) as address:
        yield address


def written(folder: Path) -> tuple[Path, Path]:
    """A network of two layers whose input has a free length, and its data, which say that length."""
    drawn = np.random.default_rng(0)
    sizes = {"w1": (24, 48), "w2": (48, 6)}
    weights = [numpy_helper.from_array(drawn.normal(size=s).astype("float32"), n) for n, s in sizes.items()]
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "w1"], ["a"], "fc1"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"], "fc2"),
    ]
    taken = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "steps", 24])
    given = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 6])
    graph = helper.make_graph(nodes, "net", [taken], [given], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "net.onnx")
    np.savez(folder / "net.npz", x=drawn.normal(size=(80, 5, 24)).astype("float32"), targets=drawn.integers(6, size=80))
    return folder / "net.onnx", folder / "net.npz"


def drop(page: Page, *files: Path) -> None:
    page.get_by_test_id("stFileUploader").locator("input[type=file]").set_input_files(files)


def drag(page: Page, slider: Locator) -> None:
    """From the thumb, wherever it is, to a sixth of the track."""
    low, high = (float(slider.get_attribute(name) or 0) for name in ("min", "max"))
    page.mouse.move(*point(slider, (float(slider.input_value()) - low) / (high - low), margin=8))
    page.mouse.down()
    page.mouse.move(*point(slider, 1 / 6), steps=8)
    page.mouse.up()


def open_by_path(page: Page, path: str) -> None:
    field = page.get_by_role("textbox", name="Path of a network")
    field.fill(path)
    field.press("Enter")


def test_a_network_is_dropped_dragged_and_exported_and_one_opens_by_its_path(
    url: str, browser: Browser, folder: Path, tmp_path: Path
) -> None:
    slow_network(folder, 0.3, 300)
    network, data = written(tmp_path)
    code, large, outside = tmp_path / "code.py", tmp_path / "large.onnx", tmp_path / "outside.py"
    for path in (code, outside):
        path.write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()")
    with large.open("wb") as file:
        file.truncate(2 * 10**9)
    with watched_page(browser) as page:
        page.goto(url)
        header, said = page.get_by_text(re.compile("dense top-1 accuracy")), page.get_by_test_id("stAlert")
        expect(header).to_contain_text("digits-cnn")

        drop(page, code)
        expect(said).to_contain_text("'code.py' is code or may run some, so it is never dropped")
        open_by_path(page, str(outside))
        expect(said).to_contain_text("lies outside")
        drop(page, large)
        expect(page.get_by_test_id("stFileUploader")).to_contain_text("File must be 500.0MB or smaller.")
        drop(page, network)
        expect(said).to_contain_text("net.onnx: the input x (N, steps, 24) has free sizes besides its batch")
        expect(said).to_contain_text("Drop net.npz, too.")
        expect(header).to_contain_text("digits-cnn")

        open_by_path(page, "slow.py")
        expect(page.get_by_test_id("opening-step")).to_contain_text("Opening slow.py")
        page.get_by_role("button", name="Call off").click()
        expect(said).to_contain_text("Called off: slow.py was not opened.")
        expect(header).to_contain_text("digits-cnn")

        drop(page, data)
        expect(said).to_contain_text("net.onnx is open.")
        expect(header).to_contain_text("net · dense")
        address = page.url
        assert "model=upload%3A" in address

        page.get_by_role("button", name="Tune the ranks").click()
        slider = page.get_by_role("slider", name="fc1 rank")
        page.wait_for_selector("[data-testid=live-accuracy][data-state=measured]")
        before = page.get_by_test_id("live-bytes").inner_text()
        drag(page, slider)
        expect(page.get_by_test_id("live-bytes")).not_to_have_text(before)
        rank = int(slider.input_value())
        page.wait_for_selector("[data-testid=live-accuracy][data-state=measured]")
        page.get_by_role("link", name="Export").click()
        page.get_by_role("button", name="Write the checkpoint").click()
        page.get_by_role("button", name="Download the checkpoint").wait_for()
        with page.expect_download() as download:
            page.get_by_role("button", name="Download the plan").click()
        plan = read_plan(Path(download.value.path()).read_bytes())
        assert plan.plan.get("fc1").rank == (rank,)
        assert check_plan(Workspace.open(str(network)).profile, plan.plan) == ()

        with watched_page(browser) as other:  # the address of a drop names it, a fresh one does not
            other.goto(url)
            expect(other.get_by_text("Open your own network")).to_be_visible()
            other.get_by_role("combobox", name="Networks in this folder").click()
            expect(other.get_by_role("option")).to_have_text(["slow.py · Python"])
            other.goto(address.replace("net.onnx", "net.npz"))
            expect(other.get_by_test_id("stAlert")).to_contain_text("this server has not opened so far")
            assert not (tmp_path / "ran").exists()
            (folder / "go").touch()
            open_by_path(other, "slow.py")
            expect(other.get_by_text(re.compile("slow · dense"))).to_be_visible()
