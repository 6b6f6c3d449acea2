"""Model files: a person's Python file or module as a ModelContract."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from lowrank_core.errors import InvalidModel
from lowrank_core.samples.preparation import Preparation
from lowrank_core.sources._contract import ModelContract, told
from lowrank_core.sources._neighbours import Neighbourhood


def load_file(path: Path) -> ModelContract:
    """Run a Python file as a module of its own. This executes code: only for files that the person named."""
    if path.suffix != ".py":
        raise InvalidModel(f"{path} is not a Python file; a model file ends in .py.")
    files, ref = Neighbourhood(path), str(path.resolve())  # before it is run: it may change the folder
    try:
        module = files.run()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise InvalidModel(f"{path} could not be run: {told(error, path)}") from error
    return contract_of(module, ref=ref, name=path.stem, code=files.code, within=files.within)


def contract_of(
    module: ModuleType,
    *,
    ref: str,
    name: str,
    code: dict[Path, str] | None = None,
    within: Callable[..., Any] = lambda function, loads: function,
) -> ModelContract:
    """What a module defines of the contract; raises InvalidModel where there is no build_model().

    code: as in `ModelContract`; within(function, loads=...): the function as it must be called, as of `Neighbourhood`.
    """
    path = Path(module.__file__ or name)
    build = getattr(module, "build_model", None)
    if not callable(build):
        raise InvalidModel(
            f"{path} is no model file: it must define build_model() -> nn.Module; "
            "`python -m lowrank_core new FILE` writes one to fill in."
        )
    return ModelContract(
        name=name,
        build_model=within(build, loads=True),
        example_inputs=within(getattr(module, "example_inputs", None), loads=True),
        eval_data=within(getattr(module, "eval_data", None), loads=True),
        train_data=within(getattr(module, "train_data", None), loads=True),
        metric=within(getattr(module, "metric", None), loads=False),
        outputs=getattr(module, "outputs", ()),
        evaluate=within(getattr(module, "evaluate", None), loads=False),
        higher_is_better=bool(getattr(module, "higher_is_better", True)),
        description=str(getattr(module, "DESCRIPTION", None) or (module.__doc__ or "").strip().split("\n")[0]),
        ref=ref,
        path=path,
        code={} if code is None else code,
        preparation=Preparation(
            labels=_names(getattr(module, "class_names", ()), path),
            text=within(getattr(module, "token_text", None), loads=False),
        ),
    )


def _names(given: object, path: Path) -> tuple[str, ...]:
    """The names of the classes as a person gives them."""
    if not isinstance(given, Sequence) or isinstance(given, str) or not all(isinstance(name, str) for name in given):
        raise InvalidModel(f"{path}: class_names must be a list of names, one for each class, but got {given!r:.80}.")
    return tuple(given)
