"""The check of what set-up and tritonserver need from the system; one line says what to install.

Owns the list of system packages. Runs on a bare Python 3.10 to 3.13, before anything is installed. Never decides on a
version, and never installs anything.
"""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import shutil
import sys
import sysconfig
from pathlib import Path


def unsupported_machine() -> str | None:
    """Return why the tritonserver of the wheel cannot run here; None where it can."""
    libc, version = platform.libc_ver()
    if platform.machine() == "x86_64" and libc == "glibc" and tuple(map(int, version.split("."))) >= (2, 35):
        return None
    return (
        "the tritonserver wheel needs x86_64 and glibc 2.35 (Debian 12, Ubuntu 22.04) or newer, this is "
        f"{platform.machine()} and {libc or 'no glibc'} {version}: use the Triton container, docker/Dockerfile"
    )


def missing_packages() -> list[str]:
    """Return the Debian packages that this Python lacks."""
    python = f"python3.{sys.version_info.minor}"
    packages = []
    if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        packages.append(f"{python}-venv")
    if sys.version_info.minor == 13:
        # numpy<2 is compiled; the stub of the tritonserver wheel brings its own libpython3.13.
        if shutil.which("g++") is None:
            packages.append("g++")
        if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
            packages.append(f"{python}-dev")
    elif not _has_library(f"lib{python}.so.1.0"):
        packages.append(f"lib{python}")
    return packages


def _has_library(name: str) -> bool:
    """Return whether the dynamic linker finds a library, or this Python brings it along."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return Path(sysconfig.get_config_var("LIBDIR") or "/nonexistent", name).is_file()
    return True


def main() -> str | int:
    """Check the system; return 0, or the line with which to exit."""
    problem = unsupported_machine()
    packages = missing_packages()
    if problem is None and packages:
        problem = f"{sys.executable} lacks parts of the system: sudo apt install {' '.join(packages)}"
    if problem is not None:
        return f"set-up: {problem}"
    if sys.version_info.minor == 13:
        print("set-up: numpy<2 has no wheel for Python 3.13 and is compiled, about 4 minutes (3.10 to 3.12: at once)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
