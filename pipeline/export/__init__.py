"""From a network to a file: ONNX, TensorRT, ExecuTorch."""
