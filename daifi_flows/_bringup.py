"""Brings a fabric's parts up in order, and takes them down again in reverse."""

from __future__ import annotations

import functools
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from daifi_flows._home import Home, take_home, write_atomic, write_committee
from daifi_flows._sync import run_sync
from daifi_flows.cnft import Committee, ModelRef
from daifi_flows.errors import ConfigError, DaifiError, EncodingError
from daifi_flows.judges import SeatKeys, bare_committee, make_committee, make_group_key
from daifi_flows.keys import Account
from daifi_flows.ledger import Genesis, LedgerService, Replica, Settlement
from daifi_flows.settings import DAI, Settings

if TYPE_CHECKING:
    from daifi_flows.judges.actor import CommitteeClient
    from daifi_flows.proofs import Reference
    from daifi_flows.ray_mesh import NodeConfig
    from daifi_flows.ray_mesh.actor import Mesh

__all__ = ["Parts", "bring_up"]

logger = logging.getLogger(__name__)


def wall_clock_ms() -> int:
    """Unix milliseconds: seats refuse blocks from the future by it."""
    return time.time_ns() // 1_000_000


OPERATOR_FUNDS_WEI: Final = 1_000_000 * DAI
"""Genesis balance of the local operator, who stakes for this machine's nodes."""
_NODE_FEES_WEI: Final = DAI // 100
"""Put on a node's account for its transactions' fees; topped up when half is spent."""

_SEATS: Final = "daifi-seats"
_NOISY_LOGGER: Final = "ray._private.authentication.authentication_token_setup"
"""Ray's logger that announces, at every start, that token authentication is on (as we want it)."""

_OBJECT_STORE_BYTES: Final = 512 * 1024 * 1024


@dataclass
class Parts:
    """What a running fabric is made of."""

    home: Home
    buyer: Account
    committee_keys: Committee
    committee: CommitteeClient
    settlement: Settlement
    mesh: Mesh
    hosts: list[Any]
    node_count: int
    _stack: ExitStack = field(repr=False)

    def close(self) -> None:
        """Take everything down, newest first."""
        self._stack.close()


def bring_up(
    settings: Settings,
    address: str | None,
    dishonest: Sequence[str],
    prepare: Callable[[str], None],
) -> Parts:
    """Start Ray (or join it), then seats, ledger and nodes; register and stake the nodes.

    Raises:
        ConfigError, LedgerError, MeshError: see :meth:`Fabric.local`; nothing stays behind.
    """
    with ExitStack() as stack:
        home = take_home(settings.home_path)
        stack.callback(home.close)
        committee = _committee(home, settings, dealer=address is None)
        genesis = None if committee.group_key is None else _genesis(home, settings, committee)
        configs = _node_configs(home, settings, dishonest)

        namespace = f"daifi-{secrets.token_hex(4)}"
        _start_ray(settings, address, namespace, stack)
        pin = _pin_here()
        if genesis is None:
            prepare(f"{len(committee.seats)} seats make the ledger's key together…")
            committee = _make_group_key(home, settings, committee, pin)
            genesis = _genesis(home, settings, committee)
        write_committee(home.root / "committee.json", committee)
        from daifi_flows.judges.actor import (
            CommitteeClient,
            RayCertifier,
            named_hosts,
            start_seat_hosts,
        )
        from daifi_flows.ledger.actor import RayLedger
        from daifi_flows.ray_mesh.actor import Mesh

        if not (home.cache / "node" / "models").is_dir():
            prepare("first run: model weights are converted and indexed, which takes a while…")
        prepare(f"starting {len(committee.seats)} seats, the ledger and the nodes…")
        hosts = start_seat_hosts(
            committee,
            home.keys / "seats",
            reference_factory=functools.partial(
                make_reference, settings, home.cache / "seats", configs[0].warm
            ),
            validator_factory=functools.partial(
                Replica,
                genesis,
                clock=wall_clock_ms,
                snapshots=LedgerService.snapshot_folder(home.ledger),
            ),
            workdir=home.root / "seats",
            hosts=settings.seat_hosts,
            name=_SEATS,
            namespace=namespace,
            resources=pin,
        )
        stack.callback(_kill, hosts)
        find = functools.partial(named_hosts, _SEATS, namespace, settings.seat_hosts)
        ledger = RayLedger.start(
            home.ledger,
            genesis,
            RayCertifier(find, committee),
            builder=Account.load(home.keys / "builder"),
            resources=pin,
        )
        stack.callback(lambda: run_sync(ledger.close()))
        buyer = Account.load(home.keys / "buyer")
        mesh = run_sync(
            Mesh.start(configs, namespace=namespace, timeout_s=settings.start_timeout_s)
        )
        stack.callback(lambda: run_sync(mesh.close()))
        for host in hosts:
            host.warm.remote()  # models load while the first step is on its way
        run_sync(_register(configs, ledger, home, settings))
        prepare("nodes are registered and staked; models are loading in the background…")
        return Parts(
            home=home,
            buyer=buyer,
            committee_keys=committee,
            committee=CommitteeClient(hosts, committee, timeout_s=settings.review_timeout_s),
            settlement=ledger,
            mesh=mesh,
            hosts=hosts,
            node_count=len(configs),
            _stack=stack.pop_all(),
        )


def make_reference(settings: Settings, home: Path, models: Sequence[ModelRef]) -> Reference:
    """A seat host's own models, loading in the background while the first step is on its way."""
    from daifi_flows.ray_mesh import EngineReference

    reference = EngineReference(settings, home)

    def warm() -> None:
        for model in models:
            try:
                reference.warm(model)
            except DaifiError as error:  # the review that needs the model reports it
                logger.warning("a seat host could not load %s: %s", model.name, error)

    threading.Thread(target=warm, name="daifi-warm", daemon=True).start()
    return reference


def _committee(home: Home, settings: Settings, *, dealer: bool) -> Committee:
    """The committee of this home's ledger.

    One that was made before is kept. A new one has its group key dealt on this machine with
    ``dealer`` (who runs it knows every beacon in advance: for one machine, whose owner could read
    all seats' keys anyway); else it comes without, and its seats make it.
    """
    folder, path = home.keys / "seats", home.root / "genesis.cbor"
    if (folder / "dealer").exists() if path.exists() else dealer:
        return make_committee(folder, settings.seats, 0)
    if not path.exists():
        # Of a start that was broken off before there was a ledger. With it here the next start
        # would deal again, in the place of what the seats are about to make.
        (folder / "dealer").unlink(missing_ok=True)
        return bare_committee(folder, settings.seats, 0)
    committee = _read_genesis(home).committee
    mine = [SeatKeys.load(folder, seat.index, seat.share) for seat in committee.seats]
    if len(committee.seats) != settings.seats or any(
        (seat.public, seat.account) != (keys.bls.public, keys.account.address)
        for seat, keys in zip(committee.seats, mine, strict=True)
    ):
        raise _other_committee(home, committee)
    # A seat that was away when the key was made has no share, and the others do without it.
    if (held := sum(keys.share is not None for keys in mine)) < committee.quorum:
        raise ConfigError(
            f"{held} seats in {folder} have their share of the ledger's key and {committee.quorum} "
            "are needed: restore the files seat-NN.share"
        )
    return committee


def _other_committee(home: Home, theirs: Committee) -> ConfigError:
    return ConfigError(
        f"the ledger in {home.root} has another committee of {len(theirs.seats)} seats: use its "
        "keys and seat count, or another DAIFI_HOME"
    )


def _make_group_key(
    home: Home, settings: Settings, bare: Committee, pin: dict[str, float]
) -> Committee:
    """Have the seats' hosts make the key: no process holds more than its own seats' part of it."""
    from daifi_flows.judges.actor import RaySeats, start_seat_hosts

    hosts = start_seat_hosts(
        bare,
        home.keys / "seats",
        reference_factory=_no_models,
        validator_factory=None,
        workdir=home.root / "seats",
        hosts=settings.seat_hosts,
        resources=pin,
    )
    try:
        transports = [RaySeats(host) for host in hosts]
        # Before there is a ledger its id cannot be named; these keys have no other session.
        making = make_group_key(
            transports, bare, ledger_id=bare.digest, timeout_s=settings.start_timeout_s
        )
        return run_sync(making)
    finally:
        _kill(hosts)


def _no_models() -> Reference:
    raise ConfigError("hosts that make a key review nothing")


def _genesis(home: Home, settings: Settings, committee: Committee) -> Genesis:
    path = home.root / "genesis.cbor"
    if path.exists():
        genesis = _read_genesis(home)
        if genesis.committee != committee:
            raise _other_committee(home, genesis.committee)
        return genesis
    genesis = Genesis.create(
        salt=secrets.token_bytes(32),
        timestamp_ms=wall_clock_ms(),
        allocations=[
            (Account.load(home.keys / "buyer").address, settings.buyer_funds_wei),
            (Account.load(home.keys / "operator").address, OPERATOR_FUNDS_WEI),
        ],
        committee=committee,
        treasury=Account.load(home.keys / "treasury").address,
    )
    write_atomic(path, genesis.canonical())
    return genesis


def _read_genesis(home: Home) -> Genesis:
    path = home.root / "genesis.cbor"
    try:
        return Genesis.from_canonical(path.read_bytes())
    except (OSError, EncodingError) as error:
        raise ConfigError(
            f"{path} is damaged: restore it, or remove {home.root} to start a new ledger"
        ) from error


def _node_configs(home: Home, settings: Settings, dishonest: Sequence[str]) -> list[NodeConfig]:
    """This machine's nodes: the honest ones, and on demand cheats that undercut them."""
    from daifi_flows.ray_mesh import NodeConfig, resolve, resolve_llm

    engines = ["transformers", "retrieval", "onnx", "onnx-policy", "function"]
    if find_spec("vllm") is not None:
        engines.append("vllm")
    llm = resolve_llm(settings, None, None)
    warm = (resolve(settings.embedding_model, "retrieval").ref, llm)
    nodes = [
        NodeConfig(
            name=f"node-{number}",
            secret=Account.load(home.keys / f"node-{number}").secret,
            home=home.cache / "node",
            price_wei=settings.price_wei,
            engines=tuple(engines),
            embedding_model=settings.embedding_model,
            warm=warm,
            cpus=0,
        )
        for number in range(settings.nodes)
    ]
    if dishonest and llm.engine != "transformers":
        raise ConfigError("dishonest nodes cheat on the transformers engine: choose that one")
    for kind in dishonest:
        nodes.append(
            NodeConfig(
                name=f"cheat-{kind}",
                secret=Account.create().secret,  # nobody knows it yet: no reputation to lose
                home=home.cache / "node",
                price_wei=settings.price_wei // 10,
                engines=("transformers",),
                embedding_model=settings.embedding_model,
                behaviour=kind,
                warm=(llm,),
                cpus=0,
            )
        )
    return nodes


async def _register(
    configs: Sequence[NodeConfig], ledger: Settlement, home: Home, settings: Settings
) -> None:
    """Stake and register each of our nodes, once; the operator account pays."""
    operator = Account.load(home.keys / "operator")
    for config in configs:
        account, info = Account(config.secret), config.info
        record = await ledger.account(account.address)
        missing = max(0, settings.node_stake_wei - record.stake_wei)
        if record.balance_wei < missing + _NODE_FEES_WEI // 2:
            short = missing + _NODE_FEES_WEI - record.balance_wei
            await ledger.transfer(account.address, short, operator)
        if missing > 0:
            await ledger.stake(missing, account)
        if record.registered != info:
            await ledger.register(info, account)


# Ray


@contextmanager
def _environment(**values: str) -> Generator[None]:
    """Set variables for the processes started inside, unless the user has set them."""
    added = [key for key in values if key not in os.environ]
    for key in added:
        os.environ[key] = values[key]
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


def _start_ray(settings: Settings, address: str | None, namespace: str, stack: ExitStack) -> None:
    import ray

    with _RAY.lock:
        if ray.is_initialized():
            running = str(ray.get_runtime_context().gcs_address)
            if address not in (None, "auto", running):
                raise ConfigError(
                    f"this process already uses the Ray cluster at {running}: close that first, or "
                    f"connect to {address} from another process"
                )
            if not _RAY.users:
                return  # the caller's own Ray: used, and left running
        else:
            _init_ray(settings, address, namespace)
        _RAY.users += 1
        stack.callback(_leave_ray)


@dataclass
class _SharedRay:
    """The Ray that fabrics of this process started, and how many of them use it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


_RAY: Final = _SharedRay()


def _leave_ray() -> None:
    import ray

    with _RAY.lock:
        _RAY.users -= 1
        if _RAY.users == 0:
            ray.shutdown()


def _init_ray(settings: Settings, address: str | None, namespace: str) -> None:
    import ray

    if address is not None and address != "auto":
        _must_answer(address)
    options: dict[str, Any] = {
        "namespace": namespace,
        "log_to_driver": logger.isEnabledFor(logging.INFO),
        "logging_level": logging.ERROR,
        "configure_logging": False,
    }
    if address is None:
        options |= {
            "address": "local",
            "num_cpus": settings.ray_cpus,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    else:
        options["address"] = address
    try:
        # Ray would give actors that reserve no CPU one thread; engines here share the machine. And
        # OpenMP's spinning threads starve each other on busy cores: with both of two cores taken,
        # 48 tokens took over 100 s spinning and 6 s waiting passively.
        logging.getLogger(_NOISY_LOGGER).setLevel(logging.ERROR)
        with _environment(
            OMP_NUM_THREADS=str(os.cpu_count() or 1),
            OMP_WAIT_POLICY="PASSIVE",
            TOKENIZERS_PARALLELISM="false",
            RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
        ):
            ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = "on this machine" if address is None else f"at {address}"
        raise ConfigError(f"Ray cannot be used {where}: {error}") from error


def _must_answer(address: str) -> None:
    """Ray waits long for an address where nobody is; a closed port is known at once."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
            return
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no Ray cluster answers at {address!r} ({error}): start one with `ray start --head`, "
            "or give host:port of its head"
        ) from error


def _pin_here() -> dict[str, float]:
    """Custom resource that keeps an actor on this machine: its files are here."""
    import ray

    return {f"node:{ray.util.get_node_ip_address()}": 0.001}


def _kill(actors: list[Any]) -> None:
    import ray

    for actor in actors if ray.is_initialized() else []:
        with suppress(Exception):  # the cluster may be gone already
            ray.kill(actor, no_restart=True)
