"""Generated from ``proto/``: messages and stubs of the gRPC interface. Do not edit; ``make proto``."""
