"""References: a model, and the files that its weights and data come from, in one text as a command has them."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Address:
    """The parts of a reference. weights: `FILE#KEY`; data, train_data, text: files or folders; preprocess: see
    `samples.preprocess`. None where a reference does not name one.

    >>> str(Address("net.onnx", data="/d/images", preprocess="imagenet"))
    'net.onnx --data /d/images --preprocess imagenet'
    """

    model: str
    weights: str | None = None
    data: str | None = None
    train_data: str | None = None
    preprocess: str | None = None
    text: str | None = None

    def __str__(self) -> str:
        named = [f" {option} {value}" for option, value in zip(OPTIONS, astuple(self)[1:], strict=True) if value]
        return self.model + "".join(named)

    @property
    def words(self) -> tuple[str, ...]:
        """As the arguments of a command, each as it is before a shell's quotes.

        >>> Address("my net.py", data="d.csv").words
        ('my net.py', '--data', 'd.csv')
        """
        named = zip(OPTIONS, astuple(self)[1:], strict=True)
        return (self.model, *(word for option, value in named if value for word in (option, value)))

    @property
    def files(self) -> dict[str, Path]:
        """The files and folders that it names, by their options; the model's own under "", whether it is there or not.

        >>> list(Address("net.py", weights="run.ckpt#ema").files.items())
        [('', PosixPath('net.py')), ('--weights', PosixPath('run.ckpt'))]
        """
        found = {"": Path(self.model).expanduser()}
        if self.weights:
            found["--weights"] = file_and_part(self.weights)[0]
        for option, value in (("--data", self.data), ("--train-data", self.train_data), ("--text", self.text)):
            if value:
                found[option] = Path(value).expanduser()
        for word in _files_in(self.preprocess):
            found["--preprocess"] = Path(word)
        return found


OPTIONS = tuple(f"--{field.name.replace('_', '-')}" for field in fields(Address)[1:])
"""Of commands: what names the parts of a reference besides the model."""


DATA = ("data", "train_data", "preprocess", "text")
"""The parts that say which samples the model is judged on."""


def address_of(ref: str) -> Address:
    """The parts of a reference.

    >>> address_of("net.py --weights run.ckpt#ema --data d.csv").data
    'd.csv'
    """
    model, *named = re.split(rf" ({'|'.join(OPTIONS)}) ", ref)
    parts = {option[2:].replace("-", "_"): value for option, value in zip(named[::2], named[1::2], strict=True)}
    return Address(model, **parts)


def with_parts(
    ref: str,
    *,
    weights: str | Path | None = None,
    data: str | Path | None = None,
    train_data: str | Path | None = None,
    preprocess: str | None = None,
    text: str | Path | None = None,
) -> str:
    """The reference of a model with files besides, which are found whatever folder is changed to later.

    >>> with_parts("net.py"), with_parts("net.onnx", data="/d.csv", preprocess="target=y")
    ('net.py', 'net.onnx --data /d.csv --preprocess target=y')
    """
    given: dict[str, str] = {}
    if weights is not None:
        path, part = file_and_part(str(weights))
        given["weights"] = os.path.abspath(path) + (f"#{part}" if part else "")
    for name, file in (("data", data), ("train_data", train_data), ("text", text)):
        if file is not None:
            given[name] = os.path.abspath(Path(file).expanduser())
    if preprocess is not None:
        given["preprocess"] = _with_files(preprocess, os.path.abspath)
    return str(replace(address_of(ref), **given)) if given else ref


def file_and_part(ref: str) -> tuple[Path, str]:
    """The file that is named, and the key of the weights in it, behind a # where no file has the whole name.

    >>> file_and_part("run.ckpt#ema")[1]
    'ema'
    """
    whole = Path(ref).expanduser()
    file, mark, part = ref.rpartition("#")
    return (Path(file).expanduser(), part) if mark and file and not whole.exists() else (whole, "")


def in_its_folder(ref: str) -> str:
    """A reference as it is given in the folder where its files are.

    >>> in_its_folder(__file__) == Path(__file__).name
    True
    >>> in_its_folder("builtin:iris-mlp --data /home/me/iris.csv")
    'builtin:iris-mlp --data iris.csv'
    """
    address = address_of(ref)
    weights = address.weights
    if weights is not None:
        path, part = file_and_part(weights)
        weights = path.name + (f"#{part}" if part else "")
    return str(
        Address(
            _name(address.model) if Path(address.model).is_file() else address.model,
            weights,
            _name(address.data),
            _name(address.train_data),
            _with_files(address.preprocess or "", lambda file: Path(file).name),
            _name(address.text),
        )
    )


def _name(file: str | None) -> str:
    return "" if file is None else Path(file).name


def words_of(preprocess: str) -> list[str]:
    """The words of how samples are prepared; one that holds a space stands in quotes.

    >>> words_of("imagenet 'target=my label'")
    ['imagenet', 'target=my label']
    """
    try:
        return shlex.split(preprocess)
    except ValueError:  # a quote that is not closed
        return preprocess.split()


def _files_in(preprocess: str | None) -> list[str]:
    """The words that name files: a .json, or what stands behind labels=."""
    words = words_of(preprocess or "")
    named = [word.partition("=")[2] if word.startswith("labels=") else word for word in words]
    return [name for name, word in zip(named, words, strict=True) if name.endswith(".json") or word != name]


def _with_files(preprocess: str, change: Callable[[str], str]) -> str:
    """The same with each file's name changed."""
    files = _files_in(preprocess)

    def changed(word: str) -> str:
        name, equals, value = word.partition("=")
        if word in files:
            return change(word)
        return f"{name}={change(value)}" if equals and value in files else word

    return shlex.join(map(changed, words_of(preprocess)))
