"""The committee as state: offers and pledges, the roll, the draw, the handover, and its attacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ledger_kinds as t
import pytest
from committee_bench import (
    CANDIDATE_KEYS,
    CANDIDATES,
    EPOCH_MS,
    GENESIS,
    GRACE_MS,
    KEYS,
    REDRAW_MS,
    CommitteeBench,
    aggregated,
    candidate_info,
    certified_header,
    dealt_again,
    drawn_committee,
    genesis_with,
    handed_over,
)
from ledger_bench import snapshot
from ledger_kit import (
    BUYER,
    COMMITTEE,
    DAI,
    NODE,
    T0,
    attest,
    info_of,
    make_header,
    make_spec,
)

from daifi_flows.cnft import Basis, Committee, QuorumCertificate, attestation_message
from daifi_flows.encoding import cid_of, keccak256
from daifi_flows.errors import TransactionRefused
from daifi_flows.keys import Account, BlsKey, aggregate_bls
from daifi_flows.ledger._committees import (
    CandidateList,
    CandidateRecord,
    candidate_key,
    operator_consent,
)
from daifi_flows.ledger._nodes import prove_node_key
from daifi_flows.ledger._rules import committee as rules
from daifi_flows.sortition import SumTree, check_draw
from daifi_flows.threshold import deal


def refused(bench: CommitteeBench, code: str, kind, account, **fields: object) -> str:
    """It is refused with this code, and changes nothing."""
    before = snapshot(bench.state)
    with pytest.raises(TransactionRefused) as caught:
        bench.do(kind, account, **fields)
    assert caught.value.details["code"] == code, str(caught.value)
    assert snapshot(bench.state) == before
    return str(caught.value)


def offers(bench: CommitteeBench) -> tuple[str, ...]:
    found = bench.state.find(CandidateList, CandidateList.prefix)
    return found.addresses if found is not None else ()


# Offers


def test_a_node_with_a_key_and_stake_offers_itself_and_takes_it_back() -> None:
    bench = CommitteeBench(offers=0)
    node = CANDIDATES[0]
    refused(bench, "bad-role", t.OfferSeat, node, pledge_wei=100 * DAI)
    bench.do(t.Register, node, info=info_of(node))
    refused(bench, "bad-role", t.OfferSeat, node, pledge_wei=100 * DAI)  # no BLS key
    bench.do(t.Register, node, info=candidate_info(0))
    refused(bench, "insufficient-funds", t.OfferSeat, node, pledge_wei=100 * DAI)
    bench.do(t.Stake, node, amount_wei=250 * DAI)
    refused(bench, "bad-field", t.OfferSeat, node, pledge_wei=100 * DAI - 1)
    bench.do(t.OfferSeat, node, pledge_wei=200 * DAI)
    assert offers(bench) == (node.address,)
    # The pledge stays, the rest may leave; neither key nor registration can go.
    refused(bench, "bad-state", t.Unstake, node, amount_wei=50 * DAI + 1)
    bench.do(t.Unstake, node, amount_wei=50 * DAI)
    refused(bench, "bad-state", t.Retire, node)
    other = BlsKey.from_seed(b"another")
    proof = prove_node_key(other, node.address)
    changed = candidate_info(0, bls_public=other.public, bls_possession=proof)
    refused(bench, "bad-state", t.Register, node, info=changed)
    refused(bench, "bad-state", t.Register, node, info=info_of(node))
    bench.do(t.Register, node, info=candidate_info(0, price_wei=7))  # anything else may change
    bench.do(t.OfferSeat, node, pledge_wei=150 * DAI)  # on no roll yet: it may pledge less
    bench.do(t.WithdrawOffer, node)
    assert offers(bench) == ()
    assert bench.state.find(CandidateRecord, candidate_key(node.address)) is None
    refused(bench, "unknown", t.WithdrawOffer, node)
    bench.do(t.Unstake, node, amount_wei=200 * DAI)
    bench.do(t.Retire, node)


def test_a_full_list_takes_only_higher_pledges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MAX_OFFERS", 3)
    bench = CommitteeBench(offers=3)  # 150, 160 and 170 DAi
    newcomer = CANDIDATES[5]
    bench.do(t.Register, newcomer, info=candidate_info(5))
    bench.do(t.Stake, newcomer, amount_wei=300 * DAI)
    refused(bench, "bad-state", t.OfferSeat, newcomer, pledge_wei=150 * DAI)
    bench.do(t.OfferSeat, newcomer, pledge_wei=151 * DAI)
    assert set(offers(bench)) == {each.address for each in (*CANDIDATES[1:3], newcomer)}
    bench.do(t.Unstake, CANDIDATES[0], amount_wei=200 * DAI)  # whoever gave way is free


# The roll


def slash_to(bench: CommitteeBench, index: int, left_wei: int) -> None:
    """As if a candidate had lost all but this of its stake."""
    account, supply = bench.state.account(CANDIDATES[index].address), bench.state.supply()
    lost_wei = account.stake_wei - left_wei
    burned = {
        "stakes_wei": supply.stakes_wei - lost_wei,
        "burned_wei": supply.burned_wei + lost_wei,
    }
    bench.state.apply(
        {
            account.key(): account.model_copy(update={"stake_wei": left_wei}),
            supply.key(): supply.model_copy(update=burned),
        }
    )


def test_a_roll_is_closed_when_the_epoch_is_over_and_not_twice() -> None:
    bench = CommitteeBench()
    bench.now = T0 + EPOCH_MS - 1
    refused(bench, "bad-state", t.CloseRoll, BUYER, epoch=2)
    bench.now += 1
    refused(bench, "bad-field", t.CloseRoll, BUYER, epoch=1)
    refused(bench, "bad-field", t.CloseRoll, BUYER, epoch=3)
    bench.do(t.CloseRoll, BUYER, epoch=2)
    roll = bench.roll()
    assert (roll.epoch, roll.height, roll.seats, len(roll.entrants)) == (2, bench.height, 21, 30)
    assert roll.root == SumTree(entrant.candidate for entrant in roll.entrants).root
    assert roll.per_operator == 3 and not roll.drawn
    refused(bench, "bad-state", t.CloseRoll, BUYER, epoch=2)
    bench.now = roll.closed_ms + REDRAW_MS  # no handover came
    bench.do(t.CloseRoll, BUYER, epoch=2)
    assert bench.roll().closed_ms == bench.now


def test_who_has_no_weight_is_not_on_the_roll_and_too_few_are_no_roll() -> None:
    bench = CommitteeBench(offers=22)
    slash_to(bench, 3, 99 * DAI)
    roll = bench.close()
    assert len(roll.entrants) == 21
    assert CANDIDATES[3].address not in {each.candidate.account for each in roll.entrants}
    slash_to(bench, 4, 0)
    bench.now += REDRAW_MS
    assert "20 candidates" in refused(bench, "bad-state", t.CloseRoll, BUYER, epoch=2)


def test_weight_is_what_is_left_of_the_pledge_times_reputation() -> None:
    bench = CommitteeBench(offers=21)
    slash_to(bench, 0, 120 * DAI)
    second = bench.state.account(CANDIDATES[1].address)
    bad = second.standing
    for _ in range(8):
        bad = bad.with_rejected()
    bad = bad.model_copy(update={"at_ms": T0 + EPOCH_MS})
    bench.state.apply({second.key(): second.model_copy(update={"standing": bad})})
    weights = {e.candidate.account: e.candidate.weight for e in bench.close().entrants}
    assert weights[CANDIDATES[0].address] == 60_000_000  # 120 DAi, one half
    assert weights[CANDIDATES[1].address] == 16_000_000  # 160 DAi, one tenth
    assert weights[CANDIDATES[2].address] == 85_000_000


# The draw


DRAW_ATTACKS: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "of the roll's own block": ("bad-field", lambda h: certified_header(COMMITTEE, h)),
    "of a later block": ("bad-field", lambda h: certified_header(COMMITTEE, h + 2)),
    "of another ledger": (
        "bad-field",
        lambda h: certified_header(COMMITTEE, h + 1, ledger_id=bytes(32)),
    ),
    "signed by 13": (
        "bad-signature",
        lambda h: certified_header(COMMITTEE, h + 1, signers=range(13)),
    ),
    "of an epoch to come": ("bad-field", lambda h: certified_header(COMMITTEE, h + 1, epoch=2)),
    "of another committee": (
        "bad-field",
        lambda h: certified_header(COMMITTEE, h + 1, committee=bytes(32)),
    ),
    "with another beacon than was signed": (
        "bad-signature",
        lambda h: {
            **certified_header(COMMITTEE, h + 1),
            "header": certified_header(COMMITTEE, h + 1, beacon=bytes(32))["header"],
        },
    ),
}


@pytest.mark.parametrize("name", DRAW_ATTACKS)
def test_only_the_next_block_s_beacon_draws(name: str) -> None:
    bench = CommitteeBench(offers=22)
    refused(bench, "bad-state", t.DrawSeats, BUYER, **certified_header(COMMITTEE, 11))
    roll = bench.close()
    code, attack = DRAW_ATTACKS[name]
    refused(bench, code, t.DrawSeats, BUYER, **attack(roll.height))


def test_a_draw_happens_once_and_anybody_can_check_it() -> None:
    bench = CommitteeBench()
    roll = bench.draw()
    again = certified_header(COMMITTEE, roll.height + 1, beacon=roll.beacon)
    refused(bench, "duplicate", t.DrawSeats, BUYER, **again)
    draw = roll.draw(roll.beacon)
    assert check_draw(draw, root=roll.root, beacon=roll.beacon, seats=21, per_operator=3)
    assert tuple(pick.account for pick in draw.picks) == roll.drawn
    assert len(set(roll.drawn)) == 21
    other = CommitteeBench()
    assert other.draw(keccak256(b"another beacon")).drawn != roll.drawn


def run_by(bench: CommitteeBench, index: int, operator: Account) -> dict[str, Any]:
    """A candidate registered with its operator; the offer that the operator signed."""
    node = CANDIDATES[index]
    bench.do(t.Register, node, info=candidate_info(index, operator=operator.address))
    terms = operator_consent(GENESIS.ledger_id, node.address, operator.address)
    return {"pledge_wei": 150 * DAI, "consent": operator.sign(terms)}


def test_one_operator_has_no_more_seats_than_the_committee_stands() -> None:
    bench = CommitteeBench()
    for index in range(9):
        offer = run_by(bench, index, CANDIDATES[0])
        bench.do(t.OfferSeat, CANDIDATES[index], **offer)
    elected = bench.draw().elected
    interests = [entrant.candidate.interest for entrant in elected]
    assert interests.count(CANDIDATES[0].address) <= 3 and len(elected) == 21


def test_nobody_takes_an_operator_s_share_of_the_seats_without_its_word() -> None:
    bench = CommitteeBench(offers=22)
    victim, node = CANDIDATES[20], CANDIDATES[3]
    offer = run_by(bench, 3, victim)
    terms = operator_consent(GENESIS.ledger_id, node.address, victim.address)
    elsewhere = operator_consent(bytes(32), node.address, victim.address)
    for forged in (
        {},
        {"consent": node.sign(terms)},
        {"consent": victim.sign(elsewhere)},
        {"consent": run_by(bench, 3, victim)["consent"][:64] + b"\x00"},
    ):
        fields = {"pledge_wei": 150 * DAI, **forged}
        refused(bench, "bad-signature", t.OfferSeat, node, **fields)
    bench.do(t.OfferSeat, node, **offer)
    # Whom it names after that changes nothing: its offer counts with who agreed.
    bench.do(t.Register, node, info=candidate_info(3, operator=CANDIDATES[21].address))
    interests = {e.candidate.account: e.candidate.interest for e in bench.close().entrants}
    assert interests[node.address] == victim.address
    assert interests[CANDIDATES[4].address] == CANDIDATES[4].address


def test_what_happens_after_the_roll_was_closed_changes_no_draw() -> None:
    bench, other = CommitteeBench(), CommitteeBench()
    bench.close()
    leaver, richer = CANDIDATES[0], CANDIDATES[1]
    bench.do(t.WithdrawOffer, leaver)
    refused(bench, "bad-state", t.Unstake, leaver, amount_wei=200 * DAI)  # still on the roll
    refused(bench, "bad-state", t.Retire, leaver)
    refused(bench, "bad-state", t.OfferSeat, richer, pledge_wei=100 * DAI)  # its pledge stays
    bench.do(t.Stake, richer, amount_wei=500 * DAI)
    bench.do(t.OfferSeat, richer, pledge_wei=700 * DAI)
    bench.do(t.Register, richer, info=candidate_info(1, operator=BUYER.address))
    header = certified_header(COMMITTEE, bench.roll().height + 1, beacon=keccak256(b"beacon2"))
    bench.do(t.DrawSeats, BUYER, **header)
    assert bench.roll().elected == other.draw(keccak256(b"beacon2")).elected
    # Who was not drawn is free; who was is held until its seat is left.
    for account in (CANDIDATES[0], *CANDIDATES[2:]):
        if account is not leaver:
            bench.do(t.WithdrawOffer, account)
        if account.address in bench.roll().drawn:
            refused(bench, "bad-state", t.Unstake, account, amount_wei=200 * DAI)
        else:
            bench.do(t.Unstake, account, amount_wei=200 * DAI)


# The handover


def with_seats(committee: Committee, change: Callable[[list[Any]], None]) -> Committee:
    seats = list(committee.seats)
    change(seats)
    return committee.model_copy(update={"seats": tuple(seats)})


def swapped(bench: CommitteeBench) -> Committee:
    """The same seats in another order, numbered again."""
    new = drawn_committee(bench.roll())
    first, second = new.seats[:2]

    def swap(seats: list[Any]) -> None:
        seats[0] = second.model_copy(update={"index": 0, "share": first.share})
        seats[1] = first.model_copy(update={"index": 1, "share": second.share})

    return with_seats(new, swap)


def with_stranger(bench: CommitteeBench) -> Committee:
    """Somebody who was on the roll and was not drawn."""
    roll = bench.roll()
    index = next(i for i, each in enumerate(CANDIDATES) if each.address not in roll.drawn)
    new, key = drawn_committee(roll), CANDIDATE_KEYS[index]
    stranger = {
        "account": CANDIDATES[index].address,
        "public": key.public,
        "possession": key.prove_possession(),
    }
    return with_seats(new, lambda s: s.__setitem__(0, s[0].model_copy(update=stranger)))


def seat_changed(**changes: object) -> Callable[[CommitteeBench], Committee]:
    def make(bench: CommitteeBench) -> Committee:
        new = drawn_committee(bench.roll())
        return with_seats(new, lambda s: s.__setitem__(3, s[3].model_copy(update=changes)))

    return make


def with_shares(shares: Callable[[Committee], tuple[bytes, ...]], **changes: object):
    def make(bench: CommitteeBench) -> Committee:
        new = drawn_committee(bench.roll())
        given = shares(new)
        seats = tuple(seat.model_copy(update={"share": given[seat.index]}) for seat in new.seats)
        return new.model_copy(update={"seats": seats, **changes})

    return make


_OTHER = deal(b"another group".ljust(32), 21, 14)
COMMITTEE_ATTACKS: dict[str, Callable[[CommitteeBench], Committee]] = {
    "somebody who was not drawn": with_stranger,
    "another order": swapped,
    "a seat less": lambda b: with_seats(drawn_committee(b.roll()), lambda s: s.pop()),
    "another BLS key": lambda b: (
        seat_changed(public=CANDIDATE_KEYS[0].public)(b)
        if drawn_committee(b.roll()).seats[3].public != CANDIDATE_KEYS[0].public
        else seat_changed(public=CANDIDATE_KEYS[1].public)(b)
    ),
    "another weight": seat_changed(weight=1),
    "no weight": seat_changed(weight=None),
    "another operator": seat_changed(operator=BUYER.address),
    "another number": seat_changed(index=4),
    "no proof of possession": seat_changed(possession=bytes(96)),
    "another group's key and shares": with_shares(
        lambda _: _OTHER.shares, group_key=_OTHER.group_key
    ),
    "another group's shares": with_shares(lambda _: _OTHER.shares),
    "no group key": lambda b: drawn_committee(b.roll(), group_key=None),
    "the old shares": with_shares(lambda _: dealt_again(21, 1).shares),
    "one unsound share": seat_changed(share=_OTHER.shares[3]),
    "a share that is missing": seat_changed(share=None),
    "shares that fewer than a quorum could use": with_shares(
        lambda _: _low_degree(),
    ),
}


def _low_degree() -> tuple[bytes, ...]:
    """Of the same group key, but twelve holders would do: every share is its key itself."""
    return (COMMITTEE.group_key or b"",) * 21


@pytest.fixture(scope="module")
def drawn() -> CommitteeBench:
    bench = CommitteeBench()
    bench.draw()
    return bench


@pytest.mark.parametrize("name", COMMITTEE_ATTACKS)
def test_even_a_quorum_hands_over_only_to_the_drawn_seats(drawn: CommitteeBench, name: str) -> None:
    new = COMMITTEE_ATTACKS[name](drawn)
    refused(drawn, "bad-field", t.HandOver, BUYER, **handed_over(drawn.state, new))


SIGNING_ATTACKS: dict[str, Callable[[CommitteeBench], dict[str, Any]]] = {
    "by 13": lambda b: handed_over(b.state, signers=range(13)),
    "by the new committee": lambda b: handed_over(b.state, by=drawn_committee(b.roll())),
    "for another ledger": lambda b: handed_over(b.state, ledger_id=bytes(32)),
    "after another committee": lambda b: handed_over(b.state, previous=bytes(32)),
    "for another draw": lambda b: handed_over(b.state, draw=bytes(32)),
    "for another epoch": lambda b: handed_over(b.state, epoch=3),
    "for another committee": lambda b: handed_over(b.state, committee=bytes(32)),
    "as a block": lambda b: {
        "committee": drawn_committee(b.roll()),
        "certificate": aggregated(COMMITTEE, QuorumCertificate.message(bytes(32))),
    },
}


@pytest.mark.parametrize("name", SIGNING_ATTACKS)
def test_only_a_quorum_of_those_in_office_hands_over(drawn: CommitteeBench, name: str) -> None:
    refused(drawn, "bad-signature", t.HandOver, BUYER, **SIGNING_ATTACKS[name](drawn))


def test_a_handover_needs_a_draw_and_happens_once() -> None:
    bench = CommitteeBench()
    roll = bench.close()
    early = roll.model_copy(
        update={"drawn": tuple(e.candidate.account for e in roll.entrants[:21])}
    )
    fields = handed_over(bench.state, drawn_committee(early))
    refused(bench, "bad-state", t.HandOver, BUYER, **fields)
    header = certified_header(COMMITTEE, roll.height + 1)
    bench.do(t.DrawSeats, BUYER, **header)
    far = drawn_committee(bench.roll(), epoch=3)
    refused(bench, "bad-state", t.HandOver, BUYER, **handed_over(bench.state, far))
    fields = handed_over(bench.state)
    bench.do(t.HandOver, BUYER, **fields)
    office = bench.state.in_office()
    assert (office.committee, office.since_height) == (fields["committee"], bench.height)
    assert (office.since_ms, office.left_ms) == (bench.now, 0)
    before = bench.state.seated_in(1)
    assert before is not None and before.committee == COMMITTEE
    assert (before.left_ms, before.left_height) == (bench.now, bench.height)
    refused(bench, "bad-state", t.HandOver, BUYER, **fields)  # replayed
    # The next epoch's draw is as far away as ever.
    refused(bench, "bad-state", t.CloseRoll, BUYER, epoch=3)
    refused(bench, "bad-state", t.DrawSeats, BUYER, **header)


def test_a_draw_that_was_closed_anew_kills_the_one_before() -> None:
    bench = CommitteeBench()
    bench.draw(keccak256(b"one"))
    stale = handed_over(bench.state)
    bench.now += REDRAW_MS
    bench.do(t.CloseRoll, BUYER, epoch=2)
    refused(bench, "bad-state", t.HandOver, BUYER, **stale)  # nobody is drawn now
    roll = bench.roll()
    header = certified_header(COMMITTEE, roll.height + 1, beacon=keccak256(b"two"))
    bench.height = roll.height + 2
    bench.do(t.DrawSeats, BUYER, **header)
    refused(bench, "bad-field", t.HandOver, BUYER, **stale)
    bench.do(t.HandOver, BUYER, **handed_over(bench.state))


def test_committees_follow_one_another_and_who_leaves_still_vouches() -> None:
    bench = CommitteeBench()
    second = bench.rotate()
    third = bench.rotate()
    assert [each.epoch for each in (second, third)] == [2, 3]
    assert bench.state.committee() == third and second.group_key == COMMITTEE.group_key
    left = {s.account for s in second.seats} - {s.account for s in third.seats}
    assert left, "of thirty candidates some leave"
    params = bench.state.params()
    until_ms = bench.now + params.committee.grace_ms + params.vouching_ms
    for address in left:
        assert bench.state.account(address).vouching_until_ms == until_ms
        account = next(each for each in CANDIDATES if each.address == address)
        bench.do(t.WithdrawOffer, account)
        bench.do(t.Unstake, account, amount_wei=150 * DAI)
        (tranche,) = bench.state.account(address).unbonding
        assert tranche.due_ms >= until_ms
    seated = next(each for each in CANDIDATES if each.address == third.seats[0].account)
    bench.do(t.WithdrawOffer, seated)
    refused(bench, "bad-state", t.Unstake, seated, amount_wei=200 * DAI)
    refused(bench, "bad-state", t.Retire, seated)


# What committees signed counts after they left


def attested_by(committee: Committee, spec, **changes: object):
    """:func:`ledger_kit.attest` by another committee."""
    found = attest(spec, ledger_id=GENESIS.ledger_id, epoch=committee.epoch, **changes)
    values = {name: getattr(found, name) for name in type(found).model_fields}
    for name in ("signers", "signature"):
        values.pop(name)
    message = attestation_message(**values)
    signed = aggregated(committee, message)
    return found.model_copy(update={"signers": signed.signers, "signature": signed.signature})


def committed(bench: CommitteeBench, nonce: int = 0, **changes: object):
    node = CANDIDATES[29]
    spec = make_spec(nonce, **changes)
    bench.do(t.Open, BUYER, spec=spec)
    bench.assign(spec, node)
    bench.do(
        t.Commit,
        BUYER,
        task_id=spec.task_id,
        attempt=0,
        proof_cid=cid_of(b"proof"),
        header=make_header(spec, node),
    )
    return spec


def test_findings_of_the_committee_before_count_for_a_time_of_grace() -> None:
    bench = CommitteeBench()
    bench.draw()
    node = {"node": CANDIDATES[29].address}
    specs = [committed(bench, nonce) for nonce in range(3)]
    bench.now += 1
    bench.do(t.HandOver, BUYER, **handed_over(bench.state))
    second = bench.state.committee()
    bench.now += GRACE_MS
    settle = {"metadata": bytes(32)}
    bench.do(t.Settle, BUYER, attestation=attested_by(COMMITTEE, specs[0], **node), **settle)
    # A task that was committed after the handover is not the old committee's.
    bench.now -= GRACE_MS - 1
    late = committed(bench, 7)
    found = attested_by(COMMITTEE, late, **node)
    refused(bench, "bad-field", t.Settle, BUYER, attestation=found, **settle)
    bench.do(t.Settle, BUYER, attestation=attested_by(second, late, **node), **settle)
    bench.now += GRACE_MS
    found = attested_by(COMMITTEE, specs[1], **node)
    refused(bench, "expired", t.Settle, BUYER, attestation=found, **settle)
    # Nothing is lost: the committee in office reviews it again.
    bench.do(t.Settle, BUYER, attestation=attested_by(second, specs[1], **node), **settle)
    found = attested_by(second.model_copy(update={"epoch": 3}), specs[2], **node)
    refused(bench, "bad-field", t.Settle, BUYER, attestation=found, **settle)
    # The epoch is in what is signed: one committee's word is not another's.
    moved = attested_by(COMMITTEE, specs[2], **node).model_copy(update={"epoch": 2})
    refused(bench, "bad-signature", t.Settle, BUYER, attestation=moved, **settle)


def test_a_review_is_waived_only_by_whoever_sat_at_the_commit() -> None:
    bench = CommitteeBench()
    bench.draw()
    spec = committed(bench)
    task = bench.state.task(spec.task_id)
    bench.state.apply({task.key(): task.model_copy(update={"review_ppm": 100_000})})
    bench.now += 1
    bench.do(t.HandOver, BUYER, **handed_over(bench.state))
    waived = {
        "node": CANDIDATES[29].address,
        "basis": Basis.WAIVED,
        "confidence_ppm": 0,
    }
    found = attested_by(bench.state.committee(), spec, **waived)
    refused(bench, "bad-field", t.Settle, BUYER, attestation=found, metadata=bytes(32))
    found = attested_by(COMMITTEE, spec, **waived)
    bench.do(t.Settle, BUYER, attestation=found, metadata=bytes(32))


def test_equivocation_of_an_earlier_committee_is_still_shown_and_slashed() -> None:
    bench = CommitteeBench()
    second = bench.rotate()
    bench.rotate()
    one = certified_header(second, bench.height, signers=range(14))
    two = certified_header(second, bench.height, signers=range(7, 21), beacon=bytes(32))
    for header in (one, two):
        assert header["header"].timestamp_ms <= bench.now
    pair = {
        "first": one["header"],
        "first_votes": one["certificate"],
        "second": two["header"],
        "second_votes": two["certificate"],
    }
    accused = second.seats[7].account
    stake_wei = bench.state.account(accused).stake_wei
    bench.do(t.BlockEquivocation, BUYER, **pair)
    assert bench.state.account(accused).stake_wei < stake_wei
    refused(bench, "duplicate", t.BlockEquivocation, BUYER, **pair)
    # Nobody is accused of what another epoch's committee signed.
    foreign = {**pair, "first": one["header"].model_copy(update={"epoch": 3})}
    refused(bench, "bad-field", t.BlockEquivocation, BUYER, **foreign)
    unknown = {
        **pair,
        "first": one["header"].model_copy(update={"epoch": 9}),
        "second": two["header"].model_copy(update={"epoch": 9}),
    }
    refused(bench, "bad-field", t.BlockEquivocation, BUYER, **unknown)


def test_a_seat_that_signs_blocks_out_of_office_is_slashed() -> None:
    bench = CommitteeBench()
    second = bench.rotate()
    handed_at = bench.height
    bench.rotate()
    left = bench.state.seated_in(2)
    assert left is not None and left.since_height == handed_at < left.left_height < bench.height + 1
    bench.height = left.left_height + 1

    def shown(height: int, signers=(3, 4), **changes: object) -> dict[str, Any]:
        found = certified_header(second, height, signers=signers, **changes)
        return {"header": found["header"], "votes": found["certificate"]}

    for height in (handed_at + 1, left.left_height):  # theirs to certify
        refused(bench, "bad-field", t.LateCertificate, BUYER, **shown(height))
    late = shown(bench.height)
    wrong = {**late, "header": late["header"].model_copy(update={"beacon": bytes(32)})}
    refused(bench, "bad-signature", t.LateCertificate, BUYER, **wrong)
    foreign = shown(bench.height, ledger_id=bytes(32))
    refused(bench, "bad-field", t.LateCertificate, BUYER, **foreign)
    refused(bench, "bad-field", t.LateCertificate, BUYER, **shown(bench.height, epoch=9))
    none = {**late, "votes": late["votes"].model_copy(update={"signers": 0})}
    refused(bench, "bad-field", t.LateCertificate, BUYER, **none)
    stakes = [bench.state.account(second.seats[i].account).stake_wei for i in (3, 4, 5)]
    bench.do(t.LateCertificate, BUYER, **late)
    after = [bench.state.account(second.seats[i].account).stake_wei for i in (3, 4, 5)]
    assert [new < old for new, old in zip(after, stakes, strict=True)] == [True, True, False]
    refused(bench, "duplicate", t.LateCertificate, BUYER, **late)
    early = shown(handed_at, signers=(5,))  # before it was in office
    bench.do(t.LateCertificate, BUYER, **early)
    bench.now = left.left_ms + bench.state.params().disputes.evidence_ms + 1
    stale = shown(bench.height, signers=(6,))
    refused(bench, "expired", t.LateCertificate, BUYER, **stale)
    in_office = certified_header(bench.state.committee(), bench.height, signers=(1,))
    held = {"header": in_office["header"], "votes": in_office["certificate"]}
    refused(bench, "bad-field", t.LateCertificate, BUYER, **held)


def test_genesis_of_one_operator_and_small_committees() -> None:
    keys = [KEYS[seat.public] for seat in COMMITTEE.seats[:4]]
    dealing = deal(b"four".ljust(32), 4, 3)
    four = COMMITTEE.model_copy(
        update={
            "seats": tuple(
                seat.model_copy(update={"share": dealing.shares[seat.index]})
                for seat in COMMITTEE.seats[:4]
            ),
            "group_key": dealing.group_key,
        }
    )
    assert aggregate_bls([key.sign(b"m") for key in keys])
    bench = CommitteeBench(genesis_with(four), offers=6)
    roll = bench.close()
    assert (roll.seats, roll.per_operator) == (4, 1)  # f = 1
    assert NODE.address not in {each.candidate.account for each in roll.entrants}
