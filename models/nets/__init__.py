"""One file a family; ``models.zoo`` gives the networks their names."""
