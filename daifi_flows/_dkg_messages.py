"""What the parties to a distributed key generation sign and send (see :mod:`daifi_flows.dkg`)."""

from __future__ import annotations

from typing import Annotated, Final, Self

from pydantic import Field

from daifi_flows._noun import Bytes32, Bytes48, Bytes96, Noun, Raw, Uint
from daifi_flows.encoding import canonical, tagged_hash
from daifi_flows.errors import KeyMaterialError
from daifi_flows.keys import BlsKey, verify_bls
from daifi_flows.threshold import shares_sound

__all__ = [
    "BOX_BYTES",
    "MAX_PARTIES",
    "Certificate",
    "Complaint",
    "Confirmation",
    "DealtShares",
    "Hello",
    "Outcome",
    "Previous",
    "Session",
    "Signed",
]

MAX_PARTIES: Final = 63
"""Most dealers or holders of one session: a committee has no more seats."""
BOX_BYTES: Final = 80
"""A sealed share: 32 bytes ephemeral key, 16 bytes authenticator, 32 bytes scalar."""

_Party = Annotated[int, Field(ge=0, lt=MAX_PARTIES, strict=True)]
_Publics = Annotated[tuple[Bytes48, ...], Field(min_length=1, max_length=MAX_PARTIES)]


class Previous(Noun):
    """The sharing that a resharing hands on: public, from the last committee."""

    group_key: Bytes48
    shares: _Publics
    """Each dealer's public share."""
    threshold: Uint


class Session(Noun):
    """Who makes or hands on which key. Everything said in a session names its digest.

    Attributes:
        epoch: whose committee the holders are.
        attempt: any number; a session that fails is done again under another, with fresh secrets.
        dealers: BLS keys they sign with; the holders themselves, unless a sharing is handed on.
        holders: BLS keys of those who get a share; holder i gets the value at i + 1.
        threshold: t, how many of the holders can sign.
        previous: the sharing that is handed on; absent where a new key is made.
    """

    ledger_id: Bytes32
    epoch: Uint
    attempt: Uint = 0
    dealers: _Publics
    holders: _Publics
    threshold: Uint
    previous: Previous | None = None

    @classmethod
    def generate(
        cls,
        ledger_id: bytes,
        epoch: int,
        holders: tuple[bytes, ...],
        threshold: int,
        attempt: int = 0,
    ) -> Self:
        """Make a new key among ``holders``.

        Raises:
            KeyMaterialError: as :meth:`check`.
        """
        return cls(
            ledger_id=ledger_id,
            epoch=epoch,
            attempt=attempt,
            dealers=holders,
            holders=holders,
            threshold=threshold,
        ).check()

    @property
    def digest(self) -> bytes:
        """Name of the session, 32 bytes: binds ledger, epoch, attempt, purpose and parties."""
        purpose = "generate" if self.previous is None else "reshare"
        return tagged_hash(f"daifi/dkg-{purpose}/1", self.plain())

    @property
    def quorum(self) -> int:
        """Holders that must confirm an outcome: two outcomes of one session cannot both be
        confirmed by so many with f = ⌊(n−1)/3⌋ Byzantine. Of those that confirm, f may have lied
        about their share."""
        n = len(self.holders)
        return max(self.threshold, (n + (n - 1) // 3) // 2 + 1)

    @property
    def dealers_needed(self) -> int:
        """Qualified dealers without which there is no outcome."""
        return self.threshold if self.previous is None else self.previous.threshold

    def greeted(self, hello: Hello) -> bool:
        """Whether this is a holder's own hello."""
        return (
            hello.session == self.digest
            and hello.holder < len(self.holders)
            and len(hello.keys) == len(self.dealers)
            and hello.signed_by(self.holders[hello.holder])
        )

    def check(self) -> Self:
        """The session itself, if it makes sense.

        Raises:
            KeyMaterialError: a party twice, an impossible threshold, or a previous sharing whose
                public shares are not values of one polynomial under its group key.
        """
        for parties in (self.dealers, self.holders):
            if len(set(parties)) != len(parties):
                raise KeyMaterialError("a party stands twice in a key generation: name each once")
        if not 1 <= self.threshold <= len(self.holders):
            raise KeyMaterialError(f"{self.threshold} of {len(self.holders)} cannot share a key")
        before = self.previous
        if before is None:
            if self.dealers != self.holders:
                raise KeyMaterialError("a new key is dealt by those who will hold it")
        elif len(before.shares) != len(self.dealers) or not shares_sound(
            before.group_key, before.shares, before.threshold
        ):
            raise KeyMaterialError("the sharing to hand on is not one of its group key")
        return self


class Signed(Noun):
    """What a party signs with its BLS key: everything but the signature itself."""

    session: Bytes32
    signature: Bytes96 = bytes(96)

    def message(self) -> bytes:
        """The signed bytes."""
        fields = self.plain()
        del fields["signature"]
        return f"daifi/dkg-{type(self).__name__.lower()}/1".encode() + canonical(fields)

    def sign(self, key: BlsKey) -> Self:
        """The same, signed."""
        return self.model_copy(update={"signature": key.sign(self.message())})

    def signed_by(self, public: bytes) -> bool:
        """Whether the holder of ``public`` signed it."""
        return verify_bls(public, self.message(), self.signature)

    @property
    def digest(self) -> bytes:
        """Name of the statement, 32 bytes; the signature has one spelling and is left out."""
        return tagged_hash("daifi/dkg-message/1", [self.message()])


class Hello(Signed):
    """A holder is there, and says to which keys dealers seal its shares."""

    holder: _Party
    keys: Annotated[tuple[Bytes32, ...], Field(min_length=1, max_length=MAX_PARTIES)]
    """An X25519 key for each dealer, of this session alone: the secret of one can be shown to
    everybody without opening another dealer's share."""


class DealtShares(Signed):
    """A dealer's polynomial, committed to, and its value for each holder, sealed."""

    roster: Bytes32
    """Of the enrolled holders' hellos: fixes the keys that were sealed to."""
    dealer: _Party
    commitments: _Publics
    """Coefficients times the generator of G1, from the constant on: t of them."""
    boxes: Annotated[
        tuple[Annotated[Raw, Field(max_length=BOX_BYTES)], ...],
        Field(min_length=1, max_length=MAX_PARTIES),
    ]
    """For each holder a libsodium sealed box with the scalar; empty for who is not enrolled."""


class Complaint(Signed):
    """A holder shows that its box from a dealer does not hold the value it should.

    It shows the secret of the one key that this dealer sealed to, so that anybody can open the box
    and see: the justification that a dealer would give in the classic protocol comes with the
    complaint. An honest dealer has nothing to answer, and a false complaint convicts nobody.
    """

    roster: Bytes32
    holder: _Party
    dealer: _Party
    opening: Bytes32
    """X25519 secret."""


class Outcome(Noun):
    """The public result: which dealings make up the key, and the key."""

    session: Bytes32
    roster: Bytes32
    dealers: Annotated[tuple[_Party, ...], Field(min_length=1, max_length=MAX_PARTIES)]
    """The qualified ones, ascending."""
    dealings: Annotated[tuple[Bytes32, ...], Field(min_length=1, max_length=MAX_PARTIES)]
    """Digest of each one's dealing."""
    group_key: Bytes48
    shares: _Publics
    """Each holder's public share."""

    @property
    def digest(self) -> bytes:
        """What holders confirm, 32 bytes."""
        return tagged_hash("daifi/dkg-outcome/1", self.plain())


class Confirmation(Signed):
    """A holder has its share under this outcome, and will confirm no other in the session."""

    holder: _Party
    outcome: Bytes32


class Certificate(Noun):
    """An outcome that a quorum of its holders confirmed."""

    outcome: Outcome
    confirmations: Annotated[tuple[Confirmation, ...], Field(max_length=MAX_PARTIES)]

    def holds(self, session: Session) -> bool:
        """Whether enough holders of the session signed; each is counted once."""
        name, digest = session.digest, self.outcome.digest
        signers = {
            item.holder
            for item in self.confirmations
            if item.holder < len(session.holders)
            and (item.session, item.outcome) == (name, digest)
            and item.signed_by(session.holders[item.holder])
        }
        fits = self.outcome.session == name and len(self.outcome.shares) == len(session.holders)
        return fits and len(signers) >= session.quorum
