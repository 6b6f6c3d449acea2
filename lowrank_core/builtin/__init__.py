"""Small trained networks that ship with their weights; each module follows the model-file contract."""

BUILTIN: dict[str, str] = {
    "digits-cnn": "lowrank_core.builtin.digits_cnn",
    "iris-mlp": "lowrank_core.builtin.iris_mlp",
    "fft-mlp": "lowrank_core.builtin.fft_mlp",
}
"""Public name -> module path. The first is the default."""
