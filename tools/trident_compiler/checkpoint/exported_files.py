"""The files of a model that was exported to OpenVINO: an .xml that describes a network, and a .bin with its constants.

Owns what is read of them without OpenVINO: inputs, sizes and constants, and the refusal of networks that are no
decoder of text or that do not fit their .bin. Trusts nothing: OpenVINO's own parser sees an .xml only afterwards. Never
reads the values of constants.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from trident_ensemble.contract.errors import CheckpointError

NETWORK_FILE, WEIGHTS_FILE = "openvino_model.xml", "openvino_model.bin"
#: Other networks that exporters write beside it, and that are not needed.
_TEXT_NETWORKS = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
#: A network of a thousand layers has a tenth of it.
_MAX_XML_BYTES = 1 << 28
_EXPORT = "optimum-cli export openvino --task text-generation-with-past"
#: What a decoder's step is given; the first must be there.
_INPUTS = ("input_ids", "attention_mask", "position_ids", "beam_idx")
_BITS = re.compile(r"(?:bf|f|i|u|nf)(\d{1,2})(?:e\dm\d)?|boolean")
_OPSET = re.compile(r"opset\d{1,2}")
_NUMBERS = re.compile(r"\d{1,19}(?:\s*,\s*\d{1,19})*")


@dataclass(frozen=True)
class StoredConstant:
    """A constant of the network.

    Args:
        element_type: as OpenVINO spells it, such as `f16` or `u4`.
        shape: of its values.
        num_bytes: that they take in the .bin.
    """

    element_type: str
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True)
class ExportedFiles:
    """An exported network, as far as its .xml says it.

    Args:
        folder: where both files lie.
        num_layers: layers with attention.
        vocab_size: width of a row of logits.
        constants: each place of the .bin that one lies at.
    """

    folder: Path
    num_layers: int
    vocab_size: int
    constants: tuple[StoredConstant, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of all constants together."""
        return sum(constant.num_bytes for constant in self.constants)


def is_exported(folder: Path) -> bool:
    """Return whether a folder's model is an exported network: it has one, and no weights as transformers stores them.

    Raises:
        CheckpointError: it holds exported networks, of which none is a decoder of text.
    """
    if any(folder.glob("*.safetensors")):
        return False
    if (folder / NETWORK_FILE).is_file():
        return True
    others = sorted(path.name for path in folder.glob("openvino_*.xml") if path.name not in _TEXT_NETWORKS)
    if others:
        raise CheckpointError(
            f"{others[0]}: is part of a model of several networks; {NETWORK_FILE}, one network that continues text, "
            "can be built"
        )
    return False


def read_exported_files(folder: Path) -> ExportedFiles:
    """Read the .xml and hold it against the .bin.

    Raises:
        CheckpointError: a file is missing or damaged, a constant does not lie in the .bin, or the network is not a
            stateful decoder with attention that can be made paged; says what to do.
    """
    try:
        xml_bytes = (folder / NETWORK_FILE).stat().st_size
        bin_bytes = (folder / WEIGHTS_FILE).stat().st_size
    except OSError as error:
        raise CheckpointError(f"{Path(error.filename).name}: cannot be read: {error.strerror}") from None
    if xml_bytes > _MAX_XML_BYTES:
        raise _refuse(f"is {xml_bytes} bytes long; {_MAX_XML_BYTES} are the most")
    scan = _Scan(bin_bytes)
    scan.read(folder / NETWORK_FILE)
    _check_inputs(scan)
    if not scan.types["ScaledDotProductAttention"]:
        raise _refuse(
            "has no ScaledDotProductAttention: its attention is written in plain operations, as exporters do where it "
            "has a soft cap (attn_logit_softcapping); build from the original checkpoint"
        )
    if len(scan.result_shapes) != 1:
        raise _refuse(f"has {len(scan.result_shapes)} results; a decoder of text has one, its logits")
    (shape,) = scan.result_shapes
    if len(shape) != 3 or shape[-1] < 1:
        raise _refuse(f"its result is of shape {shape}, not logits of [sequences, tokens, vocabulary]")
    return ExportedFiles(folder, scan.types["ScaledDotProductAttention"], shape[-1], tuple(scan.constants.values()))


def _check_inputs(scan: _Scan) -> None:
    inputs = {name: shape for names, shape in scan.inputs for name in names}
    if "inputs_embeds" in inputs:
        raise _refuse("its input inputs_embeds is of embeddings, so it is part of a larger model; token ids are served")
    if stored := [name for name in inputs if name.startswith("past_key_values")]:
        raise _refuse(f"its input {stored[0]} is a cache, so the export is not stateful; export again with {_EXPORT}")
    for name, shape in inputs.items():
        if name not in _INPUTS:
            raise _refuse(f"its input {name} is not one of {', '.join(_INPUTS)}; only a decoder of text is served")
        if name != "beam_idx" and len(shape.split(",")) != 2:
            raise _refuse(f"its input {name} is of shape [{shape}], not [sequences, tokens]")
    if "input_ids" not in inputs:
        raise _refuse("has no input input_ids")
    if not scan.types["ReadValue"]:
        raise _refuse(f"has no state, so no keys and values are kept from step to step; export again with {_EXPORT}")


@dataclass
class _Scan:
    """What one pass over the .xml finds.

    Args:
        bin_bytes: length of the .bin.
    """

    bin_bytes: int
    types: Counter[str] = field(default_factory=Counter)
    inputs: list[tuple[list[str], str]] = field(default_factory=list)
    result_shapes: list[tuple[int, ...]] = field(default_factory=list)
    constants: dict[int, StoredConstant] = field(default_factory=dict)
    # The layers that are open; those of a body of control flow lie in another layer.
    _open: list[dict[str, str]] = field(default_factory=list)
    _shape: str = ""
    _text: str = ""

    def read(self, path: Path) -> None:
        """Read all of a file."""
        parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.buffer_text = True
        try:
            with path.open("rb") as file:
                parser.ParseFile(file)
        except (OSError, expat.ExpatError) as error:
            raise _refuse(f"cannot be read: {error}") from None
        if not self.types:
            raise _refuse("describes no network")

    def _doctype(self, *_: object) -> None:
        raise _refuse("declares a document type, which no exporter writes")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._text = ""
        if name == "layer":
            kind, version = attributes.get("type", ""), attributes.get("version", "")
            if not _OPSET.fullmatch(version):
                raise _refuse(f"layer {attributes.get('name')!r} is of {version!r}, which is no operation set")
            self._open.append(attributes)
            self.types[kind] += 1
            if kind == "Result" and len(self._open) == 1:
                self.result_shapes.append(())
        elif self._open:
            kind = self._open[-1].get("type", "")
            if name == "data" and kind == "Const":
                self._constant(self._open[-1].get("name", ""), attributes)
            elif name == "data" and kind == "Parameter":
                self._shape = attributes.get("shape", "")
            elif name == "port" and kind == "Parameter" and len(self._open) == 1:
                self.inputs.append((attributes.get("names", "").split(","), self._shape))

    def _end(self, name: str) -> None:
        if name == "layer":
            self._open.pop()
        elif name == "dim" and len(self._open) == 1 and self._open[-1].get("type") == "Result":
            text = self._text.strip()
            self.result_shapes[-1] += (int(text) if re.fullmatch(r"\d{1,9}", text) else -1,)

    def _characters(self, text: str) -> None:
        self._text += text

    def _constant(self, name: str, attributes: dict[str, str]) -> None:
        """Check where a constant lies."""
        element_type, shape = attributes.get("element_type", ""), attributes.get("shape", "")
        where = f"constant {name!r}"
        kind = _BITS.fullmatch(element_type)
        if kind is None:
            raise _refuse(f"{where}: element_type {element_type!r} is no type of numbers")
        if shape and not _NUMBERS.fullmatch(shape):
            raise _refuse(f"{where}: shape {shape!r} is not one")
        place = [attributes.get(key, "") for key in ("offset", "size")]
        if not all(re.fullmatch(r"\d{1,19}", number) for number in place):
            raise _refuse(f"{where}: offset {place[0]!r} and size {place[1]!r} are not numbers")
        sizes = tuple(int(size) for size in shape.split(",")) if shape else ()
        offset, num_bytes = map(int, place)
        if num_bytes != -(-math.prod(sizes) * int(kind[1] or 8) // 8):
            raise _refuse(f"{where}: its size of {num_bytes} bytes is not that of shape [{shape}] in {element_type}")
        if offset + num_bytes > self.bin_bytes:
            raise _refuse(
                f"{where}: lies at {offset}..{offset + num_bytes}, and {WEIGHTS_FILE} has {self.bin_bytes} bytes; it "
                "is truncated, or another network's"
            )
        self.constants[offset] = StoredConstant(element_type, sizes, num_bytes)


def _refuse(problem: str) -> CheckpointError:
    return CheckpointError(f"{NETWORK_FILE}: {problem}")
