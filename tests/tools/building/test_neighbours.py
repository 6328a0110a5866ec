"""Several models in one repository: which there are, whose names clash, and what memory they take together."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import cast

import pytest

from tests.fakes.manifests import write_small_manifest
from trident_compiler.compiler_choice import choose_compiler
from trident_compiler.gpu_choice import BuildRequest
from trident_compiler.planning.machine import Machine
from trident_compiler.planning.memory_plan import TakenMemory
from trident_compiler.tensorrt.gpu import total_bytes
from trident_ensemble.contract.errors import ArtifactError, BuildError, ConfigError, ServerError
from trident_ensemble.contract.layout import ModelNames
from trident_ensemble.contract.manifest import Compiler, read_manifest, write_manifest
from trident_ensemble.contract.model_card import ModelCard
from trident_ensemble.contract.settings import CoreSettings
from trident_ensemble.wiring import RepositorySettings, render_repository
from trident_tools import serve
from trident_tools.building.core_changes import changed_settings
from trident_tools.building.memory_use import MemoryUse, check_memory, describe_taken, taken_memory
from trident_tools.building.neighbours import check_no_clash, neighbour_cards, neighbours_memory
from trident_tools.building.preflight import check_repository
from trident_tools.building.repository import engine_version, install, staging
from trident_tools.main import main
from trident_tools.server.built_models import find_models
from trident_tools.simulation.deployments import folder_of_engine

DEMO = Path(__file__).parents[3] / "tools" / "demo" / "checkpoint"
MiB = 1 << 20


def _install(repository: Path, name: str, content: str = "", core: CoreSettings | None = None) -> None:
    """Install the files of a build with a small manifest."""
    names = ModelNames(name)
    settings = RepositorySettings(1, 1, core or CoreSettings(), names)
    with staging(repository) as staged:
        folder = staged / engine_version(names)
        folder.mkdir(parents=True)
        write_small_manifest(folder, 64)
        (folder / "network.bin").write_text(content)
        card = ModelCard(f"served-{name}", 0, 64, aliases=(f"alias-{name}",))
        install(staged, repository, render_repository(settings, card), engine_version(names))


def _resize(repository: Path, name: str, num_bytes: int, target: str = "cpu", num_gpus: int = 1) -> None:
    """Let an engine take so much memory, beside the KiB of its KV cache."""
    folder = repository / engine_version(ModelNames(name))
    compiler = Compiler("tensorrt" if target != "cpu" else "openvino", "1", target)
    changed = replace(
        read_manifest(folder), resident_bytes=num_bytes - 1024, compiler=compiler, tensor_parallel=num_gpus
    )
    write_manifest(folder, changed)


def _tree(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        path.relative_to(folder).as_posix(): (path.read_text(), path.stat().st_ino)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_neighbours_models_lie_side_by_side_and_one_is_replaced_alone(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for name in ("small", "ensemble", "v1.2"):
        _install(repository, name)
    assert find_models(repository) == [ModelNames("ensemble"), ModelNames("small"), ModelNames("v1.2")]
    assert list(check_repository(repository)) == find_models(repository)
    before = _tree(repository)
    _install(repository, "small", "changed")
    after = _tree(repository)
    assert after["small_core/1/network.bin"][0] == "changed"
    assert {name for name in before if before[name] != after.get(name)} == {
        "small_core/1/network.bin",
        "small_core/1/engine.json",
    }


def test_neighbours_other_makers_models_are_passed_over(tmp_path: Path) -> None:
    """A foreign ensemble, an unreadable file, a name that cannot be ours: none of them is a model of ours."""
    repository = tmp_path / "repository"
    _install(repository, "ours")
    foreign = 'platform: "ensemble" ensemble_scheduling { step { model_name: "tensorrt_llm" } }'
    for name, text in {"theirs": foreign, "broken": "\0{", ".hidden": foreign}.items():
        (repository / name).mkdir()
        (repository / name / "config.pbtxt").write_text(text)
    assert find_models(repository) == [ModelNames("ours")]


@pytest.mark.parametrize("name", ["small_core", "small_unary", "small_preprocessing"])
def test_neighbours_a_name_that_belongs_to_another_model_is_refused(tmp_path: Path, name: str) -> None:
    _install(tmp_path / "repository", "small")
    with pytest.raises(BuildError, match=f"--name {name}: .*{name} belongs to the models of 'small'"):
        check_no_clash(tmp_path / "repository", ModelNames(name))
    check_no_clash(tmp_path / "repository", ModelNames("small"))
    check_no_clash(tmp_path / "repository", ModelNames("other"))


def test_neighbours_a_model_whose_parts_would_be_anothers_is_refused(tmp_path: Path) -> None:
    """The model `a_core` has the ensemble's name that the model `a` would give to its core."""
    _install(tmp_path / "repository", "a_core")
    with pytest.raises(BuildError, match="belongs to the models of 'a_core'"):
        check_no_clash(tmp_path / "repository", ModelNames("a"))


@pytest.mark.parametrize("model", ModelNames("resnet").models)
def test_neighbours_another_makers_model_is_not_overwritten(tmp_path: Path, model: str) -> None:
    """Whichever of our models has its name."""
    (tmp_path / model).mkdir()
    (tmp_path / model / "config.pbtxt").write_text('backend: "onnxruntime"')
    with pytest.raises(BuildError, match=f"--name resnet: .*/{model} is another kind of model"):
        check_no_clash(tmp_path, ModelNames("resnet"))


def test_neighbours_served_names_are_found_in_the_cards_of_the_others(tmp_path: Path) -> None:
    _install(tmp_path / "repository", "small")
    _install(tmp_path / "repository", "large")
    [card] = neighbour_cards(tmp_path / "repository", ModelNames("small"))
    assert (card.name, card.aliases) == ("served-large", ("alias-large",))


def test_neighbours_build_refuses_before_it_compiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A clash of names, of served names, or what cannot be a name: each is said by its option."""
    repository = tmp_path / "repository"
    _install(repository, "small")
    before = _tree(repository)
    for options, said in (
        (["--name", "small_core"], "--name small_core"),
        (["--name", "a/b"], "not the name of a model"),
        (["--name", "large", "--served-name", "served-small"], "served as 'served-small'"),
        (["--name", "large", "--alias", "alias-small"], "served as 'served-small'"),
        (["--served-name", "a b"], "--served-name: 'a b'"),
    ):
        assert main(["build", str(DEMO), "--repository", str(repository), "--engine", "openvino", *options]) == 1
        assert said in capsys.readouterr().err
    assert _tree(repository) == before


def test_neighbours_memory_is_by_manifest_and_device(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for name, num_bytes, target, num_gpus, gpus in (
        ("ensemble", 3 * MiB, "cpu", 1, ()),
        ("on-two", 5 * MiB, "sm_89", 2, ()),
        ("on-one", 7 * MiB, "sm_89", 1, (1,)),
        ("own", 11 * MiB, "cpu", 1, ()),
    ):
        _install(repository, name, core=CoreSettings(gpu=gpus))
        _resize(repository, name, num_bytes, target, num_gpus)
    _install(repository, "unbuilt")
    (repository / "unbuilt_core" / "1" / "engine.json").write_text('{"format_version": 1}')
    uses = neighbours_memory(repository, ModelNames("own"))
    assert taken_memory(uses) == TakenMemory(3 * MiB, {0: 5 * MiB, 1: 12 * MiB})
    assert describe_taken(uses, ()) == "ensemble 3.00 MiB"
    assert describe_taken(uses, (1,)) == "on-one 7.00 MiB, on-two 5.00 MiB"
    assert describe_taken(uses, (2,)) == ""
    assert taken_memory(uses).most_of((0, 1)) == 12 * MiB


@pytest.mark.parametrize(
    ("taken", "free", "planned"),
    [(0, 100, 100), (30, 100, 70), (30, 70, 70), (30, 60, 60), (60, 60, 40), (200, 100, 0)],
)
def test_neighbours_memory_is_left_to_them_by_a_plan(
    monkeypatch: pytest.MonkeyPatch, taken: int, free: int, planned: int
) -> None:
    """Of a machine of 100 MiB, once: where they run, what they take is not free."""
    monkeypatch.setattr("trident_compiler.compiler_choice.this_machine", lambda: Machine(free * MiB, "a CPU"))
    monkeypatch.setattr("trident_compiler.compiler_choice.machine_bytes", lambda: 100 * MiB)
    choice = choose_compiler(BuildRequest(engine="openvino", taken=TakenMemory(taken * MiB, {0: 1 << 40})))
    assert choice.compiler._machine.free_bytes == planned * MiB  # type: ignore[attr-defined]


def test_neighbours_a_plan_without_room_says_who_takes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    _install(repository, "large")
    _resize(repository, "large", 99 * MiB)
    monkeypatch.setattr("trident_compiler.compiler_choice.this_machine", lambda: Machine(100 * MiB, "a CPU"))
    monkeypatch.setattr("trident_compiler.compiler_choice.machine_bytes", lambda: 100 * MiB)
    options = ["--engine", "openvino", "--precision", "fp32", "--name", "small"]
    assert main(["build", str(DEMO), "--repository", str(repository), *options]) == 1
    said = capsys.readouterr().err
    assert "1.00 MiB of memory is free" in said
    assert "other models of the repository take large 99.00 MiB" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("uses", "refusal"),
    [
        ([("a", 60, ())], None),
        ([("a", 200, ())], None),  # a single one is not judged here
        ([("a", 60, ()), ("b", 40, ())], None),
        ([("a", 60, ()), ("b", 41, ())], "101 B together (a 60 B, b 41 B), and 100 B of memory is free"),
        ([("a", 60, (0,)), ("b", 41, (1,))], None),
        (
            [("a", 60, (0,)), ("b", 41, (1, 0))],
            "101 B together (a 60 B, b 41 B), and 100 B of memory are all that GPU 0",
        ),
        ([("a", 90, ()), ("b", 90, (0,))], None),
    ],
)
def test_neighbours_served_together_must_fit_together(
    monkeypatch: pytest.MonkeyPatch, uses: Sequence[tuple[str, int, tuple[int, ...]]], refusal: str | None
) -> None:
    monkeypatch.setattr("trident_tools.building.memory_use.this_machine", lambda: Machine(100, "a CPU"))
    monkeypatch.setattr("trident_tools.building.memory_use.total_bytes", lambda _: 100)
    told = [MemoryUse(*use) for use in uses]
    if refusal is None:
        check_memory(told)
        return
    with pytest.raises(ServerError) as raised:
        check_memory(told)
    assert refusal in str(raised.value)


def _serve_options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    return parser.parse_args(["--repository", "unread", *words])


def test_neighbours_serving_options_are_for_all_models_or_for_the_one_named(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    _install(repository, "small", core=CoreSettings(max_queue_size=3))
    _install(repository, "large")
    models = check_repository(repository)

    def changed(*words: str) -> dict[str, CoreSettings]:
        options = _serve_options(*words)
        return {names.ensemble: core for names, core in changed_settings(options, repository, models).items()}

    assert changed() == {}
    both = changed("--target-itl-ms", "5")
    assert both == {
        "small": CoreSettings(max_queue_size=3, target_itl_ms=5),
        "large": CoreSettings(target_itl_ms=5),
    }
    assert changed("--target-itl-ms", "5", "--model", "small") == {"small": both["small"]}
    with pytest.raises(ServerError, match="--model medium: the repository has large, small"):
        changed("--target-itl-ms", "5", "--model", "medium")
    with pytest.raises(ServerError, match="--model: says which model"):
        changed("--model", "small")
    with pytest.raises(ConfigError, match="token_budget"):
        changed("--token-budget", "1000")


def test_neighbours_simulate_wants_one_of_several_named(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    _install(repository, "small")
    assert folder_of_engine(repository) == repository / "small_core" / "1"
    _install(repository, "large")
    with pytest.raises(ArtifactError, match=r"--engine .*large_core/1, .*small_core/1"):
        folder_of_engine(repository)
    assert folder_of_engine(repository / "large_core" / "1") == repository / "large_core" / "1"


def test_neighbours_total_memory_of_a_gpu_is_cudas(monkeypatch: pytest.MonkeyPatch) -> None:
    ok = SimpleNamespace(name="cudaSuccess")
    cuda = SimpleNamespace(
        cudaError_t=SimpleNamespace(cudaSuccess=ok),
        cudaGetDeviceProperties=lambda ordinal: (ok, SimpleNamespace(totalGlobalMem=1000 + ordinal)),
    )
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cast("ModuleType", cuda))
    assert total_bytes(2) == 1002
