"""The checks of what clients send: sizes, encodings and parameter names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trident_ensemble.contract import tensors
from trident_ensemble.contract.client_input import check_parameters, decode_text
from trident_ensemble.contract.errors import RequestError


@given(st.binary(max_size=12))
def test_client_input_decode_text_takes_exactly_what_python_decodes(raw: bytes) -> None:
    try:
        expected = raw.decode("utf-8", "strict")
    except UnicodeDecodeError as error:
        with pytest.raises(RequestError, match=rf"^prompt: is not valid UTF-8: .* at byte {error.start}; send UTF-8$"):
            decode_text("prompt", raw, 12)
    else:
        assert decode_text("prompt", raw, 12) == expected


@pytest.mark.parametrize("raw", [b"12345", b"\xff\xff\xff\xff\xff"])
def test_client_input_decode_text_refuses_a_large_text_before_it_is_decoded(raw: bytes) -> None:
    with pytest.raises(RequestError, match=r"^prompt: 5 bytes are more than a prompt may have; at most 4; shorten it$"):
        decode_text("prompt", raw, 4, "a prompt may have")
    with pytest.raises(RequestError, match="5 bytes are more than this field may have"):
        decode_text("prompt", raw, 4)


def test_client_input_check_parameters_names_the_unknown_one_and_the_known_fields() -> None:
    check_parameters(tensors.KNOWN_PARAMETERS, (tensors.SEED,))
    with pytest.raises(RequestError, match=r"^max_tokns: unknown field; known are seed, top_k$"):
        check_parameters(["max_tokns"], (tensors.SEED, tensors.TOP_K))
