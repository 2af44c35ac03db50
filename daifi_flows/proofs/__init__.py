"""Proof schemes: what a node attaches to an output, and what anyone can check about it.

>>> from daifi_flows.proofs import scheme_names
>>> set(scheme_names()) >= {"digest", "token-difr", "zk"}
True
"""

from __future__ import annotations

from daifi_flows.proofs._envelope import MAX_PAYLOAD_BYTES, make_proof, verify_proof
from daifi_flows.proofs._registry import DEFAULT_SCHEME, get_scheme, scheme_names
from daifi_flows.proofs._scheme import Claim, Outcome, Prefill, Reference, Scheme, Verdict

__all__ = [
    "DEFAULT_SCHEME",
    "MAX_PAYLOAD_BYTES",
    "Claim",
    "Outcome",
    "Prefill",
    "Reference",
    "Scheme",
    "Verdict",
    "get_scheme",
    "make_proof",
    "scheme_names",
    "verify_proof",
]
