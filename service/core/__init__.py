"""The service without its frontends: no FastAPI, no gRPC, no pydantic."""
