"""The project's sampling rule as a vLLM V1 logits processor; imported by vLLM's own process."""

# vLLM is optional (`make vllm`): types are checked the same with and without it.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportUntypedBaseClass=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch  # noqa: TID253 - only vLLM imports this module, by its name
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor  # noqa: TID253

from daifi_flows.proofs.sampling import gumbel

__all__ = ["GumbelProcessor"]


class GumbelProcessor(AdapterLogitsProcessor):
    """Adds ``gumbel(seed, t)`` to ``logits / T``; the request itself runs at temperature 0.

    A request asks for it by ``extra_args={"daifi_temperature_ppm": …, "daifi_seed": …}``.
    """

    def is_argmax_invariant(self) -> bool:
        """The noise decides which token is the best."""
        return False

    def new_req_logits_processor(
        self, params: Any
    ) -> Callable[[list[int], torch.Tensor], torch.Tensor] | None:
        """The processor of one request; ``None`` for greedy ones."""
        asked = params.extra_args or {}
        temperature_ppm = int(asked.get("daifi_temperature_ppm", 0))
        if temperature_ppm == 0:
            return None
        seed = int(asked["daifi_seed"])

        def noised(output: list[int], logits: torch.Tensor) -> torch.Tensor:
            noise = torch.from_numpy(gumbel(seed, len(output), logits.shape[-1]))
            scaled = logits.float() / (temperature_ppm / 1_000_000)
            return (scaled + noise.to(logits.device)).to(logits.dtype)

        return noised
