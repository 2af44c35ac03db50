"""Leaves of 160 bytes, batches of them, and proofs that fit into a kilobyte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daifi_flows.encoding import canonical, keccak256
from daifi_flows.errors import EncodingError
from daifi_flows.keys import Account
from daifi_flows.merkle import merkle_root
from daifi_flows.rollup import (
    LEAF_BYTES,
    MAX_BATCH_LEAVES,
    Batch,
    BatchStatement,
    Leaf,
    LeafProof,
)

NODE = Account.from_seed(b"node").address
OWNER = Account.from_seed(b"owner").address
LEDGER = keccak256(b"ledger")


def leaf(number: int, **changes: object) -> Leaf:
    made = Leaf(
        task_id=keccak256(b"task" + number.to_bytes(8, "big")),
        node=NODE,
        owner=OWNER,
        model=keccak256(b"model"),
        output=keccak256(b"output"),
        amount_wei=10**15 + number,
        flops=7,
    )
    return made._replace(**changes)


def batch(count: int) -> Batch:
    return Batch.of(leaf(number) for number in range(count))


BYTES32 = st.binary(min_size=32, max_size=32)
ADDRESSES = st.binary(min_size=8, max_size=8).map(lambda seed: Account.from_seed(seed).address)
LEAVES = st.builds(
    Leaf,
    task_id=BYTES32,
    node=ADDRESSES,
    owner=ADDRESSES,
    model=BYTES32,
    output=BYTES32,
    amount_wei=st.integers(0, 2**128 - 1),
    flops=st.integers(0, 2**64 - 1),
)


@given(LEAVES)
def test_a_leaf_has_one_form_of_160_bytes(made: Leaf) -> None:
    raw = made.encode()
    assert len(raw) == LEAF_BYTES
    assert Leaf.decode(raw) == made


def test_a_leafs_bytes_are_where_the_documentation_says() -> None:
    raw = leaf(1, amount_wei=5, flops=9).encode()
    assert raw[:32] == leaf(1).task_id
    assert raw[32:52].hex() == NODE[2:].lower()
    assert raw[52:72].hex() == OWNER[2:].lower()
    assert raw[72:104] == keccak256(b"model")
    assert raw[104:136] == keccak256(b"output")
    assert raw[136:152] == (5).to_bytes(16, "big")
    assert raw[152:] == (9).to_bytes(8, "big")


@pytest.mark.parametrize(
    "changes",
    [
        {"task_id": bytes(31)},
        {"model": bytes(33)},
        {"output": b""},
        {"node": "0x1234"},
        {"owner": "not an address"},
        {"amount_wei": 2**128},
        {"amount_wei": -1},
        {"flops": 2**64},
        {"flops": -1},
    ],
    ids=str,
)
def test_a_leaf_whose_field_has_another_size_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(EncodingError):
        leaf(0, **changes).encode()


@pytest.mark.parametrize("size", [0, 159, 161])
def test_other_bytes_are_no_leaf(size: int) -> None:
    with pytest.raises(EncodingError):
        Leaf.decode(bytes(size))


@given(st.lists(LEAVES, min_size=1, max_size=20, unique_by=lambda made: made.task_id))
def test_a_batch_knows_its_count_total_and_root(leaves: list[Leaf]) -> None:
    made = Batch.of(leaves)
    assert made.count == len(leaves)
    assert made.total_wei == sum(each.amount_wei for each in leaves)
    assert made.root == merkle_root([each.encode() for each in leaves])
    for index, each in enumerate(leaves):
        proof = made.proof(index)
        assert Leaf.decode(proof.leaf) == each
        assert proof.verify(made.root, made.count)
        assert LeafProof.from_canonical(proof.canonical()) == proof
        assert LeafProof.from_plain(proof.jsonable()) == proof


def test_the_total_is_exact_where_words_overflow() -> None:
    made = Batch.of(leaf(number, amount_wei=2**128 - 1) for number in range(1_000))
    assert made.total_wei == 1_000 * (2**128 - 1)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        leaf(0).encode()[:-1],
        leaf(0).encode() + b"\x00",
        leaf(0).encode() + leaf(0, amount_wei=2).encode(),
        leaf(0).encode() + leaf(1).encode() + leaf(0).encode(),
    ],
    ids=["empty", "cut", "too long", "one task twice", "the first again at the end"],
)
def test_other_bytes_are_no_batch(raw: bytes) -> None:
    with pytest.raises(EncodingError):
        Batch(raw)


def test_a_batch_has_a_largest_size() -> None:
    raw = b"".join(i.to_bytes(32, "big") + bytes(128) for i in range(MAX_BATCH_LEAVES + 1))
    with pytest.raises(EncodingError):
        Batch(raw)
    largest = Batch(raw[:-LEAF_BYTES])
    proof = largest.proof(MAX_BATCH_LEAVES - 1)
    assert proof.verify(largest.root, MAX_BATCH_LEAVES)
    assert len(proof.path) == 16
    assert len(proof.canonical()) < 1_000


@pytest.mark.parametrize("index", [-1, 3, 2**63])
def test_there_is_no_proof_of_a_leaf_that_is_not_there(index: int) -> None:
    with pytest.raises(EncodingError):
        batch(3).proof(index)


def test_what_the_committee_signs_says_everything() -> None:
    statement = BatchStatement(
        ledger_id=LEDGER,
        epoch=3,
        operator=OWNER,
        root=keccak256(b"root"),
        count=10,
        total_wei=2**130,
        submit_by_ms=99,
    )
    assert statement.message() == b"daifi/rollup/1" + canonical(
        {
            "ledger_id": LEDGER,
            "epoch": 3,
            "operator": OWNER,
            "root": keccak256(b"root"),
            "count": 10,
            "total_wei": (2**130).to_bytes(32, "big"),
            "submit_by_ms": 99,
        }
    )
