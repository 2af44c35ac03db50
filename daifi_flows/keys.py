"""secp256k1 accounts, BLS keys and aggregates, sealed boxes.

Accounts sign transactions, proofs and manifests (Ethereum addresses, EIP-55). Committee seats sign
with BLS12-381, minimal public keys in G1 and signatures in G2, ciphersuite
``BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_`` (draft-irtf-cfrg-bls-signature), as Ethereum's
consensus layer does. Private outputs travel in X25519 sealed boxes (libsodium).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final

from blspy import G1Element, G2Element, PopSchemeMPL, PrivateKey
from coincurve import PublicKey
from eth_keys.backends.coincurve import CoinCurveECCBackend
from eth_keys.datatypes import PrivateKey as EthPrivateKey
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey as BoxPrivateKey
from nacl.public import PublicKey as BoxPublicKey
from nacl.public import SealedBox

from daifi_flows.encoding import checksum_address, keccak256
from daifi_flows.errors import KeyMaterialError

__all__ = [
    "Account",
    "BlsKey",
    "aggregate_bls",
    "check_possession",
    "check_seat_possession",
    "keep_first",
    "load_secret",
    "open_box",
    "possession_message",
    "recover_address",
    "save_secret",
    "seal_box",
    "sync_folder",
    "verify_bls",
    "verify_bls_aggregate",
]

_BACKEND: Final = CoinCurveECCBackend()
_SECP256K1_HALF_N: Final = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
"""Half the group order: a larger ``s`` is the malleated twin of a signature (EIP-2)."""


@dataclass(frozen=True)
class Account:
    """A secp256k1 key and its Ethereum address.

    >>> Account.from_seed(b"buyer").address
    '0x97BdA08BdB4Ccd6E3DFb2a6db55F424A6cF4d759'
    """

    secret: bytes

    @classmethod
    def create(cls) -> Account:
        """A fresh random account."""
        return cls(EthPrivateKey(secrets.token_bytes(32), backend=_BACKEND).to_bytes())

    @classmethod
    def from_seed(cls, seed: bytes) -> Account:
        """A deterministic account, for tests and for keys derived from a keystore secret."""
        return cls(keccak256(b"daifi/account/1" + seed))

    @classmethod
    def load(cls, path: Path) -> Account:
        """Read the key file at ``path``, creating it (mode 0600) when it is not there.

        Raises:
            KeyMaterialError: the file is there but is not 32 bytes in hex.
        """
        return cls(load_secret(path))

    @cached_property
    def _key(self) -> EthPrivateKey:
        return EthPrivateKey(self.secret, backend=_BACKEND)

    @cached_property
    def address(self) -> str:
        """EIP-55 checksummed address."""
        return self._key.public_key.to_checksum_address()

    @cached_property
    def box_public(self) -> bytes:
        """X25519 public key, 32 bytes, to which outputs for this account are sealed."""
        return bytes(self.box_key.public_key)

    @cached_property
    def box_key(self) -> BoxPrivateKey:
        """X25519 private key that opens outputs sealed to this account."""
        return BoxPrivateKey(keccak256(b"daifi/x25519/1" + self.secret))

    def sign(self, digest: bytes) -> bytes:
        """65-byte recoverable signature ``r ‖ s ‖ v`` (v is 27 or 28) over a 32-byte digest."""
        raw = self._key.sign_msg_hash(digest).to_bytes()
        return raw[:64] + bytes([raw[64] + 27])

    def __repr__(self) -> str:
        return f"Account({self.address})"


def save_secret(path: Path, secret: bytes) -> None:
    """Write 32 bytes as a key file (mode 0600), in one step; what was there is replaced."""
    temporary = _write_secret(path, secret)
    temporary.replace(path)
    sync_folder(path.parent)


def _write_secret(path: Path, secret: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(secret.hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    return temporary


def keep_first(path: Path, secret: bytes) -> bytes:
    """Write 32 bytes as a key file unless there is one, and return what is there now.

    Of several processes that try at once one succeeds, and all read the same.

    Raises:
        KeyMaterialError: as :func:`load_secret`.
    """
    if not path.exists():
        _create(path, secret)
    return load_secret(path)


def _create(path: Path, secret: bytes) -> None:
    temporary = _write_secret(path, secret)
    try:
        os.link(temporary, path)  # loses quietly to a concurrent creator: theirs is used
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make what was written to a folder, or removed from it, outlast a power cut: something may be
    promised on the strength of it."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def load_secret(path: Path) -> bytes:
    """Read the 32 bytes of the key file at ``path``; a new one gets random bytes (mode 0600).

    Raises:
        KeyMaterialError: the file is there but is not 32 bytes in hex.
    """
    if not path.exists():
        _create(path, secrets.token_bytes(32))
    try:
        secret = bytes.fromhex(path.read_text().strip())
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise KeyMaterialError(
            f"key file {path} cannot be read as hex: restore or remove it"
        ) from error
    if len(secret) != 32 or not any(secret):
        raise KeyMaterialError(
            f"key file {path} does not hold 32 bytes in hex: restore or remove it"
        )
    return secret


def recover_address(digest: bytes, signature: bytes) -> str:
    """Address that signed a 32-byte digest.

    Raises:
        KeyMaterialError: not 65 bytes, ``v`` not 27 or 28, a high ``s`` (malleated), or no point.
    """
    if len(signature) != 65 or signature[64] not in (27, 28):
        raise KeyMaterialError("signature is not 65 bytes r, s, v with v of 27 or 28")
    if int.from_bytes(signature[32:64], "big") > _SECP256K1_HALF_N:
        raise KeyMaterialError("signature has a high s: it was malleated")
    compact = signature[:64] + (b"\x00" if signature[64] == 27 else b"\x01")
    try:
        key = PublicKey.from_signature_and_message(compact, digest, hasher=None)
    except ValueError as error:  # coincurve raises no other, whatever the bytes
        raise KeyMaterialError("signature does not recover to any key") from error
    return _checksummed(keccak256(key.format(compressed=False)[1:])[12:])


_checksummed = lru_cache(maxsize=16_384)(checksum_address)
"""Most accounts come again; together 4 MB."""


@dataclass(frozen=True)
class BlsKey:
    """A committee seat's BLS12-381 key (48-byte public key, 96-byte signatures)."""

    secret: bytes

    @classmethod
    def from_seed(cls, seed: bytes) -> BlsKey:
        """EIP-2333 key generation from a seed of any length."""
        return cls(bytes(PopSchemeMPL.key_gen(keccak256(b"daifi/bls/1" + seed))))

    @classmethod
    def load(cls, path: Path) -> BlsKey:
        """Read or create (mode 0600) the seed file at ``path``.

        Raises:
            KeyMaterialError: the file is there but cannot be used.
        """
        return cls.from_seed(load_secret(path))

    @cached_property
    def _key(self) -> Any:
        return PrivateKey.from_bytes(self.secret)

    @cached_property
    def public(self) -> bytes:
        """Compressed G1 point, 48 bytes."""
        return bytes(self._key.get_g1())

    def sign(self, message: bytes) -> bytes:
        """Compressed G2 point, 96 bytes. Messages must carry their own domain tag."""
        return bytes(PopSchemeMPL.sign(self._key, message))

    def prove_possession(self) -> bytes:
        """Proof of possession, 96 bytes: without it a rogue key could cancel others' keys."""
        return bytes(PopSchemeMPL.pop_prove(self._key))

    def __repr__(self) -> str:
        return f"BlsKey({self.public.hex()[:12]}…)"


@lru_cache(maxsize=4096)
def _public(data: bytes) -> Any:
    try:
        point = G1Element.from_bytes(data)
    except (ValueError, RuntimeError) as error:
        raise KeyMaterialError("BLS public key is not a point of G1") from error
    if len(data) != 48 or point == G1Element():
        raise KeyMaterialError("BLS public key is the point at infinity")
    return point


def _signature(data: bytes) -> Any:
    if len(data) != 96:
        raise KeyMaterialError("BLS signature is not 96 bytes")
    try:
        return G2Element.from_bytes(data)
    except (ValueError, RuntimeError) as error:
        raise KeyMaterialError("BLS signature is not a point of G2") from error


@lru_cache(maxsize=4096)
def check_possession(public: bytes, proof: bytes) -> bool:
    """Whether ``proof`` shows that somebody holds the secret behind ``public``."""
    try:
        return bool(PopSchemeMPL.pop_verify(_public(public), _signature(proof)))
    except KeyMaterialError:
        return False


def possession_message(public: bytes, address: str) -> bytes:
    """What a key signs to be registered for an account:

    ``"daifi/possession/1" ‖ public key ‖ address``
    """
    return b"daifi/possession/1" + public + bytes.fromhex(address[2:])


def check_seat_possession(public: bytes, account: str, proof: bytes) -> bool:
    """Whether ``proof`` shows that somebody holds a seat's secret: by itself, or as the seat's
    account registered the key. The latter is on the ledger, so a node that was drawn cannot keep
    a committee from being put together by not giving the former."""
    return check_possession(public, proof) or verify_bls(
        public, possession_message(public, account), proof
    )


@lru_cache(maxsize=256)
def verify_bls(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether one seat signed ``message``. Malformed input is simply false."""
    try:
        return bool(PopSchemeMPL.verify(_public(public), message, _signature(signature)))
    except KeyMaterialError:
        return False


def aggregate_bls(signatures: Sequence[bytes]) -> bytes:
    """One 96-byte signature from several over the same message.

    Raises:
        KeyMaterialError: none given, or one is malformed.
    """
    if not signatures:
        raise KeyMaterialError("there is no signature to aggregate")
    return _aggregated(tuple(signatures))


# Whoever collects signatures, checks them, and passes them on to be checked again asks the same
# question within milliseconds; an answer takes one or two.


@lru_cache(maxsize=64)
def _aggregated(signatures: tuple[bytes, ...]) -> bytes:
    return bytes(PopSchemeMPL.aggregate([_signature(item) for item in signatures]))


def verify_bls_aggregate(publics: Sequence[bytes], message: bytes, signature: bytes) -> bool:
    """Whether all ``publics`` (each with a checked proof of possession) signed ``message``."""
    return bool(publics) and _all_signed(tuple(publics), message, signature)


@lru_cache(maxsize=256)
def _all_signed(publics: tuple[bytes, ...], message: bytes, signature: bytes) -> bool:
    try:
        keys = [_public(item) for item in publics]
        return bool(PopSchemeMPL.fast_aggregate_verify(keys, message, _signature(signature)))
    except KeyMaterialError:
        return False


def seal_box(recipient: bytes, plaintext: bytes) -> bytes:
    """Encrypt to an X25519 public key (libsodium sealed box: anonymous sender)."""
    try:
        return SealedBox(BoxPublicKey(recipient)).encrypt(plaintext)
    except (CryptoError, ValueError, TypeError) as error:
        raise KeyMaterialError("recipient is not a 32-byte X25519 public key") from error


def open_box(account: Account, sealed: bytes) -> bytes:
    """Decrypt what was sealed to this account.

    Raises:
        KeyMaterialError: the box is damaged or meant for another account.
    """
    try:
        return SealedBox(account.box_key).decrypt(sealed)
    except (CryptoError, ValueError, TypeError) as error:
        raise KeyMaterialError("the sealed output was not encrypted to this account") from error
