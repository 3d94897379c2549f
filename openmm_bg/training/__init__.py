"""Training of Boltzmann generators: data, losses, stages and the loop that runs them."""

from openmm_bg.training.fitting import fit, train
from openmm_bg.training.held_out import HeldOutNLL, held_out_nll
from openmm_bg.training.history import TrainingHistory
from openmm_bg.training.map_training import train_map
from openmm_bg.training.maps import FlowMap
from openmm_bg.training.paper_recipe import paper_stages
from openmm_bg.training.stages import Stage, default_stages

__all__ = [
    "FlowMap",
    "HeldOutNLL",
    "Stage",
    "TrainingHistory",
    "default_stages",
    "fit",
    "held_out_nll",
    "paper_stages",
    "train",
    "train_map",
]
