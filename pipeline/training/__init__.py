"""A network fitted to data, alone or with a teacher."""
