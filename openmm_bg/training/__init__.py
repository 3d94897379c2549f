"""Training of Boltzmann generators: data, losses, stages and the loop that runs them."""

from openmm_bg.training.fitting import fit, train
from openmm_bg.training.history import TrainingHistory
from openmm_bg.training.map_training import train_map
from openmm_bg.training.maps import FlowMap
from openmm_bg.training.stages import Stage, default_stages

__all__ = ["FlowMap", "Stage", "TrainingHistory", "default_stages", "fit", "train", "train_map"]
