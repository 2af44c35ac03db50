"""One seat: its keys, its salts, and how a verdict and the panel become its vote."""

from __future__ import annotations

import hashlib
import hmac
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from daifi_flows.cnft import (
    PPM,
    Committee,
    Seat,
    Vote,
    VoteChoice,
    VoteCommit,
    VoteReveal,
)
from daifi_flows.encoding import tagged_hash
from daifi_flows.judges._messages import Subject
from daifi_flows.judges._panel import Opinion
from daifi_flows.keys import Account, BlsKey, load_secret, save_secret
from daifi_flows.proofs import Outcome, Verdict
from daifi_flows.threshold import deal

__all__ = ["Finding", "SeatKeys", "decide", "make_committee"]

CONTRARY_WEIGHT: Final = 0.3
"""How much the panel's contrary log-odds count beside a ``VALID`` verdict. A scheme that answers
``VALID`` has measured every difference and found it to be rounding (token-difr: each differing
token is a near tie), which explains most of what the panel sees. An uncalibrated prior: a changed
number passes only at the smallest near ties, a turned polarity and a different text never."""

SCHEME_LOG_ODDS: Final = math.log(0.999 / 0.001)
"""Most that a scheme's confidence may weigh against the panel."""


@dataclass(frozen=True)
class Finding:
    """What a seat decided, before it is bound to the seat's number.

    Attributes:
        confidence_ppm: how sure the seat is *of its decision* (of a reject: that the claim is
            wrong), 0 for an abstention.
    """

    decision: VoteChoice
    confidence_ppm: int
    reason: str


def decide(verdict: Verdict, opinion: Opinion | None, min_confidence_ppm: int) -> Finding:
    """A seat's decision.

    * ``INVALID`` rejects with the verdict's reason; ``CANNOT_TELL`` abstains.
    * ``VALID`` accepts when :func:`combined_ppm` reaches the threshold, and else abstains: while
      the panel's map is not calibrated it may withhold a payment but not have a node slashed.

    Args:
        opinion: of the panel; absent when the scheme re-executed nothing comparable.
    """
    if verdict.outcome is Outcome.INVALID:
        sure = min(max(PPM - verdict.confidence_ppm, 0), PPM)
        return Finding(VoteChoice.REJECT, sure, _short(verdict.reason))
    if verdict.outcome is not Outcome.VALID:
        return Finding(VoteChoice.ABSTAIN, 0, _short(verdict.reason))
    reason = verdict.reason if opinion is None else f"{verdict.reason}; {opinion.describe()}"
    confidence = combined_ppm(verdict, opinion)
    if confidence >= min_confidence_ppm:
        return Finding(VoteChoice.ACCEPT, confidence, _short(reason))
    return Finding(
        VoteChoice.ABSTAIN,
        0,
        _short(f"confidence {confidence} ppm is under {min_confidence_ppm} ppm: {reason}"),
    )


def combined_ppm(verdict: Verdict, opinion: Opinion | None) -> int:
    """Confidence from a ``VALID`` verdict and the panel's opinion of the difference it left.

    A panel that finds likeness leaves the scheme's confidence as it is: words that look alike
    cannot vouch for a proof. Contrary log-odds are added to the scheme's, weighed by
    :data:`CONTRARY_WEIGHT`.
    """
    own = min(max(verdict.confidence_ppm, 0), PPM)
    if opinion is None or opinion.log_odds >= 0:
        return own
    likely = min(max(own, 1), PPM - 1)
    scheme = min(math.log(likely / (PPM - likely)), SCHEME_LOG_ODDS)
    total = scheme + CONTRARY_WEIGHT * opinion.log_odds
    return min(own, int(PPM / (1.0 + math.exp(-total))))


def _short(text: str) -> str:
    return text if len(text) <= 500 else text[:499] + "…"


@dataclass(frozen=True)
class SeatKeys:
    """A seat's secrets: the BLS key it votes with, the account its fees are paid to, and its share
    of the committee's group key, once one was dealt."""

    index: int
    bls: BlsKey
    account: Account
    share: BlsKey | None = None

    @classmethod
    def load(cls, folder: Path, index: int) -> SeatKeys:
        """Read ``seat-NN.bls`` and ``seat-NN.account`` (mode 0600), creating what is missing, and
        ``seat-NN.share`` where there is one.

        Raises:
            KeyMaterialError: a key file is there but cannot be used.
        """
        share = folder / f"seat-{index:02d}.share"
        return cls(
            index=index,
            bls=BlsKey.load(folder / f"seat-{index:02d}.bls"),
            account=Account.load(folder / f"seat-{index:02d}.account"),
            share=BlsKey(load_secret(share)) if share.exists() else None,
        )

    def seat(self) -> Seat:
        """The public face of this seat."""
        return Seat(
            index=self.index,
            public=self.bls.public,
            possession=self.bls.prove_possession(),
            account=self.account.address,
            share=self.share.public if self.share is not None else None,
        )

    def salt(self, subject: Subject) -> bytes:
        """The vote's salt, 32 bytes: HMAC-SHA256 (RFC 2104) of the review under the seat's secret.

        A restarted host finds the same salt again, and nobody else can guess it.
        """
        message = b"daifi/vote-salt/1" + subject.task_id + subject.proof_cid.encode()
        return hmac.new(self.bls.secret, message, hashlib.sha256).digest()

    def vote(self, subject: Subject, finding: Finding) -> Vote:
        """Bind a finding to this seat and review."""
        return Vote(
            seat=self.index,
            task_id=subject.task_id,
            proof_cid=subject.proof_cid,
            decision=finding.decision,
            confidence_ppm=finding.confidence_ppm,
            reason=finding.reason,
        )

    def commit(self, vote: Vote, salt: bytes) -> VoteCommit:
        """Round one: the signed, salted hash of ``vote``."""
        return self.sign_commitment(vote, vote.commitment(salt))

    def sign_commitment(self, vote: Vote, commitment: bytes) -> VoteCommit:
        """A commit to any 32 bytes, for the task and proof of ``vote``."""
        unsigned = VoteCommit(
            seat=self.index,
            task_id=vote.task_id,
            proof_cid=vote.proof_cid,
            commitment=commitment,
            signature=bytes(96),
        )
        return unsigned.model_copy(update={"signature": self.bls.sign(unsigned.message())})

    def reveal(self, vote: Vote, salt: bytes) -> VoteReveal:
        """Round two: what opens the commitment."""
        return VoteReveal(vote=vote, salt=salt)


def make_committee(folder: Path, n: int = 21, epoch: int = 0) -> Committee:
    """The committee whose secrets lie in ``folder``; missing keys are created.

    This is for one operator who runs every seat, and so is the trusted dealer of the group key
    (its seed is ``dealer``, mode 0600). Seats of different operators each keep their own folder
    and publish :meth:`SeatKeys.seat`.

    Raises:
        KeyMaterialError: a key file is there but cannot be used.
    """
    keys = [SeatKeys.load(folder, index) for index in range(n)]
    committee = Committee(epoch=epoch, seats=tuple(each.seat() for each in keys))
    seed = tagged_hash(
        "daifi/group/1", {"seed": load_secret(folder / "dealer"), "epoch": epoch, "seats": n}
    )
    dealing = deal(seed, n, committee.quorum)
    for each, secret in zip(keys, dealing.secrets, strict=True):
        if each.share != secret:
            save_secret(folder / f"seat-{each.index:02d}.share", secret.secret)
    seats = tuple(
        seat.model_copy(update={"share": share})
        for seat, share in zip(committee.seats, dealing.shares, strict=True)
    )
    return Committee(epoch=epoch, seats=seats, group_key=dealing.group_key)
