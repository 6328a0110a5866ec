"""Stands for `nccl.core`."""

from __future__ import annotations

from tests.tensorrt.double.communicators import Communicator, UniqueId, get_unique_id

__all__ = ["Communicator", "UniqueId", "get_unique_id"]
