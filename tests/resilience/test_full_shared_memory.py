"""No room in /dev/shm, through which tritonserver and the processes of its models share memory."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.fakes.deployment import command, make_repository
from tests.ports import free_ports
from tests.resilience.small_disk import may_mount

#: Runs a command with a /dev/shm of its own, of this size.
_WITH = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size="$0" none /dev/shm && exec "$@"']


@may_mount
def test_full_shared_memory_is_named_where_a_server_starts(tmp_path: Path) -> None:
    http, grpc, metrics = free_ports(3)
    ports = ("--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics)
    repository = make_repository(tmp_path / "repository")
    done = subprocess.run(
        [*_WITH, "2m", *command("serve", "--repository", repository, *ports, "--no-openai", "--no-restart")],
        env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "shared memory" in done.stderr
    assert "'--shm-size'" in done.stderr
    assert "No space left on device" in done.stderr
