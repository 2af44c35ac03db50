"""One exception tree. Every error says what was wrong with which input, and what to do about it.

Errors survive pickling (they cross Ray): each is built from one message string, and structured
details travel as attributes set from keyword arguments.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "BundleError",
    "CommitteeError",
    "ConfigError",
    "CorpusError",
    "DaifiError",
    "EncodingError",
    "EngineError",
    "InsufficientFunds",
    "KeyMaterialError",
    "LedgerCorrupted",
    "LedgerError",
    "LedgerUnavailable",
    "MeshError",
    "ModelError",
    "NodeLost",
    "OutOfSync",
    "ProofError",
    "StepFailed",
    "TransactionRefused",
]


class DaifiError(Exception):
    """Root of every error this package raises on purpose.

    Args:
        message: one sentence for a person: what was wrong and what to do.
        **details: structured facts for programs, readable as ``error.details``.
    """

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.details))


def _rebuild(cls: type[DaifiError], message: str, details: dict[str, Any]) -> DaifiError:
    return cls(message, **details)


class ConfigError(DaifiError):
    """A setting, option or address is wrong or cannot be used."""


class EncodingError(DaifiError):
    """Bytes are not the canonical encoding of the noun they claim to be."""


class KeyMaterialError(DaifiError):
    """A key, signature or sealed box is malformed, or a key file cannot be used."""


class CorpusError(DaifiError):
    """The corpus folder is missing, empty, or holds no readable text."""


class ModelError(DaifiError):
    """A model is unknown, cannot be loaded, or its files do not match its digest."""


class EngineError(DaifiError):
    """An engine is unknown, not installed, or failed while running a step."""


class ProofError(DaifiError):
    """A proof cannot be made: the step, engine or model does not support the scheme."""


class MeshError(DaifiError):
    """The Ray cluster cannot be reached or has no node fit for the step."""


class NodeLost(MeshError):
    """The node running a step died or stopped answering; the step is rerouted."""


class CommitteeError(DaifiError):
    """The committee could not reach a decision (too few seats answered)."""


class LedgerError(DaifiError):
    """Root of ledger errors."""


class TransactionRefused(LedgerError):
    """A transaction broke a rule of the state machine; the state is unchanged.

    ``details["code"]`` is a stable word: ``bad-signature``, ``bad-nonce``, ``bad-state``,
    ``bad-role``, ``bad-field``, ``unknown``, ``insufficient-funds``, ``duplicate``, ``expired``,
    ``fee-too-high``, ``model-barred`` (governance), ``unsealed`` (see the ledger's sealed
    transactions).
    """


class InsufficientFunds(TransactionRefused):
    """An account has less than the transaction needs."""


class LedgerCorrupted(LedgerError):
    """The ledger file fails its checksums or replay; restore it from a backup."""


class LedgerUnavailable(LedgerError):
    """The ledger actor does not answer, or no quorum of seats certifies blocks."""


class OutOfSync(LedgerError):
    """A validator lacks earlier blocks; ``details["from_height"]`` is the first it needs."""


class BundleError(DaifiError):
    """A bundle is missing a file, too large, or not in canonical form."""


class StepFailed(DaifiError):
    """A step spent its attempts; says which node failed which check. The escrow was refunded.

    ``details["attempts"]`` is a list of ``{"node", "reason", "slashed_wei"}``.
    """
