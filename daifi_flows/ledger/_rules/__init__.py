"""What each transaction checks and changes: one module a family, named as in ``_tx``."""

from __future__ import annotations

from typing import Final

from daifi_flows.ledger._rules import (
    bids,
    committee,
    disputes,
    evidence,
    governance,
    lease,
    market,
    money,
    nodes,
    rewards,
    rollup,
    sealed,
    tasks,
    tokens,
)
from daifi_flows.ledger._rules._context import BlockEnv, Context, Facts, Rule, refuse
from daifi_flows.ledger._tx import KINDS, Transaction

__all__ = ["RULES", "BlockEnv", "Context", "Facts", "Rule", "refuse"]

_FAMILIES: Final = (
    bids,
    committee,
    disputes,
    evidence,
    governance,
    lease,
    market,
    money,
    nodes,
    rewards,
    rollup,
    sealed,
    tasks,
    tokens,
)
RULES: Final[dict[type[Transaction], Rule]] = {
    kind: rule for family in _FAMILIES for kind, rule in family.RULES.items()
}
"""The rule of every kind of transaction."""
assert set(RULES) == set(KINDS.values()), "a kind of transaction has no rule, or a rule no kind"
