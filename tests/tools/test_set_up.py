"""What set-up says on machines that lack something, and the files around the program."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trident_tools.main import COMMANDS, main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def check() -> dict[str, Any]:
    """The names of tools/check_python.py, which no package holds."""
    return runpy.run_path(str(ROOT / "tools" / "check_python.py"))


def test_set_up_missing_parts_of_python_are_named(check: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", no_library)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setattr("sysconfig.get_config_var", lambda _name: "/nonexistent")
    monkeypatch.setattr(sys, "version_info", type("Version", (), {"minor": 10})())
    assert check["missing_packages"]() == ["python3.10-venv", "libpython3.10"]
    assert check["main"]().endswith("sudo apt install python3.10-venv libpython3.10")
    monkeypatch.setattr(sys, "version_info", type("Version", (), {"minor": 13})())
    monkeypatch.setattr("shutil.which", lambda _name: None)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": "/nonexistent"})
    assert check["missing_packages"]() == ["python3.13-venv", "g++", "python3.13-dev"]


def test_set_up_other_machines_are_sent_to_the_container(
    check: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.31"))
    assert "glibc 2.31: use the Triton container" in check["main"]()
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert "this is aarch64" in check["main"]()


def fake_python(folder: Path, version: str) -> Path:
    """An interpreter that says it is of another version."""
    folder.mkdir(exist_ok=True)
    python = folder / "python3"
    script = f"""\
        #!/bin/sh
        case "$2" in
            *sys.exit*) exit {int(version not in ("3.10", "3.11", "3.12", "3.13"))} ;;
            *print*) echo {version} ;;
            *) exit 3 ;;
        esac
        """
    python.write_text(re.sub(r"^ {8}", "", script, flags=re.MULTILINE), encoding="utf-8")
    python.chmod(0o755)
    return python


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what set-up reads, without .venv, and a PATH of the plainest commands in `bin`."""
    for name in ("pyproject.toml", "tools/setup.sh", "tools/check_python.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "locks", tmp_path / "locks")
    (tmp_path / "bin").mkdir()
    for program in ("bash", "cat", "sha256sum", "dirname"):
        (tmp_path / "bin" / program).symlink_to(str(shutil.which(program)))
    return tmp_path


def set_up(checkout: Path, what: str = "serve", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checkout / "bin" / "bash", checkout / "tools" / "setup.sh", what],
        env={"PATH": str(checkout / "bin"), **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_set_up_no_python_names_the_packages(checkout: Path) -> None:
    result = set_up(checkout)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines() == [
        "set-up: no Python 3.10 to 3.13: sudo apt install python3-venv libpython3-dev (or set PYTHON=...)"
    ]
    fake_python(checkout / "bin", "3.14")
    assert "no Python 3.10 to 3.13" in set_up(checkout).stderr


def test_set_up_chosen_python_must_be_supported_and_fit_the_environment(checkout: Path) -> None:
    old = fake_python(checkout / "old", "3.9")
    assert f"PYTHON={old} is not a Python 3.10 to 3.13" in set_up(checkout, PYTHON=str(old)).stderr
    (checkout / ".venv" / "bin").mkdir(parents=True)
    fake_python(checkout / ".venv" / "bin", "3.11").rename(checkout / ".venv" / "bin" / "python")
    new = fake_python(checkout / "new", "3.12")
    result = set_up(checkout, PYTHON=str(new))
    assert result.returncode == 1
    assert f".venv is of Python 3.11, PYTHON={new} is 3.12: remove .venv first" in result.stderr


@pytest.mark.parametrize(
    ("said", "is_for_cuda"),
    [
        ("ERROR: No matching distribution found for torch==2.13.0+cpu", True),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", True),
        ("WARNING: Retrying (Retry(total=4))\nERROR: No matching distribution found for torch==2.13.0+cpu", False),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", False),
    ],
)
def test_set_up_torch_for_cuda_is_taken_only_where_there_is_none_for_cpus(
    checkout: Path, said: str, is_for_cuda: bool
) -> None:
    (checkout / ".venv" / "bin").mkdir(parents=True)
    python = checkout / ".venv" / "bin" / "python"
    python.write_text(
        '#!/bin/bash\necho "$*" >>calls\ncase "$*" in\n*print*) echo 3.11 ;;\n'
        '*torch-cpu*) echo "$SAID" >&2; exit 1 ;;\nesac\n',
        encoding="utf-8",
    )
    python.chmod(0o755)
    result = set_up(checkout, "test", SAID=said)
    calls = (checkout / "calls").read_text(encoding="utf-8")
    assert ("torch-cuda.txt" in calls, "--editable" in calls) == (is_for_cuda, is_for_cuda)
    assert (result.returncode == 0, "about 3 GB" in result.stdout) == (is_for_cuda, is_for_cuda)
    assert is_for_cuda or said in result.stderr


def test_set_up_finished_set_up_does_nothing_until_something_changes(checkout: Path) -> None:
    (checkout / ".venv" / "bin").mkdir(parents=True)
    fake_python(checkout / ".venv" / "bin", "3.11").rename(checkout / ".venv" / "bin" / "python")
    assert set_up(checkout).returncode != 0  # the fake cannot install
    state = subprocess.run(
        ["bash", "-c", 'echo "$PWD $(cat pyproject.toml tools/setup.sh locks/*.txt | sha256sum)"'],
        cwd=checkout, capture_output=True, check=True,
    )  # fmt: skip
    (checkout / ".venv" / ".set-up-serve").write_bytes(state.stdout)
    assert set_up(checkout).returncode == 0
    for name in ("pyproject.toml", "locks/test.txt"):
        before = (checkout / name).read_text(encoding="utf-8")
        (checkout / name).write_text(f"{before}# changed\n", encoding="utf-8")
        assert set_up(checkout).returncode != 0
        (checkout / name).write_text(before, encoding="utf-8")
    assert set_up(checkout).returncode == 0


def test_set_up_dockerfile_copies_what_exists_and_calls_what_exists() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    steps = [step for step in re.sub(r"\\\n", "", text).splitlines() if step and not step.startswith("#")]
    for step in steps:
        if step.startswith("COPY ") and " --from=" not in step:
            *sources, _ = step.split()[1:]
            assert all((ROOT / source).exists() for source in sources), step
    version = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert re.findall(r"^ARG VERSION=(.*)$", text, re.MULTILINE) == version * 2
    assert set(re.findall(r"trident-(?:serve|gateway):([\w.]+)", text)) == {*version}
    assert [step for step in steps if step.startswith("USER ")] == ["USER 1000:1000"] * 2
    entries = [re.findall(r'"([^"]*)"', step) for step in steps if step.startswith("ENTRYPOINT ")]
    assert [words[:2] for words in entries] == [["trident", "gateway"], ["trident", "serve"]]
    for words in entries:
        help_text = subprocess.run(
            [sys.executable, "-m", "trident_tools.main", words[1], "--help"], capture_output=True, text=True, check=True
        ).stdout
        assert all(word in help_text for word in words if word.startswith("--"))


def test_set_up_help_is_quick_and_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert {name for name in COMMANDS if f"\n    {name} " in shown or f"\n    {name}\n" in shown} == COMMANDS.keys()
    heavy = "import sys, trident_tools.main as m\ntry: m.main(['--help'])\nexcept SystemExit: pass\n"
    loaded = "print([name for name in ('numpy', 'openvino', 'transformers', 'grpc', 'rich') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", heavy + loaded], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_set_up_an_error_is_one_line_and_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--repository", str(tmp_path / "none")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("trident serve: --repository ")
    assert captured.err.count("\n") == 1


def test_set_up_a_command_without_its_packages_says_which_is_missing() -> None:
    """As in the image of the gateway, which has neither numpy nor what else other commands need."""
    run = "import sys\nsys.modules.update(dict.fromkeys(('numpy', 'msgspec', 'rich', 'transformers')))\n"
    run += "from trident_tools.main import main\nsys.exit(main(sys.argv[1:]))\n"
    for words, extra in {("build", "x", "--repository", "y"): "", ("keys", "list"): "[gateway]"}.items():
        result = subprocess.run([sys.executable, "-c", run, *words], capture_output=True, text=True, check=False)
        assert result.returncode == 1, result.stderr
        said = rf"trident {words[0]}: [\w.]+ is not installed: pip install 'trident-llm{re.escape(extra)}'\n"
        assert re.fullmatch(said, result.stderr), result.stderr
