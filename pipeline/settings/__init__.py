"""What a user may set: the schema, how YAML and --set become it, how mistakes are explained."""
