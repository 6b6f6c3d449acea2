"""The predicted score of any plan, without running it: the changes of single layers add up like noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lowrank_core.evaluate import Reference


@dataclass(frozen=True, slots=True)
class NoiseTable:
    """Score of the dense outputs with Gaussian noise of a given variance added; linear in between log variances.

    rough: mean squared output change per unit of squared relative weight error, before anything is measured.
    """

    log_variance: tuple[float, ...]
    score: tuple[float, ...]
    rough: float


def noise_table(reference: Reference, samples: int = 1024, *, seed: int = 0, draws: int = 4) -> NoiseTable:
    """Tabulate score against output noise on the leading `samples` (the noise model: no calibration, one forward pass).

    The same noise, scaled, serves every row of the table, so that the score falls smoothly.
    """
    metric = reference.metric
    parts = list(reference.batches(samples))
    outputs = torch.cat([dense for _, dense in parts])
    if metric.label_free or parts[0][0].targets is None:
        targets = outputs
    else:
        targets = torch.cat([part.targets for part, _ in parts if part.targets is not None])
    scale = float(outputs.float().var()) if outputs.numel() > 1 else 1.0
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.randn(outputs.shape, generator=generator) for _ in range(draws)]
    variances = [scale * 10 ** (-5 + 0.125 * step) for step in range(57)]
    scores = []
    for variance in variances:
        values = []
        for sample in noise:
            noisy = outputs + variance**0.5 * sample
            if metric.per_sample is not None:
                values.append(float(metric.per_sample(noisy, targets).mean()))
            elif metric.value is not None:
                values.append(float(metric.value(noisy, targets)))
        scores.append(sum(values) / len(values))
    logs = torch.tensor(variances, dtype=torch.float64).log().tolist()
    return NoiseTable(tuple(logs), tuple(scores), scale)
