"""The staged training of the first Boltzmann generators of proteins (Kim et al. 2024, arXiv 2401.04246)."""

from __future__ import annotations

from openmm_bg.training.stages import Stage


def paper_stages(scale: float = 1.0, *, w2: float = 1000.0, reverse_kl: float = 0.003) -> tuple[Stage, ...]:
    """Likelihood of the data; with W2 of backbone distances; with reverse KL too; then without W2.

    The order of the losses is the paper's. Steps, rates and weights are ours: it does not give them. The last stage is
    short: without W2 reverse KL lets the backbone of a protein expand. Use it with data at the generator's own
    temperature.

    Parameters
    ----------
    scale : float
        Multiplies the number of steps of each stage.
    w2, reverse_kl : float
        Weights of these losses beside one of the likelihood. Without one of them there are two stages: the likelihood,
        and with it the other one.

    Returns
    -------
    tuple of Stage
        "nll", "nll + w2", "nll + w2 + kl", "nll + kl".
    """

    def steps(n: int) -> int:
        return max(1, round(n * scale))

    both, kl = w2 and reverse_kl, reverse_kl
    together = "nll + w2 + kl" if w2 else "nll + kl"
    stages = (
        (True, Stage("nll", steps(4000), nll=1.0, learning_rate=(4e-3, 5e-4), patience=10)),
        (w2, Stage("nll + w2", steps(2000), nll=1.0, w2=w2, learning_rate=(1e-3, 2e-4))),
        (kl, Stage(together, steps(1000), nll=1.0, w2=w2, reverse_kl=kl, learning_rate=(5e-4, 1e-4))),
        (both, Stage("nll + kl", steps(250), nll=1.0, reverse_kl=kl, learning_rate=(1e-4, 1e-5))),
    )
    return tuple(stage for is_wanted, stage in stages if is_wanted)
