"""torch.compile, torch.export and ONNX of the tensor-only core give the eager network's logits."""

from __future__ import annotations

import pytest
import torch
from boltzformer.apps.export import export
from boltzformer.errors import InputError
from boltzformer.networks import positions
from boltzformer.networks.export import TensorCore, core_noise, example_inputs


@torch.no_grad()
def test_core_equals_the_network(network):
    image, tokens, noise = example_inputs(network, "lung nodule")
    logits = torch.nn.functional.interpolate(
        TensorCore(network)(image, tokens, noise), size=network.image_size, mode="bilinear", align_corners=False
    )
    assert torch.equal(logits, network(image, ["lung nodule"]))
    assert not torch.equal(core_noise(network, seed=1), noise)


@pytest.mark.parametrize(("ending", "channels"), [(".pt2", 3), (".onnx", 1)])
def test_exported_file_equals_eager(network, tmp_path, ending, channels):
    """As the command does it: gradients are on."""
    if ending == ".onnx":
        pytest.importorskip("onnxruntime")
    positions._cache.clear()  # as in a fresh process: nothing that tracing makes may be kept
    assert export(network, tmp_path / f"core{ending}", channels=channels) < 1e-4
    assert all(type(table) is torch.Tensor for table in positions._cache.values())
    assert next(network.parameters()).requires_grad
    if ending == ".pt2":  # a slice without its neighbours, or of another size, is not taken for one
        image, tokens, noise = example_inputs(network, "lung nodule", channels)
        core = torch.export.load(tmp_path / "core.pt2").module()
        for other in (image[:, :1], image[..., :-8]):
            with pytest.raises((AssertionError, RuntimeError)):
                core(other, tokens, noise)


def test_other_endings_are_refused(network, tmp_path):
    with pytest.raises(InputError, match=r"\.pt2"):
        export(network, tmp_path / "core.pth")


def test_networks_without_a_core_are_refused(tmp_path):
    with pytest.raises(InputError, match="a Linear has no such core"):
        export(torch.nn.Linear(1, 1), tmp_path / "core.pt2")


@torch.no_grad()
def test_decoder_and_pigma_compile_as_one_graph(network):
    image, tokens, noise = example_inputs(network, "lung nodule")
    features = network.encode_image(image)
    patches = network.decoder.patches_per_layer(network.attention_grids())
    layers = list(noise.split(patches, dim=-1))
    expected = network.core(features, tokens, None, layers).logits
    torch._dynamo.reset()
    compiled = torch.compile(network.core, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(features, tokens, None, layers).logits, expected, atol=1e-4)
