"""What every signed transaction has: sender, nonce, expiry, fee limit, request id, signature.

The EIP-712 domain is ``EIP712Domain(string name,string version,bytes32 salt)`` with the ledger's
id as salt: a signature for one ledger is worthless on any other. A transaction's id is the
EIP-712 digest its sender signed. Wallets sign :meth:`Transaction.typed_data` as
``eth_signTypedData_v4``. The struct follows from a kind's fields (see :mod:`_eip712`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar, Final, Self

from daifi_flows.cnft import Address, Bytes32, Bytes65, Noun, Uint, Wei
from daifi_flows.encoding import canonical, keccak256
from daifi_flows.errors import KeyMaterialError, TransactionRefused
from daifi_flows.keys import Account, recover_address
from daifi_flows.ledger._eip712 import Member, domain_separator, members

__all__ = ["MAX_TX_BYTES", "NO_REQUEST", "UNLIMITED_FEE_WEI", "Transaction"]

MAX_TX_BYTES: Final = 64 * 1024
"""Largest transaction parsed from a stranger, unless its kind allows more."""
NO_REQUEST: Final = bytes(32)
UNLIMITED_FEE_WEI: Final = 2**256 - 1


class Transaction(Noun):
    """Base of every kind.

    Attributes:
        nonce: how many transactions of the sender came before.
        valid_until_ms: refused in blocks dated later than this (Unix milliseconds); 0: no expiry.
        max_fee_wei: refused when the fee would be higher.
        request: an id the client chose; the same request of the same sender takes effect once.
            Zeros: none.
        signature: over :meth:`digest`; not part of it.
    """

    kind: ClassVar[str]
    """Name on the wire and in receipts; the EIP-712 struct is named as the class."""
    repeatable: ClassVar[bool] = False
    """Whether :meth:`mark` may happen again with other terms (an offer may change)."""
    max_bytes: ClassVar[int] = MAX_TX_BYTES
    """Largest wire form of this kind."""

    sender: Address
    nonce: Uint
    valid_until_ms: Uint = 0
    max_fee_wei: Wei = UNLIMITED_FEE_WEI
    request: Bytes32 = NO_REQUEST
    signature: Bytes65 = bytes(65)

    def mark(self) -> bytes | None:
        """What this does at most once, as a key: the ground of idempotent calls."""
        return None

    def request_mark(self) -> bytes | None:
        """The mark of the client's request, if it gave one."""
        if self.request == NO_REQUEST:
            return None
        return b"request/" + bytes.fromhex(self.sender[2:]) + self.request

    def marks(self) -> tuple[bytes, ...]:
        """All keys under which a repeat of this is found."""
        return tuple(mark for mark in (self.mark(), self.request_mark()) if mark is not None)

    def intent(self) -> bytes:
        """Digest of what is asked, whoever asks and with whatever nonce or limits, 32 bytes."""
        words = [member.word(getattr(self, member.field)) for member in _own(type(self))]
        return keccak256(self.kind.encode() + b"".join(words))

    @classmethod
    def type_text(cls) -> str:
        """EIP-712 encodeType."""
        return f"{cls.__name__}({','.join(f'{m.type} {m.name}' for m in members(cls))})"

    def digest(self, ledger_id: bytes) -> bytes:
        """What the sender signs, and the transaction's id: 32 bytes (EIP-712 final hash)."""
        words = [_type_hash(type(self))]
        words += [member.word(getattr(self, member.field)) for member in members(type(self))]
        return keccak256(b"\x19\x01" + domain_separator(ledger_id) + keccak256(b"".join(words)))

    def typed_data(self, ledger_id: bytes) -> dict[str, Any]:
        """The same as an ``eth_signTypedData_v4`` message, for wallets."""
        struct = members(type(self))
        return {
            "types": {
                "EIP712Domain": [
                    {"name": "name", "type": "string"},
                    {"name": "version", "type": "string"},
                    {"name": "salt", "type": "bytes32"},
                ],
                type(self).__name__: [{"name": m.name, "type": m.type} for m in struct],
            },
            "primaryType": type(self).__name__,
            "domain": {"name": "daifi", "version": "1", "salt": ledger_id},
            "message": {m.name: m.wallet(getattr(self, m.field)) for m in struct},
        }

    def signed(self, account: Account, ledger_id: bytes) -> Self:
        """This transaction with ``account``'s signature."""
        return self.model_copy(update={"signature": account.sign(self.digest(ledger_id))})

    def check_signature(self, ledger_id: bytes, digest: bytes | None = None) -> bytes:
        """The transaction's id, when its sender signed it for this ledger.

        Args:
            digest: :meth:`digest`, when it is at hand.

        Raises:
            TransactionRefused: ``bad-signature``.
        """
        digest = digest or self.digest(ledger_id)
        try:
            signer = recover_address(digest, self.signature)
        except KeyMaterialError as error:
            raise TransactionRefused(
                f"the {self.kind} transaction is not signed: {error}", code="bad-signature"
            ) from error
        if signer != self.sender:
            raise TransactionRefused(
                f"the {self.kind} transaction names sender {self.sender} but another key signed "
                "it, or it was signed for another ledger",
                code="bad-signature",
            )
        return digest

    def encode(self) -> bytes:
        """Wire form: DAG-CBOR of all fields and the kind."""
        return canonical({"kind": self.kind, **self.plain()})


@lru_cache(maxsize=256)
def _type_hash(kind: type[Transaction]) -> bytes:
    return keccak256(kind.type_text().encode())


@lru_cache(maxsize=256)
def _own(kind: type[Transaction]) -> tuple[Member, ...]:
    """The members that a kind adds to those of every transaction."""
    return members(kind)[len(members(Transaction)) :]
