"""The networks that come with the product: trained, with real data, offline."""

from __future__ import annotations

import importlib

from lowrank_core.builtin import BUILTIN
from lowrank_core.errors import UnknownModel
from lowrank_core.sources import Source, register
from lowrank_core.sources._contract import open_contract
from lowrank_core.sources._model_file import contract_of
from lowrank_core.sources._opened import Opened

PREFIX = "builtin:"


def _open(ref: str) -> Opened:
    name = ref.removeprefix(PREFIX)
    if name not in BUILTIN:
        raise UnknownModel(f"there is no built-in model {name!r}; choose one of {', '.join(BUILTIN)}.")
    return open_contract(contract_of(importlib.import_module(BUILTIN[name]), ref=ref, name=name))


register(Source("builtin", lambda ref: ref.startswith(PREFIX), _open, "builtin:NAME"))
