"""What an outcome follows from, as it travels: closed sets of commits, and their openings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from daifi_flows.cnft import FULL_WAVE, Bytes32, Bytes96, Noun, Uint, VoteCommit, VoteReveal
from daifi_flows.encoding import tagged_hash
from daifi_flows.keys import aggregate_bls

__all__ = ["Look", "Pledge", "Record", "look_of"]


class Pledge(Noun):
    """A commit without its signature."""

    seat: Uint
    wave: Annotated[int, Field(ge=0, le=FULL_WAVE, strict=True)]
    commitment: Bytes32


class Look(Noun):
    """A closed set of commits, and openings of them.

    Attributes:
        signature: aggregate of the commits' own: what shows that the seats said this. Evidence
            needs each seat's own, which whoever collected them has.
        closed: instead of ``commits`` the digest of a set that the host opened votes against.
    """

    commits: Annotated[tuple[Pledge, ...], Field(max_length=1024)] = ()
    signature: Bytes96 | None = None
    reveals: Annotated[tuple[VoteReveal, ...], Field(max_length=512)] = ()
    closed: Bytes32 | None = None

    @property
    def digest(self) -> bytes:
        """Names the set of commits, 32 bytes."""
        return tagged_hash("daifi/closed/1", {"commits": [each.plain() for each in self.commits]})

    @property
    def full(self) -> bool:
        """Whether these are votes of all seats, after a dispute."""
        return bool(self.commits) and self.commits[0].wave == FULL_WAVE


class Record(Noun):
    """Everything an outcome follows from: the beacon, and no look (waived), one, or two."""

    beacon: Bytes96
    looks: Annotated[tuple[Look, ...], Field(max_length=2)] = ()


def look_of(commits: Sequence[VoteCommit], reveals: Sequence[VoteReveal] = ()) -> Look:
    """Signed commits as a set, and openings of them.

    Raises:
        KeyMaterialError: a signature is malformed.
    """
    return Look(
        commits=tuple(
            Pledge(seat=each.seat, wave=each.wave, commitment=each.commitment) for each in commits
        ),
        signature=aggregate_bls([each.signature for each in commits]) if commits else None,
        reveals=tuple(reveals),
    )
