"""``factors``: a step that factors an integer proves its answer by itself, with no re-execution."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any, ClassVar

from daifi_flows.cnft import PPM, Content, Execution, Proof, Sampling, Statement
from daifi_flows.encoding import canonical, decode_canonical
from daifi_flows.errors import EncodingError, ProofError
from daifi_flows.proofs import WHOLE, Claim, Outcome, Reference, Span, Verdict

MAX_BITS = 64
"""Larger numbers are refused before any arithmetic: primality below is exact up to 2⁶⁴."""


class FactorsScheme:
    """A certificate: the prime factors of the input's ``n``, which anyone multiplies.

    Proves: the output is the sorted list of prime factors of ``n``.

    Against whom: any node, and any verifier can tell: no model, no re-execution, no trust.

    Cost: nothing for the node beyond the step itself; microseconds for the verifier, where
    re-execution would factor again.

    Does not prove: that the node did the work rather than being told the answer.
    """

    name: ClassVar[str] = "factors"
    needs: ClassVar[frozenset[str]] = frozenset({"factors"})

    def refuses(self, sampling: Sampling | None) -> str | None:
        """Nothing: no sampler takes part."""
        del sampling

    def spans(self, statement: Statement) -> tuple[Span, ...]:
        """One: the output is checked as a whole."""
        del statement
        return (WHOLE,)

    def prove(self, claim: Claim, execution: Execution, workdir: Path) -> bytes:
        """The factors, from ``execution.evidence["factors"]``.

        Raises:
            ProofError: they are not the factors of the input, or not the output.
        """
        factors = execution.evidence["factors"]
        try:
            payload = canonical(factors)
            fault = _fault(claim.input, execution.output, _parse(payload))
        except EncodingError as error:
            raise ProofError(f"factors cannot prove this execution: {error}") from error
        if fault is not None:
            raise ProofError(f"factors cannot prove this execution: {fault}")
        return payload

    def verify(
        self,
        claim: Claim,
        proof: Proof,
        reference: Reference | None,
        workdir: Path,
        span: Span | None = None,
    ) -> Verdict:
        """Bounds, then what can be seen; ``INVALID`` accuses the node and has it slashed."""
        del span
        try:
            factors = _parse(proof.payload)
        except EncodingError as error:
            return Verdict(Outcome.INVALID, 0, f"the payload is malformed: {error}")
        if claim.input is None or claim.output is None:  # nobody to accuse
            return Verdict(Outcome.CANNOT_TELL, 0, "the input or output is private")
        try:
            fault = _fault(claim.input, claim.output, factors)
        except EncodingError as error:  # the buyer's input: not the node's fault either
            return Verdict(Outcome.CANNOT_TELL, 0, f"the input cannot be read: {error}")
        if fault is not None:
            return Verdict(Outcome.INVALID, 0, fault)
        return Verdict(Outcome.VALID, PPM, "the factors are prime and multiply to the input")


def _parse(payload: bytes) -> list[int]:
    """Exact bounds before any arithmetic: a stranger wrote these bytes."""
    value = decode_canonical(payload, max_bytes=9 * MAX_BITS + 9)
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_BITS:
        raise EncodingError("it is not a list of factors")
    if any(type(item) is not int or not 2 <= item < 1 << MAX_BITS for item in value):
        raise EncodingError("a factor is not an integer in range")
    if value != sorted(value):  # one spelling: nobody can make another proof out of this one
        raise EncodingError("the factors are not in order")
    return value


def _fault(input: Content | None, output: Content, factors: list[int]) -> str | None:
    given: Any = input.value() if input is not None else None
    number = given.get("n") if isinstance(given, dict) else None
    if type(number) is not int or not 2 <= number < 1 << MAX_BITS:
        raise EncodingError(f"it has no integer n of at most {MAX_BITS} bits")
    if prod(factors) != number:
        return "the factors do not multiply to the input"
    if not all(map(_is_prime, factors)):
        return "a factor is not prime"
    expected = Content.json_value(factors, output.salt)
    return None if expected == output else "the output is not the list of factors"


def _is_prime(number: int) -> bool:
    """Miller–Rabin with bases that decide every number below 3.3·10²⁴ (Sorenson and Webster,
    arXiv 1509.00864)."""
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)
    if number in bases:
        return True
    if number < 2 or any(number % base == 0 for base in bases):
        return False
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in bases:
        power = pow(base, odd, number)
        if power in (1, number - 1):
            continue
        if not any((power := power * power % number) == number - 1 for _ in range(twos - 1)):
            return False
    return True
