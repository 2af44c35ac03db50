"""Settings: one documented object for Python, YAML files and ``DAIFI_*`` variables.

Order of precedence: arguments, environment (``DAIFI_HOME``, ``DAIFI_ENGINE``, …), the YAML file
named by ``DAIFI_CONFIG`` or ``--config``, defaults. ``configs/local.yaml`` lists every key.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from daifi_flows.errors import ConfigError

__all__ = ["Settings"]

DAI = 10**18
"""Wei in one DAi."""


class Settings(BaseSettings):
    """How a fabric runs. Amounts are in wei, times in the unit of their name."""

    model_config = SettingsConfigDict(env_prefix="DAIFI_", extra="forbid", frozen=True)

    home: Path = Path("~/.daifi")
    """Ledgers, keys, indexes, circuits and caches live here."""
    address: str | None = None
    """Ray address of a cluster to use; absent: start Ray on this machine."""
    engine: Literal["transformers", "vllm"] = "transformers"
    verifier_engine: Literal["transformers", "vllm"] = "transformers"
    """Where seats and auditors prefill an LLM answer, whichever engine gave it."""
    model: str = "smollm2-135m-instruct"
    """LLM of ``reason``: a known name, a local folder or GGUF file, or a hub id."""
    model_digest: str | None = None
    """Expected digest of that model (0x…): a mismatch is refused."""
    embedding_model: str = "all-minilm-l6-v2"
    judge_model: str | None = None
    """LLM that the seats' panel may ask whether two texts say the same; absent: none. It can
    withhold an acceptance and give none."""
    context_tokens: Annotated[int, Field(ge=64, le=1_000_000)] = 1024
    """Prompt and answer together; longer context is trimmed, and the step says how."""
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 96
    temperature_ppm: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    top_k: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """Above temperature 0, draw from this many most probable tokens; absent: from all."""
    top_p_ppm: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Above temperature 0, draw from the fewest tokens of this probability; absent: from all."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    seats: Annotated[int, Field(ge=4, le=63)] = 21
    seat_hosts: Annotated[int, Field(ge=1, le=63)] = 1
    """Processes over which the seats are packed; each holds its own copy of the models."""
    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    attempts: Annotated[int, Field(ge=1, le=16)] = 3
    min_confidence_ppm: Annotated[int, Field(ge=500_000, le=1_000_000)] = 990_000
    review: Literal["policy", "always"] = "policy"
    """``policy``: as often as makes cheating a loss (new nodes always); ``always``: every step."""
    price_wei: Annotated[int, Field(ge=0)] = DAI // 100
    """What this machine's nodes ask for a step."""
    max_price_wei: Annotated[int, Field(ge=0)] = DAI // 20
    """What a step may cost at most; this much is held in escrow."""
    buyer_funds_wei: Annotated[int, Field(ge=0)] = 1_000 * DAI
    """Genesis balance of the local buyer."""
    node_stake_wei: Annotated[int, Field(ge=0)] = 100 * DAI
    step_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """One execution on one node, proof included."""
    review_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    start_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    encrypt_outputs: bool = False
    """Seal outputs, inputs and transcripts in the bundle to the buyer's key."""
    bundles: Path | None = None
    """Where bundles go (default: a folder under home)."""
    ray_cpus: Annotated[int, Field(ge=1)] = 4
    """Logical CPUs given to a Ray started here (actors of a small demo need few of them)."""

    @classmethod
    def load(cls, config: Path | None = None, **overrides: Any) -> Settings:
        """Settings from a YAML file, the environment and arguments (``None`` is not given).

        Raises:
            ConfigError: the file cannot be read, or a value is unknown or out of range.
        """
        name = config or (
            Path(os.environ["DAIFI_CONFIG"]) if "DAIFI_CONFIG" in os.environ else None
        )
        values: Any = {}
        if name is not None:
            try:
                values = yaml.safe_load(name.read_text()) or {}
            except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
                raise ConfigError(f"settings file {name} cannot be read: {error}") from error
            if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
                raise ConfigError(f"settings file {name} must hold named settings and values")
        given = {key: value for key, value in overrides.items() if value is not None}
        from_env = {key for key in cls.model_fields if f"DAIFI_{key.upper()}" in os.environ}
        merged = {key: value for key, value in values.items() if key not in from_env} | given
        try:
            return cls(**merged)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"setting {where}: {first['msg']} (got {first['input']!r})"
            ) from error

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then environment; no dotenv files, no secrets folder."""
        return init_settings, env_settings

    @property
    def home_path(self) -> Path:
        """``home`` with ``~`` expanded, absolute."""
        return self.home.expanduser().absolute()
