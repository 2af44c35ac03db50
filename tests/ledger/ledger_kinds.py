"""Every kind of transaction under one name, ``t.Transfer``, and an example of each kind."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, get_args, get_origin

from annotated_types import MinLen
from ledger_kit import (
    BUYER,
    NODE,
    attest,
    bound,
    info_of,
    make_header,
    make_spec,
    make_vote,
    opened,
    subject_of,
)

from daifi_flows.cnft import (
    Address,
    Attestation,
    Cid,
    NodeInfo,
    Noun,
    ProofHeader,
    Subject,
    TaskSpec,
    VoteCommit,
    VoteReveal,
)
from daifi_flows.encoding import cid_of, keccak256
from daifi_flows.ledger._tx import KINDS, Transaction, parse_transaction

__all__ = ["KINDS", "Transaction", "example", "parse_transaction"]

_SPEC = make_spec(3, parents=(keccak256(b"parent"),))
_NOUNS: dict[type[Noun], Noun] = {
    TaskSpec: _SPEC,
    ProofHeader: make_header(_SPEC),
    Attestation: attest(_SPEC),
    Subject: subject_of(_SPEC),
    VoteCommit: bound(make_vote(subject_of(_SPEC), 3)),
    VoteReveal: opened(make_vote(subject_of(_SPEC), 3)),
    NodeInfo: info_of(NODE).model_copy(update={"engines": ("a", "bé")}),
}


def __getattr__(name: str) -> Any:
    for kind in KINDS.values():
        if kind.__name__ == name:
            return kind
    raise AttributeError(name)


def example(kind: type[Transaction]) -> Transaction:
    """A well-formed transaction of this kind, its fields filled by their types; not signed."""
    own = {
        name: _value(name, field.annotation, field.metadata)
        for name, field in kind.model_fields.items()
        if name not in Transaction.model_fields
    }
    return kind.model_validate(
        {
            "sender": BUYER.address,
            "nonce": 7,
            "valid_until_ms": 2**62,
            "max_fee_wei": 2**200,
            "request": keccak256(b"request"),
        }
        | own
    )


def _value(name: str, annotation: Any, bounds: Any) -> Any:
    if get_origin(annotation) is Annotated:
        annotation, *bounds = get_args(annotation)
    if get_origin(annotation) is tuple:
        return (_value(name, get_args(annotation)[0], ()),) * 2
    if issubclass(annotation, Noun):
        return _NOUNS.get(annotation) or annotation.model_validate(
            {
                field: _value(field, info.annotation, info.metadata)
                for field, info in annotation.model_fields.items()
                if info.is_required()
            }
        )
    if issubclass(annotation, Enum):
        return next(iter(annotation))
    if issubclass(annotation, int):
        return 1
    if issubclass(annotation, str):
        if get_args(Address)[1] in bounds:
            return NODE.address
        return cid_of(b"example") if get_args(Cid)[1] in bounds else "é"
    assert issubclass(annotation, bytes)
    found = [each for bound in bounds for each in getattr(bound, "metadata", [bound])]
    sizes = [each.min_length for each in found if isinstance(each, MinLen)]
    return bytes(range(1, 1 + (sizes[0] if sizes else 5)))
