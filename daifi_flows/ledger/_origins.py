"""Where a token comes from: the execution behind it, and who shares the royalty of its sales."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from daifi_flows.cnft import PPM, Address, Bytes32, Cid, Noun, Ppm, TaskSpec, Wei
from daifi_flows.encoding import keccak256, tagged_hash
from daifi_flows.ledger._economics import royalty_wei

__all__ = [
    "Origin",
    "Share",
    "TokenKind",
    "merged_shares",
    "royalties",
    "shares_at_mint",
    "work_of",
]

_TERMS: Final = ("buyer", "nonce", "deadline_ms", "max_price_wei")


class TokenKind(StrEnum):
    """What a token stands for."""

    EXECUTED = "executed"
    """An execution that the committee accepted."""
    MERGED = "merged"
    """Several tokens under one owner. Nothing was computed, so nothing is attested anew."""
    REFERENCE = "reference"
    """The reuse of an executed token for another task, on the attestation of the first."""


class Origin(Noun):
    """The accepted execution that a token vouches for.

    Attributes:
        work: what was computed, see :func:`work_of`.
        node: who computed it.
        output_cid: its output, a salted commitment.
        attestation: Keccak-256 of the canonical attestation that settled it.
        price_wei: what its buyer paid for it.
    """

    work: Bytes32
    node: Address
    output_cid: Cid
    attestation: Bytes32
    price_wei: Wei


class Share(Noun):
    """A payee of a royalty, and its part of it."""

    payee: Address
    part_ppm: Ppm


def work_of(spec: TaskSpec) -> bytes:
    """What a spec asks to be computed, whoever asks on whatever terms, 32 bytes.

    ``keccak256("daifi/work/1" ‖ dag-cbor(spec without buyer, nonce, deadline and highest
    price))``. Model digest, input, sampling, parents, scheme and review are all in it.
    """
    fields = {name: value for name, value in spec.plain().items() if name not in _TERMS}
    return tagged_hash("daifi/work/1", fields)


def reference_id_of(task_id: bytes) -> bytes:
    """Id of the token that a flash attest for ``task_id`` mints, 32 bytes.

    Another one than settling the task would mint: else a buyer could keep a batch's node from
    claiming its leaf.
    """
    return keccak256(b"daifi/reference/1" + task_id)


def shares_at_mint(creator: str, owners: Sequence[str], lineage_ppm: int) -> tuple[Share, ...]:
    """Royalty shares of a new token: its creator's, then its parents' owners'.

    The owners share ``lineage_ppm`` equally, rounded down; the creator, who is first, gets the
    rest, and all of it where there are no parents.
    """
    each = lineage_ppm // len(owners) if owners else 0
    parts = {creator: 0}
    for owner in owners:
        parts[owner] = parts.get(owner, 0) + each
    parts[creator] += PPM - each * len(owners)
    return tuple(Share(payee=payee, part_ppm=part) for payee, part in parts.items() if part)


def merged_shares(parents: Sequence[Sequence[Share]]) -> tuple[Share, ...]:
    """Royalty shares of tokens that become one: each token's payees keep an equal part.

    Largest first, then by address; the rounding dust goes to the first. A merge therefore cannot
    take a royalty away from who earned it.
    """
    with_payees = [shares for shares in parents if shares]
    sums: dict[str, int] = {}
    for shares in with_payees:
        for share in shares:
            sums[share.payee] = sums.get(share.payee, 0) + share.part_ppm
    parts = [(total // len(with_payees), payee) for payee, total in sums.items()]
    parts = sorted(((part, payee) for part, payee in parts if part), key=lambda p: (-p[0], p[1]))
    dust = PPM - sum(part for part, _ in parts)
    return tuple(
        Share(payee=payee, part_ppm=part + (dust if index == 0 else 0))
        for index, (part, payee) in enumerate(parts)
    )


def royalties(sale_wei: int, royalty_ppm: int, shares: Sequence[Share]) -> tuple[int, ...]:
    """What each payee gets of a sale, in the order of ``shares``; they add up to the royalty.

    Each part is rounded down and the first payee gets the dust; without payees nothing is due.
    """
    if not shares:
        return ()
    total = royalty_wei(sale_wei, royalty_ppm)
    parts = [total * share.part_ppm // PPM for share in shares]
    parts[0] += total - sum(parts)
    return tuple(parts)
