"""Models of several servers by one list of names."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from trident_ensemble.contract.model_card import ModelCard
from trident_gateway.upstream.catalogue import Catalogue
from trident_gateway.upstream.served_model import ServedModel

NAMES = st.sampled_from(["a", "b", "c"])
MODELS = st.lists(
    st.builds(
        lambda name, created, digest, aliases: ServedModel(
            ModelCard(name, created, 100, digest, tuple(aliases)), f"{name}_ensemble", f"{name}_preprocessing"
        ),
        NAMES,
        st.integers(0, 3),
        st.sampled_from(["d", "e"]),
        st.lists(st.sampled_from(["a", "x", "y"]), max_size=2),
    ),
    max_size=3,
    unique_by=lambda model: model.card.name,
)


def _model(name: str, *, created: int = 1, digest: str = "d", aliases: tuple[str, ...] = ()) -> ServedModel:
    return ServedModel(ModelCard(name, created, 100, digest, aliases), "ensemble", "preprocessing")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["s0", "s1", "s2"]), MODELS), max_size=8))
def test_catalogue_is_what_the_servers_have_last_said(updates: list[tuple[str, list[ServedModel]]]) -> None:
    catalogue = Catalogue()
    last: dict[str, dict[str, ServedModel]] = {}
    for server, models in updates:
        assert catalogue.update(server, models) == (last.get(server) != {m.card.name: m for m in models})
        last[server] = {model.card.name: model for model in models}
    assert set(catalogue.models) == {name for models in last.values() for name in models}
    for name, model in catalogue.models.items():
        servers = catalogue.servers(name)
        digests = {server: models[name].card.digest for server, models in last.items() if name in models}
        assert {digests[server] for server in servers} == {model.card.digest}
        assert set(servers) == {server for server, digest in digests.items() if digest == model.card.digest}
        assert list(digests.values()).count(model.card.digest) * 2 >= len(digests)
        assert (name in catalogue.conflicts) == (len(set(digests.values())) > 1)
        assert model.card.created == max(last[server][name].card.created for server in servers)
        assert all(catalogue.on_server(server, name) == last[server][name] for server in servers)
        assert catalogue.find(name) == model
    for alias in ("x", "y"):
        claimed = [model for model in catalogue.models.values() if alias in model.card.aliases]
        assert catalogue.find(alias) in claimed if claimed else catalogue.find(alias) is None


def test_catalogue_a_name_goes_before_an_alias() -> None:
    catalogue = Catalogue()
    catalogue.update("s", [_model("a"), _model("b", aliases=("a", "x"))])
    assert catalogue.find("a") == _model("a")
    assert catalogue.find("x") == _model("b", aliases=("a", "x"))
    catalogue.update("s", [])
    assert catalogue.find("a") is None
    assert not catalogue.servers("a")


def test_catalogue_the_newest_build_wins_among_as_many_servers() -> None:
    catalogue = Catalogue()
    catalogue.update("s0", [_model("a", created=1, digest="old")])
    catalogue.update("s1", [_model("a", created=2, digest="new")])
    assert catalogue.servers("a") == ("s1",)
    catalogue.update("s2", [_model("a", created=1, digest="old")])
    assert catalogue.servers("a") == ("s0", "s2")
    assert catalogue.conflicts == {"a"}
    catalogue.update("s0", [_model("a", created=2, digest="new")])
    assert catalogue.servers("a") == ("s0", "s1")
    catalogue.update("s2", [_model("a", created=2, digest="new")])
    assert not catalogue.conflicts
