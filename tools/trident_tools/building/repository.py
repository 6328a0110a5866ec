"""The installation of a finished build, all of it or nothing.

Owns the staging folder, the exchange with what was there, and the way back when something fails in between. Never looks
into an engine, and never changes other models and versions of a repository.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trident_ensemble.contract.errors import BuildError
from trident_ensemble.contract.layout import ModelNames

_PREFIX = ".trident-build-"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux


def engine_version(names: ModelNames, number: int = 1) -> Path:
    """Return the folder of an engine, by the number of its version, relative to the repository."""
    return Path(names.core) / str(number)


@contextlib.contextmanager
def staging(repository: Path, option: str = "--repository") -> Iterator[Path]:
    """Make an empty folder on the repository's file system, beside it; it is removed afterwards in any case.

    Args:
        repository: the folder that is to be written.
        option: by which the user named it.

    Raises:
        BuildError: the repository's place cannot be written to.
    """
    if repository.exists() and not repository.is_dir():
        raise BuildError(f"{option}: {repository} is not a folder")
    beside = repository.absolute().parent
    try:
        beside.mkdir(parents=True, exist_ok=True)
        # A repository that is a mount point has another file system than its parent, and renames do not cross.
        if repository.is_dir() and repository.stat().st_dev != beside.stat().st_dev:
            beside = repository
    except OSError as error:
        raise _unwritable(option, repository, error) from None
    # Named before it is made: whenever a signal comes, it is removed.
    folder = beside / f"{_PREFIX}{secrets.token_hex(8)}"
    try:
        # SIGTERM would end the process at once and leave the folder behind.
        with _handled((signal.SIGTERM,), lambda number, _: sys.exit(128 + number)):
            try:
                folder.mkdir()
            except OSError as error:
                raise _unwritable(option, repository, error) from None
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unwritable(option: str, repository: Path, error: OSError) -> BuildError:
    return BuildError(f"{option}: cannot write beside {repository}: {error}")


def install(
    staged: Path, repository: Path, text_files: dict[str, str], engine: Path, *, may_replace: bool = True
) -> None:
    """Put the staged engine and the rendered text files into the repository.

    Args:
        staged: the staging folder, which has the engine where the repository is to have it.
        repository: the repository, which need not exist.
        text_files: relative path -> content.
        engine: relative path of the engine's folder.
        may_replace: whether an engine that is there already goes.

    A new repository appears in one rename. In one that exists, files that differ are replaced one by one and the engine
    by a rename; a failure, or Ctrl-C, undoes what was done.

    Raises:
        BuildError: the repository has the engine's folder, which must not be replaced.
    """
    for name, text in text_files.items():
        path = staged / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    new_names = sorted({Path(name).parts[0] for name in text_files} | {engine.parts[0]})
    with _uninterrupted():
        if repository.exists() and any(entry for entry in repository.iterdir() if entry != staged):
            changed = [Path(name) for name, text in text_files.items() if _differs(repository / name, text)]
            try:
                _put(staged, repository, [*changed, engine], None if may_replace else engine)
            except FileExistsError:
                raise BuildError(
                    f"--new-version: another build has put {engine} into {repository} meanwhile; build again"
                ) from None
        elif staged.parent == repository:
            _put(staged, repository, [Path(name) for name in new_names])
        else:
            whole = staged / _PREFIX
            whole.mkdir()
            for name in new_names:
                (staged / name).rename(whole / name)
            whole.rename(repository)


def _put(new: Path, old: Path, names: list[Path], kept: Path | None = None) -> None:
    """Move `names` from `new` into `old`, exchanging them with what is there; a failure moves all of them back.

    Raises:
        FileExistsError: `kept`, the name that is never exchanged, is there.
    """
    done: list[tuple[Path, Path, bool]] = []
    try:
        for name in names:
            source, target = new / name, old / name
            target.parent.mkdir(parents=True, exist_ok=True)
            existed = name != kept and target.exists()
            if existed:
                _exchange(source, target)
            elif name == kept:
                _move(source, target)
            else:
                source.rename(target)
            done.append((source, target, existed))
    except BaseException:
        for source, target, existed in reversed(done):
            _exchange(source, target) if existed else target.rename(source)
        raise


def _move(folder: Path, target: Path) -> None:
    """Rename a folder to a name that must be free; raises FileExistsError, also where another gets there first."""
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise FileExistsError(error.errno, "is there already", str(target)) from None
        raise


def _exchange(a: Path, b: Path) -> None:
    """Swap two paths of one file system in one step, or in three where the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None and renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return
    aside = a.with_name(f"{_PREFIX}{a.name}")
    b.rename(aside)
    try:
        a.rename(b)
    except BaseException:
        aside.rename(b)
        raise
    aside.rename(a)


def _differs(path: Path, text: str) -> bool:
    return not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != text


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back for the few renames; they arrive when it ends."""
    pending: list[int] = []
    with _handled((signal.SIGINT, signal.SIGTERM), lambda number, _: pending.append(number)):
        yield
    for number in pending[:1]:
        signal.raise_signal(number)


@contextlib.contextmanager
def _handled(numbers: tuple[signal.Signals, ...], handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """Handle signals in another way for a while; outside of the main thread, where Python cannot, change nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
