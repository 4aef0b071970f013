"""``python -m service.worker_process CONFIG SOCKET MARK``: the process that owns a device.

Only the service starts it, with the descriptors of an open socket and of a page. It holds engines and nothing
else, so that whatever a library does to it, the service goes on; and it ends with the service.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
from typing import NoReturn

import structlog

from service.core.child_process import end_with_parent, leave_signals_to_parent
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


def main() -> NoReturn:
    """Serve the process that started this one, until it is gone."""
    limit_heaps()
    end_with_parent()
    leave_signals_to_parent()
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


if __name__ == "__main__":
    main()
