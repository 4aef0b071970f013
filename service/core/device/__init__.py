"""One device: the engine interface, its worker process, IPC, batches to labels."""
