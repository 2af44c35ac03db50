"""The bundle: one verified step as four files, and byte for byte as a CAR v1 file.

``metadata.json``
    What was asked, spent and decided, with the committee's attestation and the ledger's receipts of
    the node's commit and of the settlement, and an account of the review. The account is what the
    step's own client saw; the settlement commits to it, and what the seats signed is the
    attestation alone.
``zk_proof.bin``
    The proof envelope: the node's signed proof, the input it is about, and small materials.
    Sealed to the buyer together with the output, because transcripts show the output.
``output_tensor``
    The salted output, sealed to the buyer when asked.
``model_attestation``
    A signed manifest of the model's files.

The directory is a UnixFS directory (https://specs.ipfs.tech/unixfs/): raw leaves of 1 MiB, CIDv1,
so that its CID is what ``ipfs add --cid-version 1`` gives and the CAR
(https://ipld.io/specs/transport/car/carv1/) imports into any IPFS node. Every file has one
spelling; a bundle that is not byte for byte what :meth:`Bundle.build` writes is refused.
"""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from daifi_flows.cnft import (
    Attestation,
    Content,
    CoreMetadata,
    Label,
    ModelManifest,
    Noun,
    Proof,
    Raw,
    Receipt,
)
from daifi_flows.encoding import canonical_json, cid_of, decode_canonical_json, tagged_hash
from daifi_flows.errors import BundleError, EncodingError

__all__ = [
    "FILES",
    "MAX_FILE_BYTES",
    "METADATA_FORMAT",
    "Bundle",
    "Effect",
    "Metadata",
    "ProofFile",
    "manifest_bytes",
    "report_digest",
]

FILES: Final = ("metadata.json", "model_attestation", "output_tensor", "zk_proof.bin")
"""A bundle's files, in the order of its CAR."""

MAX_FILE_BYTES: Final = 128 * 1024 * 1024
"""Largest file of a bundle: one level of UnixFS links (174 × 1 MiB) holds it."""

MAX_EFFECT_CHARS: Final = 1_000_000
"""Longest return value of an after-settlement action, as JSON text."""

MAX_REPORT_CHARS: Final = 262_144
"""Longest account of a review, as JSON text."""

_CHUNK: Final = 1024 * 1024


class Effect(Noun):
    """What a step's after-settlement action returned, committed on the ledger by its own
    transaction. ``value_json`` is canonical JSON text."""

    value_json: Annotated[str, Field(max_length=MAX_EFFECT_CHARS)]
    receipt: Receipt

    @staticmethod
    def check(value_json: str) -> str:
        """The text itself.

        Raises:
            BundleError: it is too long for a bundle.
        """
        if len(value_json) > MAX_EFFECT_CHARS:
            raise BundleError(
                f"the action returned {len(value_json)} characters of JSON and a bundle holds "
                f"{MAX_EFFECT_CHARS}: return a path or an id instead"
            )
        return value_json

    @staticmethod
    def digest_of(token_id: bytes, value_json: str) -> bytes:
        """What the effect transaction carries, 32 bytes."""
        return tagged_hash("daifi/effect/1", {"token_id": token_id, "value": value_json})


class Metadata(Noun):
    """``metadata.json``.

    Attributes:
        receipt: of the settlement.
        committed: of the node's commit, where it says how likely the work was to be reviewed.
        report_json: the account of the review, canonical JSON text; ``core.report`` is its digest.
    """

    format: Label
    core: CoreMetadata
    attestation: Attestation
    receipt: Receipt
    committed: Receipt | None = None
    report_json: Annotated[str, Field(max_length=MAX_REPORT_CHARS)] | None = None
    effect: Effect | None = None


METADATA_FORMAT: Final = "daifi-bundle/1"


def report_digest(task_id: bytes, report_json: str) -> bytes:
    """What ``core.report`` holds, 32 bytes."""
    return tagged_hash("daifi/review-report/1", {"task_id": task_id, "report": report_json})


class ProofFile(Noun):
    """``zk_proof.bin``. ``blobs`` are small materials that re-execution needs (a corpus, an ONNX
    policy); each must be named by the input or the manifest."""

    proof: Proof
    input: Content | None = None
    blobs: Annotated[tuple[Raw, ...], Field(max_length=16)] = ()


# UnixFS over dag-pb, as far as a flat directory of files needs it.


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 56:
            raise BundleError("the CAR file is cut off or damaged (bad length)")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _cid_bytes(cid: str) -> bytes:
    body = cid[1:].upper()
    return base64.b32decode(body + "=" * (-len(body) % 8))


@dataclass(frozen=True)
class _Block:
    cid: str
    data: bytes
    total: int
    """Cumulative size of the DAG below, the link's Tsize."""


def _pb_node(links: list[tuple[str, _Block]], data: bytes) -> bytes:
    body = b""
    for name, block in links:
        link = _field(1, _cid_bytes(block.cid)) + _field(2, name.encode())
        body += _field(2, link + b"\x18" + _varint(block.total))
    return body + _field(1, data)


def _leaf(data: bytes) -> _Block:
    return _Block(cid_of(data), data, len(data))


def _file_blocks(data: bytes) -> list[_Block]:
    """Root block of a file first, then its leaves."""
    if len(data) <= _CHUNK:
        return [_leaf(data)]
    leaves = [_leaf(data[at : at + _CHUNK]) for at in range(0, len(data), _CHUNK)]
    unixfs = b"\x08\x02\x18" + _varint(len(data))
    unixfs += b"".join(b"\x20" + _varint(leaf.total) for leaf in leaves)
    node = _pb_node([("", leaf) for leaf in leaves], unixfs)
    total = len(node) + sum(leaf.total for leaf in leaves)
    return [_Block(cid_of(node, "dag-pb"), node, total), *leaves]


def _links(node: bytes) -> Iterator[tuple[bytes, str]]:
    """(binary CID, name) of each link of a dag-pb node. Lenient: callers re-encode and compare."""
    at = 0
    while at < len(node):
        tag, at = _read_varint(node, at)
        length, at = _read_varint(node, at)
        body, at = node[at : at + length], at + length
        if tag != (2 << 3 | 2):
            continue
        cid, name, inner = b"", "", 0
        while inner < len(body):
            tag, inner = _read_varint(body, inner)
            if tag & 7 == 0:
                _, inner = _read_varint(body, inner)
                continue
            length, inner = _read_varint(body, inner)
            value, inner = body[inner : inner + length], inner + length
            if tag == (1 << 3 | 2):
                cid = value
            elif tag == (2 << 3 | 2):
                name = value.decode("utf-8", "replace")
        yield cid, name


@dataclass(frozen=True)
class Bundle:
    """The four files of one cNFT."""

    files: Mapping[str, bytes]

    @classmethod
    def build(
        cls,
        metadata: Metadata,
        proof_file: bytes,
        output_file: bytes,
        manifest_file: bytes,
    ) -> Bundle:
        """Lay out a bundle from the files whose CIDs ``metadata.core`` names."""
        return cls(
            {
                "metadata.json": canonical_json(metadata.jsonable()),
                "model_attestation": manifest_file,
                "output_tensor": output_file,
                "zk_proof.bin": proof_file,
            }
        )

    # Parsed views; each refuses any spelling but the canonical one.

    @cached_property
    def metadata(self) -> Metadata:
        """Parsed ``metadata.json``.

        Raises:
            BundleError: not canonical, or not metadata.
        """
        try:
            value = decode_canonical_json(self.files["metadata.json"], max_bytes=16 * _CHUNK)
            noun = Metadata.from_plain(value)
            if canonical_json(noun.jsonable()) != self.files["metadata.json"]:
                raise EncodingError("metadata.json is spelt differently from what it says")
        except EncodingError as error:
            raise BundleError(f"metadata.json is damaged: {error}") from error
        if noun.format != METADATA_FORMAT:
            raise BundleError(f"bundle format {noun.format!r} is not known; expected 1")
        return noun

    def proof(self, plaintext: bytes | None = None) -> ProofFile:
        """Parsed ``zk_proof.bin``; ``plaintext`` is the opened box when it was sealed.

        Raises:
            BundleError: not canonical, or not a proof envelope.
        """
        data = self.files["zk_proof.bin"] if plaintext is None else plaintext
        try:
            return ProofFile.from_canonical(data, max_bytes=MAX_FILE_BYTES)
        except EncodingError as error:
            raise BundleError(f"zk_proof.bin is damaged: {error}") from error

    @cached_property
    def manifest(self) -> ModelManifest:
        """Parsed ``model_attestation``.

        Raises:
            BundleError: not canonical, or not a manifest.
        """
        data = self.files["model_attestation"]
        try:
            noun = ModelManifest.from_plain(decode_canonical_json(data, max_bytes=16 * _CHUNK))
            if manifest_bytes(noun) != data:
                raise EncodingError("it is spelt differently from what it says")
        except EncodingError as error:
            raise BundleError(f"model_attestation is damaged: {error}") from error
        return noun

    def output(self, plaintext: bytes | None = None) -> Content:
        """The salted output; ``plaintext`` is the opened box when it was sealed.

        Raises:
            BundleError: not canonical, or not content.
        """
        data = self.files["output_tensor"] if plaintext is None else plaintext
        try:
            return Content.from_canonical(data, max_bytes=MAX_FILE_BYTES)
        except EncodingError as error:
            raise BundleError(f"output_tensor is damaged: {error}") from error

    # Content addressing and storage

    @cached_property
    def _blocks(self) -> list[_Block]:
        per_file = [(name, _file_blocks(self.files[name])) for name in FILES]
        root = _pb_node([(name, blocks[0]) for name, blocks in per_file], b"\x08\x01")
        total = len(root) + sum(blocks[0].total for _, blocks in per_file)
        rest = [block for _, blocks in per_file for block in blocks]
        return [_Block(cid_of(root, "dag-pb"), root, total), *rest]

    @property
    def cid(self) -> str:
        """CIDv1 of the UnixFS directory."""
        return self._blocks[0].cid

    def car(self) -> bytes:
        """The CAR v1 file: header with one root, then the directory and each file in order."""
        root = _cid_bytes(self.cid)
        # DAG-CBOR of {"roots": [link], "version": 1}; a link is tag 42 over 0x00 ‖ CID.
        header = b"\xa2\x65roots\x81\xd8\x2a\x58" + bytes([len(root) + 1]) + b"\x00" + root
        header += b"\x67version\x01"
        out = [_varint(len(header)), header]
        for block in self._blocks:
            cid = _cid_bytes(block.cid)
            out += [_varint(len(cid) + len(block.data)), cid, block.data]
        return b"".join(out)

    @classmethod
    def from_car(cls, data: bytes) -> Bundle:
        """Parse a CAR file that must be byte for byte what :meth:`car` writes.

        Raises:
            BundleError: anything else.
        """
        if len(data) > len(FILES) * (MAX_FILE_BYTES + _CHUNK):
            raise BundleError("the CAR file is larger than a bundle can be")
        length, at = _read_varint(data, 0)
        at += length
        blocks: dict[bytes, bytes] = {}
        root: bytes | None = None
        while at < len(data):
            length, at = _read_varint(data, at)
            if length < 36 or at + length > len(data):
                raise BundleError("the CAR file is cut off or damaged (bad block)")
            cid = data[at : at + 36]
            blocks[cid] = data[at + 36 : at + length]
            root = root or cid
            at += length
        if root is None:
            raise BundleError("the CAR file holds no block")
        files: dict[str, bytes] = {}
        for cid, name in _links(blocks[root]):
            node = blocks.get(cid)
            if node is None or name not in FILES or name in files:
                raise BundleError(f"the CAR file has no good block for {name[:80]!r}")
            if cid[1] == 0x70:
                # A small file may name one block many times: count before joining.
                leaves = [blocks.get(leaf, b"") for leaf, _ in _links(node)]
                if sum(map(len, leaves)) > MAX_FILE_BYTES:
                    raise BundleError(f"{name!r} is larger than {MAX_FILE_BYTES} bytes")
                files[name] = b"".join(leaves)
            else:
                files[name] = node
        bundle = cls(files)
        if tuple(sorted(files)) != FILES or bundle.car() != data:
            raise BundleError(
                "the CAR file is not in canonical form: its blocks do not match their content ids, "
                "or it holds something else than one bundle"
            )
        return bundle

    @classmethod
    def read(cls, path: Path) -> Bundle:
        """Read a bundle directory or ``.car`` file.

        Raises:
            BundleError: missing, not a bundle, a file too many or too few, or too large.
        """
        try:
            if path.is_dir():
                return cls(_read_directory(path))
            if path.stat().st_size > len(FILES) * (MAX_FILE_BYTES + _CHUNK):
                raise BundleError(f"{path} is larger than a bundle can be")
            return cls.from_car(path.read_bytes())
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error

    def write(self, directory: Path) -> None:
        """Write the directory and ``<directory>.car`` beside it, each complete or not at all.

        Raises:
            BundleError: the disk refuses.
        """
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
            try:
                temporary.chmod(0o755)
                for name in FILES:
                    (temporary / name).write_bytes(self.files[name])
                if directory.exists():
                    shutil.rmtree(directory)
                temporary.rename(directory)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            car = directory.with_name(directory.name + ".car")
            partial = car.with_name(f".{car.name}.{os.getpid()}")
            partial.write_bytes(self.car())
            partial.replace(car)
        except OSError as error:
            raise BundleError(f"bundle {directory} cannot be written: {error}") from error


def _read_directory(path: Path) -> dict[str, bytes]:
    names = tuple(sorted(entry.name for entry in path.iterdir()))
    if names != FILES:
        raise BundleError(
            f"{path} is not a bundle: it must hold exactly {', '.join(FILES)} "
            f"(found: {', '.join(names[:8]) or 'nothing'})"
        )
    files: dict[str, bytes] = {}
    for name in FILES:
        file = path / name
        if file.is_symlink() or not file.is_file():
            raise BundleError(f"{file} is not a plain file")
        if file.stat().st_size > MAX_FILE_BYTES:
            raise BundleError(f"{file} is larger than {MAX_FILE_BYTES} bytes")
        files[name] = file.read_bytes()
    return files


def manifest_bytes(manifest: ModelManifest) -> bytes:
    """``model_attestation`` as bytes."""
    return canonical_json(manifest.jsonable())
