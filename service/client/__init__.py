"""Typed clients of the service, for HTTP and gRPC."""
