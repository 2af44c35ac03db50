"""Chains of handovers: who trusts one committee follows them to the next, and no further."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daifi_flows.cnft import BlockHeader, Committee, QuorumCertificate, Seat
from daifi_flows.encoding import keccak256
from daifi_flows.epochs import (
    MAX_FILE_BYTES,
    CommitteeChain,
    Committees,
    DrawTerms,
    Handover,
    committee_fault,
    handover_message,
)
from daifi_flows.errors import EncodingError
from daifi_flows.history import check_certificate
from daifi_flows.keys import Account, BlsKey, aggregate_bls
from daifi_flows.threshold import deal

LEDGER = keccak256(b"ledger")
DEALING = deal(b"the dealer of epochs".ljust(32), 4, 3)
KEYS = {
    key.public: key
    for key in (BlsKey.from_seed(b"%d/%d" % (e, i)) for e in range(1, 6) for i in range(4))
}


def committee(epoch: int, **changes: object) -> Committee:
    """Four seats whose keys are those of an epoch."""
    seats = [
        Seat(
            index=i,
            public=key.public,
            possession=key.prove_possession(),
            account=Account.from_seed(b"%d" % i).address,
            share=DEALING.shares[i],
        )
        for i, key in enumerate(list(KEYS.values())[4 * epoch - 4 : 4 * epoch])
    ]
    found = Committee(epoch=epoch, seats=tuple(seats), group_key=DEALING.group_key)
    return found.model_copy(update=changes)


def signed(by: Committee, message: bytes, signers: Sequence[int] = (0, 1, 2)) -> QuorumCertificate:
    partials = [KEYS[by.seats[i].public].sign(message) for i in signers]
    bitmap = sum(1 << i for i in signers)
    return QuorumCertificate(signers=bitmap, signature=aggregate_bls(partials))


def terms(new: Committee, **changes: object) -> DrawTerms:
    """Its committee before took office a hundred blocks after the one before that."""
    found = DrawTerms(
        epoch=new.epoch,
        since_height=100 * (new.epoch - 2),
        height=100 * (new.epoch - 1) - 3,
        root=keccak256(b"root"),
        beacon=keccak256(b"beacon"),
        seats=4,
        per_operator=1,
    )
    return found.model_copy(update=changes)


def handover(
    old: Committee, new: Committee, signers: Sequence[int] = (0, 1, 2), **changes: object
) -> Handover:
    values: dict[str, object] = {
        "ledger_id": LEDGER,
        "previous": old.digest,
        "draw": terms(new),
        "committee": new,
    }
    values |= changes
    blank = QuorumCertificate(signers=0, signature=bytes(96))
    unsigned = Handover.model_validate({**values, "certificate": blank})
    return unsigned.model_copy(update={"certificate": signed(old, unsigned.message(), signers)})


ALL = [committee(epoch) for epoch in range(1, 6)]
CHAIN = [handover(old, new) for old, new in pairwise(ALL)]


def test_committees_lead_to_one_another() -> None:
    known = Committees(ALL[0], CHAIN)
    assert [known.of(epoch) for epoch in range(1, 6)] == ALL
    assert (known.anchor, known.last) == (ALL[0], ALL[4])
    later = Committees(ALL[2], CHAIN)  # what came before the anchor is passed over
    assert later.of(5) == ALL[4]
    with pytest.raises(EncodingError, match="earlier committee's keys"):
        later.of(2)
    with pytest.raises(EncodingError, match="give the ledger's handovers up to it"):
        Committees(ALL[0], CHAIN[:2]).of(4)


def test_blocks_are_checked_with_the_committee_of_their_epoch() -> None:
    known = Committees(ALL[0], CHAIN)
    header = BlockHeader.model_validate(
        {name: bytes(32) for name in BlockHeader.model_fields}
        | dict.fromkeys(("timestamp_ms", "round", "history_size"), 0)
        | dict.fromkeys(("proposer", "builder"), ALL[0].seats[0].account)
        | {"epoch": 3, "committee": ALL[2].digest, "height": 250, "ledger_id": LEDGER}
    )
    message = QuorumCertificate.message(header.digest)
    check_certificate(header, signed(ALL[2], message), known)
    check_certificate(header, signed(ALL[2], message), ALL[2])
    for wrong in (signed(ALL[1], message), signed(ALL[2], message, (0, 1))):
        with pytest.raises(EncodingError):
            check_certificate(header, wrong, known)
    foreign = header.model_copy(update={"committee": ALL[1].digest})
    with pytest.raises(EncodingError, match="another committee"):
        check_certificate(foreign, signed(ALL[2], message), known)


def test_the_message_says_everything() -> None:
    values = (LEDGER, ALL[0].digest, terms(ALL[1]).digest, 2, ALL[1].digest)
    message = handover_message(*values)
    assert message == CHAIN[0].message() and message.startswith(b"daifi/handover/1")
    for index, other in enumerate((bytes(32), bytes(32), bytes(32), 3, bytes(32))):
        changed = [*values]
        changed[index] = other
        assert handover_message(*changed) != message  # pyright: ignore


OTHER_GROUP = deal(b"another group of epochs".ljust(32), 4, 3)
ATTACKS = {
    "signed by two": handover(ALL[0], ALL[1], (0, 1)),
    "signed by those who take over": handover(ALL[0], ALL[1]).model_copy(
        update={"certificate": signed(ALL[1], CHAIN[0].message())}
    ),
    "of another draw than was signed": CHAIN[0].model_copy(
        update={"draw": terms(ALL[1], root=bytes(32))}
    ),
    "of another epoch's draw": handover(ALL[0], ALL[1], draw=terms(ALL[1], epoch=3)),
    "of a draw of fewer seats": handover(ALL[0], ALL[1], draw=terms(ALL[1], seats=3)),
    "to a committee that was not signed": CHAIN[0].model_copy(
        update={"committee": committee(2, seats=ALL[3].seats)}
    ),
    "an epoch left out": handover(ALL[0], ALL[2]),
    "after another committee": handover(ALL[0], ALL[1], previous=bytes(32)),
    "with another group key": handover(ALL[0], committee(2, group_key=OTHER_GROUP.group_key)),
    "with a key twice": handover(
        ALL[0],
        committee(
            2,
            seats=(
                *ALL[1].seats[:3],
                ALL[1].seats[3].model_copy(update={"public": ALL[1].seats[0].public}),
            ),
        ),
    ),
    "with seats out of order": handover(ALL[0], committee(2, seats=ALL[1].seats[::-1])),
    "with a signer that has no seat": CHAIN[0].model_copy(
        update={
            "certificate": CHAIN[0].certificate.model_copy(update={"signers": 0b10111}),
        }
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_handover_that_is_not_one_leads_nowhere(name: str) -> None:
    with pytest.raises(EncodingError):
        Committees(ALL[0], [ATTACKS[name]])


def test_a_committee_that_left_certifies_nothing_more() -> None:
    """Its keys are still there, and its stake may not be."""
    known = Committees(ALL[0], CHAIN)  # since blocks 0, 100, 200 and 300, and one unknown

    def header(epoch: int, height: int) -> BlockHeader:
        fields = {"epoch": epoch, "committee": ALL[epoch - 1].digest, "height": height}
        zeros = dict.fromkeys(("timestamp_ms", "round", "history_size"), 0)
        seats = dict.fromkeys(("proposer", "builder"), ALL[0].seats[0].account)
        rest = {name: bytes(32) for name in BlockHeader.model_fields}
        return BlockHeader.model_validate(rest | zeros | seats | fields | {"ledger_id": LEDGER})

    for epoch, first, last in ((1, 1, 100), (2, 101, 200), (3, 201, 300), (4, 301, 9_999)):
        for height in (first, last):
            assert known.certifying(header(epoch, height)) == ALL[epoch - 1]
        with pytest.raises(EncodingError, match="not in office"):
            known.certifying(header(epoch, first - 1))
    for epoch, last in ((1, 100), (2, 200), (3, 300)):
        with pytest.raises(EncodingError, match="not in office"):
            known.certifying(header(epoch, last + 1))
    # Nobody has said yet since when the last is in office: after block 398, which drew it.
    assert known.certifying(header(5, 399)) == ALL[4]
    for height in (7, 398):
        with pytest.raises(EncodingError, match="not in office"):
            known.certifying(header(5, height))
    assert Committees(ALL[4]).certifying(header(5, 7)) == ALL[4]  # which nothing says of an anchor
    for draw in (terms(ALL[2], since_height=0), terms(ALL[2], since_height=98)):
        with pytest.raises(EncodingError, match="before it was drawn"):
            Committees(ALL[0], [CHAIN[0], handover(ALL[1], ALL[2], draw=draw)])
    with pytest.raises(EncodingError, match="before it was in office"):
        Committees(ALL[0], [handover(ALL[0], ALL[1], draw=terms(ALL[1], since_height=98))])
    foreign = header(3, 250).model_copy(update={"ledger_id": keccak256(b"another")})
    with pytest.raises(EncodingError, match="another ledger"):
        known.certifying(foreign)


def test_handovers_of_two_ledgers_are_no_chain() -> None:
    other = handover(ALL[1], ALL[2], ledger_id=bytes(32))
    with pytest.raises(EncodingError, match="two ledgers"):
        Committees(ALL[0], [CHAIN[0], other])
    with pytest.raises(EncodingError):
        Committees(ALL[0], [CHAIN[1], CHAIN[0]])  # out of order


def test_a_file_of_handovers() -> None:
    chain = CommitteeChain(handovers=tuple(CHAIN))
    data = chain.to_json()
    assert CommitteeChain.from_json(data) == chain
    for junk in (b"", b"[]", b"{}}", b'{"handovers": 3}', data[:-9], data.replace(b"0x", b"0X")):
        with pytest.raises(EncodingError):
            CommitteeChain.from_json(junk)
    with pytest.raises(EncodingError, match="at most"):
        CommitteeChain.from_json(b" " * (MAX_FILE_BYTES + 1))


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_chain_or_a_typed_error(data: bytes) -> None:
    with suppress(EncodingError):
        assert isinstance(CommitteeChain.from_json(data), CommitteeChain)


@given(st.data())
def test_any_changed_byte_of_a_chain_leads_nowhere_new(data: st.DataObject) -> None:
    """It is the same chain in another spelling, or none."""
    raw = bytearray(CommitteeChain(handovers=tuple(CHAIN[:1])).to_json())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255))
    try:
        found = CommitteeChain.from_json(bytes(raw))
        Committees(ALL[0], found.handovers)
    except EncodingError:
        return
    assert found.handovers == tuple(CHAIN[:1])


def test_what_makes_a_committee_unable_to_certify() -> None:
    assert committee_fault(ALL[0]) is None
    first, *rest = ALL[0].seats
    foreign = first.model_copy(update={"public": ALL[1].seats[0].public})
    faults = {
        "numbered": committee(1, seats=()),
        "share a BLS key": committee(
            1, seats=(*ALL[0].seats[:3], ALL[0].seats[0].model_copy(update={"index": 3}))
        ),
        "possession": committee(1, seats=(foreign, *rest)),
        "group key": committee(1, group_key=None),
        "its signature": committee(1, group_key=OTHER_GROUP.group_key),
    }
    for words, wrong in faults.items():
        assert words in (committee_fault(wrong) or "")
