"""The double's builder: TensorRT-RTX's network API, and a recording instead of kernels.

Owns what stands for `Builder` and `IBuilderConfig`. All but the outcome is the real module's.
"""

from __future__ import annotations

from typing import Any

import tensorrt_rtx_bindings as real

from tests.tensorrt.double import faults
from tests.tensorrt.double.plans import Bounds, PlanFile
from tests.tensorrt.recording import RecordingNetwork, record


class Config:
    """An `IBuilderConfig` that remembers its profiles."""

    def __init__(self, config: Any) -> None:
        self.__dict__.update(_config=config, profiles=[], progress_monitor=None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "progress_monitor":
            self.__dict__[name] = value
        else:
            setattr(self._config, name, value)

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1


class Builder:
    """See TensorRT's `Builder`."""

    def __init__(self, logger: Any) -> None:
        self._builder = real.Builder(logger)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builder, name)

    def create_network(self, flags: int = 0) -> RecordingNetwork:
        return RecordingNetwork(self._builder.create_network(flags))

    def create_builder_config(self) -> Config:
        return Config(self._builder.create_builder_config())

    def build_serialized_network(self, network: RecordingNetwork, config: Config) -> bytes | None:
        if faults.due("build_serialized_network") or not _report(config.progress_monitor):
            return None
        program = record(real, network)
        profiles = tuple(
            {name: _bounds(profile, name) for name in program.inputs if -1 in program.tensors[name].shape}
            for profile in config.profiles
        )
        return PlanFile(program, profiles).save()

    def build_serialized_network_to_stream(self, network: RecordingNetwork, config: Config, writer: Any) -> bool:
        blob = self.build_serialized_network(network, config)
        if blob is None:
            return False
        writer.write(blob)
        return True


def _bounds(profile: Any, name: str) -> Bounds:
    low, usual, high = (tuple(shape) for shape in profile.get_shape(name))
    return low, usual, high


def _report(monitor: Any) -> bool:
    """A phase of two steps; False if the monitor wants the build to end."""
    if monitor is None:
        return True
    monitor.phase_start("Building Engine", None, 2)
    going_on = all(monitor.step_complete("Building Engine", step) for step in range(2))
    monitor.phase_finish("Building Engine")
    return going_on
