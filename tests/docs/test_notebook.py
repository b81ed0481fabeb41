"""The notebook, executed as a reader would, on small phantoms and a small network."""

from __future__ import annotations

import os

import nbformat
from boltzformer.recipe_network import record_definition
from boltzformer.weights import save_atomically
from nbclient import NotebookClient

from tests.support import BUNDLE, small_network

NOTEBOOK = BUNDLE / "docs" / "volume_to_report.ipynb"
INPUT = {"window": "soft_tissue", "axis": 2, "num_adjacent": 1, "pixel_size_mm": None}


def test_from_a_volume_to_the_report(tmp_path):
    network = small_network()
    recipe = {"network": record_definition(network, BUNDLE / "models"), "input": INPUT}
    save_atomically(network.state_dict(), tmp_path / "model.pt", recipe)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code)  # what it prints belongs to no commit
    (parameters,) = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    parameters.source += f"\nfolder, weights, size = Path('out'), {str(tmp_path / 'model.pt')!r}, (48, 48, 8)"
    environment = {**os.environ, "PYTHONPATH": str(BUNDLE)}
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=environment)
    out = tmp_path / "out"
    said = ["".join(output.get("text", "") for output in cell.outputs) for cell in code]
    assert sum(line.endswith(" voxels") for line in said[2].splitlines()) == 3
    assert (out / "masks" / "phantom_validation_000.nii.gz").is_file()
    (picture,) = [output for output in code[3].outputs if output.output_type == "execute_result"]
    assert "image/png" in picture.data
    assert said[4].count("layer") == 3 * network.decoder.num_layers
    assert "mean Dice" in said[6]
    assert (
        "<svg" in (out / "report" / "report.html").read_text() or "<img" in (out / "report" / "report.html").read_text()
    )
