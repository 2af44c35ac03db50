"""Carries a key generation between seat hosts: collects, passes on, waits. Knows no secret.

Nothing here is trusted by the seats (see :mod:`daifi_flows.judges._keygen`). Hosts that are slow
or away cost time: of the holders' hosts a quorum of seats is waited for, and then a little longer
for the rest.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final, Protocol

from daifi_flows.cnft import Committee, QuorumCertificate
from daifi_flows.dkg import Certificate, Hello, KeygenState, Previous, Session, enrol
from daifi_flows.epochs import committee_fault, handover_message
from daifi_flows.errors import CommitteeError, EncodingError, KeyMaterialError
from daifi_flows.judges._keygen import KeygenAsk, KeygenStep, KeygenWord, seated
from daifi_flows.judges._messages import HostLost
from daifi_flows.keys import aggregate_bls, verify_bls

__all__ = ["HandedOn", "KeyTransport", "hand_on", "make_group_key", "retire_seats"]

_ATTEMPTS: Final = 5
"""Sessions tried. One fails when a host lost its disk, or told others different things, in it."""

_RETRY_S: Final = 0.5

_log = logging.getLogger(__name__)


class KeyTransport(Protocol):
    """How a client reaches one seat host. Raises :class:`HostLost` when it is away, and
    :class:`CommitteeError` when it refuses for good."""

    async def keygen(self, request: bytes) -> bytes:
        """One step (see :meth:`KeyOffice.answer`)."""
        ...


@dataclass(frozen=True)
class HandedOn:
    """What the ledger needs to put the next committee in office.

    Attributes:
        session: in which the shares were made.
        committee: the seats that were drawn, with shares of the same group key.
        certificate: of the committee in office, over the handover's message.
    """

    session: Session
    committee: Committee
    certificate: QuorumCertificate


async def make_group_key(
    hosts: Sequence[KeyTransport],
    committee: Committee,
    *,
    ledger_id: bytes,
    timeout_s: float = 120.0,
    grace_s: float = 5.0,
) -> Committee:
    """Have the seats of a committee that has no group key make one; nobody ever knows it.

    Each seat's share is in its key file when this returns, and only there.

    Args:
        hosts: they hold the committee's seats.
        committee: without shares (see :func:`daifi_flows.judges.bare_committee`).
        ledger_id: 32 bytes that no other committee of these keys is made with.
        timeout_s: for all of it.
        grace_s: how long, in each round, the rest is waited for once enough have answered.

    Returns:
        the committee with its group key and every seat's public share.

    Raises:
        CommitteeError: too few seats answered in time, or fewer than a quorum got their share.
    """
    holders = tuple(seat.public for seat in committee.seats)

    def session(attempt: int) -> Session:
        return Session.generate(ledger_id, committee.epoch, holders, committee.quorum, attempt)

    async with _within(timeout_s):
        _, certificate = await _generate(hosts, hosts, session, grace_s)
    return seated(committee, certificate)


async def hand_on(
    old_hosts: Sequence[KeyTransport],
    old: Committee,
    new_hosts: Sequence[KeyTransport],
    new: Committee,
    *,
    ledger_id: bytes,
    draw: bytes,
    timeout_s: float = 120.0,
    grace_s: float = 5.0,
) -> HandedOn:
    """Have the committee in office share its group key anew among the seats that were drawn, and
    sign the handover to them.

    The old shares still sign until the handover is final: then call :func:`retire_seats`.

    Args:
        old_hosts: they hold the old committee's seats and have the ledger up to the draw.
        new_hosts: they hold the new committee's seats, whose keys lie in a folder of their own,
            and were started with ``new``.
        new: the seats as drawn, with the old group key and no shares.
        draw: digest of the draw (see :func:`daifi_flows.epochs.handover_message`).
        timeout_s, grace_s: as for :func:`make_group_key`.

    Raises:
        CommitteeError: too few seats of either committee took part in time, or the old ones'
            ledger does not say that the new ones were drawn.
    """
    shares = tuple(seat.share for seat in old.seats if seat.share is not None)
    if old.group_key is None or new.group_key != old.group_key or len(shares) != len(old.seats):
        raise CommitteeError("shares are handed on from a committee with a group key, under it")
    previous = Previous(group_key=old.group_key, shares=shares, threshold=old.quorum)

    def session(attempt: int) -> Session:
        return Session(
            ledger_id=ledger_id,
            epoch=new.epoch,
            attempt=attempt,
            dealers=tuple(seat.public for seat in old.seats),
            holders=tuple(seat.public for seat in new.seats),
            threshold=new.quorum,
            previous=previous,
        )

    async with _within(timeout_s):
        done, certificate = await _generate(old_hosts, new_hosts, session, grace_s)
        committee = seated(new, certificate)
        if (fault := committee_fault(committee)) is not None:
            raise CommitteeError(f"the new committee cannot certify blocks: {fault}")
        message = handover_message(ledger_id, old.digest, draw, new.epoch, committee.digest)
        signatures: dict[int, bytes] = {}

        def take(word: KeygenWord, _: int) -> bool:
            for item in word.partials:
                if item.seat < len(old.seats) and verify_bls(
                    old.seats[item.seat].public, message, item.signature
                ):
                    signatures[item.seat] = item.signature
            return len(signatures) >= old.quorum

        ask = KeygenAsk(
            step=KeygenStep.HAND_OVER, session=done, certificate=certificate, committee=committee
        )
        await _ask(old_hosts, ask, take, grace_s)
    if len(signatures) < old.quorum:
        raise CommitteeError(
            f"{len(signatures)} seats signed the handover, {old.quorum} are needed"
        )
    return HandedOn(
        done,
        committee,
        QuorumCertificate(
            signers=sum(1 << index for index in signatures),
            signature=aggregate_bls([signatures[index] for index in sorted(signatures)]),
        ),
    )


async def retire_seats(
    hosts: Sequence[KeyTransport], handed_on: HandedOn, *, timeout_s: float = 30.0
) -> int:
    """Have seats that have left office delete their shares; returns how many did.

    Shares that are kept can be stolen: a quorum of them signs for the group for ever. Seats whose
    copy of the ledger does not show the handover in a final block keep theirs. Call it when the new
    committee has certified blocks with their beacons: until then nothing shows that its shares are
    there. Then stop the hosts: a running one still has its share in memory.
    """
    gone: set[int] = set()

    def take(word: KeygenWord, _: int) -> bool:
        gone.update(word.installed)
        return True

    ask = KeygenAsk(step=KeygenStep.RETIRE, session=handed_on.session)
    with suppress(CommitteeError):
        async with _within(timeout_s):
            await _ask(hosts, ask, take, timeout_s)
    return len(gone)


@asynccontextmanager
async def _within(timeout_s: float) -> AsyncGenerator[None]:
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise CommitteeError(
            f"too few seats took part in the key generation within {timeout_s} s"
        ) from None


async def _generate(
    dealing: Sequence[KeyTransport],
    taking: Sequence[KeyTransport],
    session_of: Callable[[int], Session],
    grace_s: float,
) -> tuple[Session, Certificate]:
    trouble = CommitteeError("no key generation was tried")
    # In a session of an earlier run seats may have confirmed what can no longer be finished.
    first = secrets.randbelow(2**62)
    for attempt in range(_ATTEMPTS):
        await asyncio.sleep(min(attempt, 1) * _RETRY_S)
        try:
            session = session_of(first + attempt).check()
            return session, await _one_session(dealing, taking, session, grace_s)
        except (CommitteeError, KeyMaterialError) as error:
            _log.warning("key generation %d: %s", attempt, error)
            trouble = CommitteeError(f"the seats could not make their key: {error}")
    raise trouble


async def _one_session(
    dealing: Sequence[KeyTransport],
    taking: Sequence[KeyTransport],
    session: Session,
    grace_s: float,
) -> Certificate:
    hellos: list[Hello] = []
    speaks: dict[int, set[int]] = {}
    """The holders that each host spoke for, until it has answered again."""

    def take_hellos(word: KeygenWord, host: int) -> bool:
        said = [hello for hello in word.hellos if session.greeted(hello)]
        hellos.extend(said)
        speaks[host] = {hello.holder for hello in said}
        return len({hello.holder for hello in hellos}) >= session.quorum

    await _ask(taking, KeygenAsk(step=KeygenStep.HELLO, session=session), take_hellos, grace_s)
    state = KeygenState(session, enrol(session, hellos))

    def take_dealings(word: KeygenWord, _: int) -> bool:
        nonlocal state
        for said in word.dealings:
            state = state.add(said)
        return len(state.qualified) >= session.dealers_needed

    def ask(step: KeygenStep, certificate: Certificate | None = None) -> KeygenAsk:
        return KeygenAsk(
            step=step,
            session=session,
            roster=state.roster,
            dealings=tuple(item for _, said in sorted(state.dealings.items()) for item in said),
            complaints=tuple(item for _, item in sorted(state.complaints.items())),
            certificate=certificate,
        )

    await _ask(dealing, ask(KeygenStep.DEAL), take_dealings, grace_s)

    def take_complaints(word: KeygenWord, host: int) -> bool:
        nonlocal state
        for complaint in word.complaints:
            state = state.add(complaint)
        speaks.pop(host, None)
        # A host can repeat another's hello: who both spoke for is heard when both are.
        waited_for = set[int]().union(*speaks.values())
        return len(state.roster) - len(waited_for) >= session.quorum

    await _ask(taking, ask(KeygenStep.CHECK), take_complaints, grace_s)

    def take_confirmations(word: KeygenWord, _: int) -> bool:
        nonlocal state
        for confirmation in word.confirmations:
            state = state.add(confirmation)
        return state.certificate is not None

    await _ask(taking, ask(KeygenStep.CONFIRM), take_confirmations, grace_s)
    certificate = state.certificate
    if certificate is None:
        faults = "; ".join(f"dealer {dealer} {why}" for dealer, why in state.faults.items())
        raise CommitteeError(f"no quorum of the holders confirmed one outcome ({faults})")
    for dealer, why in state.faults.items():
        _log.warning("dealer %d %s: left out of the key", dealer, why)
    installed = 0

    def take_installed(word: KeygenWord, _: int) -> bool:
        nonlocal installed
        installed += len(word.installed)
        return installed >= session.quorum

    # Those that confirmed have their shares on disk: this is for the rest, and shown by nothing.
    await _ask(taking, ask(KeygenStep.INSTALL, certificate), take_installed, grace_s)
    return certificate


async def _ask(
    hosts: Sequence[KeyTransport],
    ask: KeygenAsk,
    take: Callable[[KeygenWord, int], bool],
    grace_s: float,
) -> None:
    """Put one question to all hosts; ``take`` says when enough have answered."""
    request, loop = ask.canonical(), asyncio.get_running_loop()
    numbers = {
        asyncio.ensure_future(_answer_of(host, request)): number
        for number, host in enumerate(hosts)
    }
    pending, until = set(numbers), None
    try:
        while pending:
            left = None if until is None else max(until - loop.time(), 0.0)
            done, pending = await asyncio.wait(
                pending, timeout=left, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                return
            for task in done:
                word = task.result()
                if word is not None and take(word, numbers[task]) and until is None:
                    until = loop.time() + grace_s
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def _answer_of(host: KeyTransport, request: bytes) -> KeygenWord | None:
    """What a host says, however often it must be asked; nothing when it refuses."""
    while True:
        try:
            return KeygenWord.from_canonical(await host.keygen(request))
        except HostLost as error:
            if error.details.get("dead"):
                return None
            await asyncio.sleep(_RETRY_S)
        except (CommitteeError, EncodingError) as error:
            _log.warning("a seat host takes no part in a key generation: %s", error)
            return None
