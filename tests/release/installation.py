"""The project as it was at an earlier commit, beside the one at hand.

Owns how an earlier revision becomes something that can be run. Never changes the work tree.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import venv
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.commands import BenchmarkError

ROOT = Path(__file__).parents[2]
_FOLDERS = ("ensemble", "preprocessing", "backend", "postprocessing", "tools")


@dataclass(frozen=True)
class Installation:
    """One state of the project that can be run.

    Args:
        name: says on the page which one it is.
        python: the interpreter whose `trident_tools.main` is the one of that state.
    """

    name: str
    python: str


def this_installation() -> Installation:
    """Return the state at hand."""
    return Installation("this work tree", sys.executable)


def installation_of(revision: str, folder: Path) -> Installation:
    """Return an earlier state, whose files are written into an empty folder.

    It has an environment of its own, over the packages that are installed here: an earlier state that needs others must
    be installed by hand, and its interpreter given with `--against-python`.

    Raises:
        BenchmarkError: there is no such revision in this repository.
    """
    commit = _git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").decode().strip()
    if not commit:
        raise BenchmarkError(
            f"--against {revision}: is no revision of this repository; fetch its history, or name another"
        )
    archive = folder / "revision.tar"
    archive.write_bytes(_git("archive", "--format=tar", commit))
    source = folder / "source"
    with tarfile.open(archive) as tar:
        tar.extractall(source, filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(source)  # noqa: S202
    archive.unlink()
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    minor = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = environment / "lib" / minor / "site-packages"
    # Files are read in the order of their names, so the revision's own packages come first.
    (packages / "0_revision.pth").write_text("".join(f"{source / name}\n" for name in _FOLDERS), encoding="utf-8")
    here = [sysconfig.get_path("purelib"), *(path for path in sys.path if path.endswith("site-packages"))]
    (packages / "1_packages.pth").write_text("\n".join(dict.fromkeys(here)) + "\n", encoding="utf-8")
    return Installation(f"{revision} ({commit[:12]})", str(environment / "bin" / "python"))


def head() -> str:
    """Return the commit of the work tree; empty where this is no repository."""
    return _git("rev-parse", "HEAD").decode().strip()


def _git(*words: str) -> bytes:
    done = subprocess.run(["git", *words], cwd=ROOT, check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return done.stdout if done.returncode == 0 else b""
