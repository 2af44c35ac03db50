"""Proof schemes: what a node attaches to an output, and what anyone can check about it.

>>> from daifi_flows.proofs import scheme_names
>>> set(scheme_names()) >= {"digest", "token-difr", "zk"}
True
"""

from __future__ import annotations

from daifi_flows.proofs._envelope import MAX_PAYLOAD_BYTES, make_proof, spans_of, verify_proof
from daifi_flows.proofs._one_pass import verify_spans
from daifi_flows.proofs._registry import DEFAULT_SCHEME, get_scheme, scheme_names
from daifi_flows.proofs._scheme import (
    Claim,
    Outcome,
    Prefill,
    Reference,
    Scheme,
    Scores,
    Verdict,
)
from daifi_flows.proofs._spans import MAX_SPANS, WHOLE, Span

__all__ = [
    "DEFAULT_SCHEME",
    "MAX_PAYLOAD_BYTES",
    "MAX_SPANS",
    "WHOLE",
    "Claim",
    "Outcome",
    "Prefill",
    "Reference",
    "Scheme",
    "Scores",
    "Span",
    "Verdict",
    "get_scheme",
    "make_proof",
    "scheme_names",
    "spans_of",
    "verify_proof",
    "verify_spans",
]
