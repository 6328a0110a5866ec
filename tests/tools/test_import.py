"""`trident import` and `trident build FILE.gguf`: what they leave, and what they do not."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from tests.gguf_files import Q8_0, write_llama
from trident_ensemble.contract.manifest import read_manifest
from trident_ensemble.wiring import read_card
from trident_tools import main


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("import")
    return write_llama(make_checkpoint(folder / "checkpoint", "llama"), folder / "tiny.Q8_0.gguf", Q8_0)


def test_import_writes_the_folder_and_says_what_was_kept(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["import", str(file), str(tmp_path / "folder")]) == 0
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja",
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    printed = capsys.readouterr().out
    assert "llama, " in printed
    assert "23 Q8_0, 7 F32, 23 rounded to bf16" in printed
    assert main.main(["import", str(file), str(tmp_path / "exact"), "--dtype", "f32"]) == 0
    assert "all kept exactly" in capsys.readouterr().out
    assert main.main(["import", str(file), str(tmp_path / "quiet"), "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_import_refuses_a_folder_that_is_there_and_a_file_that_is_not(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["import", str(file), str(tmp_path)]) == 1
    assert main.main(["import", str(tmp_path / "none.gguf"), str(tmp_path / "folder")]) == 1
    said = capsys.readouterr().err
    assert f"trident import: {tmp_path}: exists" in said
    assert "none.gguf: no such file" in said


def test_import_of_a_damaged_file_leaves_nothing(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(file.read_bytes()[:-5000])
    assert main.main(["import", str(damaged), str(tmp_path / "folder")]) == 1
    assert "damaged.gguf: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [damaged]


_SLOW = """
import sys, time
from trident_compiler.gguf import importer
write = importer.write_safetensors
def wait(path, slots, values):
    def slowly():
        for number, slices in enumerate(values):
            if number == 3:
                print("writing", flush=True)
                time.sleep(60)
            yield slices
    write(path, slots, slowly())
importer.write_safetensors = wait
from trident_ensemble.wiring import read_card
from trident_tools import main
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["import", "build"])
def test_import_interrupted_while_it_writes_leaves_nothing(
    command: str, number: signal.Signals, file: Path, tmp_path: Path
) -> None:
    target = ["--repository", str(tmp_path / "repository")] if command == "build" else [str(tmp_path / "folder")]
    program = [sys.executable, "-c", _SLOW, command, str(file), *target, "--quiet"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"writing\n"
            begun = time.monotonic()
            child.send_signal(number)
            assert child.wait(30) == 128 + number
        finally:
            child.kill()
    assert time.monotonic() - begun < 30
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_import_build_takes_a_file_and_leaves_the_repository_alone(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "repository"
    options = ["--engine", "openvino", "--precision", "fp32", "--max-seq-len", "256", "--kv-cache", "512t"]
    assert main.main(["build", str(file), "--repository", str(repository), *options]) == 0
    assert list(tmp_path.iterdir()) == [repository]
    assert read_manifest(repository / "core" / "1").architecture.family == "llama"
    printed = capsys.readouterr().out
    assert "imported  " in printed
    card = read_card((repository / "ensemble" / "config.pbtxt").read_text())
    assert card is not None
    assert card.name == "tiny.Q8_0"


def test_import_build_refuses_a_file_of_another_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "model.bin"
    other.write_bytes(b"")
    assert main.main(["build", str(other), "--repository", str(tmp_path / "repository")]) == 1
    assert "model.bin: neither a folder nor a .gguf file" in capsys.readouterr().err
