"""Signatures of many seats made one: the review's beacon, and the attestation's aggregate.

Nothing is checked one by one while nobody cheats: shares are combined and the whole is verified;
only when that fails is each looked at, the wrong ones dropped, and the rest used as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from daifi_flows.cnft import Committee
from daifi_flows.errors import CommitteeError, KeyMaterialError
from daifi_flows.keys import aggregate_bls, check_seat_possession, verify_bls, verify_bls_aggregate
from daifi_flows.threshold import combine_shares

__all__ = ["Beacon", "aggregated", "check_committee", "is_signature", "right_one"]


def check_committee(committee: Committee) -> None:
    """Refuse a committee whose aggregate signatures would mean nothing.

    Raises:
        CommitteeError: seats are not numbered 0 to n−1, a key repeats, or a proof of possession
            fails (a rogue key could cancel others').
    """
    if not committee.seats:
        raise CommitteeError("the committee has no seats: give it at least four")
    if [seat.index for seat in committee.seats] != list(range(len(committee.seats))):
        raise CommitteeError("the committee's seats must be numbered from 0 in order")
    if len({seat.public for seat in committee.seats}) != len(committee.seats):
        raise CommitteeError("two seats of the committee share a key: give each its own")
    for seat in committee.seats:
        if not check_seat_possession(seat.public, seat.account, seat.possession):
            raise CommitteeError(
                f"seat {seat.index} does not prove possession of its key: create it again"
            )


def is_signature(value: object) -> bool:
    """Whether a stranger's value is 96 bytes."""
    return isinstance(value, bytes) and len(value) == 96


def right_one(public: bytes, message: bytes, *candidates: bytes | None) -> bytes | None:
    """The one that is the key's signature over the message: there is at most one such."""
    found = (item for item in candidates if item is not None and verify_bls(public, message, item))
    return next(found, None)


@dataclass(frozen=True)
class Beacon:
    """The group's signature in the making.

    Attributes:
        shares: by seat, unchecked until there is a quorum of them.
        doubted: seats of which a share was wrong: theirs are checked at once.
        signature: the whole, 96 bytes: the same whoever's shares it was made of.
    """

    shares: Mapping[int, bytes] = field(default_factory=lambda: {})
    doubted: frozenset[int] = frozenset()
    signature: bytes | None = None

    def add(
        self, committee: Committee, message: bytes, index: int, share: bytes
    ) -> tuple[Beacon, tuple[int, ...]]:
        """Take a seat's share; of two different ones the right one is kept.

        Returns:
            the beacon with it, and whose shares were found to be wrong.

        Raises:
            CommitteeError: right shares do not make the group's signature.
        """
        if not is_signature(share):
            return self, (index,)
        if (before := self.shares.get(index)) == share:
            return self, ()
        if before is None and index not in self.doubted:
            return replace(self, shares={**self.shares, index: share})._lit(committee, message)
        good = right_one(committee.seats[index].share or b"", message, before, share)
        others = {key: value for key, value in self.shares.items() if key != index}
        kept = {**others, index: good} if good is not None else others
        lit, bad = replace(self, shares=kept, doubted=self.doubted | {index})._lit(
            committee, message
        )
        return lit, (index, *bad)

    def given(self, committee: Committee, message: bytes, signature: bytes) -> Beacon:
        """The whole, from somebody else.

        Raises:
            CommitteeError: it is not the group's.
        """
        if not verify_bls(committee.group_key or b"", message, signature):
            raise CommitteeError("the review's beacon is not signed by the committee's group")
        return replace(self, signature=signature)

    def _lit(self, committee: Committee, message: bytes) -> tuple[Beacon, tuple[int, ...]]:
        key = committee.group_key or b""
        signature = _combined(self.shares, committee.quorum)
        if len(self.shares) < committee.quorum:
            return self, ()
        if signature is not None and verify_bls(key, message, signature):
            return replace(self, signature=signature), ()
        good = {
            index: share
            for index, share in self.shares.items()
            if verify_bls(committee.seats[index].share or b"", message, share)
        }
        bad = tuple(sorted(self.shares.keys() - good.keys()))
        kept = replace(self, shares=good, doubted=self.doubted | {*bad})
        if (signature := _combined(good, committee.quorum)) is None:
            return kept, bad
        if not verify_bls(key, message, signature):
            raise CommitteeError(
                "the public shares of the committee are not shares of its group key: make it again"
            )
        return replace(kept, signature=signature), bad


def _combined(shares: Mapping[int, bytes], quorum: int) -> bytes | None:
    if len(shares) < quorum:
        return None
    try:
        return combine_shares(dict(sorted(shares.items())[:quorum]))
    except KeyMaterialError:
        return None


def aggregated(
    committee: Committee, message: bytes, partials: Mapping[int, bytes]
) -> tuple[dict[int, bytes], bytes | None]:
    """One signature from seats' own, by index.

    Returns:
        the partial signatures that are right as far as they were looked at, and the aggregate of
        all of them once they are a quorum.
    """
    kept = dict(partials)
    if len(kept) < committee.quorum:
        return kept, None
    signature = _aggregate(committee, message, kept)
    if signature is None:  # somebody sent rubbish: one check each finds whom
        kept = {
            index: partial
            for index, partial in kept.items()
            if verify_bls(committee.seats[index].public, message, partial)
        }
        if len(kept) >= committee.quorum:
            signature = _aggregate(committee, message, kept)
    return kept, signature


def _aggregate(committee: Committee, message: bytes, partials: Mapping[int, bytes]) -> bytes | None:
    indices = sorted(partials)
    try:
        signature = aggregate_bls([partials[index] for index in indices])
    except KeyMaterialError:
        return None
    publics = [committee.seats[index].public for index in indices]
    return signature if verify_bls_aggregate(publics, message, signature) else None
