from __future__ import annotations

import subprocess
import sys

FROZEN = """
import gc
import weakref
from service.core.memory import freeze_objects

class Knot:
    def __init__(self):
        self.me = self

kept, lost = Knot(), Knot()
watch = weakref.ref(lost)
del lost
gc.disable()
freeze_objects()
assert watch() is None, "what nobody holds is collected first"
assert gc.get_freeze_count() > 1000
newer = weakref.ref(Knot())
gc.collect()
assert newer() is None, "and so is what comes later"
"""


def test_old_objects_are_not_looked_at_again_and_new_ones_are() -> None:
    done = subprocess.run([sys.executable, "-c", FROZEN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
