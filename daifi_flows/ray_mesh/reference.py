"""A verifier's own copy of the models: what :class:`proofs.Reference` asks for."""

from __future__ import annotations

import functools
import importlib.util
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from daifi_flows.cnft import Content, Materials, ModelRef, Sampling, TaskSpec
from daifi_flows.errors import DaifiError, EncodingError, EngineError, ModelError
from daifi_flows.proofs import Prefill
from daifi_flows.proofs.calibration import Calibration, find_calibration
from daifi_flows.ray_mesh._engines import ENGINES, RECOMPUTED, make_engine
from daifi_flows.ray_mesh._models import LocalModel, resolve
from daifi_flows.ray_mesh.engines._embedder import Embedder
from daifi_flows.ray_mesh.engines._engine import Control, Engine, EngineDied
from daifi_flows.ray_mesh.engines._llm import LlmShelf, prompt_of, render
from daifi_flows.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from daifi_flows.ray_mesh.engines.vllm import VllmEngine

__all__ = ["EngineReference"]

_LLM = frozenset({"transformers", "vllm"})
_VERDICT_TOKENS: Final = 160
"""A verdict in JSON with a reason of 20 words takes about 90."""


class EngineReference:
    """Re-executes steps with engines and weights of its own, loaded when first needed.

    Made and pickled cheaply: only the arguments travel. Safe to share between threads. Answers of
    either LLM engine are checked by a prefill of the same weights on the one that
    ``settings.verifier_engine`` names; vLLM is started once a model and shared by all threads.

    Args:
        settings: names the embedding model and the engine of prefills.
        home: cache folder of this verifier; a verifier shares none with the node it checks.
        fetch: whether a hub id may be downloaded. An auditor says no: the name is a stranger's.
    """

    def __init__(self, settings: Settings, home: Path, *, fetch: bool = True) -> None:
        self._settings = settings
        self._home = home
        self._fetch = fetch
        self._lock = threading.Lock()
        self._engines: dict[str, Engine] = {}
        self._shelf = LlmShelf(home / "models")
        self._embedder: Embedder | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        make = functools.partial(EngineReference, fetch=self._fetch)
        return (make, (self._settings, self._home))

    def missing(self, spec: TaskSpec, materials: Materials) -> str | None:
        """Why this spec cannot be re-executed here; ``None`` when it can."""
        engine = spec.model.engine
        if engine not in ENGINES:
            return f"engine {engine!r} is not known here"
        try:
            if engine in _LLM:
                self._llm(spec)
                if self._on_vllm and importlib.util.find_spec("vllm") is None:
                    return "this verifier prefills on vLLM, which is not installed: `make vllm`"
            else:
                self._engine(engine).model(spec.model, materials)
        except DaifiError as error:
            return str(error)
        if engine == "retrieval" and not materials.blobs:
            return "the corpus did not come with the step"
        return None

    def reexecute(self, spec: TaskSpec, input: Content, materials: Materials) -> Content:
        """Run a function, retrieval or policy step again.

        Raises:
            ModelError: the model is not at hand, or running it failed here.
            EncodingError: the engine does not take this input.
        """
        if spec.model.engine not in RECOMPUTED:
            raise ModelError(f"steps of engine {spec.model.engine!r} are not re-executed exactly")
        try:
            engine = self._engine(spec.model.engine)
            return engine.run(spec, input, materials, Control()).output
        except EngineError as error:
            raise EncodingError(f"the step cannot be run again: {error}") from error

    def prompt_tokens(self, spec: TaskSpec, input: Content) -> list[int]:
        """Prompt of an LLM step, trimmed as a node trims it.

        Raises:
            ModelError: the model is not at hand.
            EncodingError: the input is not an LLM step's.
        """
        try:
            return prompt_of(spec, input, self._shelf.tokenizer(self._llm(spec)))[1].tokens
        except EngineError as error:
            raise EncodingError(str(error)) from error

    def render_output(
        self, spec: TaskSpec, input: Content, output_tokens: Sequence[int], salt: bytes
    ) -> Content:
        """The output content an honest engine builds from these tokens.

        Raises:
            ModelError: the model is not at hand.
            EncodingError: the input is not an LLM step's, or a token is not in the vocabulary.
        """
        tokenizer = self._shelf.tokenizer(self._llm(spec))
        try:
            parsed, prompt = prompt_of(spec, input, tokenizer)
            return render(parsed, prompt, output_tokens, tokenizer, salt)
        except EngineError as error:
            raise EncodingError(str(error)) from error
        except (OverflowError, TypeError, ValueError, IndexError) as error:
            raise EncodingError(f"the tokens cannot be decoded: {error}") from error

    def end_tokens(self, spec: TaskSpec) -> frozenset[int]:
        """Tokens that end a generation of this model."""
        return self._shelf.tokenizer(self._llm(spec)).end_tokens

    def prefill(self, spec: TaskSpec, prompt: Sequence[int], output: Sequence[int]) -> Prefill:
        """Score ``output`` given ``prompt`` in one pass.

        Raises:
            ModelError: the model is not at hand, or the tokens are too many for this machine.
            EncodingError: a token is not in the vocabulary.
        """
        model = self._llm(spec)
        if not self._on_vllm:
            return self._shelf.get(model).prefill(prompt, output)
        engine = self._vllm()
        try:
            return engine.prefill(model, prompt, output)
        except EngineDied as error:
            self._forget(engine)
            raise ModelError(f"the prefill was lost, the next one starts anew: {error}") from error
        except EngineError as error:
            raise ModelError(f"vLLM cannot prefill here: {error}") from error

    def prefill_again(
        self, spec: TaskSpec, prompt: Sequence[int], output: Sequence[int]
    ) -> Prefill | None:
        """The same pass by another attention kernel; ``None`` where prefills run on vLLM, which
        has one.

        Raises:
            ModelError, EncodingError: as :meth:`prefill`.
        """
        if self._on_vllm:
            return None
        return self._shelf.get(self._llm(spec)).prefill_again(prompt, output)

    def output_rows(self, spec: TaskSpec, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Rows of the model's output layer, ``[len(tokens), width]``.

        Loads the weights into this process also when prefills run on vLLM.

        Raises:
            ModelError: the model is not at hand.
            EncodingError: a token is not in the vocabulary.
        """
        return self._shelf.get(self._llm(spec)).output_rows(tokens)

    def calibration(self, spec: TaskSpec) -> Calibration | None:
        """How far honest engines differ on this model and precision; ``None``: not measured.

        The settings' home comes first (``daifi calibrate`` writes there), then what is shipped.

        Raises:
            ModelError: there is a file for it, but it is damaged.
        """
        return find_calibration(spec.model, self._settings.home_path / "calibrations")

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit-norm sentence embeddings, ``[len(texts), 384]``.

        Raises:
            ModelError: the embedding model is not at hand.
        """
        with self._lock:
            if self._embedder is None:
                self._embedder = Embedder(resolve(self._settings.embedding_model, "retrieval"))
            embedder = self._embedder
        return embedder.embed(texts)

    @property
    def chat(self) -> Callable[[str, str], str] | None:
        """Asks the language model that ``settings.judge_model`` names, greedily."""
        return self._ask if self._settings.judge_model is not None else None

    def _ask(self, instructions: str, data: str) -> str:
        """Its answer.

        Raises:
            ModelError: the model is not at hand, or the data is more than it reads.
            EngineError: it failed.
        """
        assert self._settings.judge_model is not None
        model = resolve(self._settings.judge_model, "transformers", fetch=self._fetch)
        llm = self._shelf.get(model)
        messages = ({"role": "system", "content": instructions}, {"role": "user", "content": data})
        prompt = llm.tokenizer.chat(messages, "")
        if len(prompt) + _VERDICT_TOKENS > llm.tokenizer.context:
            raise ModelError(f"{len(prompt)} tokens are more than the judges' model reads")
        answer = llm.generate(prompt, Sampling(max_tokens=_VERDICT_TOKENS), Control()).tokens
        ended = answer[-1] in llm.tokenizer.end_tokens
        return llm.tokenizer.decode(answer[:-1] if ended else answer)

    def warm(self, ref: ModelRef) -> None:
        """Load a model before it is needed.

        Raises:
            ModelError: it is not at hand or cannot be loaded.
            EngineError: vLLM does not start with it.
        """
        if ref.engine in _LLM and self._on_vllm:
            self._vllm().load(self._resolve(ref))
        elif ref.engine in _LLM:
            self._shelf.get(self._resolve(ref))
        elif ref.engine in RECOMPUTED:
            engine = self._engine(ref.engine)
            engine.load(engine.model(ref, Materials()))

    def close(self) -> None:
        """Free all weights. Idempotent; the next use loads them again."""
        with self._lock:
            engines, embedder = list(self._engines.values()), self._embedder
            self._engines.clear()
            self._embedder = None
        for engine in engines:
            engine.close()
        if embedder is not None:
            embedder.close()
        self._shelf.close()

    @property
    def _on_vllm(self) -> bool:
        return self._settings.verifier_engine == "vllm"

    def _vllm(self) -> VllmEngine:
        from daifi_flows.ray_mesh.engines.vllm import VllmEngine

        engine = self._engine(VllmEngine.name)
        assert isinstance(engine, VllmEngine)
        return engine

    def _forget(self, engine: VllmEngine) -> None:
        with self._lock:
            if self._engines.get(engine.name) is engine:  # and not one that came after it
                del self._engines[engine.name]
        engine.close()

    def _llm(self, spec: TaskSpec) -> LocalModel:
        if spec.model.engine not in _LLM:
            raise ModelError(f"engine {spec.model.engine!r} is not a language model's")
        return self._resolve(spec.model)

    def _resolve(self, ref: ModelRef) -> LocalModel:
        return resolve(ref.name, "transformers", ref.precision, ref.digest, fetch=self._fetch)

    def _engine(self, name: str) -> Engine:
        with self._lock:
            if name not in self._engines:
                self._engines[name] = make_engine(name, self._home, self._settings.embedding_model)
            return self._engines[name]
