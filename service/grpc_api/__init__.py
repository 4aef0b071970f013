"""The gRPC frontend: pictures and streams of frames."""
