"""MLflow, Triton and Airflow on this machine: started, watched, stopped."""
