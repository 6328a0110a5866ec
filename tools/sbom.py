"""The bill of materials of an image: what Python and the system have installed in it, as CycloneDX.

Owns how an image is opened, and what is said beside the packages of Python, which `cyclonedx-py` lists. It looks at the
image and not at locks/, so that it also lists what came with the base. Never runs anything of the image.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
#: tools/setup_clients.sh installs it.
_CYCLONEDX = ROOT / ".venv-clients" / "manifests" / "bin" / "cyclonedx-py"
_ENVIRONMENT = "/opt/trident/lib"
_SYSTEM = "/var/lib/dpkg/status"
_RELEASE = "/usr/lib/os-release"
_LABELS = "org.opencontainers.image."


def main() -> str | None:
    """Write the file; return what went wrong, if anything did."""
    parser = argparse.ArgumentParser(description="Write the bill of materials of an image, in CycloneDX 1.6.")
    parser.add_argument("image", help="such as trident-serve:0.1.0")
    parser.add_argument("file", type=Path, help="to be written, such as trident-serve.cdx.json")
    parser.add_argument("--docker", default="docker", metavar="PROGRAM", help="default: %(default)s")
    args = parser.parse_args()
    if not _CYCLONEDX.exists():
        return f"{_CYCLONEDX} is missing: tools/setup_clients.sh installs it"
    try:
        with tempfile.TemporaryDirectory() as folder:
            bill = _bill(args.docker, args.image, Path(folder))
    except subprocess.CalledProcessError as error:
        return f"{' '.join(map(str, error.cmd))}: {(error.stderr or b'').decode().strip()}"
    unfinished = args.file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(bill, indent=2) + "\n", encoding="utf-8")
    unfinished.rename(args.file)
    print(f"{args.file}: {len(bill['components'])} components of {args.image}")
    return None


def _bill(docker: str, image: str, folder: Path) -> dict[str, Any]:
    (found,) = json.loads(_run(docker, "image", "inspect", image))
    container = _run(docker, "create", image).decode().strip()
    try:
        _run(docker, "cp", f"{container}:{_ENVIRONMENT}", folder / "lib")
        status = folder / "status"
        _run(docker, "cp", f"{container}:{_SYSTEM}", status)
        _run(docker, "cp", f"{container}:{_RELEASE}", folder / "release")
    finally:
        _run(docker, "rm", container)
    written = folder / "bill.json"
    _run(
        _CYCLONEDX, "environment", "--output-reproducible", "--sv", "1.6", "--outfile", written,
        _environment(folder / "lib", folder / "environment"),
    )  # fmt: skip
    bill: dict[str, Any] = json.loads(written.read_bytes())
    labels = found["Config"]["Labels"] or {}
    bill["metadata"]["component"] = {
        "type": "container",
        "bom-ref": image,
        "name": labels.get(f"{_LABELS}title", image),
        "version": labels.get(f"{_LABELS}version", ""),
        "hashes": [{"alg": "SHA-256", "content": found["Id"].removeprefix("sha256:")}],
    }
    vendor = re.search(r"^ID=(\w+)$", (folder / "release").read_text(encoding="utf-8"), re.MULTILINE)
    bill["components"] += system_packages(status.read_text(encoding="utf-8"), vendor[1] if vendor else "debian")
    return bill


def _environment(lib: Path, folder: Path) -> Path:
    """Return an environment with the packages of another one, which is read and never run."""
    (packages,) = lib.glob("python3*/site-packages")
    venv.create(folder, with_pip=False)
    (own,) = folder.glob("lib/python3*/site-packages")
    shutil.rmtree(own)
    packages.rename(own)
    return folder


def system_packages(status: str, vendor: str) -> list[dict[str, Any]]:
    """Return the packages that dpkg has installed, as components.

    Args:
        status: content of its file of this name.
        vendor: whose packages they are: debian or ubuntu.
    """
    components = []
    for entry in status.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version|Architecture): (.*)$", entry, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            name, version, architecture = fields["Package"], fields["Version"], fields["Architecture"]
            place = f"pkg:deb/{vendor}/{name}@{version.replace(':', '%3A').replace('+', '%2B')}?arch={architecture}"
            components.append({
                "type": "library", "bom-ref": place, "name": name, "version": version, "purl": place,
            })  # fmt: skip
    return components


def _run(*command: str | Path) -> bytes:
    return subprocess.run(command, capture_output=True, check=True).stdout  # noqa: S603 (our own commands)


if __name__ == "__main__":
    sys.exit(main())
