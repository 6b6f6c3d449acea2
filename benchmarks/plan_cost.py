"""How long `plan_cost` of VGG-16 takes when every plan is new: python -m benchmarks.plan_cost

The budget is a median below 2 ms: a page computes the cost of a plan on every rerun, a search thousands of times.
"""

from __future__ import annotations

import random
import statistics
import time

from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.networks.profile import Layer, ModelProfile, Rest
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import Choice, RankPlan

WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # 0: 2x2 max pooling


def vgg16() -> ModelProfile:
    """VGG-16 (Simonyan & Zisserman, arXiv 1409.1556) for 224x224 images, from specs alone."""
    layers: list[Layer] = []
    channels, size = 3, (224, 224)
    for width in WIDTHS:
        if width == 0:
            size = (size[0] // 2, size[1] // 2)
            continue
        spec = LayerSpec(channels, width, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1))
        layers.append(Layer(f"conv{len(layers) + 1}", "Conv2d", spec, (size,), 4))
        channels, size = width, spec.out_size(size)
    features = channels * size[0] * size[1]
    for outputs in (4096, 4096, 1000):
        layers.append(Layer(f"fc{len(layers) - 12}", "Linear", LayerSpec(features, outputs), ((),), 4))
        features = outputs
    return ModelProfile("sha256:vgg16", tuple(layers), (), Rest(0, 0, 0, 0))


def random_plan(profile: ModelProfile, rng: random.Random) -> RankPlan:
    """A method and ranks for every layer, all at random."""
    choices = {}
    for layer in profile.layers:
        method = rng.choice(layer.methods)
        choices[layer.name] = Choice(method.name, tuple(rng.randint(1, top) for top in method.max_rank(layer.spec)))
    return RankPlan.of(profile.fingerprint, choices)


def milliseconds(plans: int = 500, seed: int = 0) -> list[float]:
    """The time of each plan's cost; no two plans share a layer's ranks but by chance."""
    profile, rng = vgg16(), random.Random(seed)
    taken = []
    for plan in [random_plan(profile, rng) for _ in range(plans)]:
        start = time.perf_counter()
        plan_cost(profile, plan)
        taken.append(1000 * (time.perf_counter() - start))
    return taken


def main() -> None:
    """Print one line."""
    benchmark_parser(__doc__).parse_args()
    times = milliseconds()
    print(f"plan_cost of VGG-16, {len(times)} plans: median {statistics.median(times):.3f} ms, max {max(times):.3f} ms")


if __name__ == "__main__":
    run_benchmark(main)
