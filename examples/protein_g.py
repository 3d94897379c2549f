"""Protein G's B1 domain (56 residues), or a protein of your own: from a PDB file to a walk, and new structures.

    python examples/protein_g.py 1PGA.pdb                      many hours on two cores
    python examples/protein_g.py 1PGA.pdb --nanoseconds 100    more data, on a GPU
    python examples/protein_g.py 1PGA.pdb --quick              hardly any of it, to see that it runs

After Ctrl-C the same command goes on: dynamics, training and novelty keep what they have in the folder. The steps are
written out in `protein_recipe.py`.
"""

from __future__ import annotations

import protein_recipe

from openmm_bg.systems import from_pdb


def main() -> None:
    parser = protein_recipe.parser(__doc__, folder="protein_g", nanoseconds=1.0, seconds=1800.0)
    parser.add_argument("pdb", help="structure of the B1 domain, or of another protein of one chain")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)

    # A crystal structure has water and no hydrogens. `docs/proteins.md` says what else a file may need.
    molecule = from_pdb(options.pdb, remove_solvent=True, add_hydrogens=True, hydrogen_mass=3.0)
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
