"""What a file that must be light may not import."""

HEAVY = ("torch", "mlflow", "great_expectations", "onnx", "onnxruntime", "pandas", "sklearn", "dvc", "tritonclient")
