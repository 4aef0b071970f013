"""Run other people's clients against one real service: ``make clients``, or ``run_clients.py NAME...``.

Each folder here with a ``run.py`` or a ``run.mjs`` is one client. Its packages (``requirements.txt`` or
``package.json``) are installed into an environment of its own under ``build/clients``, because clients need
versions that exclude each other. The script finds the service by these variables:

    CLIENTS_URL       of the HTTP port
    CLIENTS_GRPC      HOST:PORT of the gRPC port
    CLIENTS_MODEL     name of the default model
    CLIENTS_PICTURE   a JPEG file of 360x640 pixels
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "clients"
PICTURE = ROOT / "service" / "page" / "examples" / "crossing.jpg"
START_S = 300.0
RUN_S = 600.0


def main(names: list[str]) -> int:
    """Run the clients with these names, or all; return how many failed."""
    folders = sorted(script.parent for script in HERE.glob("*/run.*"))
    if unknown := set(names) - {folder.name for folder in folders}:
        raise SystemExit(f"no client {', '.join(sorted(unknown))}: there are {[f.name for f in folders]}")
    wanted = [folder for folder in folders if folder.name in names or not names]
    commands = {folder: installed(folder) for folder in wanted}
    with running_service() as variables:
        failed = [one.name for one, command in commands.items() if not passes(one, command, variables)]
    for name in failed:
        print(f"FAILED {name}")
    print(f"{len(wanted) - len(failed)} passed, {len(failed)} failed")
    return len(failed)


def installed(folder: Path) -> list[str]:
    """Install what a client needs, unless it is there; return the command that runs it."""
    print(f"installing {folder.name}", flush=True)
    home = BUILD / folder.name
    home.mkdir(parents=True, exist_ok=True)
    return _node(folder, home) if (folder / "run.mjs").exists() else _python(folder, home)


def _python(folder: Path, home: Path) -> list[str]:
    python, stamp, needed = home / "bin" / "python", home / "installed.txt", folder / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != needed.read_text():
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-input", "-r", needed], check=True)
        shutil.copy(needed, stamp)
    return [str(python), str(folder / "run.py")]


def _node(folder: Path, home: Path) -> list[str]:
    # Node.js looks for packages beside the script.
    for file in folder.iterdir():
        shutil.copy(file, home)
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=home, check=True)
    return ["node", str(home / "run.mjs")]


@contextmanager
def running_service() -> Iterator[Mapping[str, str]]:
    """Serve the shipped model on free ports; yields the variables of the clients."""
    with TemporaryDirectory() as folder:
        ready = Path(folder, "ready.json")
        settings = {
            "BISENET_REGISTRY": str(Path(folder, "registry")),
            "BISENET_JOBS__MODE": "off",
            "BISENET_MODELS__PRECISION": "f32",
            "BISENET_SERVER__LAME_DUCK_S": "0",
        }
        ports = ["--http-port", "0", "--grpc-port", "0", "--admin-port", "0"]
        command = [sys.executable, "-m", "bisenet", "serve", *ports, "--ready-file", str(ready)]
        log = BUILD / "service.log"
        with log.open("w") as stderr:
            service = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **settings}, stdout=subprocess.DEVNULL, stderr=stderr
            )
        try:
            yield _variables(service, ready, log)
        finally:
            service.terminate()
            service.wait()


def _variables(service: subprocess.Popen[bytes], ready: Path, log: Path) -> Mapping[str, str]:
    given_up_s = time.monotonic() + START_S
    while not ready.exists():
        if service.poll() is not None or time.monotonic() > given_up_s:
            raise SystemExit(f"the service did not start; its log is {log}")
        time.sleep(0.1)
    document = json.loads(ready.read_text())
    return {
        "CLIENTS_URL": document["url"],
        "CLIENTS_GRPC": document["grpc_address"],
        "CLIENTS_MODEL": "camvid",
        "CLIENTS_PICTURE": str(PICTURE),
    }


def passes(folder: Path, command: list[str], variables: Mapping[str, str]) -> bool:
    """Run one client; its exit code says whether it got what it should."""
    print(f"running {folder.name}", flush=True)
    environment = {**os.environ, **variables, "PATH": f"{Path(command[0]).parent}:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    try:
        done = subprocess.run(command, cwd=BUILD / folder.name, env=environment, timeout=RUN_S, check=False)
    except subprocess.TimeoutExpired:
        print(f"{folder.name} did not end within {RUN_S:g} s")
        return False
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
