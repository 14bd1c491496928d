"""The training engine: recipe, schedule, data and the loop. A network, clips and a validation come in as arguments."""
