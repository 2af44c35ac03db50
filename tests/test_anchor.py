"""Whose signatures an auditor believes: the keys at hand, and what leads from them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daifi_flows import _anchor, verify
from daifi_flows._anchor import find_anchor
from daifi_flows._home import write_committee, write_handovers
from daifi_flows.cnft import (
    Attestation,
    Basis,
    BlockHeader,
    Committee,
    Decision,
    Materials,
    QuorumCertificate,
    Receipt,
    Seat,
    TxReceipt,
    attestation_message,
)
from daifi_flows.encoding import cid_of, keccak256
from daifi_flows.epochs import CommitteeChain, Committees, DrawTerms, Handover
from daifi_flows.errors import BundleError, ConfigError
from daifi_flows.keys import Account, BlsKey, aggregate_bls
from daifi_flows.merkle import merkle_root
from daifi_flows.threshold import deal

LEDGER, TASK = keccak256(b"ledger"), keccak256(b"task")
NODE = Account.from_seed(b"node").address
SEATS, QUORUM = 4, 3
DEALING = deal(b"the dealer of anchors".ljust(32), SEATS, QUORUM)


def keys(name: str) -> tuple[BlsKey, ...]:
    return tuple(BlsKey.from_seed(f"{name} {index}".encode()) for index in range(SEATS))


def committee(name: str, epoch: int) -> Committee:
    seats = tuple(
        Seat(
            index=index,
            public=key.public,
            possession=key.prove_possession(),
            account=NODE,
            share=DEALING.shares[index],
        )
        for index, key in enumerate(keys(name))
    )
    return Committee(epoch=epoch, seats=seats, group_key=DEALING.group_key)


OLD, NEW = committee("old", 0), committee("new", 1)


def signed(message: bytes, name: str = "new") -> QuorumCertificate:
    signature = aggregate_bls([key.sign(message) for key in keys(name)[:QUORUM]])
    return QuorumCertificate(signers=(1 << QUORUM) - 1, signature=signature)


def handover(by: str = "old") -> Handover:
    """From the old committee to the new one, signed by those of a name."""
    blank = QuorumCertificate(signers=0, signature=bytes(96))
    found = Handover(
        ledger_id=LEDGER,
        previous=OLD.digest,
        draw=DrawTerms(
            epoch=1,
            since_height=0,
            height=5,
            root=bytes(32),
            beacon=bytes(32),
            seats=SEATS,
            per_operator=1,
        ),
        committee=NEW,
        certificate=blank,
    )
    return found.model_copy(update={"certificate": signed(found.message(), by)})


CHAIN = CommitteeChain(handovers=(handover(),))


def of_epoch_1() -> Any:
    """Of a bundle's metadata, what the new committee signed."""
    output, proof = cid_of(b"output"), cid_of(b"proof")
    values: dict[str, Any] = {
        "ledger_id": LEDGER,
        "epoch": 1,
        "task_id": TASK,
        "attempt": 0,
        "node": NODE,
        "output_cid": output,
        "proof_cid": proof,
        "decision": Decision.ACCEPTED,
        "confidence_ppm": 999_000,
        "basis": Basis.REVIEWED,
    }
    votes = signed(attestation_message(**values))
    attestation = Attestation(**values, signers=votes.signers, signature=votes.signature)
    leaf = TxReceipt(tx=bytes(32), kind="settle", sender=NODE)
    fields: dict[str, Any] = {
        "ledger_id": LEDGER,
        "height": 9,
        "receipt_root": merkle_root([leaf.canonical()]),
        "timestamp_ms": 1,
        "proposer": NODE,
        "builder": NODE,
        "round": 0,
        "epoch": 1,
        "committee": NEW.digest,
        "history_size": 1,
    }
    zeros = {name: bytes(32) for name in BlockHeader.model_fields if name not in fields}
    header = BlockHeader.model_validate(zeros | fields)
    certificate = signed(QuorumCertificate.message(header.digest))
    spec = SimpleNamespace(task_id=TASK, review=SimpleNamespace(min_confidence_ppm=990_000))
    return SimpleNamespace(
        core=SimpleNamespace(spec=spec, node=NODE, output_cid=output, proof_cid=proof),
        attestation=attestation,
        receipt=Receipt(
            header=header, certificate=certificate, leaf=leaf, index=0, size=1, path=()
        ),
    )


def outcome(trusted: Committee | Committees | None, path: Path) -> verify.Check:
    bundle: Any = SimpleNamespace(metadata=of_epoch_1())
    auditor = verify._Auditor(bundle, trusted, None, Materials(), None, path)
    return verify._run("committee signature", auditor.committee_signature)


def test_an_older_committee_s_keys_do_with_the_handovers(tmp_path: Path) -> None:
    for trusted in (NEW, Committees(OLD, CHAIN.handovers), Committees(NEW, CHAIN.handovers)):
        assert outcome(trusted, tmp_path).status is verify.Status.PASSED
    verify.verify_receipt(of_epoch_1().receipt, Committees(OLD, CHAIN.handovers))


def test_without_them_it_says_what_is_missing(tmp_path: Path) -> None:
    check = outcome(OLD, tmp_path)
    assert check.status is verify.Status.NOT_MADE and "handovers" in check.detail
    later = outcome(NEW.model_copy(update={"epoch": 2}), tmp_path)
    assert later.status is verify.Status.NOT_MADE and "earlier committee" in later.detail
    # Another committee of that epoch is not believed.
    other = NEW.model_copy(update={"seats": OLD.seats})
    assert outcome(other, tmp_path).status is verify.Status.FAILED


def test_a_forged_handover_fails_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = SimpleNamespace(metadata=of_epoch_1())
    monkeypatch.setattr(verify.Bundle, "read", lambda _: bundle)
    report = verify.verify_bundle(tmp_path, committee=OLD, handovers=[handover("new")])
    (check,) = report.checks
    assert (check.name, check.status) == ("handovers", verify.Status.FAILED)
    assert not report.ok


def test_handovers_are_found_beside_the_keys_or_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, out, given = tmp_path / "home", tmp_path / "out", tmp_path / "given"
    path = out / "step"
    for folder in (home / "mine", out, given):
        folder.mkdir(parents=True)
    bundle = SimpleNamespace(metadata=of_epoch_1())
    monkeypatch.setattr(_anchor.Bundle, "read", lambda _: bundle)
    with pytest.raises(ConfigError, match="no trusted committee keys"):
        find_anchor(path, None, None, home)
    write_committee(home / "mine" / "committee.json", OLD)
    with pytest.raises(ConfigError, match="no trusted committee keys"):
        find_anchor(path, None, None, home)  # nothing leads from it to this bundle
    write_committee(out / "committee.json", NEW)
    stranger = find_anchor(path, None, None, home)
    assert (stranger.committee, stranger.check.status) == (NEW, verify.Status.NOT_MADE)
    # With handovers, which whoever made the bundle may have written, our own keys do.
    write_handovers(out / "handovers.json", CHAIN)
    own = find_anchor(path, None, None, home)
    assert (own.committee, own.chain, own.check.status) == (OLD, CHAIN, verify.Status.PASSED)
    write_handovers(out / "handovers.json", CommitteeChain(handovers=(handover("new"),)))
    assert find_anchor(path, None, None, home).committee == NEW  # forged: they lead nowhere
    write_handovers(home / "mine" / "handovers.json", CHAIN)
    assert find_anchor(path, None, None, home).committee == OLD
    write_committee(given / "keys.json", OLD)
    write_handovers(given / "chain.json", CHAIN)
    named = find_anchor(path, given / "keys.json", given / "chain.json", home)
    assert (named.committee, named.chain) == (OLD, CHAIN)
    (out / "handovers.json").write_text("[]")
    with pytest.raises(ConfigError, match="damaged"):
        find_anchor(path, given / "keys.json", None, home)


def test_a_bundle_that_cannot_be_read_has_no_keys_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise BundleError("damaged")

    monkeypatch.setattr(_anchor.Bundle, "read", refuse)
    (tmp_path / "home" / "mine").mkdir(parents=True)
    write_committee(tmp_path / "home" / "mine" / "committee.json", OLD)
    with pytest.raises(ConfigError):
        find_anchor(tmp_path / "step", None, None, tmp_path / "home")
