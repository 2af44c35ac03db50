"""Whose keys a fabric runs with: dealt on one machine, made by the seats on a cluster, and kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from daifi_flows import _bringup
from daifi_flows._home import Home, take_home
from daifi_flows.epochs import committee_fault
from daifi_flows.errors import ConfigError
from daifi_flows.judges import SeatKeys
from daifi_flows.keys import save_secret
from daifi_flows.settings import Settings
from daifi_flows.threshold import deal

committee_of = _bringup._committee  # pyright: ignore[reportPrivateUsage]
genesis_of = _bringup._genesis  # pyright: ignore[reportPrivateUsage]
make_key = _bringup._make_group_key  # pyright: ignore[reportPrivateUsage]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, seats=4, seat_hosts=2)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    taken = take_home(tmp_path)
    yield taken
    taken.close()


def test_on_one_machine_the_key_is_dealt_and_kept(home: Home, settings: Settings) -> None:
    committee = committee_of(home, settings, dealer=True)
    assert committee_fault(committee) is None
    assert (home.keys / "seats" / "dealer").exists()
    genesis_of(home, settings, committee)
    for dealer in (True, False):  # the same home on a cluster keeps its committee
        assert committee_of(home, settings, dealer=dealer) == committee
        genesis_of(home, settings, committee)


def test_another_seat_count_is_another_committee(home: Home, settings: Settings) -> None:
    genesis_of(home, settings, committee_of(home, settings, dealer=True))
    more = settings.model_copy(update={"seats": 7})
    with pytest.raises(ConfigError, match="has another committee of 4 seats"):
        genesis_of(home, more, committee_of(home, more, dealer=True))


def test_a_home_whose_seats_lack_shares_starts_while_a_quorum_has_theirs(
    home: Home, settings: Settings
) -> None:
    """A seat that was away when the key was made gets none."""
    folder = home.keys / "seats"
    committee = committee_of(home, settings, dealer=True)
    genesis_of(home, settings, committee)
    (folder / "dealer").unlink()  # as if the seats had made the key
    SeatKeys.share_path(folder, 2).unlink()
    assert committee_of(home, settings, dealer=False) == committee
    SeatKeys.share_path(folder, 1).write_bytes(SeatKeys.share_path(folder, 0).read_bytes())
    with pytest.raises(ConfigError, match="2 seats in"):
        committee_of(home, settings, dealer=False)
    more = settings.model_copy(update={"seats": 7})
    with pytest.raises(ConfigError, match="has another committee of 4 seats"):
        committee_of(home, more, dealer=False)


def test_seats_make_their_key_where_a_start_was_broken_off(home: Home, settings: Settings) -> None:
    """A dealer's seed that no ledger began with must not deal over what the seats make later."""
    folder = home.keys / "seats"
    committee_of(home, settings, dealer=True)
    bare = committee_of(home, settings, dealer=False)
    assert bare.group_key is None
    dealing = deal(b"as if the seats had made it".ljust(32), 4, 3)
    seats = tuple(
        seat.model_copy(update={"share": share})
        for seat, share in zip(bare.seats, dealing.shares, strict=True)
    )
    made = bare.model_copy(update={"seats": seats, "group_key": dealing.group_key})
    for index, secret in enumerate(dealing.secrets):
        save_secret(SeatKeys.share_path(folder, index), secret.secret)
    genesis_of(home, settings, made)
    for dealer in (True, False):
        assert committee_of(home, settings, dealer=dealer) == made


@pytest.mark.slow
def test_on_a_cluster_the_seats_make_the_key_which_is_kept(
    ray_cluster: None, home: Home, settings: Settings
) -> None:
    folder = home.keys / "seats"
    bare = committee_of(home, settings, dealer=False)
    assert bare.group_key is None
    committee = make_key(home, settings, bare, {})
    assert committee_fault(committee) is None
    assert not (folder / "dealer").exists()
    genesis_of(home, settings, committee)
    for dealer in (True, False):
        assert committee_of(home, settings, dealer=dealer) == committee
    shares = [SeatKeys.share_path(folder, index) for index in range(4)]
    for share in shares:  # each is also where the key generation left it
        share.unlink()
    assert committee_of(home, settings, dealer=False) == committee
    (home.root / "genesis.cbor").write_bytes(b"broken")
    with pytest.raises(ConfigError, match="damaged"):
        committee_of(home, settings, dealer=False)
