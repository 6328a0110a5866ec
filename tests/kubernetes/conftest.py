"""What all tests of manifests share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import kubernetes_validate
import pytest


@pytest.fixture(scope="session", autouse=True)
def _schemas_are_read_once() -> Iterator[None]:
    """Keep what kubernetes-validate reads: by itself it reads 3 MB for each object."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kubernetes_validate.utils.schema_contents", lru_cache(kubernetes_validate.utils.schema_contents))
        yield
