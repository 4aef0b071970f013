"""The Open Inference Protocol v2 without a transport: tensors to pictures, answers to tensors."""
