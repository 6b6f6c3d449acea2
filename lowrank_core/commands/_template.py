"""My model: one line about what it does.

A model file for Rank Explorer. It works as it stands, with random weights and random data: replace what is marked
REPLACE, delete what you do not need, and look at the result with

    python -m lowrank_core check THIS_FILE
"""

import torch
from torch import Tensor, nn

CLASSES = 4  # REPLACE


def build_model() -> nn.Module:
    """Required. The network with its trained weights; called again wherever a checkpoint of it is loaded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # random weights must at least be the same ones every time
        model = nn.Sequential(  # REPLACE: your network, for instance `from my_package import MyNet`
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(256, 64),
            nn.ReLU(),
            nn.Linear(64, CLASSES),
        )
    # REPLACE: model.load_state_dict(torch.load("weights.pt", weights_only=True))
    return model.eval()


def example_inputs() -> tuple[Tensor, ...]:
    """What the network is called with, model(*example_inputs()), in the batch size of its later use.

    Needed for multiplies. A network with keyword arguments: return a dict instead.
    """
    return (torch.zeros(1, 3, 16, 16),)  # REPLACE


def eval_data() -> tuple[Tensor, Tensor]:
    """Inputs (N, ...) and targets (N,) the network was not trained on; or an iterable of such batches, in fixed order.

    Without this function the score is agreement with the uncompressed network.
    """
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(200, 3, 16, 16, generator=generator)  # REPLACE
    targets = torch.randint(CLASSES, (200,), generator=generator)  # REPLACE
    return inputs, targets


def train_data() -> tuple[Tensor, Tensor]:
    """Training data, as eval_data() gives them; a few hundred samples calibrate, all of them serve to fine-tune.

    Without this function calibration uses the evaluation inputs, without their targets.
    """
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(400, 3, 16, 16, generator=generator)  # REPLACE
    targets = torch.randint(CLASSES, (400,), generator=generator)  # REPLACE
    return inputs, targets


# Optional. Without it, targets that are class indices are scored by top-1 accuracy.
#
# def metric(outputs: Tensor, targets: Tensor) -> float:
#     """One figure for all samples together, for instance a mean squared error."""
#     return float((outputs - targets).square().mean())
#
# higher_is_better = False
#
# Or the name of one that is known: top-1, top-5, binary, f1, auc, multilabel-micro-f1, multilabel-macro-f1,
# average-precision, perplexity, token-error, iou, mse, mae, r2, agreement, cosine; and binary-probability,
# multilabel-micro-f1-probability, multilabel-macro-f1-probability, perplexity-probability, which are used by themselves
# where what the network answers are probabilities, not logits.
#
# metric = "top-5"
#
# Optional, of a network with several outputs: those that are judged, by name or place. Without it the one that fits the
# targets, or without targets all.
#
# outputs = ["logits"]
#
# Optional, for people who look at single answers: the names of the classes in their order, and the text of some tokens.
#
# class_names = ["cat", "dog"]
#
# def token_text(numbers) -> str:
#     return " ".join(WORDS[number] for number in numbers)
#
# Optional, in place of eval_data and metric: a score computed your own way.
#
# def evaluate(model: nn.Module) -> float:
#     return 0.0
