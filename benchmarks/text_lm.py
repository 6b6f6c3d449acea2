"""Perplexity of text-lm against rank, layer by layer and together, before and after fine-tuning.

    python -m benchmarks.text_lm

Three groups of layers, the embedding, the two weights of the LSTM, and all four layers, at --shares of the bytes of
the group, every layer at the same share of its break-even rank; and all four with ranks by the rule `budget`. Each
plan is measured as factorised (`svd_aware`: weighted by how often words occur, and by the moments of the inputs), then
corrected on 256 unlabelled samples of the training text, then fine-tuned from there for --epochs on the training text:
once from the dense network's answers alone, once from those and the words that follow, which are the labels and in a
text cost nothing. Rates and batches were chosen on held-back training text, all four layers at 10 %. In brackets the
95 % interval of the rise, paired on the held-out text.

Before it the embedding alone at more ranks, and its cross-validated rank: the smallest within one standard error of the
best, each fold of the held-out text judged with the correction fitted on the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.page import benchmark_parser, run_benchmark
from benchmarks.quality import uniform
from lowrank_core import Choice, RankPlan, Workspace
from lowrank_core.builtin import text_lm
from lowrank_core.networks.profile import Layer
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.cost import layer_cost, plan_cost
from lowrank_core.scoring.scores import Score, final_score
from lowrank_core.selection import make, search
from lowrank_core.selection._problem import problem_of
from lowrank_core.training.recipe import Settings
from lowrank_core.training.sweep import runs

METHOD = "svd_aware"
GROUPS = {
    "embedding": ("embedding",),
    "recurrent": ("rnn.weight_ih_l0", "rnn.weight_hh_l0"),
    "all": ("embedding", "rnn.weight_ih_l0", "rnn.weight_hh_l0", "fc"),
}
ANSWERS = Settings(learning_rate=0.05, batch=8)
WORDS = Settings(learning_rate=0.3, loss="both")
RANKS = (4, 8, 16, 32, 64)


def told(score: Score) -> str:
    """'63.1 (+4.3 to +5.2)'"""
    return f"{score.value:.1f} ({score.drop_low:+.1f} to {score.drop_high:+.1f})"


def named(choice: Choice | None) -> str:
    """'58', or 'gate_cp 191' where the method is no SVD."""
    if choice is None:
        return "dense"
    ranks = " x ".join(map(str, choice.rank))
    return ranks if choice.method.startswith("svd") else f"{choice.method} {ranks}"


def measured(workspace: Workspace, candidate: Candidate) -> Score:
    """On all samples, without training."""
    return final_score(workspace.measure(workspace.compress(candidate.plan, candidate.correction), keep=False))


def plans(workspace: Workspace, share: float) -> Iterator[tuple[str, list[Layer], RankPlan]]:
    """(title, the layers whose bytes count, plan)."""
    for title, names in GROUPS.items():
        layers = [workspace.profile.layer(name) for name in names]
        yield title, layers, uniform(workspace, layers, METHOD, "parameters", share)
    rest = plan_cost(workspace.profile).bytes - sum(layer_cost(layer, None).bytes for layer in layers)
    limit = rest + share * (plan_cost(workspace.profile).bytes - rest)
    *_, last = search(make("budget", {}), problem_of(workspace, bytes=limit / plan_cost(workspace.profile).bytes))
    yield "all, by `budget`", layers, last.candidate.plan


def table(workspace: Workspace, shares: list[float], epochs: int) -> None:
    """Every group at every share."""
    dense, samples = workspace.dense_score()
    often = torch.bincount(text_lm.train_data()[1].flatten(), minlength=len(text_lm.vocabulary())).double() + 1
    words = text_lm.eval_data()[1].flatten()
    print(
        f"Dense perplexity {dense:.2f} on {samples} samples of held-out text; by how often words occur "
        f"{(often.sum() / often)[words].log().mean().exp():.0f}. Unknown words: {(words == 0).double().mean():.0%}.\n"
    )
    titles = "layers | bytes kept | ranks | factorised | corrected | tuned on answers | tuned on answers and words"
    print(f"| {titles} |\n|---|---|---|---|---|---|---|")
    for share in shares:
        for title, layers, plan in plans(workspace, share):
            kept = sum(layer_cost(layer, plan.get(layer.name)).bytes for layer in layers)
            kept /= sum(layer_cost(layer, None).bytes for layer in layers)
            ranks = ", ".join(named(plan.get(layer.name)) for layer in layers)
            candidate = workspace.candidate(plan)
            found = [measured(workspace, Candidate(plan)), measured(workspace, candidate)]
            for settings in (ANSWERS, WORDS):
                *_, last = runs(workspace, candidate, replace(settings, epochs=epochs), [0])
                found.append(last.finished[0].score)
            print(f"| {title} | {kept:.1%} | {ranks} | {' | '.join(map(told, found))} |", flush=True)


def embedding(workspace: Workspace) -> None:
    """The embedding alone."""
    print(
        "\n| rank of the embedding | svd | svd, corrected | svd_aware | svd_aware, corrected |\n|---|---|---|---|---|"
    )
    for rank in RANKS:
        found = []
        for method in ("svd", METHOD):
            plan = RankPlan.of(workspace.profile.fingerprint, {"embedding": Choice(method, (rank,))})
            found += [told(measured(workspace, c)) for c in (Candidate(plan), workspace.candidate(plan))]
        print(f"| {rank} | {' | '.join(found)} |", flush=True)
    lock = [layer.name for layer in workspace.profile.layers if layer.name != "embedding"]
    *_, last = search(make("cross_validation", {}), problem_of(workspace, lock=lock))
    choice = last.candidate.plan.get("embedding")
    rank = "dense" if choice is None else f"{choice.rank[0]} ({choice.method})"
    print(f"\nCross-validated rank of the embedding: {rank}; {last.note}.")


def main() -> None:
    """Print both tables."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--shares", default="0.5,0.1", help="of the bytes of each group's layers")
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    workspace = Workspace.open("builtin:text-lm")
    embedding(workspace)
    print()
    table(workspace, [float(share) for share in options.shares.split(",")], options.epochs)


if __name__ == "__main__":
    run_benchmark(main)
