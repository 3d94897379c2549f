"""Training of Boltzmann generators: data, losses, stages and the loop that runs them."""
