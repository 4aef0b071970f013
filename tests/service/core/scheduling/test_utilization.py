from __future__ import annotations

from service.core.scheduling.utilization import UtilizationMeter


def test_a_device_is_as_busy_as_its_last_ten_seconds() -> None:
    meter = UtilizationMeter()
    assert meter.ratio(now_s=100) == 0
    meter.add_batch(2.0, now_s=101)
    meter.add_batch(3.0, now_s=105)
    assert meter.ratio(now_s=105) == 0.5
    assert meter.ratio(now_s=111) == 0.3
    assert meter.ratio(now_s=200) == 0


def test_no_device_is_busier_than_always() -> None:
    meter = UtilizationMeter()
    meter.add_batch(60.0, now_s=1)
    assert meter.ratio(now_s=1) == 1
