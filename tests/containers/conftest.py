"""What the tests of containers share: a daemon, and the images, each made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.daemon import Docker, private_daemon, reachable_daemon, why_there_is_none
from tests.containers.images import Images, make_images
from tests.e2e.build import build
from tests.folder_marks import mark_folder

pytest_ignore_collect, pytest_itemcollected = mark_folder("e2e")


@pytest.fixture(scope="session")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """A daemon that is there, or one of our own."""
    found = reachable_daemon()
    if found is not None:
        yield found
        return
    reason = why_there_is_none()
    if reason is not None:
        pytest.skip(reason)
    with private_daemon(tmp_path_factory.mktemp("docker")) as own:
        yield own


@pytest.fixture(scope="session")
def images(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> Images:
    """The project's two images, on bases without a registry, and what stands in for other people's."""
    return make_images(docker, tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the demo's model, which the images' own user can read."""
    return build(
        Path(__file__).parents[2] / "tools" / "demo" / "checkpoint", tmp_path_factory.mktemp("models") / "repository",
        "--preprocessing-instances", "1", "--postprocessing-instances", "1", "--served-name", "trident-demo",
    )  # fmt: skip
