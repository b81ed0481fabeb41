"""The CUDA path without a CUDA device: on fake tensors, which stop whatever would make the host wait for the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from boltzformer.networks import positions
from boltzformer.networks.attention import layer
from boltzformer.networks.attention.dense import attend_dense
from boltzformer.networks.attention.rules import Boltzmann, Threshold
from boltzformer.networks.boltzformer import BoltzFormer
from boltzformer.networks.text_encoder import TextFeatures
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class CopiesThatWait(TorchDispatchMode):
    """Collects copies between host and device that do not say `non_blocking`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor) and x.dim() > 0]
        if len({x.device.type for x in tensors}) > 1:
            waits = not (kwargs.get("non_blocking") or (func is torch.ops.aten.copy_.default and args[2:] == (True,)))
            if waits or tensors[0].device.type == "cuda":  # a copy to the host is read there at once
                self.found.append(str(func))
        return result


def run_on_fake_cuda(network: BoltzFormer) -> tuple[torch.Tensor, list[str]]:
    """Logits of two slices on a fake CUDA device, and the copies that would wait for it."""
    positions._cache.clear()
    with torch.no_grad():
        text = network.encode_text(["lung nodule in chest CT", "liver"])  # token counts are known on the host
        noise = network._draw(2, torch.device("cpu"), network.seed) or []
    with FakeTensorMode() as mode:

        def moved(x: torch.Tensor) -> torch.Tensor:
            return mode.from_tensor(x).detach().to("cuda").requires_grad_(x.requires_grad)

        state = {name: moved(x) for name, x in [*network.named_parameters(), *network.named_buffers()]}
        text = TextFeatures(moved(text.tokens), moved(text.mask), text.lengths)
        field = [moved(layer) for layer in noise]  # as the first slice leaves it on the device
        network._seeded_noise = lambda *_: field
        image = torch.empty(2, 1, 70, 50, device="cuda")
        with CopiesThatWait() as copies:
            logits = functional_call(network, state, (image, text))
    positions._cache.clear()
    return logits, copies.found


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"attention": Threshold()},
        {"attention": Boltzmann(heads_share_set=False)},
        {"batch_invariant": False},
        {"num_queries": 40},
        {"existence": True},
    ],
)
def test_inference_never_waits_for_the_device(make_network, settings):
    with torch.no_grad():
        logits, waited = run_on_fake_cuda(make_network(**settings).eval())
    assert logits.device.type == "cuda"
    assert logits.shape == (2, 1, 70, 50)
    assert waited == []


def test_forward_pass_of_training_never_waits_for_the_device(make_network):
    logits, waited = run_on_fake_cuda(make_network().train())
    assert logits.requires_grad
    assert waited == []


@torch.no_grad()
def test_waiting_is_noticed(make_network, monkeypatch):
    def ask(form, queries, patches, kept):
        assert kept.count_nonzero().item() < 100
        return attend_dense

    monkeypatch.setattr(layer, "form_for", ask)
    with pytest.raises(DataDependentOutputException):
        run_on_fake_cuda(make_network().eval())
    with FakeTensorMode(), CopiesThatWait() as copies:
        x = torch.empty(3, device="cuda")
        x.cpu()
        torch.empty(3).to("cuda", non_blocking=True)
        torch.empty(3).to("cuda")
    assert len(copies.found) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("training", [False, True])
def test_cuda_itself_sees_no_synchronisation(make_network, training):
    network = make_network().train(training).cuda()
    image, prompts = torch.rand(2, 1, 70, 50, device="cuda"), ["lung nodule in chest CT", "liver"]
    network(image, prompts)  # kernels, noise and embeddings are there from the second pass on
    torch.cuda.set_sync_debug_mode("error")
    try:
        network(image, prompts)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
def test_cuda_equals_cpu(make_network):
    image, prompts = torch.rand(2, 1, 70, 50), ["lung nodule in chest CT", "liver"]
    expected = make_network().eval()(image, prompts)
    logits = make_network().eval().cuda()(image.cuda(), prompts).cpu()
    assert torch.nn.functional.cosine_similarity(logits.flatten(), expected.flatten(), dim=0) > 0.99
