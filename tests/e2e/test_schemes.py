"""A proof that an engine cannot give is refused before any money moves."""

import asyncio

import pytest

from daifi_flows import Fabric
from daifi_flows._step import StepEvent, StepRequest
from daifi_flows.cnft import Content, ModelRef, Sampling
from daifi_flows.errors import ConfigError

FUNCTION = ModelRef(name="m:f", digest=bytes(32), engine="function", precision="exact")


@pytest.mark.parametrize(
    ("engine", "scheme", "instead"),
    [
        ("function", "token-difr", "choose digest"),
        ("function", "toploc", "choose digest"),
        ("transformers", "digest", "choose token-difr or toploc"),
        ("transformers", "zk", "choose token-difr or toploc"),
        ("retrieval", "magic", "no proof scheme 'magic'"),
        ("abacus", "digest", "engine 'abacus' is unknown"),
    ],
)
def test_nothing_is_paid_for_a_proof_that_cannot_be(
    fabric: Fabric, events: list[StepEvent], engine: str, scheme: str, instead: str
) -> None:
    request = StepRequest(
        name="odd",
        kind="function",
        model=FUNCTION.model_copy(update={"engine": engine}),
        input=Content.json_value({"args": {}}),
        salt_key=bytes(31) + b"\x2a",
        scheme=scheme,
        sampling=Sampling(max_tokens=8),
    )
    ledger, buyer = fabric.settlement, fabric.buyer.address
    before, heard = asyncio.run(ledger.account(buyer)), len(events)
    with pytest.raises(ConfigError, match=instead):
        asyncio.run(fabric.run(request))
    assert asyncio.run(ledger.account(buyer)) == before  # balance and nonce: no transaction
    assert len(events) == heard
