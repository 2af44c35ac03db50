"""Hidden-state rows kept per request until somebody takes them: pure bookkeeping, no vLLM."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["RowKeeper", "Rows"]


@dataclass
class Rows:
    """What was kept for one request.

    Attributes:
        rows: bytes of row 0, 1, …
        fault: why the rows cannot be used; empty while they can.
    """

    rows: list[bytes] = field(default_factory=list[bytes])
    fault: str = ""


class RowKeeper:
    """Rows by request and position, within a memory limit. Not thread-safe.

    A request begins at position 0 and grows by one row a position. A position that comes again
    (its token was thrown away and computed anew) replaces the row and all after it, so no token
    ever has two rows. A position beyond the next one, or more rows than the limit allows, spoil
    the request: :meth:`take` says why instead of giving wrong rows. A request that was dropped
    stays dropped: later positions of it are ignored.

    Args:
        max_bytes: bytes kept at once, over all requests.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: dict[str, Rows] = {}
        self.held_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, key: str, position: int, row: bytes) -> None:
        """Keep the row of one position, counted from 0."""
        found = self._kept.get(key)
        if found is None:
            if position:
                return  # dropped before
            found = self._kept[key] = Rows()
        if found.fault:
            return
        if position > len(found.rows):
            self.spoil(key, f"position {position} came after {len(found.rows)} rows")
            return
        self._cut(found, position)
        if self.held_bytes + len(row) > self._max_bytes:
            self.spoil(key, f"more than {self._max_bytes} bytes of hidden states wait here")
            return
        found.rows.append(row)
        self.held_bytes += len(row)

    def spoil(self, key: str, fault: str) -> None:
        """Give up on a request; its memory is freed now, :meth:`take` says ``fault``."""
        found = self._kept.setdefault(key, Rows())
        self._cut(found, 0)
        found.fault = found.fault or fault

    def get(self, key: str) -> Rows:
        """What was kept so far. A request that is unknown here is a fault."""
        return self._kept.get(key) or Rows(fault="nothing was kept for this request")

    def take(self, key: str) -> Rows:
        """What was kept, and forget the request."""
        found = self._kept.pop(key, None)
        if found is None:
            return Rows(fault="nothing was kept for this request")
        self.held_bytes -= sum(map(len, found.rows))
        return found

    def _cut(self, found: Rows, length: int) -> None:
        self.held_bytes -= sum(map(len, found.rows[length:]))
        del found.rows[length:]
