"""A service that is started for a measurement."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.request import urlopen

import pytest

from service.cli.bench.load import RefusedError
from service.cli.bench.own_service import ProcessorTimes, ServiceWatch, own_service


@pytest.fixture(autouse=True)
def _environment(
    environment: dict[str, str], shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolated = {"HOME": str(tmp_path), "BISENET_MODELS__CACHE_FOLDER": str(shared_cache)}
    for name, value in {**environment, **isolated}.items():
        monkeypatch.setenv(name, value)


def test_a_service_runs_as_long_as_the_context_and_can_be_watched(tmp_path: Path) -> None:
    with own_service(["--precision", "f32"]) as service:
        with urlopen(f"{service.url}/readyz") as answer:
            assert json.load(answer)["models"][0]["name"] == "pooling"
        assert service.grpc_address.startswith("127.0.0.1:")
        watch = ServiceWatch(service)
        times = watch.processor_times()
        assert times.service_s > times.decode_s == times.encode_s == 0.0
        assert times.workers_s > 0.0
        assert watch.rss_mb() > 10
    assert not Path(f"/proc/{service.pid}").exists()
    assert not (tmp_path / ".local/share/bisenet/admin-token").exists()


def test_a_service_that_does_not_start_says_so() -> None:
    with pytest.raises(RefusedError, match="did not start"), own_service(["--precision", "f64"]):
        pass


def test_the_overhead_is_neither_decoding_nor_encoding() -> None:
    earlier, later = ProcessorTimes(1.0, 1.0, 0.5, 0.25), ProcessorTimes(11.0, 8.0, 4.5, 2.25)
    assert later - earlier == ProcessorTimes(10.0, 7.0, 4.0, 2.0)
    assert (later - earlier).overhead_s == 4.0
