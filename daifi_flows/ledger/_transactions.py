"""Signed transactions: EIP-712 typed data, one struct a kind, and their bounded wire form.

The domain is ``EIP712Domain(string name,string version,bytes32 salt)`` with the ledger's id as
salt: a signature for one ledger is worthless on any other. A transaction's id is the EIP-712
digest its sender signed. Wallets sign :meth:`Transaction.typed_data` as ``eth_signTypedData_v4``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar, Final, Self, cast

from daifi_flows.cnft import (
    Address,
    Attestation,
    Bytes32,
    Bytes65,
    Cid,
    NodeInfo,
    Noun,
    ProofHeader,
    TaskSpec,
    Uint,
    Wei,
)
from daifi_flows.encoding import canonical, decode_canonical, keccak256
from daifi_flows.errors import EncodingError, KeyMaterialError, TransactionRefused
from daifi_flows.keys import Account, recover_address
from daifi_flows.ledger._eip712 import domain_separator, word

__all__ = [
    "MAX_TX_BYTES",
    "Assign",
    "Cancel",
    "Commit",
    "Effect",
    "Expire",
    "Open",
    "Register",
    "Reject",
    "Release",
    "Settle",
    "Stake",
    "Transaction",
    "Transfer",
    "Unproven",
    "parse_transaction",
]

MAX_TX_BYTES: Final = 64 * 1024
"""Largest transaction parsed from a stranger."""


class Transaction(Noun):
    """Base of every kind: who, their nonce, and their signature over the EIP-712 digest."""

    kind: ClassVar[str]
    struct: ClassVar[str]
    """Name of the EIP-712 struct."""
    fields: ClassVar[tuple[tuple[str, str], ...]]
    """The struct's own fields, ``(type, name)``, after ``address sender,uint64 nonce``."""

    sender: Address
    nonce: Uint
    signature: Bytes65 = bytes(65)

    def values(self) -> tuple[Any, ...]:
        """The struct's own values, in the order of :attr:`fields`."""
        raise NotImplementedError

    def mark(self) -> bytes | None:
        """What this does at most once, as a key: the ground of idempotent calls."""
        return None

    def intent(self) -> bytes:
        """Digest of what is asked, whoever asks and with whatever nonce, 32 bytes."""
        return keccak256(
            self.kind.encode()
            + b"".join(
                word(kind, value)
                for (kind, _), value in zip(self.fields, self.values(), strict=True)
            )
        )

    @classmethod
    def type_text(cls) -> str:
        """EIP-712 encodeType."""
        own = "".join(f",{kind} {name}" for kind, name in cls.fields)
        return f"{cls.struct}(address sender,uint64 nonce{own})"

    def digest(self, ledger_id: bytes) -> bytes:
        """What the sender signs, and the transaction's id: 32 bytes (EIP-712 final hash)."""
        words = [_type_hash(type(self)), word("address", self.sender), word("uint64", self.nonce)]
        words += [
            word(kind, value) for (kind, _), value in zip(self.fields, self.values(), strict=True)
        ]
        return keccak256(b"\x19\x01" + domain_separator(ledger_id) + keccak256(b"".join(words)))

    def typed_data(self, ledger_id: bytes) -> dict[str, Any]:
        """The same as an ``eth_signTypedData_v4`` message, for wallets."""
        message: dict[str, Any] = {"sender": self.sender, "nonce": self.nonce}
        message |= {
            name: value for (_, name), value in zip(self.fields, self.values(), strict=True)
        }
        return {
            "types": {
                "EIP712Domain": [
                    {"name": "name", "type": "string"},
                    {"name": "version", "type": "string"},
                    {"name": "salt", "type": "bytes32"},
                ],
                self.struct: [
                    {"name": "sender", "type": "address"},
                    {"name": "nonce", "type": "uint64"},
                    *({"name": name, "type": kind} for kind, name in self.fields),
                ],
            },
            "primaryType": self.struct,
            "domain": {"name": "daifi", "version": "1", "salt": ledger_id},
            "message": message,
        }

    def signed(self, account: Account, ledger_id: bytes) -> Self:
        """This transaction with ``account``'s signature."""
        return self.model_copy(update={"signature": account.sign(self.digest(ledger_id))})

    def check_signature(self, ledger_id: bytes) -> bytes:
        """The transaction's id, when its sender signed it for this ledger.

        Raises:
            TransactionRefused: ``bad-signature``.
        """
        digest = self.digest(ledger_id)
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


@lru_cache(maxsize=64)
def _type_hash(kind: type[Transaction]) -> bytes:
    return keccak256(kind.type_text().encode())


class Transfer(Transaction):
    """Move money to another account."""

    kind: ClassVar[str] = "transfer"
    struct: ClassVar[str] = "Transfer"
    fields: ClassVar = (("address", "to"), ("uint256", "amount"))
    to: Address
    amount_wei: Wei

    def values(self) -> tuple[Any, ...]:
        return self.to, self.amount_wei


class Stake(Transaction):
    """Put the sender's own money at stake."""

    kind: ClassVar[str] = "stake"
    struct: ClassVar[str] = "Stake"
    fields: ClassVar = (("uint256", "amount"),)
    amount_wei: Wei

    def values(self) -> tuple[Any, ...]:
        return (self.amount_wei,)


class Register(Transaction):
    """Offer the sender as a node, or change its offer."""

    kind: ClassVar[str] = "register"
    struct: ClassVar[str] = "Register"
    fields: ClassVar = (
        ("string", "name"),
        ("string", "device"),
        ("string[]", "engines"),
        ("uint256", "price"),
    )
    info: NodeInfo

    def values(self) -> tuple[Any, ...]:
        return self.info.name, self.info.device, list(self.info.engines), self.info.price_wei

    def mark(self) -> bytes | None:
        return b"register/" + self.info.address.encode()


class Open(Transaction):
    """Open a task and lock its highest price."""

    kind: ClassVar[str] = "open"
    struct: ClassVar[str] = "Open"
    fields: ClassVar = (
        ("bytes32", "taskId"),
        ("uint256", "maxPrice"),
        ("uint64", "deadlineMs"),
        ("bytes", "spec"),
    )
    spec: TaskSpec

    def values(self) -> tuple[Any, ...]:
        spec = self.spec
        return spec.task_id, spec.max_price_wei, spec.deadline_ms, spec.canonical()

    def mark(self) -> bytes | None:
        return b"open/" + self.spec.task_id


class _OnAttempt(Transaction):
    task_id: Bytes32
    attempt: Uint

    def mark(self) -> bytes | None:
        return self.mark_of(self.task_id, self.attempt)

    @classmethod
    def mark_of(cls, task_id: bytes, attempt: int) -> bytes:
        """Key of this kind's one action on an attempt."""
        return cls.kind.encode() + b"/" + task_id + attempt.to_bytes(8, "big")


class Assign(_OnAttempt):
    """Give an open task to a node at a price."""

    kind: ClassVar[str] = "assign"
    struct: ClassVar[str] = "Assign"
    fields: ClassVar = (
        ("bytes32", "taskId"),
        ("uint64", "attempt"),
        ("address", "node"),
        ("uint256", "price"),
    )
    node: Address
    price_wei: Wei

    def values(self) -> tuple[Any, ...]:
        return self.task_id, self.attempt, self.node, self.price_wei


class Commit(_OnAttempt):
    """Record the node's signed proof header, and the content id of the whole proof."""

    kind: ClassVar[str] = "commit"
    struct: ClassVar[str] = "Commit"
    fields: ClassVar = (
        ("bytes32", "taskId"),
        ("uint64", "attempt"),
        ("string", "proofCid"),
        ("bytes", "header"),
    )
    proof_cid: Cid
    header: ProofHeader

    def values(self) -> tuple[Any, ...]:
        return self.task_id, self.attempt, self.proof_cid, self.header.canonical()


class Release(_OnAttempt):
    """Take a task back from a node that was lost; nobody is slashed."""

    kind: ClassVar[str] = "release"
    struct: ClassVar[str] = "Release"
    fields: ClassVar = (("bytes32", "taskId"), ("uint64", "attempt"))

    def values(self) -> tuple[Any, ...]:
        return self.task_id, self.attempt


class _Attested(Transaction):
    fields: ClassVar[tuple[tuple[str, str], ...]] = (
        ("bytes32", "taskId"),
        ("bytes", "attestation"),
    )
    attestation: Attestation

    def values(self) -> tuple[Any, ...]:
        return self.attestation.task_id, self.attestation.canonical()

    def intent(self) -> bytes:
        # Two honest aggregations of one finding may differ in their signers.
        return keccak256(self.kind.encode() + self.attestation.message())

    def mark(self) -> bytes | None:
        attestation = self.attestation
        return (
            self.kind.encode() + b"/" + attestation.task_id + attestation.attempt.to_bytes(8, "big")
        )


class Settle(_Attested):
    """Pay for an accepted execution and mint its token."""

    kind: ClassVar[str] = "settle"
    struct: ClassVar[str] = "Settle"
    fields: ClassVar = (
        ("bytes32", "taskId"),
        ("bytes32", "metadata"),
        ("bytes", "attestation"),
    )
    metadata: Bytes32

    def values(self) -> tuple[Any, ...]:
        return self.attestation.task_id, self.metadata, self.attestation.canonical()

    def intent(self) -> bytes:
        return keccak256(super().intent() + self.metadata)

    def mark(self) -> bytes | None:
        return b"settle/" + self.attestation.task_id


class Reject(_Attested):
    """Slash the node of a rejected execution and reopen the task."""

    kind: ClassVar[str] = "reject"
    struct: ClassVar[str] = "Reject"


class Unproven(_Attested):
    """Refund a task the committee could not decide; nobody is slashed."""

    kind: ClassVar[str] = "unproven"
    struct: ClassVar[str] = "Unproven"


class _OnTask(Transaction):
    fields: ClassVar[tuple[tuple[str, str], ...]] = (("bytes32", "taskId"),)
    task_id: Bytes32

    def values(self) -> tuple[Any, ...]:
        return (self.task_id,)

    def mark(self) -> bytes | None:
        return self.kind.encode() + b"/" + self.task_id


class Cancel(_OnTask):
    """The buyer gives up a task that no node has answered; refunded."""

    kind: ClassVar[str] = "cancel"
    struct: ClassVar[str] = "Cancel"


class Expire(_OnTask):
    """Refund a task whose deadline has passed; anyone may."""

    kind: ClassVar[str] = "expire"
    struct: ClassVar[str] = "Expire"


class Effect(Transaction):
    """Commit, once, to what a token's after-settlement action returned."""

    kind: ClassVar[str] = "effect"
    struct: ClassVar[str] = "Effect"
    fields: ClassVar = (("bytes32", "tokenId"), ("bytes32", "digest"))
    token_id: Bytes32
    effect: Bytes32

    def values(self) -> tuple[Any, ...]:
        return self.token_id, self.effect

    def mark(self) -> bytes | None:
        return b"effect/" + self.token_id


_KINDS: Final[dict[str, type[Transaction]]] = {
    kind.kind: kind
    for kind in (
        Transfer,
        Stake,
        Register,
        Open,
        Assign,
        Commit,
        Release,
        Settle,
        Reject,
        Unproven,
        Cancel,
        Expire,
        Effect,
    )
}


def parse_transaction(data: bytes) -> Transaction:
    """Parse a stranger's bytes; the signature is not checked here.

    Raises:
        TransactionRefused: ``bad-field``: too large, not canonical, unknown kind or fields.
    """
    try:
        value = decode_canonical(data, max_bytes=MAX_TX_BYTES)
        if not isinstance(value, dict):
            raise EncodingError("a transaction is a map")
        body = cast("dict[str, Any]", value)
        kind = body.pop("kind", None)
        found = _KINDS.get(kind) if isinstance(kind, str) else None
        if found is None:
            raise EncodingError(f"unknown kind {str(kind)[:40]!r}")
        transaction = found.from_plain(body)
        if transaction.encode() != data:
            raise EncodingError("not in canonical form")
    except (EncodingError, RecursionError) as error:
        raise TransactionRefused(
            f"the transaction cannot be read: {error}", code="bad-field"
        ) from error
    return transaction
