#!/bin/sh
# Make one user and one database each for Airflow and MLflow. The image runs this once, when its data directory is empty.
# Neither user may enter the other's database. The passwords come by standard input, not by the command line.
set -eu
for name in airflow mlflow; do
    password=$(cat "${SECRETS:-/run/secrets}/${name}_database_password")
    psql --set ON_ERROR_STOP=1 --quiet --username "${POSTGRES_USER:-postgres}" --dbname postgres <<SQL
CREATE USER $name PASSWORD '$password';
CREATE DATABASE $name OWNER $name;
REVOKE CONNECT ON DATABASE $name FROM PUBLIC;
SQL
done
