"""Train the built-in networks from scratch: `python -m benchmarks.builtin.train [NAME ...]`."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lowrank_core.builtin import BUILTIN
from lowrank_core.builtin.stored import WEIGHTS, rounded_state, weights_path
from lowrank_core.scoring.metrics import METRICS
from lowrank_core.store.files import whole_or_nothing

Augment = Callable[[Tensor, torch.Generator], Tensor]


def shift_images(images: Tensor, rng: torch.Generator) -> Tensor:
    """Move each (1, H, W) image by at most one pixel in both directions, zeros come in."""
    height, width = images.shape[-2:]
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    shifts = torch.randint(0, 3, (len(images), 2), generator=rng)
    rows = shifts[:, 0, None, None] + torch.arange(height)[:, None]
    columns = shifts[:, 1, None, None] + torch.arange(width)
    return padded[torch.arange(len(images))[:, None, None], 0, rows, columns][:, None]


def shift_rows(images: Tensor, rng: torch.Generator) -> Tensor:
    """The same for images without a channel axis, (H, W) each."""
    return shift_images(images[:, None], rng)[:, 0]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one network is trained: AdamW, a cosine schedule, a fixed number of epochs without early stopping."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    augment: Augment | None = None


RECIPES = {
    "digits-cnn": Recipe(epochs=40, batch_size=50, learning_rate=2e-3, weight_decay=0.05, augment=shift_images),
    "iris-mlp": Recipe(epochs=300, batch_size=25, learning_rate=1e-2, weight_decay=1e-3),
    "fft-mlp": Recipe(epochs=10, batch_size=50, learning_rate=5e-4, weight_decay=0.5),
    "digits-lstm": Recipe(epochs=120, batch_size=50, learning_rate=5e-3, weight_decay=0.05, augment=shift_rows),
    "digits-attention": Recipe(epochs=100, batch_size=50, learning_rate=2e-3, weight_decay=0.05, augment=shift_rows),
    "text-lm": Recipe(epochs=25, batch_size=32, learning_rate=2e-2, weight_decay=0.5),
}


def score(module: Any, model: nn.Module) -> float:
    """The score on the evaluation samples, by the metric that the built-in names; without one top-1."""
    inputs, targets = module.eval_data()
    with torch.inference_mode():
        return METRICS[metric_name(module)].score(model(inputs), targets)


def metric_name(module: Any) -> str:
    """A key of METRICS."""
    return str(getattr(module, "metric", "top-1"))


def fit(module: Any, recipe: Recipe, seed: int, epochs: int, say: Callable[[str], None]) -> nn.Module:
    """Train a fresh network; the same seed gives the same weights. Draws from the global random state (dropout)."""
    inputs, targets = module.train_data()
    rng = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model: nn.Module = module.untrained().train()
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(1, epochs + 1):
        total = 0.0
        for batch in torch.split(torch.randperm(len(inputs), generator=rng), recipe.batch_size):
            x = recipe.augment(inputs[batch], rng) if recipe.augment else inputs[batch]
            loss = cross_entropy(model(x).flatten(0, -2), targets[batch].flatten())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item() * len(batch)
        schedule.step()
        if epoch % max(1, epochs // 5) == 0:
            say(f"epoch {epoch}/{epochs}, loss {total / len(inputs):.4f}")
    return model.eval()


def train(
    name: str,
    seed: int = 0,
    epochs: int | None = None,
    folder: Path = WEIGHTS,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train one built-in, write its weights, and return the metadata written with them."""
    module: Any = import_module(BUILTIN[name])
    recipe = RECIPES[name]
    epochs = recipe.epochs if epochs is None else epochs
    with torch.random.fork_rng(devices=[]):
        model = fit(module, recipe, seed, epochs, lambda line: say(f"{name}: {line}"))
    state = rounded_state(model)
    model.load_state_dict(state)
    metadata = {
        "metric": metric_name(module),
        "score": score(module, model),
        "eval_samples": len(module.eval_data()[1]),
        "train_samples": len(module.train_data()[1]),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seed": seed,
        "epochs": epochs,
        **(module.recorded() if hasattr(module, "recorded") else {}),
    }
    path = weights_path(BUILTIN[name], folder)
    with whole_or_nothing(path) as temporary:  # one metadata key, so that equal contents are equal bytes
        save_file(state, temporary, metadata={"training": json.dumps(metadata, sort_keys=True)})
    size = path.stat().st_size
    say(f"{name}: {metadata['metric']} {metadata['score']:.4f} on {metadata['eval_samples']} samples, {size:,} bytes")
    return metadata


def main() -> None:
    """Train the named built-ins, or all of them, on one thread so that the number of cores does not change the sums."""
    parser = argparse.ArgumentParser(description="Train the built-in networks from scratch.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BUILTIN)} (default: all)")
    names = parser.parse_args().names or list(BUILTIN)
    unknown = sorted(set(names) - set(BUILTIN))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(BUILTIN)}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name in names:
        train(name)


if __name__ == "__main__":
    main()
