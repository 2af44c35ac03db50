"""The secret side of a key generation: one party (see :mod:`daifi_flows.dkg`)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

from blspy import PrivateKey
from nacl.exceptions import CryptoError
from nacl.public import Box
from nacl.public import PrivateKey as BoxPrivateKey
from nacl.public import PublicKey as BoxPublicKey

from daifi_flows._curve import ORDER, evaluate, hash_to_scalar, lagrange
from daifi_flows._dkg_messages import (
    BOX_BYTES,
    Complaint,
    Confirmation,
    DealtShares,
    Hello,
    Session,
)
from daifi_flows._dkg_state import KeygenState, box_public, roster_digest
from daifi_flows.encoding import keccak256
from daifi_flows.errors import KeyMaterialError
from daifi_flows.keys import BlsKey

__all__ = ["Insider"]


@dataclass(frozen=True)
class Insider:
    """One party of a session, with its secrets. What it says follows from them.

    Args:
        key: signs its messages.
        seed: 32 random bytes of this session alone, as secret as the share that it leads to.
        share: the dealer's share of the previous sharing, where that is handed on.

    Raises:
        KeyMaterialError: the key is no party's, or the seed is too short.
    """

    session: Session
    key: BlsKey
    seed: bytes = field(repr=False)
    share: BlsKey | None = None

    def __post_init__(self) -> None:
        if len(self.seed) < 32:
            raise KeyMaterialError("a party's seed has at least 32 bytes of randomness")
        if self.holder is None and self.dealer is None:
            raise KeyMaterialError("this key is no party's of the key generation")

    @cached_property
    def holder(self) -> int | None:
        """Its number among the holders."""
        return _index(self.session.holders, self.key.public)

    @cached_property
    def dealer(self) -> int | None:
        """Its number among the dealers."""
        return _index(self.session.dealers, self.key.public)

    @cached_property
    def _name(self) -> bytes:
        return self.session.digest

    def _secret(self, purpose: str, *parts: bytes | int) -> bytes:
        named = [part if isinstance(part, bytes) else part.to_bytes(2, "big") for part in parts]
        return keccak256(
            f"daifi/dkg-{purpose}/1".encode() + self.seed + self._name + b"".join(named)
        )

    def hello(self) -> Hello:
        """Round one."""
        assert self.holder is not None, "only a holder enrols"
        keys = tuple(box_public(self._opening(i)) for i in range(len(self.session.dealers)))
        return Hello(session=self._name, holder=self.holder, keys=keys).sign(self.key)

    def _opening(self, dealer: int) -> bytes:
        return self._secret("box", dealer)

    def deal(self, roster: tuple[Hello, ...]) -> DealtShares:
        """Round two. Another roster gives another, independent polynomial.

        Raises:
            KeyMaterialError: the dealer has not the share that it is to hand on.
        """
        assert self.dealer is not None, "only a dealer deals"
        name = roster_digest(roster)
        polynomial = [
            hash_to_scalar(self._secret("coefficient", name, power))
            for power in range(self.session.threshold)
        ]
        if (before := self.session.previous) is not None:
            if self.share is None or self.share.public != before.shares[self.dealer]:
                raise KeyMaterialError(f"dealer {self.dealer} has not the share it is to hand on")
            polynomial[0] = int.from_bytes(self.share.secret, "big")
        boxes = [b""] * len(self.session.holders)
        for hello in roster:
            value = evaluate(polynomial, hello.holder + 1).to_bytes(32, "big")
            ephemeral = self._secret("seal", name, hello.holder)
            boxes[hello.holder] = _seal(ephemeral, hello.keys[self.dealer], value)
        return DealtShares(
            session=self._name,
            roster=name,
            dealer=self.dealer,
            commitments=tuple(
                bytes(PrivateKey.from_bytes(c.to_bytes(32, "big")).get_g1()) for c in polynomial
            ),
            boxes=tuple(boxes),
        ).sign(self.key)

    def complaints(self, state: KeygenState) -> tuple[Complaint, ...]:
        """Round three: about each otherwise qualified dealer whose box for us is wrong."""
        if self.holder is None or self.hello() not in state.roster:
            return ()
        return tuple(
            Complaint(
                session=self._name,
                roster=state.roster_name,
                holder=self.holder,
                dealer=dealer,
                opening=self._opening(dealer),
            ).sign(self.key)
            for dealer, dealing in state.qualified.items()
            if state.open_share(dealing, self.holder, self._opening(dealer)) is None
        )

    def secret(self, state: KeygenState) -> BlsKey:
        """This holder's share of the group's secret.

        Raises:
            KeyMaterialError: there is no outcome, or it gives this party no share (it is not on
                the roster, or has yet to complain).
        """
        outcome = state.outcome
        if outcome is None or self.holder is None:
            raise KeyMaterialError("there is no outcome yet that could give this party a share")
        values: list[int] = []
        for dealer, dealing in state.qualified.items():
            value = state.open_share(dealing, self.holder, self._opening(dealer))
            if value is None:
                raise KeyMaterialError(
                    f"holder {self.holder} has no share from dealer {dealer}: it must complain"
                )
            values.append(value)
        if self.session.previous is None:
            total = sum(values)
        else:
            tops, bottom = lagrange(tuple(dealer + 1 for dealer in state.qualified))
            total = sum(t * v for t, v in zip(tops, values, strict=True)) * pow(bottom, -1, ORDER)
        share = BlsKey((total % ORDER).to_bytes(32, "big"))
        assert share.public == outcome.shares[self.holder], "checked values give the public share"
        return share

    def confirm(self, state: KeygenState) -> Confirmation:
        """Round four. Who calls this remembers it: a holder confirms one outcome a session.

        Raises:
            KeyMaterialError: as :meth:`secret`.
        """
        self.secret(state)
        assert state.outcome is not None and self.holder is not None
        return Confirmation(
            session=self._name, holder=self.holder, outcome=state.outcome.digest
        ).sign(self.key)


def _index(parties: tuple[bytes, ...], public: bytes) -> int | None:
    return parties.index(public) if public in parties else None


def _seal(ephemeral: bytes, recipient: bytes, plain: bytes) -> bytes:
    """libsodium's sealed box (X25519, XSalsa20-Poly1305) from a given ephemeral secret.

    Its nonce is a hash of both public keys, so the ephemeral secret must be of this box alone.
    """
    secret = BoxPrivateKey(ephemeral)
    public = bytes(secret.public_key)
    nonce = hashlib.blake2b(public + recipient, digest_size=24).digest()
    try:
        return public + Box(secret, BoxPublicKey(recipient)).encrypt(plain, nonce).ciphertext
    except (CryptoError, ValueError):  # a key of small order, which opens nothing: its owner's loss
        return bytes(BOX_BYTES)
