"""Print what an image installs beside the code: the dependencies of the project, and those of named extras.

python requirements.py [EXTRA...]
"""

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROJECT: dict[str, Any] = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]


def of_extra(name: str) -> Iterator[str]:
    """Yield the requirements of an extra, those of the extras that it names included."""
    for requirement in PROJECT["optional-dependencies"][name]:
        package, _, extras = requirement.partition("[")
        if package == PROJECT["name"]:
            for extra in extras.removesuffix("]").split(","):
                yield from of_extra(extra)
        else:
            yield requirement


if __name__ == "__main__":
    print(*PROJECT["dependencies"], sep="\n")
    for asked in sys.argv[1:]:
        print(*of_extra(asked), sep="\n")
