"""What a circuit is compiled with, and what a process that proves may spend."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, cast, get_args

from daifi_flows.errors import EncodingError

__all__ = [
    "MAX_LOGROWS",
    "MIN_LOGROWS",
    "CircuitSettings",
    "InputVisibility",
    "Limits",
    "ParamVisibility",
]

InputVisibility = Literal["public", "hashed", "committed", "private"]
ParamVisibility = Literal["fixed", "hashed"]

MIN_LOGROWS: Final = 6
MAX_LOGROWS: Final = 20
"""2²⁰ rows: an SRS of 134 MB and proofs of minutes."""
_MAX_SCALE: Final = 20
_MAX_COLUMNS: Final = 64
_MAX_RANGE_BITS: Final = 120
"""``base ** legs`` must stay far below the field's 254 bits, or a decomposition has two answers;
ezkl itself counts in 128-bit integers."""


@dataclass(frozen=True)
class CircuitSettings:
    """How a model becomes a circuit. Two parties with equal settings and model get equal keys.

    Attributes:
        input_visibility: ``public`` (the verifier sees the integers), ``hashed`` (it sees one
            Poseidon hash an input tensor), ``committed`` (it sees a KZG commitment, the head of the
            proof: no rows of the circuit, where a hash takes 41 a value; for models of one input)
            or ``private`` (it sees nothing, and nothing ties the input to anything). Outputs are
            always public.
        param_visibility: ``fixed`` (weights are part of the verifying key) or ``hashed`` (the
            verifier sees one Poseidon hash of all of them).
        input_scale, param_scale: fixed-point bits of inputs and weights: value × 2^scale, rounded.
        rebase_multiplier: results are scaled back once their scale reaches ``multiplier`` × the
            larger of the two scales. Large: never, and sums stay exact.
        decomp_base, decomp_legs: integers that meet a non-linear operation or a scaling back must
            lie within ±base^legs; each leg is looked up in a table of ``base`` rows (a power of 2).
        num_inner_cols: columns a dot product is spread over: fewer rows, more columns.
        logrows: the circuit has 2^logrows rows.
        check_ranges: also check that inputs and outputs lie within ±base^legs. Whoever sees public
            integers, or made the commitment to hashed ones, has done so; private inputs are always
            checked.
        freivalds: check matrix products by random projection (Freivalds): fewer rows for products
            of two large matrices, more columns.
    """

    input_visibility: InputVisibility = "public"
    param_visibility: ParamVisibility = "fixed"
    input_scale: int = 7
    param_scale: int = 7
    rebase_multiplier: int = 1
    decomp_base: int = 1024
    decomp_legs: int = 3
    num_inner_cols: int = 2
    logrows: int = 12
    check_ranges: bool = False
    freivalds: bool = False

    def check(self) -> CircuitSettings:
        """Itself, when every field is in range: settings can come from a stranger.

        Raises:
            EncodingError: which field is not.
        """
        bounds = {
            "input_scale": (0, _MAX_SCALE),
            "param_scale": (0, _MAX_SCALE),
            "rebase_multiplier": (1, 64),
            "decomp_base": (2, 1 << 17),
            "decomp_legs": (1, 16),
            "num_inner_cols": (1, _MAX_COLUMNS),
            "logrows": (MIN_LOGROWS, MAX_LOGROWS),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise EncodingError(f"circuit setting {name} is not {low} to {high}")
        if self.decomp_base & (self.decomp_base - 1):
            raise EncodingError("circuit setting decomp_base is not a power of two")
        if (self.decomp_base.bit_length() - 1) * self.decomp_legs > _MAX_RANGE_BITS:
            raise EncodingError("circuit settings decomp_base and decomp_legs span too many bits")
        if self.input_visibility not in get_args(InputVisibility):
            raise EncodingError("circuit setting input_visibility is unknown")
        if self.param_visibility not in get_args(ParamVisibility):
            raise EncodingError("circuit setting param_visibility is unknown")
        if type(self.check_ranges) is not bool or type(self.freivalds) is not bool:
            raise EncodingError("circuit settings check_ranges and freivalds are true or false")
        return self

    def plain(self) -> dict[str, Any]:
        """Text and integers by field (1 for true): what travels, and is hashed."""
        return {k: int(v) if isinstance(v, bool) else v for k, v in asdict(self).items()}

    @classmethod
    def parse(cls, value: Any) -> CircuitSettings:
        """Settings from :meth:`plain` of a stranger.

        Raises:
            EncodingError: a field is missing, unknown or out of range.
        """
        if not isinstance(value, dict):
            raise EncodingError("circuit settings are not a map")
        fields = cast("dict[str, Any]", value)
        if fields.keys() != cls.__dataclass_fields__.keys():
            raise EncodingError("circuit settings have other fields than they should")
        flags = {name: fields[name] for name in ("check_ranges", "freivalds")}
        if any(type(flag) is not int or flag not in (0, 1) for flag in flags.values()):
            raise EncodingError("circuit settings check_ranges and freivalds are 0 or 1")
        parsed: Any = fields | {name: bool(flag) for name, flag in flags.items()}
        return cls(**parsed).check()

    def run_args(self) -> dict[str, Any]:
        """ezkl's ``PyRunArgs`` by field."""
        ranges = self.check_ranges or self.input_visibility == "private"
        committed = self.input_visibility == "committed"
        return {
            "input_visibility": "polycommit" if committed else self.input_visibility,
            "output_visibility": "public",
            "param_visibility": self.param_visibility,
            "input_scale": self.input_scale,
            "param_scale": self.param_scale,
            "scale_rebase_multiplier": self.rebase_multiplier,
            "decomp_base": self.decomp_base,
            "decomp_legs": self.decomp_legs,
            "num_inner_cols": self.num_inner_cols,
            "logrows": self.logrows,
            "disable_freivalds": not self.freivalds,
            "ignore_range_check_inputs_outputs": not ranges,
        }


@dataclass(frozen=True)
class Limits:
    """What one process that compiles or proves may spend, before it is ended.

    Attributes:
        seconds: wall time.
        memory_bytes: address space (``RLIMIT_AS``), about a quarter more than what is touched.
    """

    seconds: float = 180.0
    memory_bytes: int = 8 << 30
