"""``python -m service.worker_process CONFIG SOCKET RECORD``: the process that owns a device.

The service starts it with the descriptors of an open socket and of an execution record. A library that
crashes takes this process with it and not the service. It ends with the service.
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
from service.core.device.worker_connection import ExecutionRecord
from service.core.device.worker_loop import WorkerLoop
from service.core.memory import limit_heaps
from service.engines import late_builder
from service.telemetry import configure_logging
from service.worker_config import WorkerConfig

EXIT_INVALID_MESSAGE = 65
EXIT_DEVICE_LOST = 70

_log = structlog.get_logger()


def main() -> NoReturn:
    """Run batches for the parent process until it ends."""
    limit_heaps()
    end_with_parent()
    leave_signals_to_parent()
    faulthandler.enable()
    text, connection_fd, record_fd = sys.argv[1:]
    config = WorkerConfig.from_json(text)
    os.nice(config.niceness)  # before any other thread starts: threads inherit it
    configure_logging(config.log)
    structlog.contextvars.bind_contextvars(worker=os.getpid())
    with socket.socket(fileno=int(connection_fd)) as connection:
        code = _serve(config, connection, ExecutionRecord(int(record_fd)))
    sys.stderr.flush()
    os._exit(code)  # libraries of devices have hung at their exit


def _serve(config: WorkerConfig, connection: socket.socket, record: ExecutionRecord) -> int:
    device = Device(late_builder(config.engine), config.options, compiles_for_service=True)
    loop = WorkerLoop(connection, record, device)
    try:
        loop.serve()
    except IpcError as error:
        _log.error("the service sent an invalid message", reason=str(error))
        return EXIT_INVALID_MESSAGE
    except DeviceLostError as error:
        _log.error("device lost", reason=str(error))
        return EXIT_DEVICE_LOST
    return 0


if __name__ == "__main__":
    main()
