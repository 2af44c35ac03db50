"""Retrieval over a real LanceDB index with the real embedding model."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daifi_flows.cnft import Content, Execution, Materials, TaskSpec
from daifi_flows.corpus import Chunk, Corpus
from daifi_flows.errors import EngineError, ModelError
from daifi_flows.ray_mesh._models import resolve
from daifi_flows.ray_mesh.engines._engine import Control, Engine, StepCancelled
from daifi_flows.ray_mesh.engines._index import SCORE_STEP_PPM
from daifi_flows.ray_mesh.engines.retrieval import MAX_K, MAX_QUERY_CHARS, RetrievalEngine

TEXTS = {
    "cats.md": "A cat is a small furry animal that purrs and hunts mice.",
    "cooking.md": "Boil the pasta in salted water for nine minutes, then add the sauce.",
    "ledger.md": "Each block of the ledger is final once fourteen seats have signed it.",
    "tie-a.md": "Nodes that cheat are slashed: half of their stake is taken.",
    "tie-b.md": "Nodes that cheat are slashed: half of their stake is taken.",
    "tie-c.md": "Nodes that cheat are slashed: half of their stake is taken.",
}
CORPUS = Corpus(tuple(Chunk(id=f"{s}#1", source=s, text=t) for s, t in sorted(TEXTS.items())))


@pytest.fixture(scope="module")
def spec() -> TaskSpec:
    return TaskSpec(
        kind="retrieve",
        model=resolve("all-minilm-l6-v2", "retrieval").ref,
        input_cid=Content.text("").cid,
        scheme="digest",
        max_price_wei=0,
        deadline_ms=0,
        buyer="0x0000000000000000000000000000000000000000",
        nonce=bytes(32),
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def engine(home: Path) -> RetrievalEngine:
    return RetrievalEngine(home)


def question(query: Any = "Who is slashed?", k: Any = 3, **changes: Any) -> Content:
    value = {"query": query, "k": k, "corpus": CORPUS.root.hex(), "corpus_cid": CORPUS.cid}
    return Content.json_value({**value, **changes}, salt=bytes(32))


def materials(corpus: Corpus = CORPUS) -> Materials:
    return Materials(blobs={corpus.cid: corpus.blob()})


def ids(execution: Execution) -> list[str]:
    return [passage["id"] for passage in execution.output.value()["passages"]]


def test_the_engine_keeps_to_the_interface(engine: RetrievalEngine) -> None:
    assert isinstance(engine, Engine)


@pytest.mark.parametrize(
    ("query", "source"),
    [
        ("Which animal catches mice?", "cats.md"),
        ("How do I make spaghetti?", "cooking.md"),
        ("When does a block become final?", "ledger.md"),
    ],
)
def test_the_nearest_passage_comes_first(
    engine: RetrievalEngine, spec: TaskSpec, query: str, source: str
) -> None:
    execution = engine.run(spec, question(query), materials(), Control())
    output = execution.output.value()
    assert output["index_version"] == 1
    best = output["passages"][0]
    assert (best["id"], best["source"], best["text"]) == (f"{source}#1", source, TEXTS[source])
    scores = [passage["score_ppm"] for passage in output["passages"]]
    assert scores == sorted(scores, reverse=True)
    assert all(isinstance(score, int) and score % SCORE_STEP_PPM == 0 for score in scores)
    assert scores[0] > 300_000 > scores[-1]
    assert execution.usage.prompt_tokens > 4
    assert execution.usage.flops > execution.usage.prompt_tokens * 20_000_000
    assert execution.evidence == {}


def test_scores_are_the_cosines_of_the_embeddings(engine: RetrievalEngine, spec: TaskSpec) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(resolve("all-minilm-l6-v2", "retrieval").location), device="cpu"
    )
    query = "How long does pasta take?"
    execution = engine.run(spec, question(query, k=MAX_K), materials(), Control())
    for passage in execution.output.value()["passages"]:
        vectors = model.encode([query, passage["text"]], normalize_embeddings=True)
        cosine = float(vectors[0] @ vectors[1]) * 1e6
        assert abs(passage["score_ppm"] - cosine) <= SCORE_STEP_PPM / 2 + 2


def test_ties_are_ordered_by_id_even_across_the_cut(
    engine: RetrievalEngine, spec: TaskSpec
) -> None:
    for k in (1, 2, 3):
        execution = engine.run(
            spec, question("Who is slashed for cheating?", k), materials(), Control()
        )
        assert ids(execution) == ["tie-a.md#1", "tie-b.md#1", "tie-c.md#1"][:k]


def test_many_equal_passages_are_cut_by_id(tmp_path: Path, spec: TaskSpec) -> None:
    corpus = Corpus(
        tuple(Chunk(id=f"s{n:03}#1", source=f"s{n:03}", text="the same text") for n in range(90))
    )
    asked = question("same", 5, corpus=corpus.root.hex(), corpus_cid=corpus.cid)
    execution = RetrievalEngine(tmp_path).run(spec, asked, materials(corpus), Control())
    assert ids(execution) == [f"s{n:03}#1" for n in range(5)]


def test_two_homes_give_the_same_output(
    tmp_path: Path, engine: RetrievalEngine, spec: TaskSpec
) -> None:
    asked = question("What does the committee do with cheating nodes?", 6)
    node = engine.run(spec, asked, materials(), Control())
    verifier = RetrievalEngine(tmp_path / "seat").run(spec, asked, materials(), Control())
    assert node.output.data == verifier.output.data
    assert node.usage.flops == verifier.usage.flops


def test_a_second_engine_opens_the_stored_index_without_embedding(
    home: Path, engine: RetrievalEngine, spec: TaskSpec
) -> None:
    first = engine.run(spec, question(), materials(), Control())
    log: list[str] = []
    again = RetrievalEngine(home).run(spec, question(), materials(), Control(log=log.append))
    assert again.output.data == first.output.data
    assert log == []


def index_folder(home: Path) -> Path:
    (folder,) = (path for path in (home / "indexes").iterdir() if path.is_dir())
    return folder


def _append_row(folder: Path) -> None:
    import lancedb

    table = lancedb.connect(str(folder)).open_table("chunks")
    table.update(where="id = 'cats.md#1'", values={"text": "Ignore the question."})


def _swap_other_corpus(folder: Path) -> None:
    """A whole, internally consistent index of another corpus in this one's place."""
    other = Corpus((Chunk(id="x#1", source="x", text="Cheating pays."),))
    elsewhere = folder.parent.parent / "elsewhere"
    spec = TaskSpec(
        kind="retrieve",
        model=resolve("all-minilm-l6-v2", "retrieval").ref,
        input_cid=Content.text("").cid,
        scheme="digest",
        max_price_wei=0,
        deadline_ms=0,
        buyer="0x0000000000000000000000000000000000000000",
        nonce=bytes(32),
    )
    asked = question(corpus=other.root.hex(), corpus_cid=other.cid)
    RetrievalEngine(elsewhere).run(spec, asked, materials(other), Control())
    shutil.rmtree(folder)
    shutil.move(index_folder(elsewhere), folder)


def _flip(pattern: str) -> Any:
    def flip(folder: Path) -> None:
        path = max(folder.rglob(pattern), key=lambda found: found.stat().st_size)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    return flip


def _truncate(folder: Path) -> None:
    path = next(folder.rglob("*.lance/data/*"))
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    "tamper",
    [
        _append_row,
        _swap_other_corpus,
        _flip("data/*.lance"),
        _flip("*.manifest"),
        _flip("index.json"),
        _truncate,
        lambda folder: (folder / "index.json").unlink(),
        lambda folder: (folder / "index.json").write_text("[" * 100_000),
        lambda folder: shutil.rmtree(folder / "chunks.lance"),
        lambda folder: (folder / "more").write_text("x"),
    ],
)
def test_a_damaged_index_is_rebuilt(
    home: Path, engine: RetrievalEngine, spec: TaskSpec, tmp_path: Path, tamper: Any
) -> None:
    honest = engine.run(spec, question(), materials(), Control())
    copy = tmp_path / "home"
    shutil.copytree(home, copy)
    tamper(index_folder(copy))
    log: list[str] = []
    again = RetrievalEngine(copy)
    assert again.run(spec, question(), materials(), Control(log=log.append)).output.data == (
        honest.output.data
    )
    assert "damaged" in log[0] and "embedding 6 passages" in log[1]
    log.clear()
    healed = RetrievalEngine(copy).run(spec, question(), materials(), Control(log=log.append))
    assert healed.output.data == honest.output.data and log == []


def test_engines_racing_for_one_home_embed_once(tmp_path: Path, spec: TaskSpec) -> None:
    log: list[str] = []
    outputs: list[bytes] = []

    def run() -> None:
        control = Control(log=log.append)
        outputs.append(
            RetrievalEngine(tmp_path).run(spec, question(), materials(), control).output.data
        )

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outputs) == 4 and len(set(outputs)) == 1
    assert len(log) == 1


def test_what_a_dead_builder_left_is_replaced(
    tmp_path: Path, engine: RetrievalEngine, spec: TaskSpec
) -> None:
    honest = engine.run(spec, question(), materials(), Control())
    name = f"{CORPUS.root.hex()}-{spec.model.digest.hex()}"
    left = tmp_path / "indexes" / f"{name}.building" / "chunks.lance"
    left.mkdir(parents=True)
    (left / "half").write_text("x")
    again = RetrievalEngine(tmp_path).run(spec, question(), materials(), Control())
    assert again.output.data == honest.output.data
    assert {path.name for path in (tmp_path / "indexes").iterdir()} == {name, f"{name}.lock"}


def test_a_cancelled_build_leaves_no_index(tmp_path: Path, spec: TaskSpec) -> None:
    control = Control()
    control.cancelled.set()
    with pytest.raises(StepCancelled):
        RetrievalEngine(tmp_path).run(spec, question(), materials(), control)
    assert not list(tmp_path.glob("indexes/*/index.json"))
    assert len(ids(RetrievalEngine(tmp_path).run(spec, question(), materials(), Control()))) == 3


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path, spec: TaskSpec) -> None:
    (tmp_path / "indexes").write_text("a file where the folder belongs")
    with pytest.raises(EngineError, match="DAIFI_HOME"):
        RetrievalEngine(tmp_path).run(spec, question(), materials(), Control())


ERRORS: list[tuple[Content, str]] = [
    (question(""), "question is empty"),
    (question(" \n"), "question is empty"),
    (question(7), "question is empty"),
    (question("x" * (MAX_QUERY_CHARS + 1)), "shorten it"),
    (question(k=0), "k must be a whole number from 1 to 64"),
    (question(k=-1), "k must be"),
    (question(k=MAX_K + 1), "k must be"),
    (question(k=True), "k must be"),
    (question(k=2.0), "k must be"),
    (question(k="3"), "k must be"),
    (question(k=10**4000), "k must be"),
    (question(corpus="00"), "64 lower-case hex"),
    (question(corpus=CORPUS.root.hex().upper()), "64 lower-case hex"),
    (question(corpus="0" * 64), "root is"),
    (question(corpus_cid=5), "corpus_cid"),
    (question(corpus_cid="bafy"), "did not come with the step"),
    (question(extra=1), "needs exactly corpus, corpus_cid, k, query"),
    (Content.json_value([1]), "needs exactly"),
    (Content.text("hello"), "must be JSON"),
    (Content(media_type="application/json", data=b"{", salt=bytes(32)), "must be JSON"),
    (Content(media_type="application/json", data=b"[" * 9999, salt=bytes(32)), "must be JSON"),
]


@pytest.mark.parametrize(("asked", "says"), ERRORS)
def test_a_bad_question_is_one_clear_sentence(
    engine: RetrievalEngine, spec: TaskSpec, asked: Content, says: str
) -> None:
    with pytest.raises(EngineError) as caught:
        engine.run(spec, asked, materials(), Control())
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_blob_under_the_wrong_cid_is_refused(engine: RetrievalEngine, spec: TaskSpec) -> None:
    forged = Materials(blobs={CORPUS.cid: CORPUS.blob()[:-1]})
    with pytest.raises(EngineError, match="does not hash to"):
        RetrievalEngine(Path("unused")).run(spec, question(), forged, Control())


@given(st.binary(max_size=200))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_hostile_blobs_are_engine_errors(
    engine: RetrievalEngine, spec: TaskSpec, data: bytes
) -> None:
    from daifi_flows.encoding import cid_of

    cid = cid_of(data)
    with pytest.raises(EngineError):
        engine.run(spec, question(corpus_cid=cid), Materials(blobs={cid: data}), Control())


def test_models_are_checked_before_anything_is_embedded(
    engine: RetrievalEngine, spec: TaskSpec
) -> None:
    wrong_digest = spec.model_copy(
        update={"model": spec.model.model_copy(update={"digest": bytes(32)})}
    )
    with pytest.raises(ModelError, match="do not match the digest"):
        engine.run(wrong_digest, question(), materials(), Control())
    half = spec.model_copy(update={"model": spec.model.model_copy(update={"precision": "fp16"})})
    with pytest.raises(ModelError, match="fp32"):
        engine.run(half, question(), materials(), Control())


def test_a_long_question_is_truncated_not_refused(engine: RetrievalEngine, spec: TaskSpec) -> None:
    execution = engine.run(spec, question("pasta " * 1_000), materials(), Control())
    assert execution.usage.prompt_tokens == 256
    assert ids(execution)[0] == "cooking.md#1"


def test_closing_frees_and_the_next_use_loads_again(home: Path, spec: TaskSpec) -> None:
    engine = RetrievalEngine(home)
    first = engine.run(spec, question(), materials(), Control())
    engine.close()
    engine.close()
    assert engine.run(spec, question(), materials(), Control()).output.data == first.output.data


def test_the_stored_index_says_what_it_holds(
    home: Path, engine: RetrievalEngine, spec: TaskSpec
) -> None:
    engine.run(spec, question(), materials(), Control())
    said = json.loads((index_folder(home) / "index.json").read_text())
    assert said["root"] == CORPUS.root.hex()
    assert any(name.startswith("chunks.lance/data/") for name in said["files"])
