"""``python -m service.worker_process CONFIG SOCKET MARK``: the process that owns a device.

Only the service starts it, with the descriptors of an open socket and of a page. It holds engines and nothing
else, so that whatever a library does to it, the service goes on; and it ends with the service.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import socket
import sys
from typing import NoReturn

import structlog

from service.core.device.device import Device
from service.core.device.engine import DeviceLostError
from service.core.device.ipc import IpcError
from service.core.device.worker_connection import BatchJobMark
from service.core.device.worker_loop import WorkerLoop
from service.core.memory import limit_heaps
from service.engines import late_builder
from service.telemetry import configure_logging
from service.worker_config import WorkerConfig

EXIT_GARBAGE = 65
EXIT_DEVICE_LOST = 70

_log = structlog.get_logger()

_PR_SET_PDEATHSIG = 1


def main() -> NoReturn:
    """Serve the process that started this one, until it is gone."""
    limit_heaps()
    _end_with_parent()
    _leave_signals_to_parent()
    faulthandler.enable()
    text, link, mark = sys.argv[1:]
    config = WorkerConfig.from_json(text)
    os.nice(config.niceness)  # before there is any other thread: each inherits it
    configure_logging(config.log)
    structlog.contextvars.bind_contextvars(worker=os.getpid())
    with socket.socket(fileno=int(link)) as connection:
        code = _serve(config, connection, BatchJobMark(int(mark)))
    sys.stderr.flush()
    os._exit(code)  # libraries of devices have been seen to hang in their last moments


def _serve(config: WorkerConfig, connection: socket.socket, mark: BatchJobMark) -> int:
    device = Device(late_builder(config.engine), config.options)
    loop = WorkerLoop(connection, mark, device)
    try:
        loop.serve()
    except IpcError as error:
        _log.error("the service sent garbage", reason=str(error))
        return EXIT_GARBAGE
    except DeviceLostError as error:
        _log.error("the device is lost", reason=str(error))
        return EXIT_DEVICE_LOST
    return 0


def _end_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it is gone: also if it is killed."""
    c_library = ctypes.CDLL(None)
    if hasattr(c_library, "prctl"):
        c_library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _leave_signals_to_parent() -> None:
    """Go on while the service drains: Ctrl-C and some service managers signal every process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


if __name__ == "__main__":
    main()
