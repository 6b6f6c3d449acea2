"""A network through ONNX and back: the same layers, multiplies and score; then compressed, and run by onnxruntime.

    python -m benchmarks.onnx_in ../shared/data/resnet20_cifar10.py

The model file is exported by PyTorch's exporter, its data written beside it, and the `.onnx` opened. Each BatchNorm is
kept as it is, or folded into its convolution, as the exporters do by default; then the factors are those of other
weights. One plan, spatial SVD at half the multiplies, is measured in both and in the file that comes out.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core import RankPlan, Workspace, plan_cost
from lowrank_core.exports._onnx_surgery import compressed_onnx
from lowrank_core.plans.uniform import uniform_plan
from lowrank_core.scoring.scores import final_score


def exported(workspace: Workspace, folder: Path, *, folded: bool) -> Path:
    """The network as a file of ONNX with its evaluation and training data beside it."""
    path = folder / "model.onnx"
    mode = torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE
    example = workspace.reference.dataset.pick(slice(0, 2)).inputs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            workspace.model,
            (example,),
            str(path),
            dynamo=False,
            training=mode,
            do_constant_folding=folded,
            input_names=["x"],
            dynamic_axes={"x": {0: "batch"}},
        )
    evaluation, training = workspace.opened.eval_data(), workspace.calibration_pool
    np.savez(
        folder / "model.npz",
        inputs=evaluation.inputs.numpy(),
        targets=evaluation.targets.numpy(),
        train_inputs=training.inputs.numpy(),
    )
    return path


def in_runtime(path: Path, workspace: Workspace) -> tuple[float, float]:
    """(score, largest distance from the dense network's outputs) of a file on the workspace's evaluation samples."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    data, (given,) = workspace.reference.dataset, session.get_inputs()
    parts = [session.run(None, {given.name: part.numpy()})[0] for part in data.inputs.split(256)]
    outputs = torch.from_numpy(np.concatenate(parts))
    with torch.no_grad():
        dense = torch.cat([workspace.model(part) for part in data.inputs.split(256)])
    return workspace.metric.score(outputs, data.targets), float((outputs - dense).abs().max())


def main() -> None:
    """One line per network, and the differences that should be none."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("model", help="a model file, or builtin:NAME, with one input")
    parser.add_argument("--lock", action="append", default=[], metavar="LAYER", help="stays dense (repeatable)")
    options = parser.parse_args()
    torch.set_num_threads(1)

    source = Workspace.open(options.model)
    plan = uniform_plan(source.profile, 0.5, locked=options.lock)
    shapes = {layer.name: layer.spec.weight_shape for layer in source.profile.layers}
    score = final_score(source.measure(source.compress(plan, source.correction)))
    multiplies = plan_cost(source.profile).multiplies
    print(f"{'PyTorch':28} {multiplies:,} multiplies, dense {100 * score.dense:.2f} %, drop {100 * score.drop:.2f}")

    for folded in (False, True):
        with tempfile.TemporaryDirectory() as name:
            path = exported(source, Path(name), folded=folded)
            workspace = Workspace.open(str(path))
            found = {layer.name: layer.spec.weight_shape for layer in workspace.profile.layers}
            cost = plan_cost(workspace.profile).multiplies
            same = RankPlan.of(workspace.profile.fingerprint, dict(plan.choices))
            model = workspace.compress(same, workspace.correction)
            again = final_score(workspace.measure(model))
            out = Path(name, "small.onnx")
            onnx.save(compressed_onnx(workspace, model, same), out)
            runtime, _ = in_runtime(out, workspace)
            _, distance = in_runtime(path, workspace)
            print(
                f"{'ONNX, BatchNorm ' + ('folded' if folded else 'kept'):28} {cost:,} multiplies, "
                f"dense {100 * again.dense:.2f} %, drop {100 * again.drop:.2f} "
                f"({100 * again.drop_low:.2f} to {100 * again.drop_high:.2f})\n"
                f"  layers {'the same' if found == shapes else f'differ: {found.keys() ^ shapes.keys()}'}; dense "
                f"outputs {distance:.1e} from onnxruntime's; the file that comes out scores {100 * runtime:.2f} % in "
                f"onnxruntime, {100 * again.value:.2f} % here; {path.stat().st_size:,} -> {out.stat().st_size:,} bytes",
                flush=True,
            )


if __name__ == "__main__":
    run_benchmark(main)
