"""The examples in the docstrings of the pages are what the code does."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import pages.ui

MODULES = [module.name for module in pkgutil.walk_packages(pages.ui.__path__, "pages.ui.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_the_pages_hold(name: str) -> None:
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    assert doctest.testmod(importlib.import_module(name), optionflags=flags).failed == 0
