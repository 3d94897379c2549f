"""Boltzmann generators as exact Monte Carlo moves for OpenMM."""
