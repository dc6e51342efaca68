"""The inference stage: features to predictions by versioned ONNX models."""
