#!/bin/sh
# Entry point of every Airflow container: `entrypoint.sh init`, or an airflow command such as `scheduler`.
set -eu

if [ "$1" = init ]; then # runs once before the others start; every step may be repeated
    mkdir -p "$FLYWEIGHT_TRITON_REPOSITORY"
    airflow db migrate
    exec python /opt/flyweight/infra/airflow/pools.py
fi

if [ -f /run/secrets/airflow_passwords ]; then # SimpleAuthManager opens the file for writing, and a secret is read-only
    (umask 077 && cat /run/secrets/airflow_passwords >"$AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE")
fi
if [ -f /run/secrets/triton_control_key ]; then # where promotion looks for the key to Triton's model control
    ln -sf /run/secrets/triton_control_key "$FLYWEIGHT_HOME/triton.key"
fi
exec airflow "$@"
