"""Compiling networks with TensorRT or TensorRT-RTX: networks in, plan files out.

Owns the calls of the builder, its errors, and how a build is watched and given up. Never looks at what a network
computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trident_compiler.tensorrt import gpu, progress_monitor
from trident_compiler.tensorrt.gpu import Capability
from trident_ensemble.contract.errors import BuildError

Shape = tuple[int, ...]
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class ShapeRange:
    """The shapes that an input may have, and the one to be fastest at."""

    least: Shape
    best: Shape
    most: Shape


Profile = Mapping[str, ShapeRange]


class NetworkCompiler:
    """Compiles for one GPU; several networks, one at a time.

    Args:
        trt: the module, `tensorrt` or `tensorrt_rtx`.
        capability: of the GPU that plans are for.
        ordinal: which GPU it is; None where it is elsewhere, which only TensorRT-RTX can build for.
    """

    def __init__(self, trt: Any, capability: Capability, ordinal: int | None) -> None:
        self._trt = trt
        self._ordinal = ordinal
        self._named_target = _named_target(trt, capability, ordinal)
        self._errors = _errors(trt)
        self._logger = _logger(trt)
        self._select()
        self._builder = trt.Builder(self._logger)
        self._builder.error_recorder = self._errors

    def network(self) -> Any:
        """Return an empty `INetworkDefinition`, strongly typed."""
        network = self._builder.create_network(1 << int(self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        network.error_recorder = self._errors
        return network

    def compile(
        self,
        network: Any,
        profiles: Sequence[Profile],
        path: Path,
        on_share: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Write the network's plan to a new file, as it is serialized: the weights are not held once more for it.

        Args:
            network: from `network`, complete.
            profiles: the shapes of all inputs that have none yet, for each way in which the plan will be used.
            path: of the plan.
            on_share: told how much of the work is done, 0 to 1; called from another thread.

        Raises:
            BuildError: TensorRT cannot build it, in its own words, or the plan cannot be written.
        """
        config = self._config(profiles)
        monitor = progress_monitor.monitor(self._trt, on_share)
        config.progress_monitor = monitor
        self._errors.clear()
        try:
            self._write(network, config, path, monitor)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def _write(self, network: Any, config: Any, path: Path, monitor: Any) -> None:
        try:
            with path.open("wb") as file:
                writer = _writer(self._trt, file.write)
                built = self._in_a_thread(network, config, writer, monitor)
            num_bytes = path.stat().st_size
        except OSError as error:
            raise _cannot_be_written(path, error) from None
        if writer.error is not None:
            raise _cannot_be_written(path, writer.error)
        if not built:
            raise BuildError(f"TensorRT cannot build the network: {self._errors.cause()}")
        if num_bytes != writer.num_bytes:
            raise _cannot_be_written(path, f"{num_bytes} of its {writer.num_bytes} bytes arrived")

    def _in_a_thread(self, network: Any, config: Any, writer: Any, monitor: Any) -> bool:
        """Build in another thread: Python handles Ctrl-C in the main thread, which must not be inside TensorRT then."""
        with ThreadPoolExecutor(1) as executor:
            outcome = executor.submit(self._build, network, config, writer)
            try:
                return _wait(outcome)
            except BaseException:
                monitor.give_up()
                raise

    def _select(self) -> None:
        """Make the GPU that is built for the calling thread's: TensorRT builds for that."""
        if self._ordinal is not None:
            gpu.select(self._ordinal)

    def _build(self, network: Any, config: Any, writer: Any) -> bool:
        self._select()
        return bool(self._builder.build_serialized_network_to_stream(network, config, writer))

    def _config(self, profiles: Sequence[Profile]) -> Any:
        config = self._builder.create_builder_config()
        config.profiling_verbosity = self._trt.ProfilingVerbosity.NONE
        # TensorRT-RTX asks for it where runs are captured in CUDA graphs; TensorRT does without.
        if (flag := getattr(self._trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)) is not None:
            config.set_flag(flag)
        if self._named_target is not None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(self._named_target, 0)
        for ranges in profiles:
            profile = self._builder.create_optimization_profile()
            for name, shapes in ranges.items():
                profile.set_shape(name, shapes.least, shapes.best, shapes.most)
            if config.add_optimization_profile(profile) < 0:
                raise BuildError(f"TensorRT refuses the shapes of an optimization profile: {self._errors.cause()}")
        return config


def _named_target(trt: Any, capability: Capability, ordinal: int | None) -> Any:
    """Return TensorRT-RTX's name of a target; None for a GPU of this machine that has no name, and with TensorRT.

    Raises:
        BuildError: the GPU is elsewhere, and cannot be built for.
    """
    names = [] if not hasattr(trt, "ComputeCapability") else trt.ComputeCapability.__members__
    wanted = f"SM{capability[0]}{capability[1]}"
    if wanted in names:
        return trt.ComputeCapability.__members__[wanted]
    if ordinal is None:
        known = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in names if name.startswith("SM"))
        raise BuildError(
            f"--compute-capability: TensorRT-RTX {trt.__version__} builds for {known}, not {capability[0]}."
            f"{capability[1]}; choose --engine cuda, or build on a machine with that GPU, with TensorRT"
        )
    return None


def _cannot_be_written(path: Path, why: object) -> BuildError:
    return BuildError(f"{path.name}: cannot be written: {why}")


def _wait(outcome: Future[bool]) -> bool:
    while True:
        try:
            return outcome.result(_POLL_SECONDS)
        except NotYet:
            if outcome.done():
                raise


@cache
def _logger(trt: Any) -> Any:
    """Return the process's one logger: TensorRT keeps the first that it is given, and uses it for ever."""

    class Silent(trt.ILogger):  # type: ignore[misc]
        """A logger that drops everything: errors go to the recorder, and TensorRT must not write to the terminal."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            pass

    return Silent()


@cache
def _errors(trt: Any) -> Any:
    """Return the process's one error recorder: builders and networks use it and do not keep it alive."""

    class Errors(trt.IErrorRecorder):  # type: ignore[misc]
        """The errors that TensorRT reports, from several threads."""

        def __init__(self) -> None:
            trt.IErrorRecorder.__init__(self)
            self._found: list[tuple[Any, str]] = []

        def cause(self) -> str:
            # What follows the first comes of giving up.
            return self._found[0][1] if self._found else "it does not say why"

        def num_errors(self) -> int:
            return len(self._found)

        def get_error_code(self, index: int) -> Any:
            return self._found[index][0]

        def get_error_desc(self, index: int) -> str:
            return self._found[index][1]

        def has_overflowed(self) -> bool:
            return False

        def clear(self) -> None:
            self._found.clear()

        def report_error(self, code: Any, text: str) -> bool:
            self._found.append((code, text))
            return False

    return Errors()


def _writer(trt: Any, write: Callable[[bytes], int]) -> Any:
    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        """A stream that passes the plan's bytes on and counts them: TensorRT may take an exception here for success."""

        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.num_bytes = 0
            self.error: OSError | None = None

        def write(self, piece: bytes) -> int:
            if self.error is not None:
                return 0
            try:
                written = write(piece)
            except OSError as error:
                self.error = error
                return 0
            self.num_bytes += len(piece)
            return written

    return Writer()
