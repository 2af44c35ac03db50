"""The project's sampling rule as a vLLM V1 logits processor; imported by vLLM's own process."""

# vLLM is optional (`make vllm`): types are checked the same with and without it.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportUntypedBaseClass=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch  # noqa: TID253 - only vLLM imports this module, by its name
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor  # noqa: TID253

from daifi_flows.cnft import Sampling
from daifi_flows.proofs.sampling import sample

__all__ = ["SeededSampler"]


class SeededSampler(AdapterLogitsProcessor):
    """Draws the token by :func:`proofs.sampling.sample` and leaves no other to choose.

    A request asks for it by ``extra_args={"daifi_sampling": Sampling.plain()}`` and runs at
    temperature 0 itself. Handing vLLM one finite score, and not the noised scores, keeps the draw
    in float32 whatever the type of vLLM's logits: in bfloat16 noised scores would collide.
    """

    def is_argmax_invariant(self) -> bool:
        """The noise decides which token is the best."""
        return False

    def new_req_logits_processor(
        self, params: Any
    ) -> Callable[[list[int], torch.Tensor], torch.Tensor] | None:
        """The processor of one request; ``None`` for greedy ones, where vLLM's own argmax (the
        lowest index among equals, as ours) does it."""
        asked = (params.extra_args or {}).get("daifi_sampling")
        sampling = Sampling(**asked) if asked is not None else Sampling()
        if sampling.temperature_ppm == 0:
            return None

        def draw(output: list[int], logits: torch.Tensor) -> torch.Tensor:
            scores = logits.float().cpu().numpy()
            token = sample(scores, sampling, len(output))
            chosen = torch.full_like(logits, float("-inf"))
            chosen[token] = 0.0
            return chosen

        return draw
