"""The table of attacks: each is refused with its code, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import ledger_kinds as t
import pytest
from ledger_bench import META, Bench, snapshot
from ledger_kit import (
    BUYER,
    DAI,
    NODE,
    OTHER,
    PROOF_CID,
    STRANGER,
    T0,
    attest,
    info_of,
    make_genesis,
    make_header,
    make_spec,
)

from daifi_flows.cnft import Decision, NodeInfo
from daifi_flows.encoding import cid_of
from daifi_flows.errors import InsufficientFunds, TransactionRefused
from daifi_flows.keys import Account
from daifi_flows.ledger import TaskState

_SECP256K1_N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

Attack = Callable[[Bench], t.Transaction]


def _settle(bench: Bench, **changes: object) -> t.Transaction:
    spec = bench.reach(TaskState.COMMITTED)
    finding = attest(spec, **changes)  # pyright: ignore
    return bench.make(t.Settle, BUYER, attestation=finding, metadata=META)


def _assign(bench: Bench, sender: Account = BUYER, **changes: object) -> t.Transaction:
    spec = bench.reach(TaskState.OPEN)
    fields = {"task_id": spec.task_id, "attempt": 0, "node": NODE.address, "price_wei": DAI}
    return bench.make(t.Assign, sender, **(fields | changes))


def _commit(bench: Bench, sender: Account = BUYER, **changes: object) -> t.Transaction:
    spec = bench.reach(TaskState.ASSIGNED)
    header = changes.pop("header", None) or make_header(spec, **changes)  # pyright: ignore
    return bench.make(
        t.Commit, sender, task_id=spec.task_id, attempt=0, proof_cid=PROOF_CID, header=header
    )


def _open(bench: Bench, sender: Account = BUYER, **changes: object) -> t.Transaction:
    return bench.make(t.Open, sender, spec=make_spec(**changes))  # pyright: ignore


def _transfer(bench: Bench, **fields: object) -> t.Transaction:
    return bench.make(t.Transfer, BUYER, **({"to": NODE.address, "amount_wei": 1} | fields))


def _malleated(bench: Bench) -> t.Transaction:
    tx = _transfer(bench)
    r, s, v = tx.signature[:32], int.from_bytes(tx.signature[32:64], "big"), tx.signature[64]
    twin = r + (_SECP256K1_N - s).to_bytes(32, "big") + bytes([55 - v])
    return tx.model_copy(update={"signature": twin})


def _on_another_ledger(bench: Bench) -> t.Transaction:
    tx = _transfer(bench)
    return tx.signed(BUYER, make_genesis(salt=b"\x01" * 32).ledger_id)


def _forged_sender(bench: Bench) -> t.Transaction:
    return _transfer(bench).signed(STRANGER, bench.machine.ledger_id)


def _changed_after_signing(bench: Bench) -> t.Transaction:
    return _transfer(bench).model_copy(update={"amount_wei": 2})


def _settle_twice(bench: Bench) -> t.Transaction:
    spec = bench.reach(TaskState.SETTLED)
    return bench.make(t.Settle, BUYER, attestation=attest(spec), metadata=META)


def _reject_after_settling(bench: Bench) -> t.Transaction:
    spec = bench.reach(TaskState.SETTLED)
    return bench.make(t.Reject, BUYER, attestation=attest(spec, Decision.REJECTED))


def _repeated_signer(bench: Bench) -> t.Transaction:
    """13 seats, one of them counted twice in the aggregate, and a bitmap of 14."""
    spec = bench.reach(TaskState.COMMITTED)
    finding = attest(spec, signers=[*range(13), 0])
    finding = finding.model_copy(update={"signers": (1 << 14) - 1})
    return bench.make(t.Settle, BUYER, attestation=finding, metadata=META)


def _altered(**changes: object) -> Attack:
    def attack(bench: Bench) -> t.Transaction:
        spec = bench.reach(TaskState.COMMITTED)
        finding = attest(spec).model_copy(update=changes)
        return bench.make(t.Settle, BUYER, attestation=finding, metadata=META)

    return attack


def _settle_as(sender: Account, state: TaskState = TaskState.COMMITTED) -> Attack:
    def attack(bench: Bench) -> t.Transaction:
        spec = bench.reach(state)
        return bench.make(t.Settle, sender, attestation=attest(spec), metadata=META)

    return attack


def _on_task(
    kind: type[t.Transaction], sender: Account, state: TaskState, **more: object
) -> Attack:
    def attack(bench: Bench) -> t.Transaction:
        spec = bench.reach(state)
        return bench.make(kind, sender, task_id=spec.task_id, **more)

    return attack


def _reject_with_acceptance(bench: Bench) -> t.Transaction:
    spec = bench.reach(TaskState.COMMITTED)
    return bench.make(t.Reject, STRANGER, attestation=attest(spec))


def _stakeless_node(bench: Bench) -> t.Transaction:
    bench.do(t.Register, OTHER, info=info_of(OTHER))
    return _assign(bench, node=OTHER.address)


def _big_info() -> NodeInfo:
    return info_of(NODE).model_copy(update={"engines": ("e" * 65,)})


ATTACKS: list[tuple[str, str, Attack]] = [
    ("a signature for another ledger", "bad-signature", _on_another_ledger),
    ("a malleated signature", "bad-signature", _malleated),
    ("somebody else's signature", "bad-signature", _forged_sender),
    ("a field changed after signing", "bad-signature", _changed_after_signing),
    ("a nonce too high", "bad-nonce", lambda b: _transfer(b, nonce=1)),
    ("more than one has", "insufficient-funds", lambda b: _transfer(b, amount_wei=2_000 * DAI)),
    ("nothing at all", "bad-field", lambda b: _transfer(b, amount_wei=0)),
    ("registering another", "bad-role", lambda b: b.make(t.Register, OTHER, info=info_of(NODE))),
    ("over-size engine names", "bad-field", lambda b: b.make(t.Register, NODE, info=_big_info())),
    ("opening for another", "bad-role", lambda b: _open(b, STRANGER)),
    ("opening without funds", "insufficient-funds", lambda b: _open(b, max_price_wei=2_000 * DAI)),
    ("a deadline in the past", "expired", lambda b: _open(b, deadline_ms=T0)),
    ("a parent nobody minted", "unknown", lambda b: _open(b, parents=(META,))),
    ("a parent twice", "bad-field", lambda b: _open(b, parents=(META, META))),
    (
        "too many parents",
        "bad-field",
        lambda b: _open(b, parents=tuple(i.to_bytes(32, "big") for i in range(65))),
    ),
    ("opening twice", "duplicate", lambda b: (b.reach(TaskState.OPEN), _open(b))[1]),
    ("assigning another's task", "bad-role", lambda b: _assign(b, STRANGER)),
    ("a price above the maximum", "bad-field", lambda b: _assign(b, price_wei=5 * DAI + 1)),
    ("a price below the ask", "bad-field", lambda b: _assign(b, price_wei=DAI - 1)),
    ("a node nobody registered", "unknown", lambda b: _assign(b, node=STRANGER.address)),
    ("a node without stake", "bad-role", _stakeless_node),
    ("assigning the wrong attempt", "bad-state", lambda b: _assign(b, attempt=1)),
    ("a task nobody opened", "unknown", lambda b: _assign(b, task_id=META)),
    ("a stranger's commit", "bad-role", lambda b: _commit(b, STRANGER)),
    ("another task's proof", "bad-field", lambda b: _commit(b, task_id=META)),
    ("another model's proof", "bad-field", lambda b: _commit(b, model_digest=META)),
    ("another input's proof", "bad-field", lambda b: _commit(b, input_cid=cid_of(b"x"))),
    (
        "another node's proof",
        "bad-role",
        lambda b: _commit(b, header=make_header(make_spec(), OTHER)),
    ),
    (
        "a proof signed by another",
        "bad-signature",
        lambda b: _commit(
            b,
            header=make_header(make_spec()).model_copy(
                update={"signature": make_header(make_spec(), OTHER).signature}
            ),
        ),
    ),
    ("settling what is settled", "duplicate", _settle_twice),
    ("settling what is assigned", "bad-state", _settle_as(BUYER, TaskState.ASSIGNED)),
    ("settling what is open", "bad-state", _settle_as(BUYER, TaskState.OPEN)),
    ("a stranger's metadata", "bad-role", _settle_as(STRANGER)),
    ("13 signers", "bad-signature", lambda b: _settle(b, signers=range(13))),
    ("a signer counted twice", "bad-signature", _repeated_signer),
    ("a bit beyond the committee", "bad-field", _altered(signers=(1 << 22) - 1)),
    ("a bitmap of other seats", "bad-signature", _altered(signers=((1 << 14) - 1) << 1)),
    ("an attestation for another ledger", "bad-field", lambda b: _settle(b, ledger_id=META)),
    ("another epoch", "bad-field", lambda b: _settle(b, epoch=2)),
    ("another attempt", "bad-field", lambda b: _settle(b, attempt=1)),
    ("another node", "bad-field", lambda b: _settle(b, node=OTHER.address)),
    ("another output", "bad-field", lambda b: _settle(b, output_cid=cid_of(b"x"))),
    ("another proof", "bad-field", lambda b: _settle(b, proof_cid=cid_of(b"x"))),
    ("a rejection", "bad-field", lambda b: _settle(b, decision=Decision.REJECTED)),
    ("too little confidence", "bad-field", lambda b: _settle(b, confidence_ppm=989_999)),
    ("confidence raised afterwards", "bad-signature", _altered(confidence_ppm=1_000_000)),
    ("slashing with an acceptance", "bad-field", _reject_with_acceptance),
    ("slashing what is settled", "bad-state", _reject_after_settling),
    (
        "a stranger's release",
        "bad-role",
        _on_task(t.Release, STRANGER, TaskState.ASSIGNED, attempt=0),
    ),
    (
        "releasing what has an answer",
        "bad-state",
        _on_task(t.Release, BUYER, TaskState.COMMITTED, attempt=0),
    ),
    ("a stranger's cancel", "bad-role", _on_task(t.Cancel, STRANGER, TaskState.OPEN)),
    ("cancelling an answered task", "bad-state", _on_task(t.Cancel, BUYER, TaskState.COMMITTED)),
    ("cancelling a settled task", "bad-state", _on_task(t.Cancel, BUYER, TaskState.SETTLED)),
    ("expiring a settled task", "bad-state", _on_task(t.Expire, BUYER, TaskState.SETTLED)),
    (
        "an effect on no token",
        "unknown",
        lambda b: b.make(t.Effect, BUYER, token_id=META, effect=META),
    ),
]


@pytest.mark.parametrize(
    ("code", "attack"), [pytest.param(c, a, id=name) for name, c, a in ATTACKS]
)
def test_attacks_are_refused_and_change_nothing(code: str, attack: Attack) -> None:
    bench = Bench()
    tx = attack(bench)
    before = snapshot(bench.state)
    with pytest.raises(TransactionRefused) as refused:
        bench.run(tx)
    assert refused.value.details["code"] == code
    assert isinstance(refused.value, InsufficientFunds) == (code == "insufficient-funds")
    assert snapshot(bench.state) == before
