"""Keys open what they are for, until they expire or are revoked, and as often as they may."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import msgspec
import pytest
import throttled.utils
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from service.core.errors import ForbiddenError, RateLimitedError, UnauthenticatedError
from service.core.keys.access_key import AccessKey
from service.core.keys.key_file import KeyFileError, add_key, revoke_key
from service.core.keys.key_ring import Admission, KeyRing

NEEDED = "a key is needed"


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def admitted(ring: KeyRing, secret: str, scope: str = "infer") -> Admission:
    return ring.admit(f"Bearer {secret}", scope, needed=NEEDED)  # type: ignore[arg-type]


def limited(**limits: object) -> KeyRing:
    return KeyRing([msgspec.structs.replace(AccessKey.of_secret("s", name="one"), **limits)])


@pytest.mark.parametrize("value", ["Bearer first-key", "bearer second-key", "Bearer  first-key "])
def test_each_key_is_found(value: str) -> None:
    ring = KeyRing([AccessKey.of_secret("first-key"), AccessKey.of_secret("second-key")])
    assert ring.admit(value, "infer", needed=NEEDED).key.sha256


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer first-ke", "Bearer first-key2", "Basic first-key", "first-key", "Bearer é"],
)
def test_nothing_else_is(value: str) -> None:
    with pytest.raises(UnauthenticatedError, match=NEEDED):
        KeyRing([AccessKey.of_secret("first-key")]).admit(value, "infer", needed=NEEDED)


@given(
    scopes=st.lists(st.sampled_from(["infer", "stream", "admin", "metrics"]), min_size=1, unique=True),
    wanted=st.sampled_from(["infer", "stream", "admin", "metrics"]),
)
def test_a_key_opens_its_scopes_and_nothing_else(scopes: list[str], wanted: str) -> None:
    ring = KeyRing([AccessKey.of_secret("s", tuple(scopes))])  # type: ignore[arg-type]
    if wanted in scopes:
        assert admitted(ring, "s", wanted).key.scopes == tuple(scopes)
    else:
        with pytest.raises(ForbiddenError, match=f"lacks the scope {wanted}"):
            admitted(ring, "s", wanted)


def test_a_key_is_valid_until_the_second_in_which_it_expires() -> None:
    expires = dt.datetime(2027, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    key = msgspec.structs.replace(AccessKey.of_secret("s", name="old"), expires=expires)
    before = KeyRing([key], now=lambda: expires - dt.timedelta(microseconds=1))
    assert admitted(before, "s").key == key
    with pytest.raises(UnauthenticatedError, match="old has expired"):
        admitted(KeyRing([key], now=lambda: expires), "s")


def test_keys_are_added_and_revoked_without_a_restart(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys", Clock()
    add_key(path, AccessKey.of_secret("old", name="old"))
    ring = KeyRing([AccessKey.of_secret("fixed")], path, clock=clock)
    add_key(path, AccessKey.of_secret("new", name="new"))
    with pytest.raises(UnauthenticatedError):
        admitted(ring, "new")  # the file is looked at once a second
    clock.now_s += 1
    assert admitted(ring, "new").key.name == "new"
    revoke_key(path, "old")
    clock.now_s += 1
    with pytest.raises(UnauthenticatedError):
        admitted(ring, "old")
    assert admitted(ring, "new").key.name == "new"
    assert admitted(ring, "fixed").key.name.startswith("key-")


def test_a_file_whose_last_key_is_revoked_opens_nothing(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys", Clock()
    add_key(path, AccessKey.of_secret("only", name="only"))
    ring = KeyRing((), path, clock=clock)
    revoke_key(path, "only")
    clock.now_s += 1
    for authorization in ("Bearer only", "Bearer ", ""):
        with pytest.raises(UnauthenticatedError):
            ring.admit(authorization, "infer", needed=NEEDED)


@pytest.mark.parametrize("breakage", ["malformed", "gone"])
def test_a_file_that_breaks_leaves_the_keys_as_they_are_and_says_so_once(
    breakage: str, tmp_path: Path
) -> None:
    path, clock = tmp_path / "keys", Clock()
    add_key(path, AccessKey.of_secret("s", name="one"))
    ring = KeyRing((), path, clock=clock)
    if breakage == "gone":
        path.unlink()
    else:
        path.write_text("{ this is no key")
    with capture_logs() as log:
        for _ in range(3):
            clock.now_s += 1
            assert admitted(ring, "s").key.name == "one"
    assert [entry["log_level"] for entry in log] == ["error"]
    path.unlink(missing_ok=True)
    add_key(path, AccessKey.of_secret("t", name="two"))
    clock.now_s += 1
    assert admitted(ring, "t").key.name == "two"


@pytest.mark.parametrize("content", ["", "\n \n", "two words\n"])
def test_a_file_without_a_usable_key_is_refused_at_the_start(content: str, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(KeyFileError, match="keys"):
        KeyRing((), path)


def test_a_key_has_no_more_requests_at_the_same_time_than_it_may() -> None:
    ring = limited(concurrency=2)
    first, _ = admitted(ring, "s"), admitted(ring, "s")
    with pytest.raises(RateLimitedError, match="2 requests at the same time"):
        admitted(ring, "s")
    first.leave()
    assert admitted(ring, "s")


def test_requests_that_are_open_still_count_after_another_key_was_added(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys", Clock()
    add_key(path, msgspec.structs.replace(AccessKey.of_secret("s", name="one"), concurrency=1))
    ring = KeyRing((), path, clock=clock)
    admitted(ring, "s")
    add_key(path, AccessKey.of_secret("t", name="two"))
    clock.now_s += 1
    admitted(ring, "t")
    with pytest.raises(RateLimitedError):
        admitted(ring, "s")


@pytest.mark.parametrize(("rate_per_s", "burst"), [(0.5, 1), (1, 1), (2.5, 3), (100, 100)])
def test_a_key_sends_a_burst_of_one_second_and_then_at_its_rate(
    rate_per_s: float, burst: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(throttled.utils, "now_mono_f", clock)
    ring = limited(rate_per_s=rate_per_s)
    for _ in range(burst):
        admitted(ring, "s")
    for _ in range(5):
        with pytest.raises(RateLimitedError, match=f"{rate_per_s:g} requests a second") as caught:
            admitted(ring, "s")
        assert caught.value.retry_after_s == pytest.approx(1 / rate_per_s, rel=1e-3)
        clock.now_s += 1.001 * caught.value.retry_after_s
        admitted(ring, "s")


def test_a_request_that_is_refused_does_not_count_as_open(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(throttled.utils, "now_mono_f", clock)
    ring = limited(rate_per_s=1, concurrency=1)
    admitted(ring, "s").leave()
    with pytest.raises(RateLimitedError):
        admitted(ring, "s")
    clock.now_s += 1.1
    assert admitted(ring, "s")


def test_keys_are_not_printed() -> None:
    ring = KeyRing([AccessKey.of_secret("hush-hush")])
    assert "hush" not in repr(ring)
    assert AccessKey.of_secret("hush-hush").sha256 not in repr(ring)
