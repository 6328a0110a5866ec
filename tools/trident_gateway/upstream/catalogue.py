"""The models that the servers of a side serve, by the names under which clients ask for them.

Owns which servers have which model, and what happens when they disagree. It is told what each server has, and never
asks one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from trident_gateway.upstream.served_model import ServedModel
from trident_gateway.upstream.sides import STABLE


class Catalogue:
    """All models that the servers of one side serve, as these were last seen.

    Servers that have a model of the same name serve it together if they also have the same digest of tokenizer and chat
    template, so that a call means the same to each. Otherwise those that are more serve it alone; of as many, those
    with the newest build. The name is then in `conflicts`.

    Args:
        side: where the servers stand.
    """

    def __init__(self, side: str = STABLE) -> None:
        self._side = side
        self._by_server: dict[str, dict[str, ServedModel]] = {}
        self._models: dict[str, ServedModel] = {}
        self._aliases: dict[str, str] = {}
        self._servers: dict[str, tuple[str, ...]] = {}
        #: Names of models that servers do not agree on.
        self.conflicts: frozenset[str] = frozenset()

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """All models by their served names, in the order of these; the newest build of each."""
        return MappingProxyType(self._models)

    def find(self, name: str) -> ServedModel | None:
        """Return the model of a served name or an alias; None if there is none."""
        model = self._models.get(name)
        return model if model is not None else self._models.get(self._aliases.get(name, ""))

    def servers(self, name: str) -> tuple[str, ...]:
        """Return the servers that serve a model together, by its served name."""
        return self._servers.get(name, ())

    def on_server(self, server: str, name: str) -> ServedModel:
        """Return a model as one of its servers has it: names in a model repository may differ."""
        return self._by_server[server][name]

    def update(self, server: str, models: Iterable[ServedModel]) -> bool:
        """Replace what a server has; return whether anything is different now."""
        new = {model.card.name: replace(model, side=self._side) for model in models}
        if self._by_server.get(server) == new:
            return False
        self._by_server[server] = new
        self._merge()
        return True

    def remove(self, server: str) -> None:
        """Forget a server that does not belong to the side any more."""
        if self._by_server.pop(server, None) is not None:
            self._merge()

    def _merge(self) -> None:
        groups: dict[str, dict[str, list[tuple[str, ServedModel]]]] = defaultdict(lambda: defaultdict(list))
        for server, models in sorted(self._by_server.items()):
            for name, model in models.items():
                groups[name][model.card.digest].append((server, model))
        chosen = {name: max(rivals.values(), key=_rank) for name, rivals in sorted(groups.items())}
        self.conflicts = frozenset(name for name, rivals in groups.items() if len(rivals) > 1)
        self._servers = {name: tuple(server for server, _ in group) for name, group in chosen.items()}
        self._models = {name: _newest(group) for name, group in chosen.items()}
        by_age = sorted(self._models.values(), key=lambda model: (model.card.created, model.card.name))
        self._aliases = {alias: model.card.name for model in by_age for alias in model.card.aliases}


def _newest(group: list[tuple[str, ServedModel]]) -> ServedModel:
    return max((model for _, model in group), key=lambda model: model.card.created)


def _rank(group: list[tuple[str, ServedModel]]) -> tuple[int, int, str]:
    newest = _newest(group)
    return len(group), newest.card.created, newest.card.digest
