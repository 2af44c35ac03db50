"""A tiny random language model with a real tokenizer, and specs and inputs for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

from daifi_flows.cnft import Content, ModelRef, Sampling, TaskSpec
from daifi_flows.keys import Account
from daifi_flows.ray_mesh import resolve

WORDS = (
    "the a of to and in is that for it was on are as with his they at be this from or one had by "
    "word but not what all were we when your can said there use an each which she do how their if "
    "seat seats committee oracle quorum ledger node model proof step user answer question"
)

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


def save_tiny_model(folder: Path, seed: int = 0) -> Path:
    """A Llama of 4 layers whose random weights are large enough to have opinions."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 3, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    fast.chat_template = TEMPLATE
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(fast),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.2,
            eos_token_id=fast.eos_token_id,
            bos_token_id=None,
        )
    )
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_ref(tiny_model: Path) -> ModelRef:
    return resolve(str(tiny_model), "transformers", "fp32").ref


@pytest.fixture(scope="session")
def smollm2_ref() -> ModelRef:
    return resolve("smollm2-135m-instruct", "transformers").ref


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted models: made once a test session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make_spec() -> Callable[..., TaskSpec]:
    def make(model: ModelRef, content: Content, **changes: Any) -> TaskSpec:
        values: dict[str, Any] = {
            "kind": "reason",
            "model": model,
            "input_cid": content.cid,
            "sampling": Sampling(max_tokens=24),
            "scheme": "token-difr",
            "max_price_wei": 10**18,
            "deadline_ms": 2**50,
            "buyer": Account.from_seed(b"buyer").address,
            "nonce": bytes(32),
        }
        return TaskSpec(**(values | changes))

    return make


@pytest.fixture
def ask() -> Callable[..., Content]:
    def make(question: str = "How many seats has the committee?", **changes: Any) -> Content:
        value: dict[str, Any] = {
            "question": question,
            "passages": [
                {"id": "design.md#1", "text": "The oracle committee has 21 seats."},
                {"id": "design.md#2", "text": "The quorum of the committee is 14."},
            ],
            "context_tokens": 400,
        }
        return Content.json_value(value | changes)

    return make


@pytest.fixture(scope="session")
def calibrated_home(tiny_ref: ModelRef, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a calibration of the tiny model, so that cheats on it can be convicted."""
    from daifi_flows.proofs.calibration import Calibration, Rounding, write_calibration

    home = tmp_path_factory.mktemp("calibrated")
    calibration = Calibration(
        model=tiny_ref.name,
        digest=tiny_ref.digest,
        precision=tiny_ref.precision,
        verifier_precision=tiny_ref.precision,
        rounding=Rounding(scales=(0.01, 0.05), weights=(0.95, 0.05)),
        generations=1,
        tokens=1,
        max_log_evidence=0.0,
    )
    write_calibration(calibration, home / "calibrations" / calibration.file_name)
    return home
