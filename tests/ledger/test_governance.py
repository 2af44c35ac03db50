"""Governance, case by case: who may propose and vote, what passes, when it is executed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ledger_kinds as t
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_bench import Bench, snapshot
from ledger_kit import (
    BUYER,
    DAI,
    FREE,
    NODE,
    OTHER,
    STRANGER,
    T0,
    SeatsHere,
    make_genesis,
    make_spec,
)

from daifi_flows.cnft import Review
from daifi_flows.encoding import keccak256
from daifi_flows.errors import EncodingError, InsufficientFunds, LedgerError, TransactionRefused
from daifi_flows.keys import Account
from daifi_flows.ledger import Governance, LedgerClient, LedgerService, Params, Replica, audit
from daifi_flows.ledger._governance import (
    MAX_OPEN,
    MAX_VOTES,
    AgendaRecord,
    Choice,
    ModelChange,
    ModelListing,
    Outcome,
    ParamChange,
    ProposalRecord,
    changed_params,
    proposal_key,
)
from daifi_flows.ledger._machine import BlockEnv
from daifi_flows.ledger._params import StakingParams
from daifi_flows.ledger._policy import CommitteeParams, GovernanceParams
from daifi_flows.ledger._state import supply_of

MINUTE = 60_000
RULES = GovernanceParams(voting_ms=10 * MINUTE, timelock_ms=5 * MINUTE)
LOWER_FEE = ParamChange(group="fees", field="treasury_ppm", value_wei=40_000)
MODEL = make_spec().model.digest
DENY = ModelChange(digest=MODEL, listing=ModelListing.DENY)
ALLOW = ModelChange(digest=MODEL, listing=ModelListing.ALLOW)
FORGET = ModelChange(digest=MODEL, listing=ModelListing.NONE)
SUPPLY = 1_400 * DAI
DEMANDS = [
    (group, name)
    for group, fields in Params().plain().items()
    for name in fields
    if "_wei" in name and name not in ("over_wei", "always_over_wei", "fee_per_byte_wei")
]
"""What somebody must have to take part."""
LOWER = {"changes": (LOWER_FEE,), "models": ()}


class Assembly(Bench):
    """Buyer, node and other have 60, 30 and 10 DAi at stake."""

    def __init__(self, **rules: int) -> None:
        params = Params(fees=FREE, governance=RULES.model_copy(update=rules))
        super().__init__(make_genesis(params=params))
        for account, dai in ((BUYER, 60), (NODE, 30), (OTHER, 10)):
            self.do(t.Stake, account, amount_wei=dai * DAI)

    def propose(self, who: Account = BUYER, title: str = "p", **fields: object) -> bytes:
        return self.do(t.Propose, who, title=title, **(LOWER | fields)).content or b""

    def vote(self, who: Account, proposal: bytes, choice: str = "for") -> None:
        self.do(t.CastVote, who, proposal=proposal, choice=Choice(choice))

    def find(self, proposal: bytes) -> ProposalRecord:
        found = self.state.find(ProposalRecord, proposal_key(proposal))
        assert found is not None
        return found

    def wait(self, ms: int) -> None:
        """Time passes, and a block begins."""
        self.now += ms
        self.machine.begin(self.state, BlockEnv(self.now, 1))
        report = supply_of(self.state)
        assert report.conserved and report == self.state.supply()

    def refused(self, code: str, kind: type[t.Transaction], who: Account, **fields: object) -> str:
        before = snapshot(self.state)
        with pytest.raises(TransactionRefused) as error:
            self.do(kind, who, **fields)
        assert error.value.details["code"] == code
        assert snapshot(self.state) == before
        return str(error.value)


@pytest.fixture
def here() -> Assembly:
    return Assembly()


# From proposal to execution


def test_what_passed_is_executed_at_the_first_block_after_the_timelock(here: Assembly) -> None:
    proposal = here.propose()
    assert here.balance(BUYER) == (1_000 - 60) * DAI - RULES.deposit_wei
    here.vote(BUYER, proposal)
    here.vote(NODE, proposal, "against")
    here.wait(RULES.voting_ms + RULES.timelock_ms - 1)
    assert here.state.params().fees.treasury_ppm == 50_000
    here.wait(1)
    assert here.state.params() == changed_params(make_params(), (LOWER_FEE,), SUPPLY)
    found = here.find(proposal)
    assert (found.outcome, found.deposit_wei) == (Outcome.EXECUTED, 0)
    assert (found.for_wei, found.against_wei) == (60 * DAI, 30 * DAI)
    assert here.balance(BUYER) == (1_000 - 60) * DAI, "the deposit came back"
    assert here.state.find(AgendaRecord, AgendaRecord.prefix) is None
    before = snapshot(here.state)
    here.wait(MINUTE)
    assert snapshot(here.state) == before


def make_params() -> Params:
    return Params(fees=FREE, governance=RULES)


VOTES: list[tuple[str, dict[str, str], dict[str, int], Outcome, bool]] = [
    ("nobody votes", {}, {}, Outcome.NO_QUORUM, False),
    ("too little stake", {"other": "for"}, {}, Outcome.NO_QUORUM, False),
    ("just the quorum", {"node": "for"}, {"quorum_ppm": 300_000, "turnout_ppm": 10_000},
     Outcome.EXECUTED, True),
    ("just not the quorum", {"node": "for"}, {"quorum_ppm": 300_001, "turnout_ppm": 10_000},
     Outcome.NO_QUORUM, False),
    ("just the turnout", {"other": "for", "node": "for"}, {"turnout_ppm": 28_571},
     Outcome.EXECUTED, True),
    ("too little of all money", {"other": "for", "node": "for"}, {"turnout_ppm": 28_572},
     Outcome.NO_QUORUM, False),
    ("abstentions count for the quorum", {"other": "for", "buyer": "abstain"}, {},
     Outcome.EXECUTED, True),
    ("only abstentions", {"buyer": "abstain"}, {}, Outcome.DEFEATED, True),
    ("against", {"buyer": "against", "node": "for"}, {}, Outcome.DEFEATED, True),
    ("two thirds asked, 60 of 90", {"buyer": "for", "node": "against"},
     {"majority_ppm": 666_667}, Outcome.DEFEATED, True),
    ("two thirds asked, 90 of 100", {"buyer": "for", "node": "for", "other": "against"},
     {"majority_ppm": 666_667}, Outcome.EXECUTED, True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("votes", "rules", "outcome", "back"),
    [case[1:] for case in VOTES],
    ids=[case[0] for case in VOTES],
)
def test_what_passes(
    votes: dict[str, str], rules: dict[str, int], outcome: Outcome, back: bool
) -> None:
    here = Assembly(**rules)
    proposal = here.propose()
    treasury = here.state.supply().treasury_wei
    for name, choice in votes.items():
        here.vote({"buyer": BUYER, "node": NODE, "other": OTHER}[name], proposal, choice)
    here.wait(RULES.voting_ms + RULES.timelock_ms)
    assert here.find(proposal).outcome is outcome
    executed = outcome is Outcome.EXECUTED
    assert here.state.params().fees.treasury_ppm == (40_000 if executed else 50_000)
    lost = here.state.supply().treasury_wei - treasury
    assert lost == (0 if back else RULES.deposit_wei)


def test_an_even_vote_is_defeated(here: Assembly) -> None:
    here.do(t.Stake, NODE, amount_wei=30 * DAI)
    proposal = here.propose()
    here.vote(BUYER, proposal)
    here.vote(NODE, proposal, "against")
    here.wait(RULES.voting_ms + RULES.timelock_ms)
    assert here.find(proposal).outcome is Outcome.DEFEATED


def test_the_quorum_is_of_the_most_stake_there_was_while_votes_came_in(here: Assembly) -> None:
    proposal = here.propose()
    here.vote(NODE, proposal)  # 30 of 100: enough so far
    here.do(t.Stake, BUYER, amount_wei=400 * DAI)
    here.vote(OTHER, proposal)
    assert here.find(proposal).electorate_wei == 500 * DAI
    here.wait(RULES.voting_ms)
    here.do(t.Stake, BUYER, amount_wei=100 * DAI)  # too late to count for anything
    here.wait(RULES.timelock_ms)
    assert here.find(proposal).outcome is Outcome.NO_QUORUM


def test_rules_of_a_vote_are_those_it_began_with(here: Assembly) -> None:
    changes = (
        ParamChange(group="governance", field="quorum_ppm", value_wei=500_000),
        ParamChange(group="governance", field="voting_ms", value_wei=MINUTE),
    )
    first, second = here.propose(changes=changes), here.propose()
    for proposal in (first, second):
        here.vote(BUYER, proposal)
    here.wait(RULES.voting_ms + RULES.timelock_ms)
    assert here.find(second).outcome is Outcome.EXECUTED
    third = here.propose()
    assert here.find(third).quorum_ppm == 500_000
    assert here.find(third).ends_ms == here.now + MINUTE


def test_of_two_that_do_not_fit_together_the_first_is_executed(here: Assembly) -> None:
    """Each is possible today; with the first in force the second breaks a bound."""
    fees = [
        ParamChange(group="fees", field=name, value_wei=300_000)
        for name in ("committee_ppm", "royalty_ppm")
    ]
    first, second = here.propose(changes=(fees[0],)), here.propose(changes=(fees[1],))
    for proposal in (first, second):
        here.vote(BUYER, proposal)
    here.wait(RULES.voting_ms + RULES.timelock_ms)
    outcomes = {here.find(proposal).outcome for proposal in (first, second)}
    assert outcomes == {Outcome.EXECUTED, Outcome.IMPOSSIBLE}
    assert here.balance(BUYER) == (1_000 - 60) * DAI, "both deposits came back"


def test_at_most_four_are_executed_in_one_block(here: Assembly) -> None:
    proposals = [here.propose() for _ in range(6)]
    here.wait(RULES.voting_ms + RULES.timelock_ms)
    closed = [p for p in proposals if here.find(p).outcome is not Outcome.OPEN]
    assert len(closed) == 4
    here.wait(0)
    assert all(here.find(p).outcome is Outcome.NO_QUORUM for p in proposals)


def test_a_wei_at_stake_governs_nothing() -> None:
    here = Bench(make_genesis(params=Params(fees=FREE, governance=RULES)))
    here.do(t.Stake, NODE, amount_wei=1)
    proposal = here.do(t.Propose, NODE, title="mine", **LOWER).content
    here.do(t.CastVote, NODE, proposal=proposal, choice=Choice.FOR)
    here.now += RULES.voting_ms + RULES.timelock_ms
    here.machine.begin(here.state, BlockEnv(here.now, 1))
    assert here.state.find(ProposalRecord, proposal_key(proposal)).outcome is Outcome.NO_QUORUM
    assert here.state.params().fees.treasury_ppm == 50_000


def test_what_taking_part_costs_stays_within_reach(here: Assembly) -> None:
    raised = ParamChange(group="staking", field="min_stake_wei", value_wei=SUPPLY // 100)
    decided(here, changes=(raised,))
    # All there is can become less: what is too much by then is not executed.
    again = ParamChange(group="bids", field="deposit_wei", value_wei=SUPPLY // 100)
    proposal = here.propose(changes=(again,))
    here.vote(BUYER, proposal)
    account = here.state.account(OTHER.address)
    left = account.model_copy(update={"balance_wei": account.balance_wei - DAI})
    here.state.apply({account.key(): left})
    held = here.state.supply()
    burned = {"burned_wei": DAI, "balances_wei": held.balances_wei - DAI}
    here.state.apply({b"s": held.model_copy(update=burned)})
    here.wait(RULES.voting_ms + RULES.timelock_ms)
    assert here.find(proposal).outcome is Outcome.IMPOSSIBLE
    # A demand that is over the bound already can stay, and fall.
    deposit = here.state.params().governance.deposit_wei
    for value in (deposit, deposit - 1):
        same = ParamChange(group="governance", field="deposit_wei", value_wei=value)
        params = changed_params(here.state.params(), (same,), 1)
        assert params.governance.deposit_wei == value


# Proposals


def test_what_cannot_be_proposed(here: Assembly) -> None:
    def change(group: str, field: str, value: int) -> dict[str, object]:
        return {"changes": (ParamChange(group=group, field=field, value_wei=value),)}

    cases: list[tuple[dict[str, object], str]] = [
        ({"changes": (), "models": ()}, "changes nothing"),
        (change("fees", "nothing", 1), "no parameter fees.nothing"),
        (change("nothing", "treasury_ppm", 1), "no parameter nothing"),
        (change("fees", "treasury_ppm", 1_000_001), "treasury_ppm"),
        (change("fees", "treasury_ppm", 500_000), "more than half"),
        (change("slashing", "rejected_ppm", 500_001), "rejected_ppm"),
        (change("governance", "quorum_ppm", 9_999), "quorum_ppm"),
        (change("governance", "quorum_ppm", 500_001), "quorum_ppm"),
        (change("governance", "turnout_ppm", 9_999), "turnout_ppm"),
        (change("governance", "turnout_ppm", 200_001), "turnout_ppm"),
        *((change(*name, SUPPLY // 100 + 1), "a hundredth") for name in DEMANDS),
        (change("governance", "timelock_ms", 0), "timelock_ms"),
        (change("governance", "majority_ppm", 499_999), "majority_ppm"),
        (change("staking", "unbonding_ms", 60_000), "stake could leave"),
        (change("fees", "fee_per_byte_wei", 2**255), "fee_per_byte_wei"),
        ({"changes": (LOWER_FEE, LOWER_FEE)}, "parameter twice"),
        ({"models": (DENY, ALLOW)}, "model twice"),
    ]
    for fields, why in cases:
        message = here.refused("bad-field", t.Propose, BUYER, title="p", **(LOWER | fields))
        assert why in message


def test_a_proposal_needs_its_deposit(here: Assembly) -> None:
    with pytest.raises(InsufficientFunds):
        here.do(t.Propose, STRANGER, title="p", **LOWER)


def test_who_has_no_stake_may_propose_but_not_vote(here: Assembly) -> None:
    here.do(t.Transfer, BUYER, to=STRANGER.address, amount_wei=10 * DAI)
    proposal = here.propose(STRANGER)
    here.refused("bad-role", t.CastVote, STRANGER, proposal=proposal, choice=Choice.FOR)


def test_the_agenda_is_bounded() -> None:
    here = Assembly(deposit_wei=1)
    proposals = [here.propose() for _ in range(MAX_OPEN)]
    assert len(set(proposals)) == MAX_OPEN
    here.refused("bad-state", t.Propose, NODE, title="p", **LOWER)
    here.do(t.CancelProposal, BUYER, proposal=proposals[7])
    here.propose(NODE)


def test_cancelling_costs_the_time_it_took(here: Assembly) -> None:
    proposal = here.propose()
    here.refused("bad-role", t.CancelProposal, NODE, proposal=proposal)
    here.refused("unknown", t.CancelProposal, BUYER, proposal=keccak256(b"x"))
    here.vote(NODE, proposal)
    here.wait(RULES.voting_ms // 4)
    receipt = here.do(t.CancelProposal, BUYER, proposal=proposal)
    back, kept = (payment.amount_wei for payment in receipt.payments)
    assert (back, kept) == (RULES.deposit_wei * 3 // 4, RULES.deposit_wei // 4)
    here.refused("bad-state", t.CastVote, BUYER, proposal=proposal, choice=Choice.FOR)
    here.refused("bad-state", t.CancelProposal, BUYER, proposal=proposal)
    here.wait(RULES.voting_ms + RULES.timelock_ms)
    assert here.find(proposal).outcome is Outcome.CANCELLED
    assert here.state.params().fees.treasury_ppm == 50_000


def test_a_decided_vote_cannot_be_cancelled(here: Assembly) -> None:
    proposal = here.propose()
    here.wait(RULES.voting_ms)
    here.refused("bad-state", t.CancelProposal, BUYER, proposal=proposal)


# Stake counts once


def test_a_stake_votes_once_and_for_good(here: Assembly) -> None:
    proposal = here.propose()
    here.vote(NODE, proposal, "against")
    for choice in Choice:
        here.refused("duplicate", t.CastVote, NODE, proposal=proposal, choice=choice)
    here.do(t.Stake, NODE, amount_wei=50 * DAI)
    here.refused("duplicate", t.CastVote, NODE, proposal=proposal, choice=Choice.FOR)
    here.refused("unknown", t.CastVote, NODE, proposal=keccak256(b"x"), choice=Choice.FOR)


def test_votes_end_when_they_end(here: Assembly) -> None:
    proposal = here.propose()
    here.wait(RULES.voting_ms - 1)
    here.vote(NODE, proposal)
    here.wait(1)
    here.refused("bad-state", t.CastVote, OTHER, proposal=proposal, choice=Choice.FOR)


def test_stake_that_voted_cannot_leave_before_the_vote_ends(here: Assembly) -> None:
    here.do(t.Unstake, NODE, amount_wei=10 * DAI)
    proposal = here.propose()
    here.vote(NODE, proposal)
    assert here.find(proposal).for_wei == 20 * DAI, "what unbonds does not vote"
    here.refused("bad-state", t.Unstake, NODE, amount_wei=1)
    here.do(t.Stake, NODE, amount_wei=5 * DAI)
    here.refused("bad-state", t.Unstake, NODE, amount_wei=5 * DAI + 1)
    here.do(t.Unstake, NODE, amount_wei=5 * DAI)
    here.wait(RULES.voting_ms - 1)
    here.refused("bad-state", t.Unstake, NODE, amount_wei=1)
    here.wait(1)
    here.do(t.Unstake, NODE, amount_wei=20 * DAI)


def test_stake_moved_to_another_account_cannot_vote_again() -> None:
    """Even with the shortest unbonding: the vote holds it."""
    here = Assembly()
    params = here.state.params()
    short = StakingParams(unbonding_ms=params.vouching_ms)
    assert params.vouching_ms > 0 and short.unbonding_ms < 2**40
    proposal = here.propose()
    here.vote(NODE, proposal)
    here.refused("bad-state", t.Unstake, NODE, amount_wei=30 * DAI)
    here.refused("insufficient-funds", t.Transfer, NODE, to=STRANGER.address, amount_wei=171 * DAI)
    here.refused("bad-role", t.CastVote, STRANGER, proposal=proposal, choice=Choice.FOR)


def test_an_account_votes_on_so_many_open_proposals() -> None:
    here = Assembly(deposit_wei=1)
    proposals = [here.propose() for _ in range(MAX_VOTES + 1)]
    for proposal in proposals[:-1]:
        here.vote(NODE, proposal)
    last = proposals[-1]
    here.refused("bad-state", t.CastVote, NODE, proposal=last, choice=Choice.FOR)
    here.wait(RULES.voting_ms)
    fresh = here.propose()
    here.vote(NODE, fresh)  # votes that have ended make room


# Models and the committee's policy


def decided(here: Assembly, **fields: object) -> None:
    proposal = here.propose(**({"changes": (), "models": ()} | fields))
    here.vote(BUYER, proposal)
    here.wait(RULES.voting_ms + RULES.timelock_ms)
    assert here.find(proposal).outcome is Outcome.EXECUTED


def open_one(here: Assembly, number: int) -> None:
    spec = make_spec(number, deadline_ms=here.now + MINUTE)
    here.do(t.Open, BUYER, spec=spec)


def test_a_denied_model_cannot_be_used_until_it_is_forgotten(here: Assembly) -> None:
    open_one(here, 0)
    decided(here, models=(DENY,))
    spec = make_spec(1, deadline_ms=here.now + MINUTE)
    here.refused("model-barred", t.Open, BUYER, spec=spec)
    decided(here, models=(FORGET,))
    open_one(here, 2)


def test_with_the_whitelist_on_only_allowed_models_can_be_used(here: Assembly) -> None:
    only = ParamChange(group="governance", field="whitelist_only", value_wei=1)
    decided(here, changes=(only,))
    spec = make_spec(1, deadline_ms=here.now + MINUTE)
    here.refused("model-barred", t.Open, BUYER, spec=spec)
    decided(here, models=(ALLOW,))
    open_one(here, 2)


def test_the_committees_policy_binds_tasks() -> None:
    policy = CommitteeParams(min_confidence_ppm=900_000, max_attempts=2)
    here = Assembly()
    changes = tuple(
        ParamChange(group="committee", field=name, value_wei=value)
        for name, value in policy.plain().items()
    )
    decided(here, changes=changes)
    assert here.state.params().committee == policy
    for review in (Review(min_confidence_ppm=899_999, attempts=1), Review(attempts=3)):
        spec = make_spec(1, deadline_ms=here.now + MINUTE, review=review)
        here.refused("bad-field", t.Open, BUYER, spec=spec)
    spec = make_spec(1, deadline_ms=here.now + MINUTE, review=Review(attempts=2))
    here.do(t.Open, BUYER, spec=spec)


def test_every_parameter_can_be_named_and_none_leaves_its_bounds() -> None:
    params = Params()
    for group, fields in params.plain().items():
        for name, value in fields.items():
            number = int.from_bytes(value, "big") if isinstance(value, bytes) else value
            same = ParamChange(group=group, field=name, value_wei=number)
            assert changed_params(params, (same,), 1) == params
            huge = ParamChange(group=group, field=name, value_wei=2**255)
            with pytest.raises(EncodingError):
                changed_params(params, (huge,), 2**256)


# In blocks


async def test_the_agenda_runs_in_every_validators_replay(tmp_path: Path) -> None:
    params = Params(fees=FREE, governance=RULES)
    genesis, now = make_genesis(params=params), [T0 + 1]
    path = tmp_path / "ledger.db"
    service = LedgerService(path, genesis, SeatsHere(genesis), clock=lambda: now[0])
    await service.start()
    ledger = LedgerClient(service, genesis.ledger_id)
    try:
        await ledger.stake(60 * DAI, BUYER)
        assembly = Governance(ledger)
        with pytest.raises(LedgerError, match=r"group\.field"):
            await assembly.propose("p", BUYER, {"treasury_ppm": 1})
        dropped = await assembly.propose("q", BUYER, models={MODEL: ModelListing.DENY})
        id = await assembly.propose("p", BUYER, {"fees.treasury_ppm": 40_000})
        voted = await assembly.vote(id, Choice.FOR, BUYER)
        assert voted.leaf.content == id
        assert {each.id for each in await assembly.agenda()} == {dropped, id}
        await assembly.cancel(dropped, BUYER)
        assert [each.for_wei for each in await assembly.agenda()] == [60 * DAI]
        now[0] += RULES.voting_ms + RULES.timelock_ms
        assert (await service.params()).fees.treasury_ppm == 50_000
        await ledger.transfer(STRANGER.address, 1, NODE)
        assert (await service.params()).fees.treasury_ppm == 40_000
        late = Replica(genesis)
        late.catch_up(await service.history(1))
        assert late.height == 6
        found = await assembly.proposal(id)
        assert found is not None and found.outcome is Outcome.EXECUTED
    finally:
        await service.close()
    assert audit(path).supply.conserved


# Against a slow, obvious model


ACCOUNTS = (BUYER, NODE, OTHER)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["propose", "vote", "stake", "unstake", "cancel", "wait"]),
        st.integers(0, 2),
        st.integers(0, 3),
        st.sampled_from(list(Choice)),
        st.integers(1, 40),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_tallies_are_those_of_a_slow_model(
    steps: Sequence[tuple[str, int, int, Choice, int]],
) -> None:
    here = Assembly()
    opened: list[bytes] = []
    votes: dict[tuple[bytes, str], tuple[Choice, int]] = {}
    for action, who, which, choice, amount in steps:
        account = ACCOUNTS[who]
        target = opened[which % len(opened)] if opened else keccak256(b"none")
        try:
            if action == "propose":
                opened.append(here.propose(account))
            elif action == "vote":
                stake = here.state.account(account.address).stake_wei
                here.vote(account, target, choice.value)
                assert (target, account.address) not in votes, "a stake voted twice"
                votes[target, account.address] = (choice, stake)
            elif action == "stake":
                here.do(t.Stake, account, amount_wei=amount * DAI)
            elif action == "unstake":
                here.do(t.Unstake, account, amount_wei=amount * DAI)
            elif action == "cancel":
                here.do(t.CancelProposal, account, proposal=target)
            else:
                here.wait(amount * MINUTE // 4)
        except TransactionRefused:
            pass
        for proposal in opened:
            found = here.find(proposal)
            mine = {who: vote for (id, who), vote in votes.items() if id == proposal}
            for name, tally in (
                (Choice.FOR, found.for_wei),
                (Choice.AGAINST, found.against_wei),
                (Choice.ABSTAIN, found.abstain_wei),
            ):
                assert tally == sum(wei for choice, wei in mine.values() if choice is name)
            if here.now < found.ends_ms:
                for address, (_, wei) in mine.items():
                    assert here.state.account(address).stake_wei >= wei, "voted stake left"
            if found.outcome is Outcome.EXECUTED:
                assert here.now >= found.due_ms and found.for_wei > found.against_wei
            assert (found.deposit_wei > 0) == (found.outcome is Outcome.OPEN)
        agenda = here.state.find(AgendaRecord, AgendaRecord.prefix)
        waiting = {entry.proposal for entry in agenda.entries} if agenda else set[bytes]()
        assert waiting == {p for p in opened if here.find(p).outcome is Outcome.OPEN}
