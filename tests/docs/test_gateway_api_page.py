"""The tables of docs/gateway_api.md are the fields of the schema, no more and no fewer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.gateway.api.schema import fields_without_effect
from trident_gateway.api.body import refused_fields
from trident_gateway.api.chat_request import ChatRequest
from trident_gateway.api.completion_request import CompletionRequest
from trident_gateway.api.openai_api import endpoints
from trident_gateway.api.responses.request import ResponsesRequest
from trident_gateway.api.tokenization import DetokenizeRequest, TokenizeRequest

_PAGE = Path(__file__).parents[2] / "docs" / "gateway_api.md"
_ROW = re.compile(r"\| (`[^|]*`) \| (yes|no effect|refused) \|")


def table(heading: str) -> dict[str, str]:
    """Return the fields of a section's table, with what is done with them."""
    section = _PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [(name, what) for names, what in _ROW.findall(section) for name in re.findall(r"`([^`]+)`", names)]
    assert len(rows) == len(dict(rows)), "each field stands in one row"
    return dict(rows)


@pytest.mark.parametrize(
    ("heading", "kind"),
    [
        ("Chat", ChatRequest),
        ("Completions", CompletionRequest),
        ("Responses", ResponsesRequest),
        ("Tokenize", TokenizeRequest),
        ("Detokenize", DetokenizeRequest),
    ],
)
def test_gateway_api_page_has_every_field(heading: str, kind: type[msgspec.Struct]) -> None:
    """Each in the one row that says what is done with it."""
    refused = refused_fields(kind).keys() & set(kind.__struct_fields__)
    without_effect = fields_without_effect(kind)
    expected = {
        name: "refused" if name in refused else "no effect" if name in without_effect else "yes"
        for name in kind.__struct_fields__
    }
    assert table(heading) == expected


def test_gateway_api_page_has_every_endpoint() -> None:
    """Methods and paths, in the first table."""
    context: Any = None
    rows = [line.split("|")[1] for line in _PAGE.read_text().splitlines() if line.startswith("| `")]
    named = {tuple(text.split()) for row in rows for text in re.findall(r"`((?:GET|POST) [^`]+)`", row)}
    assert named == {(one.method, one.path.replace("{model:path}", "{id}")) for one in endpoints(context)}
