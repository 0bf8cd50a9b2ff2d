"""What is kept in MLflow: runs, artifact reuse and the registry."""
