"""Write the Python code of the wire format: ``generate_wire.py FOLDER`` fills ``FOLDER/service/wire``.

Each protocol's file gets the name that it shall have as a module, so that the generated imports are right.
"""

from __future__ import annotations

import sys
from pathlib import Path

from grpc_tools import protoc

_ROOT = Path(__file__).parents[1]
_SOURCES = (_ROOT / "proto" / "segmentation" / "v1", _ROOT / "proto" / "inference")
_PACKAGE = "service/wire"
_GENERATORS = ("python", "grpc_python", "mypy", "mypy_grpc")


def main(folder: Path) -> int:
    """Generate messages and stubs, with their types; return the compiler's exit code."""
    (folder / _PACKAGE).mkdir(parents=True, exist_ok=True)
    well_known = Path(protoc.__file__).parent / "_proto"
    outputs = [f"--{generator}_out={folder}" for generator in _GENERATORS]
    return int(
        protoc.main(
            [
                "protoc",
                *(f"-I{_PACKAGE}={folder}" for folder in _SOURCES),
                f"-I{well_known}",
                *outputs,
                *(f"{_PACKAGE}/{file.name}" for folder in _SOURCES for file in folder.glob("*.proto")),
            ]
        )
    )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
