"""What each part of the paper's generator is worth (arXiv 2401.04246), measured: rows of losses and flows."""
