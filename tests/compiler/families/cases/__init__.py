"""Tiny models of every family, a module for each of the package's families: `ALL` has the cases of all of them."""

from __future__ import annotations

import importlib
import pkgutil

from tests.compiler.families.case import Case

ALL: tuple[Case, ...] = tuple(
    case
    for module in sorted(each.name for each in pkgutil.iter_modules(__path__))
    for case in importlib.import_module(f"{__name__}.{module}").CASES
)
