"""From torch to an artifact: OpenVINO, ONNX, int8."""
