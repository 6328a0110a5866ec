"""The checks that are made before a server is started.

Owns the checks of the repository, of the GPUs and of the ports, and their messages. Never starts anything.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from trident_backend.engine.cuda.manifest_check import check_target as check_target_of_kernels
from trident_backend.engine.tensorrt.runtime import check_target, import_runtime
from trident_compiler.compiler_choice import CUDA
from trident_compiler.tensorrt.gpu import count_gpus, gpus_at_hand
from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ServerError
from trident_ensemble.contract.layout import ModelNames
from trident_ensemble.contract.manifest import Manifest
from trident_tools.server.built_models import find_models, read_engine_manifest
from trident_tools.server.gateway_command import GatewayListen
from trident_tools.server.triton_server import Listen


def check_repository(repository: Path) -> dict[ModelNames, Manifest]:
    """Check that a repository can be served; return the manifest of each of its engines.

    Raises:
        ArtifactError: an engine is missing or damaged.
        ServerError: the repository is not complete, or this user may not read it.
    """
    try:
        return _check_repository(repository)
    except PermissionError as error:
        raise ServerError(
            f"--repository {repository}: {error.filename or repository} cannot be read by user {os.getuid()}; let that "
            "user read it (`chmod -R a+rX`), or run as its owner"
        ) from error


def _check_repository(repository: Path) -> dict[ModelNames, Manifest]:
    found = find_models(repository)
    check_models(repository, found or [ModelNames()])
    if not found:
        raise ServerError(
            f"--repository {repository}: {ModelNames().ensemble} is not a model of `trident build`; build into another "
            "repository"
        )
    return {names: read_engine_manifest(repository, names) for names in found}


def check_models(repository: Path, models: Sequence[ModelNames]) -> None:
    """Check that a repository has the configurations of models.

    Raises:
        ServerError: it does not exist, or is not complete.
    """
    if not repository.is_dir():
        raise ServerError(f"--repository {repository}: no such folder; make one with `trident build`")
    missing = [
        model for names in models for model in names.models if not (repository / model / layout.CONFIG_FILE).is_file()
    ]
    if missing:
        raise ServerError(
            f"--repository {repository}: no {layout.CONFIG_FILE} for {', '.join(missing)}; "
            f"run `trident build CHECKPOINT --repository {repository}` first"
        )


def check_gpus(gpus: Sequence[int], manifest: Manifest) -> None:
    """Check the GPUs that are to serve an engine.

    Args:
        gpus: the GPUs by CUDA's numbers; empty for the first ones.
        manifest: the manifest of the engine.

    Raises:
        ServerError: the GPUs do not fit the engine, or this machine does not have them; says what to do.
    """
    compiler, num_parts = manifest.compiler, manifest.tensor_parallel
    if not manifest.runs_on_gpus:
        if gpus:
            raise ServerError(
                f"--gpu: the engine was compiled by {compiler.name} for CPUs; leave it out, or build one for GPUs with "
                "`trident build --engine tensorrt` or `--engine cuda`"
            )
        return
    if gpus and len(gpus) != num_parts:
        raise ServerError(
            f"--gpu: the engine was built with --tensor-parallel {num_parts}, so it takes {num_parts} "
            f"GPU{'s' * (num_parts > 1)}, not {len(gpus)}"
        )
    num_gpus, why_none = count_gpus()
    if not num_gpus:
        raise ServerError(
            f"the engine was compiled for a GPU ({compiler.target}), and CUDA finds none here: {why_none}; in a "
            "container, start it with `docker run --gpus all`; elsewhere `nvidia-smi` must list a GPU, and "
            "CUDA_VISIBLE_DEVICES must not hide it"
        )
    if missing := [gpu for gpu in gpus or range(num_parts) if gpu >= num_gpus]:
        raise ServerError(f"--gpu: there is no GPU {missing[0]}; CUDA finds {num_gpus} here, counted from 0")


def check_machine(gpus: Sequence[int], manifest: Manifest) -> None:
    """Check that this machine can compute what an engine was compiled for.

    Args:
        gpus: the GPUs by CUDA's numbers; empty for the first ones.
        manifest: the manifest of the engine.

    Raises:
        ServerError: the GPUs do not fit, are missing, or the CPU lacks instructions; says what to do.
        ArtifactError: a GPU is of another kind.
    """
    check_gpus(gpus, manifest)
    if manifest.runs_on_gpus:
        found = gpus_at_hand().found
        for ordinal in gpus or range(manifest.tensor_parallel):
            if manifest.compiler.name == CUDA:
                check_target_of_kernels(manifest, found[ordinal].capability, ordinal)
            else:
                check_target(manifest.compiler, found[ordinal].capability, ordinal)
    elif manifest.precision.compute == "bf16" and not _computes_bf16():
        raise ServerError(
            "precision.compute: the engine computes in bf16, and this CPU cannot, which takes AVX-512; serve it "
            "elsewhere, or build again with `--precision fp32`"
        )


def check_runtime(manifest: Manifest) -> None:
    """Check that what runs an engine is installed, in the version that it needs.

    It is imported, as the engine's host does it: a command that goes on to serve has no use for that.

    Raises:
        ArtifactError: TensorRT is missing, or another version.
        ServerError: OpenVINO or cuda-bindings are missing.
    """
    if manifest.compiler.name == CUDA:
        _import_cuda()
    elif manifest.runs_on_gpus:
        import_runtime(manifest.compiler)
    elif importlib.util.find_spec("openvino") is None:
        raise ServerError("compiler.name: the engine needs openvino, which is not installed: pip install openvino")


def _import_cuda() -> None:
    try:
        importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise ServerError(
            f"compiler.name: the engine needs cuda-bindings, which cannot be imported ({error}): "
            "pip install 'cuda-bindings>=13,<14'"
        ) from None


def _computes_bf16() -> bool:
    # Where engines for GPUs are served, OpenVINO need not be installed.
    from trident_compiler.openvino.compiler import computes_bf16  # noqa: PLC0415

    return computes_bf16()


def check_ports(listen: Listen) -> None:
    """Refuse ports that are out of range, the same, or taken, before anything is started.

    Raises:
        ServerError: names the option and the port.
    """
    ports = _server_ports(listen)
    _check_distinct(ports)
    _check_free(listen.host, ports)


def check_gateway_ports(listen: GatewayListen, server: Listen) -> None:
    """Refuse the gateway's ports for the same reasons, before anything is started.

    Raises:
        ServerError: names the option and the port.
    """
    public, private = {"--openai-port": listen.port}, {"--openai-private-port": listen.private_port}
    _check_distinct(_server_ports(server) | public | private)
    _check_free(listen.host, public, "choose another, or --no-openai")
    _check_free("127.0.0.1", private)


def _server_ports(listen: Listen) -> dict[str, int]:
    return {"--http-port": listen.http_port, "--grpc-port": listen.grpc_port, "--metrics-port": listen.metrics_port}


def _check_distinct(ports: Mapping[str, int]) -> None:
    for option, port in ports.items():
        if not 1 <= port <= 65535:
            raise ServerError(f"{option} {port}: must be between 1 and 65535")
    if len(set(ports.values())) != len(ports):
        *options, last = ports
        raise ServerError(f"{', '.join(options)} and {last} must differ: {', '.join(map(str, ports.values()))}")


def _check_free(host: str, ports: Mapping[str, int], advice: str = "choose another") -> None:
    for option, port in ports.items():
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise ServerError(
                    f"{option} {port}: cannot listen on {host}: {error.strerror or error}; {advice}"
                ) from error
