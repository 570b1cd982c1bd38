"""Models of the SSD-2 family as ONNX graphs for devices without torch."""
