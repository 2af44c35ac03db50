"""Distributed key generation over BLS12-381, and the handing on of shares: no dealer to trust.

*Joint-Feldman* (Pedersen, Eurocrypt 1991; Gennaro, Jarecki, Krawczyk, Rabin, J. Cryptology 2007):
every holder shares a random polynomial of degree t − 1 and commits to its coefficients in G1
(Feldman, FOCS 1987); the group's secret is the sum over the qualified dealers. *Resharing*
(Desmedt, Jajodia, 1997): holders of an old sharing each share their share; Lagrange's weighted sum
of what a new holder got is its share of the same secret under a fresh polynomial, of another
degree and among other people if wanted. What :mod:`daifi_flows.threshold` needs comes out: the
group's key, everybody's public share, and each holder's own secret.

The rounds, all of signed messages that name their session:

1. Each holder says :class:`Hello` with an X25519 key of this session for each dealer. The hellos
   that are used are the *roster*; who is not on it gets no share.
2. Each dealer deals for one roster: commitments, and each holder's value in a sealed box. The box
   is bound to session, roster, dealer and holder by the key that it is sealed to and the dealer's
   signature over all of it; a box copied into another dealing does not open there.
3. A holder whose box is wrong complains, and shows the secret of the one key it was sealed to:
   anybody opens the box and sees who is right. So there is no round of answers, and a dealer that
   has dealt may fall silent.
4. Who dealt once, well formed, and without a proven complaint, is qualified. Each holder that has
   a right share from every qualified dealer confirms the :class:`Outcome`, once a session.

:class:`KeygenState` is a pure reducer: it takes messages in any order, drops what does not count,
and any two states that took the same messages are equal. :class:`Insider` holds one party's
secrets; all it says follows from one random seed a session, so that a party that was killed says
the same again.

What is assumed. Messages need no order and no reliable broadcast: an outcome counts when
``Session.quorum`` holders (14 of 21) have signed it, two cannot both be signed in one session while
at most f holders are Byzantine, and an honest holder signs only an outcome that gives it its
share. A certificate says that the outcome is the only one; *not* that t honest holders have their
shares. Whoever carries the messages may leave up to n − quorum honest holders out, and of those
that confirm f may be Byzantine: 8 honest holders of 21 are sure of a share, and 14 sign. A key made
with such help stops when the Byzantine holders want it to (they alone never sign). An honest
carrier waits for all that answer in its time; where messages may be late for ever, more would take
shares that can be recovered later (asynchronous verifiable secret sharing).

Whoever carries the messages can also withhold them, which costs an attempt, and can choose, as
can a rushing adversary, which roster and which dealers are used once it has seen commitments: joint
Feldman lets it *bias the distribution of the key* (Gennaro et al. show how). That does not let it
sign: the adversary's part of the key is one that it knows (it must hand honest holders right
values of its polynomials), and such a key is as hard to sign under as an unbiased one (Gennaro,
Jarecki, Krawczyk, Rabin, "Secure Applications of Pedersen's Distributed Key Generation Protocol",
CT-RSA 2003, for discrete-log schemes; for BLS the "key-expressible" generation and "rekeyable"
scheme of Gurkan et al., eprint 2021/005). The beacon needs unpredictable signatures, not an
unbiased key.

Resharing makes old shares useless only where they are forgotten: t of the *old* shares together
still sign. Old and new shares do not mix. Honest old holders delete theirs once the new committee
is installed, which leaves fewer than t as long as fewer than t were ever stolen. And who deals an
old share must know that the session's holders are the rightful successors: that is the caller's
part.
"""

from __future__ import annotations

from daifi_flows._dkg_insider import Insider
from daifi_flows._dkg_messages import (
    MAX_PARTIES,
    Certificate,
    Complaint,
    Confirmation,
    DealtShares,
    Hello,
    Outcome,
    Previous,
    Session,
    Signed,
)
from daifi_flows._dkg_state import KeygenState, enrol, roster_digest

__all__ = [
    "MAX_PARTIES",
    "Certificate",
    "Complaint",
    "Confirmation",
    "DealtShares",
    "Hello",
    "Insider",
    "KeygenState",
    "Outcome",
    "Previous",
    "Session",
    "Signed",
    "enrol",
    "roster_digest",
]
