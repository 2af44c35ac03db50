"""``daifi judges``: train the panel's head and calibrate its probability."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daifi_flows.errors import ConfigError

if TYPE_CHECKING:
    from daifi_flows.judges.panel import Head
    from daifi_flows.judges.panel._judge import Embed

__all__ = ["app"]

app = typer.Typer(
    name="judges", help="Train and calibrate the judges' panel.", no_args_is_help=True
)

Model = Annotated[str | None, typer.Option(help="Embedding model (default: the settings').")]
Home = Annotated[Path | None, typer.Option(help="Ledgers, keys and caches (or DAIFI_HOME).")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def _embedder(model: str | None, home: Path | None) -> Embed:
    from daifi_flows.ray_mesh._models import resolve
    from daifi_flows.ray_mesh.engines._embedder import Embedder
    from daifi_flows.settings import Settings

    return Embedder(
        resolve(model or Settings.load(None, home=home).embedding_model, "retrieval")
    ).embed


def _quiet(_: str) -> None:
    return None


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def _read_head(path: Path) -> Head:
    from daifi_flows.judges.panel import read_head

    try:
        return read_head(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("head.npz"),
    onnx: Annotated[
        Path | None, typer.Option(help="Also write the head as an ONNX model, for `zk`.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of pairs, weights and batches.")] = 1,
    model: Model = None,
    json_output: Json = False,
    home: Home = None,
    debug: Debug = False,  # noqa: ARG001 (main looks for it)
) -> None:
    """Train the head on the pairs of the training split; some minutes on a CPU."""
    from daifi_flows.judges.panel import write_head
    from daifi_flows.judges.panel._corpus import training_pairs
    from daifi_flows.judges.panel._training import train_head

    pairs = training_pairs(seed)
    head = train_head(pairs, _embedder(model, home), seed, _quiet if json_output else print)
    _write(out, write_head(head))
    if onnx is not None:
        from daifi_flows.judges.panel._onnx import head_to_onnx

        _write(onnx, head_to_onnx(head))
    if json_output:
        print(json.dumps({"head": str(out), "pairs": len(pairs)}))
    else:
        print(f"{out}: trained on {len(pairs)} pairs")


@app.command()
def calibrate(
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("map.json"),
    head: Annotated[Path | None, typer.Option(help="Head to use (default: the shipped one).")] = (
        None
    ),
    seed: Annotated[int, typer.Option(help="Of the pairs.")] = 1,
    model: Model = None,
    json_output: Json = False,
    home: Home = None,
    debug: Debug = False,  # noqa: ARG001 (main looks for it)
) -> None:
    """Fit the panel's probability on the calibration split; some minutes on a CPU.

    The error reported is on the same split: `python -m benchmarks judges` measures it on another.
    """
    from daifi_flows.judges.panel import write_map
    from daifi_flows.judges.panel._corpus import pairs_of
    from daifi_flows.judges.panel._metrics import calibration_error
    from daifi_flows.judges.panel._training import fit_map, opinions

    chosen = _read_head(head) if head is not None else None
    embed = _embedder(model, home)
    pairs = pairs_of("calibration", seed)
    seen = opinions(pairs, embed, chosen)
    fitted = fit_map(seen)
    _write(out, write_map(fitted))
    chances = [each.chance(fitted) for each in seen]
    error = calibration_error(chances, [each.pair.same for each in seen])
    if json_output:
        print(json.dumps({"map": str(out), "pairs": len(pairs), "calibration_error": error}))
    else:
        print(f"{out}: fitted to {len(pairs)} pairs, calibration error {error:.4f} on them")
