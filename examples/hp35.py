"""Villin headpiece HP35 (35 residues): a walk that turns its side chains, and a verdict on new structures.

    python examples/hp35.py                      some hours on two cores
    python examples/hp35.py --nanoseconds 100    more data, on a GPU
    python examples/hp35.py --quick              hardly any of it, to see that it runs

After Ctrl-C the same command goes on: dynamics, training and novelty keep what they have in the folder. The steps are
written out in `protein_recipe.py`.
"""

from __future__ import annotations

import protein_recipe

from openmm_bg.systems import villin


def main() -> None:
    parser = protein_recipe.parser(__doc__, folder="hp35", nanoseconds=1.0, seconds=1200.0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)

    # The structure comes with OpenMM, its water is left out. Heavy hydrogens allow steps of 4 fs.
    molecule = villin(hydrogen_mass=3.0)
    print(f"{molecule.n_atoms} atoms")
    data = protein_recipe.dynamics(molecule, options)
    generator = protein_recipe.trained(molecule, data, options)
    print(f"{generator.n_generated} of {generator.n_dof} coordinates are generated")

    # Draws of a whole protein are hardly ever accepted. A walk moves one side chain, or a stretch of the backbone.
    protein_recipe.walk(molecule, generator, data, options)

    # Is anything that the generator draws a state of its own that the data did not have?
    protein_recipe.new_structures(molecule, generator, data, options)


if __name__ == "__main__":
    main()
