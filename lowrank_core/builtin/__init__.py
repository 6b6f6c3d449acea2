"""Small trained networks that ship with their weights; each module follows the model-file contract."""

from pathlib import Path

BUILTIN: dict[str, str] = {
    "digits-cnn": "lowrank_core.builtin.digits_cnn",
    "iris-mlp": "lowrank_core.builtin.iris_mlp",
    "fft-mlp": "lowrank_core.builtin.fft_mlp",
    "digits-lstm": "lowrank_core.builtin.digits_lstm",
    "digits-attention": "lowrank_core.builtin.digits_attention",
    "text-lm": "lowrank_core.builtin.text_lm",
}
"""Public name -> module path. The first is the default."""

POINTS = Path(__file__).parent / "points"
"""What compressing single layers of these networks does, measured by `python -m benchmarks.builtin.learn`."""
