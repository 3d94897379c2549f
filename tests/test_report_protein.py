"""The report of a protein: structures, fluctuations, contacts and energies, held against the numbers they stand for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from openmm_bg import BoltzmannGenerator
from openmm_bg.analysis import contact_difference, rmsf
from openmm_bg.report import RunFolder, write_report
from openmm_bg.report.records import Chain, Frames
from openmm_bg.report.results import read_results
from openmm_bg.report.viewer import scene
from openmm_bg.systems import MolecularSystem, peptide
from openmm_bg.training.data import SimulationCost, TrajectoryData

SECTIONS = ("structures", "fluctuations", "contacts", "energy-distributions")
VOID = {"meta", "br", "img", "hr", "input", "link"}
N_FRAMES = 40


class Page(HTMLParser):
    """Elements of a page, their texts by id, the cells of its tables; a tag that is not closed is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str | None]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, str] = {}
        self.rows: dict[str, list[list[str]]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        in_figure = any(name == "svg" for name, _ in self.open)  # matplotlib gives all figures the same ids
        found = None if in_figure else dict(attributes).get("id")
        if tag not in VOID:
            self.open.append((tag, found))
        if found is not None:
            assert found not in self.texts, f"the id {found} is there twice"
            self.texts[found] = ""
        table = self._within("table")
        if table and tag == "tr":
            self.rows.setdefault(table, []).append([])
        if table and tag in ("td", "th"):
            self.rows[table][-1].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        for _, found in self.open:
            if found is not None:
                self.texts[found] += data
        table = self._within("table")
        if table and self.open[-1][0] in ("td", "th"):
            self.rows[table][-1][-1] += data

    def _within(self, tag: str) -> str | None:
        return next((found for name, found in reversed(self.open) if name == tag), None)


@pytest.fixture(scope="module")
def tetrapeptide() -> MolecularSystem:
    return peptide("ACE-ALA-PHE-GLY-SER-NME")


def write_run(path: Path, molecule: MolecularSystem, frozen: str | None) -> RunFolder:
    """A folder with made-up frames about one structure, and an untrained generator."""
    rng = np.random.default_rng(1)
    folder = RunFolder.create(path)
    why = None
    folder.write_system(molecule)
    data = molecule.positions + 0.02 * rng.standard_normal((2, N_FRAMES // 2, molecule.n_atoms, 3))
    TrajectoryData(
        data, rng.normal(-100.0, 30.0, (2, N_FRAMES // 2)), 400.0, SimulationCost(1.0, 100, "Reference")
    ).save(folder.data_file)
    n = 2 * N_FRAMES
    nothing, no = np.zeros((n, 0)), np.zeros(n, dtype=bool)
    chain = Chain(nothing, nothing, rng.normal(-200.0, 20.0, n), no, no, no, np.arange(n) / 10.0, molecule.positions)
    chain.save(folder.chain_file)
    walked = molecule.positions + 0.01 * rng.standard_normal((N_FRAMES, molecule.n_atoms, 3))
    Frames(walked.astype(np.float32), 2 * np.arange(N_FRAMES), 2).save(folder.chain_frames_file)
    if frozen is not None:
        generator = BoltzmannGenerator.from_system(
            molecule.system, molecule.topology, 300.0, coordinates="reduced", frozen=frozen,
            positions=molecule.positions, seed=0,
        )  # fmt: skip
        generator.save(folder.generator_file)
        why = generator.why_no_density
    folder.update_settings({"name": "four", "temperature": 300.0, "platform": "Reference", "why_no_density": why})
    return folder


@pytest.fixture(scope="module", params=["keep", "thermal", "mean"])
def reported(request, tmp_path_factory, tetrapeptide) -> tuple[RunFolder, Page, str]:
    folder = write_run(tmp_path_factory.mktemp("protein") / "run", tetrapeptide, request.param)
    return folder, Page(write_report(folder.path).read_text()), request.param


def ours(page: Page, table: str) -> dict[str, list[str]]:
    return {cells[0]: cells[1:] for cells in page.rows[table]}


def test_the_page_is_whole_and_loads_nothing(reported) -> None:
    _, page, _ = reported
    for _, name, value in page.attributes:
        if name in ("src", "srcset", "href", "xlink:href", "data", "action", "poster"):
            assert value.startswith(("#", "data:")), f"{name}={value[:60]}"
    (policy,) = [value for tag, name, value in page.attributes if tag == "meta" and "default-src" in value]
    assert "default-src 'none'" in policy
    assert not re.search(r"https?:|\*|'self'", policy)
    for forbidden in ("fetch(", "XMLHttpRequest", "import", "WebSocket", "http:", "https:"):
        assert forbidden not in page.texts["structures"]


def test_every_section_is_there_for_a_protein_and_none_for_one_residue(reported, tmp_path) -> None:
    assert set(SECTIONS) <= reported[1].texts.keys()
    small = write_run(tmp_path / "small", peptide("ACE-ALA-NME"), None)
    page = Page(write_report(small.path).read_text())
    assert not set(SECTIONS) & page.texts.keys()
    assert "rmsf_nm" not in json.loads(small.summary_file.read_text())


def test_fluctuations_are_those_of_the_frames(reported, tetrapeptide) -> None:
    folder, page, _ = reported
    topology = tetrapeptide.topology
    alpha = [atom.index for atom in topology.atoms() if atom.name == "CA"]
    data = TrajectoryData.load(folder.data_file).positions.reshape(N_FRAMES, -1, 3)
    walked = Frames.load(folder.chain_frames_file).positions
    rows = ours(page, "rmsf")
    assert rows["Residue"] == ["Training data, 400 K", "BG + Langevin", "Generated, as drawn"]
    assert list(rows)[1:] == ["ALA2", "PHE3", "GLY4", "SER5"]
    stored = json.loads(folder.summary_file.read_text())["rmsf_nm"]
    for column, (key, frames) in enumerate((("data", data), ("bg_langevin", walked))):
        expected = rmsf(frames, topology, atoms=alpha)
        shown = [[float(number) for number in cells[column].split(" ± ")] for cells in list(rows.values())[1:]]
        np.testing.assert_allclose(shown, np.stack([expected.value, expected.error], axis=1), atol=5.1e-5)
        np.testing.assert_allclose(stored[key], expected.value)
    # Four atoms with noise s in each of three directions: 12 - 6 of these are left after superposition.
    assert np.sqrt(np.mean(np.square(stored["data"]))) == pytest.approx(0.02 * np.sqrt(6 / 4), rel=0.15)


def test_contacts_are_compared_with_the_data(reported, tetrapeptide) -> None:
    folder, page, _ = reported
    data = TrajectoryData.load(folder.data_file).positions.reshape(N_FRAMES, -1, 3)
    walked = Frames.load(folder.chain_frames_file).positions
    expected = contact_difference(walked, data, tetrapeptide.topology)
    difference, floor = ours(page, "contact-differences")["BG + Langevin"]
    assert float(difference.split(" ± ")[0]) == pytest.approx(expected.value.value, abs=5.1e-5)
    assert float(floor) == pytest.approx(expected.floor.value, abs=5.1e-5)
    stored = json.loads(folder.summary_file.read_text())["contact_difference"]
    assert stored["bg_langevin"]["value"] == pytest.approx(expected.value.value)
    assert set(stored) == {"bg_langevin", "generated"}


def test_energies_are_those_of_each_source(reported) -> None:
    folder, page, _ = reported
    rows = ours(page, "energy-quantiles")
    assert rows[""] == ["5 %", "25 %", "50 %", "75 %", "95 %"]
    for title, energies in (
        ("Training data, 400 K", TrajectoryData.load(folder.data_file).energies.ravel()),
        ("BG + Langevin", Chain.load(folder.chain_file).energy),
    ):
        expected = np.quantile(energies, (0.05, 0.25, 0.5, 0.75, 0.95), method="inverted_cdf")
        shown = [float(cell.replace("\N{MINUS SIGN}", "-").split(" ± ")[0]) for cell in rows[title]]
        np.testing.assert_allclose(shown, expected, atol=0.51)
    assert len(rows["Generated, as drawn"]) == 5


def test_the_page_says_what_generated_structures_are(reported) -> None:
    folder, page, frozen = reported
    is_picture = "pictures here, not an ensemble" in page.texts["pictures"]
    assert is_picture == (frozen != "thermal")
    summary = json.loads(folder.summary_file.read_text())
    assert summary["n_generated_structures"] == 200


def deviation(first: np.ndarray, second: np.ndarray) -> float:
    """Root mean square after the best rotation (Kabsch)."""
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    u, singular, vt = np.linalg.svd(first.T @ second)
    singular[-1] *= np.sign(np.linalg.det(u @ vt))
    return float(np.sqrt((np.sum(first**2) + np.sum(second**2) - 2.0 * singular.sum()) / len(first)))


def test_the_viewer_has_the_structures_themselves(reported, tetrapeptide) -> None:
    folder, page, _ = reported
    shown = json.loads(page.texts["scene"])
    atoms = [a for a in tetrapeptide.topology.atoms() if a.element.symbol != "H" and a.name not in ("O", "OXT")]
    indices = [a.index for a in atoms]
    assert shown["element"] == [a.element.symbol for a in atoms]
    assert [shown["residues"][i] for i in shown["residue"]] == [f"{a.residue.name}{a.residue.id}" for a in atoms]
    drawn = {frozenset(indices[i] for i in pair) for pair in shown["backbone"] + shown["side_chains"]}
    bonds = {frozenset((a.index, b.index)) for a, b in tetrapeptide.topology.bonds()}
    assert drawn == {bond for bond in bonds if bond <= set(indices)}
    for i, j in shown["backbone"]:
        assert {atoms[i].name, atoms[j].name} <= {"N", "CA", "C"}

    names = [structure["name"] for structure in shown["structures"]]
    assert names[:2] == ["Start", "End of the chain"]
    assert names[2:] == [f"Drawn {number}" for number in range(1, 7)]
    assert shown["shown"] == [0, 2]
    last = Frames.load(folder.chain_frames_file).positions[-1].astype(np.float64)
    backbone = [
        next(atom.index for atom in residue.atoms() if atom.name == name)
        for residue in list(tetrapeptide.topology.residues())[1:-1]
        for name in ("N", "CA", "C")
    ]
    start = folder.read_system().positions
    assert shown["structures"][0]["deviation"] == 0.0
    assert shown["structures"][1]["deviation"] == pytest.approx(deviation(last[backbone], start[backbone]), abs=2e-4)
    for structure, positions in zip(shown["structures"], (start, last), strict=False):
        x = np.array(structure["positions"]).reshape(-1, 3) / 1000.0
        assert deviation(x, positions[indices]) < 0.001
        if positions is last:  # placed on the start by its backbone
            on_start = np.array(shown["structures"][0]["positions"]).reshape(-1, 3) / 1000.0
            places = [indices.index(atom) for atom in backbone]
            apart = np.sqrt(np.mean(np.sum((x - on_start)[places] ** 2, axis=1)))
            assert apart == pytest.approx(structure["deviation"], abs=1e-3)


def test_draws_repeat_with_the_seed_and_differ_without(reported) -> None:
    from openmm_bg.report.protein import read_protein

    folder, page, _ = reported
    results = read_results(folder)
    same, other = (read_protein(folder, results, seed) for seed in (0, 1))
    assert same is not None
    assert other is not None
    assert scene(same) == json.loads(page.texts["scene"])
    assert scene(other)["structures"][2] != scene(same)["structures"][2]


def test_a_run_without_frames_or_generator_shows_its_start(tmp_path, tetrapeptide) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.write_system(tetrapeptide)
    page = Page(write_report(folder.path).read_text())
    assert [s["name"] for s in json.loads(page.texts["scene"])["structures"]] == ["Start"]
    assert "pictures" not in page.texts
    assert not set(SECTIONS[1:]) & page.texts.keys()


STAGE = """
const calls = { strokes: 0, colors: new Set() }, made = {};
const pen = { beginPath() {}, moveTo(x, y) { check(x, y); }, lineTo(x, y) { check(x, y); },
  stroke() { calls.strokes += 1; calls.colors.add(this.strokeStyle); } };
function check(x, y) { if (!Number.isFinite(x + y)) throw new Error("a line to nowhere"); calls.last = [x, y]; }
const canvas = { clientWidth: 800, clientHeight: 400, getContext: () => pen, setPointerCapture() {} };
const buttons = []; made["structures-shown"] = { append: (button) => buttons.push(button) };
made.viewer = canvas; made.scene = { textContent: require("fs").readFileSync(process.argv[2], "utf8") };
global.window = { devicePixelRatio: 1, addEventListener() {} };
global.document = { getElementById: (id) => made[id], createElement: () => ({ attributes: {},
  setAttribute(name, value) { this.attributes[name] = String(value); } }) };
require(process.argv[3]);
const said = [];
const report = (name, act) => { calls.strokes = 0; calls.colors.clear(); act();
  said.push([name, calls.strokes, calls.colors.size, calls.last, canvas.width]); };
report("drag", () => canvas.onpointermove({ buttons: 1, movementX: 30, movementY: 10 }));
report("hover", () => canvas.onpointermove({ buttons: 0, movementX: 30, movementY: 10 }));
report("key", () => canvas.onkeydown({ key: "ArrowLeft", preventDefault() {} }));
report("zoom", () => canvas.onwheel({ deltaY: -100, preventDefault() {} }));
report("without sticks", () => buttons[buttons.length - 1].onclick());
report("without start", () => buttons[0].onclick());
console.log(JSON.stringify({ said, buttons: buttons.map((b) => [b.textContent, b.attributes["aria-pressed"]]) }));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to run the viewer's JavaScript")
def test_the_viewer_draws_every_bond_and_turns(reported, tmp_path) -> None:
    import openmm_bg.report as room

    _, page, _ = reported
    shown = json.loads(page.texts["scene"])
    (tmp_path / "scene.json").write_text(page.texts["scene"])
    (tmp_path / "stage.js").write_text(STAGE)
    viewer = Path(room.__file__).parent / "templates" / "viewer.js"
    command = ["node", str(tmp_path / "stage.js"), str(tmp_path / "scene.json"), str(viewer)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    said = {name: rest for name, *rest in result["said"]}
    backbone, both = 2 * len(shown["backbone"]), 2 * len(shown["backbone"] + shown["side_chains"])
    assert said["drag"][0] == said["key"][0] == said["zoom"][0] == 2 * both
    assert said["hover"][0] == 0
    assert len({tuple(said[name][2]) for name in ("drag", "key", "zoom")}) == 3
    assert said["without sticks"][0] == 2 * backbone
    assert said["without start"][0] == backbone
    assert said["without start"][1] == len({shown["residue"][i] for pair in shown["backbone"] for i in pair})
    assert [text for text, _ in result["buttons"]][:2] == [
        "Start",
        f"End of the chain, {shown['structures'][1]['deviation']:.2f} nm",
    ]
    assert [pressed for _, pressed in result["buttons"]] == ["false", "false", "true", *["false"] * 6]
