"""The documentation is true: its Python blocks run, its commands run, its links lead somewhere."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])

# What makes the blocks quick: sizes only, never calls. Each must be found in some page (test below).
QUICK = {
    r"max_seconds=\d+": "max_seconds=3",
    r"n_steps=400_000": "n_steps=20_000",
    r"n_iterations=\d+": "n_iterations=2",
    r"\.sample\([\d_]+": ".sample(500",
}
QUICK_OPTIONS = {
    "demo": ["--quick"],
    "simulate": ["--quick", "--seconds", "2"],
    "train": ["--quick", "--seconds", "4"],
    "sample": ["--quick", "--seconds", "2"],
}


def blocks(page: Path, language: str) -> list[str]:
    """Code blocks of one language, in order."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(code) for _, code in found]


def pages_with(language: str, needle: str = "") -> list[Path]:
    return [page for page in PAGES if any(needle in block for block in blocks(page, language))]


def commands(page: Path, name: str) -> list[list[str]]:
    """Shell commands `name ...` of a page, without comments."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))[:1] == [name]]


def quick(code: str) -> str:
    for pattern, replacement in QUICK.items():
        code = re.sub(pattern, replacement, code)
    return code


@pytest.mark.parametrize("page", pages_with("python"), ids=lambda page: page.name)
def test_python_blocks_run_in_order(
    page: Path, ala2_generator_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ala2_generator_file, tmp_path / "ala2.bg")
    namespace: dict[str, object] = {"__name__": "__main__"}
    for number, code in enumerate(blocks(page, "python"), start=1):
        exec(compile(quick(code), f"{page.name}, Python block {number}", "exec"), namespace)


def test_stored_replica_exchange_resumes_in_another_process(ala2_generator_file: Path, tmp_path: Path) -> None:
    shutil.copy(ala2_generator_file, tmp_path / "ala2.bg")
    codes = [quick(code) for code in blocks(ROOT / "docs" / "add_to_your_script.md", "python")]
    resume = next(number for number, code in enumerate(codes) if "from_storage" in code)
    for script in ("\n".join(codes[:resume]), codes[resume]):
        script += "\nprint('iteration', sampler.iteration)"
        command = [sys.executable, "-c", script]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
    assert "iteration 6" in ran.stdout


def test_every_quick_setting_is_used() -> None:
    code = "\n".join(block for page in PAGES for block in blocks(page, "python"))
    assert [pattern for pattern in QUICK if not re.search(pattern, code)] == []


def test_commands_run_in_order(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("openmm-bg")
    done = []
    for words in (words for page in PAGES for words in commands(page, "openmm-bg")):
        if words in done:
            continue
        done.append(words)
        command = [program, *words[1:], *QUICK_OPTIONS.get(words[1], [])]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, f"{shlex.join(words)} failed:\n{ran.stdout}\n{ran.stderr}"
    assert {words[1] for words in done} == {"demo", "simulate", "train", "sample", "report", "info"}


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p, "make")], ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {word for words in commands(page, "make") for word in words[1:] if "=" not in word}
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize(
    "package",
    ["", ".analysis", ".coordinates", ".flows", ".moves", ".potentials", ".report", ".systems", ".training"],
)
def test_api_page_names_every_public_name(package: str) -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    public = importlib.import_module(f"openmm_bg{package}").__all__
    assert [name for name in public if not re.search(rf"\b{name}\b", page)] == []


def test_figures_of_a_run_are_set_beside_replica_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs" / "images")
    figures = importlib.import_module("demo_figures")
    summary = {
        "fraction_accepted": 0.512,
        "ess_fraction": 0.42,
        "pareto_k": 0.31,
        "largest_weight": 0.001,
        "n_round_trips": {"bg_langevin": 1234, "langevin": 0},
        "crossing_rate_upper_bound_per_s": {"langevin": 0.0856},
        "phi_positive_population": {
            "bg_langevin": {"value": 0.026, "error": 0.003},
            "langevin": {"value": 0.0, "error": None},
            "reweighted_generator": {"value": 0.020, "error": 0.0},
        },
        "acceptance_by_basin": {"alpha_L": {"value": 0.4, "error": 0.02, "n_proposed": 1500}},
        "wall_time_s": {"total": 250.0, "train": 150.0, "sample": 100.0, "langevin": 100.0},
        "energy_evaluations": {"train": 150000},
        "platform": "Reference",
        "seed": 1,
        "versions": {"openmm": "8.6.1"},
        "verdict_sentence": "Believe these numbers.",
    }
    reference = json.loads((ROOT / "benchmarks" / "results" / "replica_exchange_ala2.json").read_text())
    reference["populations_mbar"]["phi_positive"] = {"value": 0.016, "error": 0.004}
    tables = figures.tables(summary, reference, "a machine")
    assert "| BG + Langevin | 2.60 ± 0.30 % | +2.0 standard errors |" in tables
    assert "| Langevin alone | never visited | cannot tell |" in tables
    assert "| Reweighted generator | 2.00 ± 0.00 % | +1.0 standard errors |" in tables
    assert "0; at most 0.09 crossings per second (95 %)" in tables
    assert "| langevin, beside sample | 100 |  |" in tables
    paragraph = figures.paragraph(summary, reference, "a machine")
    assert "51 %" in paragraph
    readme = (ROOT / "README.md").read_text()
    written = figures.between_markers(readme, paragraph)
    assert paragraph in written
    assert figures.between_markers(written, "") == figures.between_markers(readme, "")
    with pytest.raises(ValueError, match="demo:begin"):
        figures.between_markers("no markers", paragraph)
