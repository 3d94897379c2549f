"""Chignolin CLN025 (10 residues): a walk that turns its side chains, and a verdict on new structures.

    python examples/chignolin.py                      four times ten minutes or more on two cores
    python examples/chignolin.py --nanoseconds 100    more data, on a GPU
    python examples/chignolin.py --quick              hardly any of it, to see that it runs

After Ctrl-C the same command goes on: dynamics, training and novelty keep what they have in the folder. The steps are
written out in `protein_recipe.py`.
"""

from __future__ import annotations

import protein_recipe

from openmm_bg.systems import chignolin


def main() -> None:
    parser = protein_recipe.parser(__doc__, folder="chignolin", nanoseconds=4.0, seconds=600.0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)

    # The folded hairpin comes with the package. Heavy hydrogens allow steps of 4 fs.
    molecule = chignolin(hydrogen_mass=3.0)
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
