#!/bin/sh
# Serve MLflow from PostgreSQL. The connection is read from a secret into the environment, not into the command line,
# where every process of the host could see it.
set -eu
MLFLOW_BACKEND_STORE_URI=$(cat "${SECRETS:-/run/secrets}/mlflow_database_uri")
export MLFLOW_BACKEND_STORE_URI
exec mlflow server --host 0.0.0.0 --port 5000 --serve-artifacts --artifacts-destination /var/lib/mlflow/artifacts
