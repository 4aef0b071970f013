from __future__ import annotations

import subprocess
import sys

FROZEN = """
import gc
import weakref
from service.core.memory import frozen_objects

class Knot:
    def __init__(self):
        self.me = self

lost = weakref.ref(Knot())
old = Knot()
watch = weakref.ref(old)
gc.disable()
with frozen_objects():
    assert lost() is None, "unreferenced objects are collected first"
    del old
    gc.collect()
    assert watch() is not None, "what was alive then is not looked at"
    newer = weakref.ref(Knot())
    gc.collect()
    assert newer() is None, "what came later is"
gc.collect()
assert watch() is None, "in the end everything is"
"""


def test_old_objects_are_not_looked_at_again_and_new_ones_are() -> None:
    done = subprocess.run([sys.executable, "-c", FROZEN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
