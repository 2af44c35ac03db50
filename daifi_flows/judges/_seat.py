"""One seat: its keys, its salts, and what it signs."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from daifi_flows.cnft import (
    ChunkFinding,
    Committee,
    Seat,
    Subject,
    Vote,
    VoteCommit,
    VoteReveal,
)
from daifi_flows.encoding import tagged_hash
from daifi_flows.keys import Account, BlsKey, load_secret, save_secret
from daifi_flows.threshold import deal

__all__ = ["SeatKeys", "bare_committee", "make_committee"]


@dataclass(frozen=True)
class SeatKeys:
    """A seat's secrets: the BLS key it votes with, the account its fees are paid to, and its share
    of the committee's group key, once one was dealt."""

    index: int
    bls: BlsKey
    account: Account
    share: BlsKey | None = None

    @classmethod
    def load(cls, folder: Path, index: int, share: bytes | None = None) -> SeatKeys:
        """Read ``seat-NN.bls`` and ``seat-NN.account`` (mode 0600), creating what is missing, and
        ``seat-NN.share`` where there is one.

        Args:
            share: the public share that its committee says is the seat's. The secret of that one
                is taken, wherever a key generation left it, and no other.

        Raises:
            KeyMaterialError: a key file is there but cannot be used.
        """
        found = [cls.share_path(folder, index)]
        if share is not None:
            found.append(cls.made_path(folder, index, share))
        secrets = [BlsKey(load_secret(path)) for path in found if path.exists()]
        return cls(
            index=index,
            bls=BlsKey.load(folder / f"seat-{index:02d}.bls"),
            account=Account.load(folder / f"seat-{index:02d}.account"),
            share=next((key for key in secrets if share in (None, key.public)), None),
        )

    @staticmethod
    def share_path(folder: Path, index: int) -> Path:
        """File of a seat's share of the group key (mode 0600)."""
        return folder / f"seat-{index:02d}.share"

    @staticmethod
    def made_path(folder: Path, index: int, public: bytes) -> Path:
        """File of a share that a key generation made, whether or not it was the last one."""
        return folder / f"seat-{index:02d}.keygen-{public.hex()[:32]}.made"

    def seat(self) -> Seat:
        """The public face of this seat."""
        return Seat(
            index=self.index,
            public=self.bls.public,
            possession=self.bls.prove_possession(),
            account=self.account.address,
            share=self.share.public if self.share is not None else None,
        )

    def salt(self, subject: Subject, wave: int) -> bytes:
        """The vote's salt, 32 bytes: HMAC-SHA256 (RFC 2104) of the review and wave under the
        seat's secret.

        A restarted host finds the same salt again, and nobody else can guess it.
        """
        message = b"daifi/vote-salt/1" + subject.digest + wave.to_bytes(1, "big")
        return hmac.new(self.bls.secret, message, hashlib.sha256).digest()

    def vote(self, subject: Subject, wave: int, findings: Iterable[ChunkFinding]) -> Vote:
        """Bind findings, one a chunk, to this seat and review."""
        ordered = sorted(findings, key=lambda finding: finding.chunk)
        return Vote(seat=self.index, subject=subject.digest, wave=wave, findings=tuple(ordered))

    def commit(self, vote: Vote, salt: bytes) -> VoteCommit:
        """Round one: the signed, salted hash of ``vote``."""
        return self.sign_commitment(vote, vote.commitment(salt))

    def sign_commitment(self, vote: Vote, commitment: bytes) -> VoteCommit:
        """A commit to any 32 bytes, for the subject and wave of ``vote``."""
        unsigned = VoteCommit(
            seat=self.index,
            subject=vote.subject,
            wave=vote.wave,
            commitment=commitment,
            signature=bytes(96),
        )
        return unsigned.model_copy(update={"signature": self.bls.sign(unsigned.message())})

    def reveal(self, vote: Vote, salt: bytes) -> VoteReveal:
        """Round two: what opens the commitment."""
        return VoteReveal(vote=vote, salt=salt)


def bare_committee(folder: Path, n: int = 21, epoch: int = 0) -> Committee:
    """The seats whose keys lie in ``folder``, missing ones created, before they have a group key.

    Their hosts make one together (:func:`daifi_flows.judges.make_group_key`); or, where their
    committee is to follow another, that one hands its shares on to them.

    Raises:
        KeyMaterialError: a key file is there but cannot be used.
    """
    keys = [SeatKeys.load(folder, index) for index in range(n)]
    seats = tuple(each.seat().model_copy(update={"share": None}) for each in keys)
    return Committee(epoch=epoch, seats=seats)


def make_committee(folder: Path, n: int = 21, epoch: int = 0) -> Committee:
    """The committee whose secrets lie in ``folder``; missing keys are created.

    **Trusted dealer.** This is for one operator who runs every seat, as ``Fabric.local()`` does:
    who calls it deals the group key, and whoever reads the dealer's seed (``dealer``, mode 0600)
    knows every beacon in advance. Seats that do not trust one machine with that make the key
    themselves, beginning with :func:`bare_committee`.

    Raises:
        KeyMaterialError: a key file is there but cannot be used.
    """
    committee = bare_committee(folder, n, epoch)
    seed = tagged_hash(
        "daifi/group/1", {"seed": load_secret(folder / "dealer"), "epoch": epoch, "seats": n}
    )
    dealing = deal(seed, n, committee.quorum)
    for index, secret in enumerate(dealing.secrets):
        path = SeatKeys.share_path(folder, index)
        if not path.exists() or load_secret(path) != secret.secret:
            save_secret(path, secret.secret)
    seats = tuple(
        seat.model_copy(update={"share": share})
        for seat, share in zip(committee.seats, dealing.shares, strict=True)
    )
    return Committee(epoch=epoch, seats=seats, group_key=dealing.group_key)
