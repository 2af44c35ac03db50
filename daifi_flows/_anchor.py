"""Whose signatures ``daifi verify`` believes, and the handovers to those who came after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from daifi_flows._home import read_committee, read_handovers
from daifi_flows.bundle import Bundle
from daifi_flows.cnft import Committee
from daifi_flows.epochs import CommitteeChain, Committees
from daifi_flows.errors import BundleError, ConfigError, EncodingError
from daifi_flows.verify import Check, Status

__all__ = ["Anchor", "find_anchor"]


@dataclass(frozen=True)
class Anchor:
    """A trusted committee, and what leads from it to later ones."""

    committee: Committee
    chain: CommitteeChain
    check: Check
    """Where the keys came from."""


def find_anchor(path: Path, given: Path | None, handovers: Path | None, home: Path) -> Anchor:
    """The committee in the file given, else that of one of our own ledgers, else, and it says so,
    of the file that came with the bundle.

    Handovers need no trust: without a file given, ``handovers.json`` beside the keys is taken,
    else the one beside the bundle.

    Args:
        path: of the bundle.
        home: where our own ledgers are.

    Raises:
        ConfigError: there are no keys, or a file is damaged.
    """
    beside = path.parent / "committee.json"
    if given is not None:
        file, status, where = given, Status.PASSED, f"from {given}"
    elif (file := _own(path, handovers, home)) is not None:
        status, where = Status.PASSED, f"your own ledger's, {file}"
    elif beside.is_file():
        file, status = beside, Status.NOT_MADE
        where = "they came with the bundle; compare with a copy you trust (--committee FILE)"
    else:
        raise ConfigError(f"there are no trusted committee keys for {path}: give --committee FILE")
    committee = read_committee(file)
    check = Check("committee keys", status, f"0x{committee.digest.hex()}: {where}")
    return Anchor(committee, _chain(file, path, handovers), check)


def _beside(path: Path) -> Path | None:
    found = path.parent / "handovers.json"
    return found if found.is_file() else None


def _chain(keys: Path, bundle: Path, given: Path | None) -> CommitteeChain:
    found = given or _beside(keys) or _beside(bundle)
    return read_handovers(found) if found is not None else CommitteeChain()


def _own(path: Path, handovers: Path | None, home: Path) -> Path | None:
    """The keys under home that lead to the committee which certified the bundle's settlement."""
    try:
        header = Bundle.read(path).metadata.receipt.header
    except BundleError:
        return None
    for file in sorted(home.glob("*/committee.json")):
        try:
            chain = _chain(file, path, handovers)
            Committees(read_committee(file), chain.handovers).certifying(header)
        except EncodingError:
            continue
        return file
    return None
