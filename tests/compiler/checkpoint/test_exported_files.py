"""The files of a model exported to OpenVINO: what is read of them, and what is refused before OpenVINO sees them."""

from __future__ import annotations

from pathlib import Path

import pytest

from trident_compiler.checkpoint.exported_files import (
    NETWORK_FILE,
    WEIGHTS_FILE,
    StoredConstant,
    is_exported,
    read_exported_files,
)
from trident_ensemble.contract.errors import CheckpointError

TABLE = '<data element_type="u4" shape="3, 2, 4" offset="16" size="12"/>'
STATEFUL = ("input_ids", "attention_mask", "position_ids", "beam_idx")


def network(
    *,
    inputs: tuple[str, ...] = STATEFUL,
    layers: tuple[str, ...] = ("ReadValue", "ScaledDotProductAttention", "ScaledDotProductAttention"),
    data: str = TABLE,
    version: str = "opset1",
    logits: tuple[int, ...] = (-1, -1, 300),
    results: int = 1,
    dimensions: str = "?,?",
) -> str:
    """As much of a network's description as is read: inputs, layers, one constant that is used twice, results."""
    parameters = [
        f'<layer name="{name}" type="Parameter" version="opset1"><data shape="{dimensions}" element_type="i64"/>'
        f'<output><port id="0" precision="I64" names="{name}"><dim>-1</dim></port></output></layer>'
        for name in inputs
    ]
    constants = [f'<layer name="table" type="Const" version="{version}">{data}</layer>'] * 2
    others = [f'<layer name="{kind}" type="{kind}" version="opset13"/>' for kind in layers]
    sizes = "".join(f"<dim>{size}</dim>" for size in logits)
    ends = [f'<layer name="r" type="Result" version="opset1"><input><port id="0">{sizes}</port></input></layer>']
    body = "".join([*parameters, *constants, *others, *ends * results])
    return f'<?xml version="1.0"?><net name="m" version="11"><layers>{body}</layers><edges/></net>'


def save(folder: Path, description: str, num_bytes: int = 28) -> Path:
    (folder / NETWORK_FILE).write_text(description)
    (folder / WEIGHTS_FILE).write_bytes(bytes(num_bytes))
    return folder


def test_exported_files_the_sizes_are_those_of_the_description(tmp_path: Path) -> None:
    files = read_exported_files(save(tmp_path, network()))
    assert (files.num_layers, files.vocab_size, files.num_bytes) == (2, 300, 12)
    assert files.constants == (StoredConstant("u4", (3, 2, 4), 12),)


@pytest.mark.parametrize(
    ("description", "words"),
    [
        (network(inputs=("input_ids", "pixel_values")), "its input pixel_values is not one of input_ids, "),
        (network(inputs=("inputs_embeds", "beam_idx")), "inputs_embeds is of embeddings.*part of a larger model"),
        (network(inputs=("decoder_input_ids",)), "its input decoder_input_ids is not"),
        (network(inputs=("attention_mask",)), "has no input input_ids"),
        (network(inputs=("input_ids", "past_key_values.0.key")), r"past_key_values\.0\.key.*not stateful.*optimum-cli"),
        (network(dimensions="?,?,?"), r"input_ids is of shape \[\?,\?,\?\], not \[sequences, tokens\]"),
        (network(layers=("ScaledDotProductAttention",)), "has no state.*text-generation-with-past"),
        (network(layers=("ReadValue", "Softmax")), "has no ScaledDotProductAttention.*attn_logit_softcapping"),
        (network(results=2), "has 2 results"),
        (network(logits=(-1, -1, -1)), r"its result is of shape \(-1, -1, -1\), not logits"),
        (network(logits=(-1, 300)), r"its result is of shape \(-1, 300\), not logits"),
        (network(version="extension"), "layer 'table' is of 'extension', which is no operation set"),
        (network(data=TABLE.replace("16", "17")), r"'table': lies at 17\.\.29, and openvino_model.bin has 28 bytes"),
        (network(data=TABLE.replace("16", "9" * 19)), f"lies at {'9' * 19}"),
        (network(data=TABLE.replace("16", "-16")), "offset '-16' and size '12' are not numbers"),
        (network(data=TABLE.replace("16", "9" * 20)), "are not numbers"),
        (network(data=TABLE.replace("3, 2", "3, 3")), r"size of 12 bytes is not that of shape \[3, 3, 4\] in u4"),
        (network(data=TABLE.replace("3, 2", "?, 2")), r"shape '\?, 2, 4' is not one"),
        (network(data=TABLE.replace("u4", "string")), "element_type 'string' is no type of numbers"),
        (network().replace("<net", "<!DOCTYPE net [<!ENTITY a 'b'>]><net"), "declares a document type"),
        (network()[:-10], "cannot be read: .*line 1"),
        ("", "cannot be read: no element found"),
        ("<html/>", "describes no network"),
    ],
)
def test_exported_files_what_is_no_decoder_of_text_is_refused(tmp_path: Path, description: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{NETWORK_FILE}: .*{words}"):
        read_exported_files(save(tmp_path, description))


def test_exported_files_a_truncated_bin_is_refused_and_a_missing_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has 27 bytes; it is truncated"):
        read_exported_files(save(tmp_path, network(), 27))
    (tmp_path / WEIGHTS_FILE).unlink()
    with pytest.raises(CheckpointError, match=f"{WEIGHTS_FILE}: cannot be read: No such file"):
        read_exported_files(tmp_path)


def test_exported_files_constants_of_bodies_are_checked_too(tmp_path: Path) -> None:
    inner = network(inputs=("wrong",), data=TABLE.replace("16", "17"))
    body = f'<layer name="if" type="If" version="opset8"><then_body>{inner[inner.index("<layers>") : -6]}</then_body>'
    with pytest.raises(CheckpointError, match=r"lies at 17\.\.29"):
        read_exported_files(save(tmp_path, network().replace("</layers>", f"{body}</layer></layers>")))


def test_exported_files_a_folder_with_a_network_is_exported_unless_it_has_tensors(tmp_path: Path) -> None:
    assert not is_exported(tmp_path)
    (tmp_path / "openvino_tokenizer.xml").touch()
    assert not is_exported(tmp_path)
    (tmp_path / "openvino_language_model.xml").touch()
    with pytest.raises(CheckpointError, match=r"openvino_language_model\.xml: is part of a model of several networks"):
        is_exported(tmp_path)
    save(tmp_path, network())
    assert is_exported(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert not is_exported(tmp_path)
