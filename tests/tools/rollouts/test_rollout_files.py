"""The routes file and the state: replaced whole, by one writer, and only what is the rollout's own."""

from __future__ import annotations

import fcntl
import json
import math
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.rollouts.sides import histogram, side
from trident_ensemble.contract.errors import ConfigError, ServerError
from trident_ensemble.contract.routes import Routes, RouteServer, Side, parse_routes, render_routes
from trident_tools.main import main
from trident_tools.rollouts import routes_file
from trident_tools.rollouts.routes_file import ForeignChangeError, RoutesFile
from trident_tools.rollouts.state_file import RolloutState, StateFile

OLD = RouteServer("http://127.0.0.1:1", "http://127.0.0.1:2")
NEW = RouteServer("http://127.0.0.1:3", "http://127.0.0.1:4")


def _written(tmp_path: Path, routes: Routes) -> tuple[Path, RoutesFile]:
    path = tmp_path / "routes.json"
    path.write_text(render_routes(routes), encoding="utf-8")
    return path, RoutesFile(path)


def test_routes_file_changes_the_canary_alone(tmp_path: Path) -> None:
    path, file = _written(tmp_path, Routes(Side((OLD,))))
    path.chmod(0o640)
    file.add_canary([NEW])
    file.set_weight([NEW], 12.5, 0.0)
    assert parse_routes(path.read_text(encoding="utf-8")) == Routes(Side((OLD,)), Side((NEW,)), 12.5)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(one.name for one in tmp_path.iterdir()) == ["routes.json", "routes.json.lock"]


def test_routes_file_that_is_not_there_is_none_that_gateways_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not there"):
        RoutesFile(tmp_path / "routes.json").add_canary([NEW])
    assert not list(tmp_path.iterdir())


def test_routes_file_is_replaced_behind_a_link(tmp_path: Path) -> None:
    path, _ = _written(tmp_path, Routes(Side((OLD,))))
    link = tmp_path / "link.json"
    link.symlink_to(path)
    RoutesFile(link).add_canary([NEW])
    assert link.is_symlink()
    assert parse_routes(path.read_text(encoding="utf-8")).canary == Side((NEW,))


def test_routes_file_leaves_a_canary_of_others_alone(tmp_path: Path) -> None:
    path, file = _written(tmp_path, Routes(Side((OLD,)), Side((NEW,)), 10.0))
    before = path.read_bytes()
    other = RouteServer("http://127.0.0.1:5", "http://127.0.0.1:6")
    with pytest.raises(ConfigError, match="has 10 % of the callers"):
        file.add_canary([other])
    with pytest.raises(ForeignChangeError):
        file.set_weight([other], 50.0, 10.0)
    with pytest.raises(ForeignChangeError):
        file.promote([NEW])
    assert path.read_bytes() == before


def test_routes_file_promotes_the_canary(tmp_path: Path) -> None:
    path, file = _written(tmp_path, Routes(Side((OLD,)), Side((NEW,)), 100.0))
    file.promote([NEW])
    assert parse_routes(path.read_text(encoding="utf-8")) == Routes(Side((NEW,)))


def test_routes_file_that_cannot_be_understood_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "routes.json"
    path.write_text('{"format": 1, "blue": {}}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"--routes .*routes\.json: blue: unknown key"):
        RoutesFile(path).read()


def test_state_comes_back_as_it_was(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "state")
    assert file.read() is None
    reference = side(ttft=histogram([0.1, 99.0], (0.5, 1.0)))
    state = RolloutState(
        ("http://a:1",), "watching", 1, (1.0, 2.5), 2.5, ("m",), reference=reference, undone={"itl": 2}
    )
    file.write(state)
    assert file.read() == state
    assert math.inf in state.reference.ttft.counts  # type: ignore[union-attr]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', '{"format": 2}', "\xff"])
def test_state_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "state").write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match="state"):
        StateFile(tmp_path / "state").read()


def test_state_has_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "state"
    script = (
        "import sys; from pathlib import Path; from trident_tools.rollouts.state_file import StateFile\n"
        "with StateFile(Path(sys.argv[1])).locked():\n    print('mine', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"mine\n"
        file = StateFile(path)
        assert file.writer() == other.pid
        with pytest.raises(ServerError, match=f"process {other.pid}"):
            with file.locked():
                raise AssertionError
        # However it ends, the next one can write.
        other.kill()
        other.wait()
        assert file.writer() is None
        with file.locked():
            assert StateFile(path).writer() == os.getpid()
        assert file.writer() is None


def test_state_is_json_that_people_can_read(tmp_path: Path) -> None:
    StateFile(tmp_path / "state").write(RolloutState(("http://a:1",), "trial", 0, (1.0,), 0.0))
    assert json.loads((tmp_path / "state").read_text(encoding="utf-8"))["phase"] == "trial"


def test_routes_file_does_not_raise_a_weight_that_somebody_else_has_set(tmp_path: Path) -> None:
    _, file = _written(tmp_path, Routes(Side((OLD,)), Side((NEW,)), 10.0))
    assert file.take_back() == 10.0
    with pytest.raises(ForeignChangeError, match="has 0 %"):
        file.set_weight([NEW], 50.0, 10.0)
    assert file.read().weight == 0.0


def test_routes_file_waits_for_whoever_changes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, file = _written(tmp_path, Routes(Side((OLD,)), Side((NEW,)), 10.0))
    monkeypatch.setattr(routes_file, "_LOCK_LIMIT_S", 0.05)
    with (tmp_path / "routes.json.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ServerError, match="lock"):
            file.take_back()
    assert parse_routes(path.read_text(encoding="utf-8")).weight == 10.0
    assert file.take_back() == 10.0


@pytest.mark.parametrize(("phase", "undone"), [("done", {}), ("watching", {"asked": 1})])
def test_undo_counts_what_was_not_done(phase: str, undone: dict[str, int], tmp_path: Path) -> None:
    routes, _ = _written(tmp_path, Routes(Side((OLD,)), Side((NEW,)), 100.0))
    file = StateFile(tmp_path / "state")
    file.write(RolloutState((NEW.url,), phase, 0, (100.0,), 100.0))
    textfile = tmp_path / "rollout.prom"
    words = ("--routes", str(routes), "--state", str(tmp_path / "state"), "--textfile", str(textfile))
    assert main(["rollout", "undo", *words]) == 0
    state = file.read()
    assert state is not None
    assert (state.phase, state.undone) == ("undone", undone)
    page = textfile.read_text(encoding="utf-8")
    assert "trident_rollout_weight 0.0" in page
    assert f'trident_rollout_undone_total{{reason="asked"}} {float(len(undone))}' in page
