"""What the look-up of a key and its limits add to a request.

    python benchmarks/key_limits.py [--keys N]

Admits and ends requests of one of ``--keys`` keys of a keys file. Prints the processor time of one request in
microseconds, as the median of 9 rounds, for a key without limits and for one with both.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import msgspec

from service.core.keys.access_key import AccessKey
from service.core.keys.key_ring import KeyRing

ROUNDS = 9
REQUESTS = 20_000


def main() -> None:
    """Measure both kinds of keys in turn."""
    parser = argparse.ArgumentParser(description="Time the check of an API key.")
    parser.add_argument("--keys", type=int, default=1000, help="in the keys file")
    arguments = parser.parse_args()
    plain = AccessKey.of_secret("plain", name="plain")
    limited = msgspec.structs.replace(
        AccessKey.of_secret("limited", name="limited"), rate_per_s=1e6, concurrency=64
    )
    others = [AccessKey.of_secret(f"secret-{n}", name=f"other-{n}") for n in range(arguments.keys - 2)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "keys")
        file.write_bytes(b"\n".join(map(msgspec.json.encode, (plain, limited, *others))))
        ring = KeyRing((), file)
        times_us: dict[str, list[float]] = {"plain": [], "limited": []}
        for _ in range(ROUNDS):
            for secret, found in times_us.items():
                found.append(_request_us(ring, secret))
    for secret, found in times_us.items():
        print(f"{secret:<8} {median(found):6.2f} us a request ({min(found):.2f} to {max(found):.2f})")


def _request_us(ring: KeyRing, secret: str) -> float:
    authorization = f"Bearer {secret}"
    started_s = time.process_time()
    for _ in range(REQUESTS):
        ring.admit(authorization, "infer", needed="").leave()
    return 1e6 * (time.process_time() - started_s) / REQUESTS


if __name__ == "__main__":
    main()
