"""The smallest network worth looking at: 4 flower measures, 10 hidden units, 3 species."""

from collections import OrderedDict
from functools import cache

from torch import Tensor, nn

from lowrank_core.builtin.samples import Split, iris
from lowrank_core.builtin.stored import load_weights, weights_path

DESCRIPTION = "Tells three species of iris apart by four lengths: small enough to follow every number by hand."


def untrained() -> nn.Module:
    """(N, 4) lengths in centimetres -> (N, 3) logits."""
    return nn.Sequential(OrderedDict(fc1=nn.Linear(4, 10), relu=nn.ReLU(), fc2=nn.Linear(10, 3)))


def build_model() -> nn.Module:
    """The trained network in eval mode."""
    return load_weights(untrained(), weights_path(__name__))


@cache
def _split() -> Split:
    return iris()


def example_inputs() -> tuple[Tensor, ...]:
    """One flower, (1, 4)."""
    return (_split().eval[0][:1],)


def eval_data() -> tuple[Tensor, Tensor]:
    """Held-out flowers (N, 4) and species (N,)."""
    return _split().eval


def train_data() -> tuple[Tensor, Tensor]:
    """Training flowers (75, 4) and species (75,)."""
    return _split().train
