"""Peak memory of `evaluate` where outputs are large: a language model of 50,257 words over 128 tokens.

    python -m benchmarks.output_memory [--samples 64 1024] [--words 50257] [--tokens 128]

The outputs of one sample take 26 MB, those of 1,024 samples 26 GB: neither network's may be kept. A model file of
random weights is written, half of its last layer's rank is taken, and each number of samples is evaluated in a process
of its own, whose largest resident size is printed, and what it was before the evaluation began.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.page import ROOT, benchmark_parser, run_benchmark

MODEL = """
import torch
from torch import nn

WORDS, TOKENS, SAMPLES = {words}, {tokens}, {samples}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.body = nn.Embedding(WORDS, 16), nn.Linear(16, 16)
        self.words = nn.Linear(16, WORDS)

    def forward(self, ids):
        return self.words(torch.tanh(self.body(self.table(ids))))


def build_model():
    torch.manual_seed(0)
    return Net().eval()


def example_inputs():
    return (torch.zeros(1, TOKENS, dtype=torch.long),)


def eval_data():
    ids = torch.randint(WORDS, (SAMPLES, TOKENS), generator=torch.Generator().manual_seed(0))
    return ids, ids


metric = "perplexity"
"""

EVALUATE = """
import resource, sys
from lowrank_core import Choice, RankPlan, Workspace
from lowrank_core.scoring.scores import final_score

workspace = Workspace.open(sys.argv[1])
plan = RankPlan.of(workspace.profile.fingerprint, {"body": Choice("svd", (8,))})
compressed = workspace.compress(plan)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
score = final_score(workspace.measure(compressed, keep=False))  # as the command does
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(score.samples, f"{score.value:.1f}", round(before / 1000), round(after / 1000))
"""


def main() -> None:
    """Print a row for each number of samples."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--words", type=int, default=50_257)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    print("| samples | outputs of one network, GB | perplexity | opened, MB | peak, MB |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for samples in options.samples:
            path = Path(folder, f"model_{samples}.py")
            path.write_text(MODEL.format(words=options.words, tokens=options.tokens, samples=samples))
            done = subprocess.run(
                [sys.executable, "-c", EVALUATE, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
            )
            count, perplexity, before, after = done.stdout.split()
            gigabytes = samples * options.words * options.tokens * 4 / 1e9
            print(f"| {count} | {gigabytes:.2f} | {perplexity} | {before} | {after} |", flush=True)


if __name__ == "__main__":
    run_benchmark(main)
