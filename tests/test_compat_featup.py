"""`ovs_kernels.compat.featup` against the published modules written with `unfold`: values, gradients, state dicts."""

import featup_literal as literal
import pytest
import torch

from ovs_kernels.compat import featup
from ovs_kernels.testing import assert_close_rel

# Float32 against float64, as a share of the largest magnitude. Seen: 1.5e-6, gradients included.
SINGLE = 5e-6
DOUBLE = 1e-12  # seen: 2e-15, of gradients 8e-15
HALF = 1e-2  # seen: 3e-3

STEP_KEYS = {
    "range_temp": (),
    "sigma_spatial": (),
    "range_proj.0.weight": (32, 3, 1, 1),
    "range_proj.0.bias": (32,),
    "range_proj.3.weight": (32, 32, 1, 1),
    "range_proj.3.bias": (32,),
    "fixup_proj.0.weight": (49, 52, 1, 1),
    "fixup_proj.0.bias": (49,),
    "fixup_proj.3.weight": (49, 49, 1, 1),
    "fixup_proj.3.bias": (49,),
}


def shaken(module):
    """The module in evaluation, with parameters that matter: temperatures, widths and biases off their start."""
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def pair(ours, theirs, dtype=torch.float64):
    """A module of ours, and the literal one in float64 with the same parameters."""
    ours = shaken(ours).to(dtype)
    theirs = theirs.double().eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def step(guidance_dim=3, key_dim=5, radius=2, dtype=torch.float64):
    ours = featup.JBULearnedRange(guidance_dim, 4, key_dim, radius=radius)
    return pair(ours, literal.LearnedRange(guidance_dim, key_dim, radius), dtype)


def maps(batch, channels, small, large, guidance_dim=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    source = torch.randn(batch, channels, *small, generator=generator)
    guidance = torch.rand(batch, guidance_dim, *large, generator=generator)
    return source.to(dtype), guidance.to(dtype)


# Values


@pytest.mark.parametrize(
    ("guidance_dim", "key_dim", "radius", "sizes"),
    [
        (3, 32, 3, (2, 6, (5, 7), (10, 14))),
        (3, 5, 1, (1, 4, (4, 3), (9, 11))),  # any size, not only twice
        (1, 2, 2, (1, 1, (6, 6), (6, 6))),
        (4, 3, 0, (1, 2, (3, 3), (5, 4))),  # one tap
        (3, 32, 5, (1, 3, (4, 5), (8, 10))),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step(guidance_dim, key_dim, radius, sizes, dtype):
    ours, theirs = step(guidance_dim, key_dim, radius, dtype)
    source, guidance = maps(*sizes, guidance_dim)
    found = ours(source.to(dtype), guidance.to(dtype))
    assert found.dtype == dtype
    assert_close_rel(found, theirs(source, guidance), SINGLE if dtype == torch.float32 else DOUBLE)


@pytest.mark.parametrize("shared", [False, True])
def test_stacks(shared):
    ours = featup.JBUOne(5) if shared else featup.JBUStack(5)
    ours, theirs = pair(ours, literal.Stack(5, shared), torch.float32)
    source, guidance = maps(2, 5, (3, 4), (50, 60))
    found = ours(source.float(), guidance.float())
    assert found.shape == (2, 5, 48, 64)
    assert_close_rel(found, theirs(source, guidance), SINGLE)


def test_kernels_are_those_of_the_published_parts():
    ours, theirs = step(3, 5, 2)
    _, guidance = maps(1, 1, (4, 4), (7, 9))
    kernel = ours.get_range_kernel(guidance)
    assert kernel.shape == (1, 25, 7, 9)
    assert_close_rel(kernel.sum(1), torch.ones(1, 7, 9), DOUBLE)
    keys = theirs.range_proj(guidance)
    padded = literal.reflected(keys, 2)
    products = torch.stack([(padded[:, :, y : y + 7, x : x + 9] * keys).sum(1) for y in range(5) for x in range(5)], 1)
    assert_close_rel(kernel, (theirs.range_temp.exp() * products).softmax(1), DOUBLE)
    spatial = ours.get_spatial_kernel(torch.device("cpu"))
    assert spatial.shape == (1, 25, 1, 1)
    sigma = ours.sigma_spatial.item()
    expected = [
        2.718281828459045 ** (-((y / 2) ** 2 + (x / 2) ** 2) / (2 * sigma**2))
        for y in range(-2, 3)
        for x in range(-2, 3)
    ]
    assert_close_rel(spatial.flatten(), torch.tensor(expected, dtype=torch.float64), DOUBLE)


def test_adaptive_conv():
    generator = torch.Generator().manual_seed(4)
    padded = torch.randn(2, 3, 9, 10, generator=generator)
    filters = torch.randn(2, 5, 6, 5, 5, generator=generator)
    expected = literal.adaptive_conv(padded.double(), filters.double())
    assert_close_rel(featup.AdaptiveConv.apply(padded, filters), expected, SINGLE)
    assert_close_rel(featup.adaptive_conv(padded, filters), expected, SINGLE)


# Gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_reach_everything(dtype):
    ours, theirs = step(3, 5, 2, dtype)
    inputs = maps(2, 4, (4, 5), (8, 10))
    weights = torch.randn(2, 4, 8, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    gradients = []
    for module, kind in ((ours, dtype), (theirs, torch.float64)):
        leaves = [part.to(kind).requires_grad_() for part in inputs]
        (module(*leaves) * weights.to(kind)).sum().backward()
        gradients.append({"source": leaves[0].grad, "guidance": leaves[1].grad})
        gradients[-1] |= {name: parameter.grad for name, parameter in module.named_parameters()}
    found, expected = gradients
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        allowed = DOUBLE if dtype == torch.float64 else SINGLE
        assert_close_rel(found[name], gradient, allowed, message=name)


def test_gradients_by_finite_differences():
    ours = shaken(featup.JBULearnedRange(2, 2, 3, radius=1)).double()
    source, guidance = maps(1, 2, (2, 3), (4, 5), guidance_dim=2)
    names = [name for name, _ in ours.named_parameters()]
    parameters = [parameter.detach().clone().requires_grad_() for parameter in ours.parameters()]

    def function(source, guidance, *values):
        return torch.func.functional_call(ours, dict(zip(names, values, strict=True)), (source, guidance))

    assert torch.autograd.gradcheck(function, (source.requires_grad_(), guidance.requires_grad_(), *parameters))


def test_training_lowers_the_loss_of_a_stack():
    torch.manual_seed(0)
    module = featup.JBUStack(3)
    source, guidance = maps(1, 3, (3, 3), (48, 48), dtype=torch.float32)
    optimizer = torch.optim.NAdam(module.parameters(), lr=1e-2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = (module(source, guidance) - guidance).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(not torch.equal(value, before[name]) for name, value in module.state_dict().items())


# What published checkpoints and programs rely on


def test_state_dicts_have_the_published_names_and_shapes():
    stack = {f"up{number}.{name}": shape for number in (1, 2, 3, 4) for name, shape in STEP_KEYS.items()}
    correction = {"fixup_proj.1.weight": (384, 384, 1, 1), "fixup_proj.1.bias": (384,)}
    assert {name: tuple(value.shape) for name, value in featup.JBUStack(384).state_dict().items()} == stack | correction
    one = {f"up.{name}": shape for name, shape in STEP_KEYS.items()} | {
        "up.fixup_proj.0.weight": (121, 124, 1, 1),
        "up.fixup_proj.0.bias": (121,),
        "up.fixup_proj.3.weight": (121, 121, 1, 1),
        "up.fixup_proj.3.bias": (121,),
    }
    assert {name: tuple(value.shape) for name, value in featup.JBUOne(384).state_dict().items()} == one | correction
    order = ["range_temp", "sigma_spatial", "range_proj.0.weight"]
    assert [name for name, _ in featup.JBULearnedRange(3, 384, 32).named_parameters()][:3] == order


def test_the_same_seed_gives_the_same_start_and_the_same_dropout():
    torch.manual_seed(11)
    ours = featup.JBUStack(4).train()
    torch.manual_seed(11)
    theirs = literal.Stack(4).train()
    for (name, value), (other, expected) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(value, expected)
    source, guidance = maps(2, 4, (3, 3), (48, 48), dtype=torch.float32)
    torch.manual_seed(12)
    found = ours(source, guidance)
    torch.manual_seed(12)
    assert_close_rel(found, theirs(source, guidance), 1e-5)


def test_attributes_and_keywords_as_published():
    module = featup.JBULearnedRange(guidance_dim=3, feat_dim=384, key_dim=32, scale=2, radius=3)
    assert (module.scale, module.radius, module.diameter) == (2, 3, 7)
    assert (module.guidance_dim, module.key_dim, module.feat_dim) == (3, 32, 384)
    source, guidance = maps(1, 2, (4, 4), (8, 8), dtype=torch.float32)
    assert module(source=source, guidance=guidance).shape == (1, 2, 8, 8)
    assert isinstance(featup.get_upsampler("jbu_stack", 6), featup.JBUStack)
    assert isinstance(featup.get_upsampler("jbu_one", 6), featup.JBUOne)
    large = featup.get_upsampler("bilinear", 6)(source, guidance)
    assert torch.equal(large, torch.nn.functional.interpolate(source, (8, 8), mode="bilinear"))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, autocast):
    """Modules and maps in half precision, as SegEarth-OV has them, and modules in float32 with half features."""
    ours, theirs = step(3, 5, 2, dtype)
    source, guidance = (part.to(dtype) for part in maps(1, 4, (4, 5), (8, 10)))
    expected = theirs(source.double(), guidance.double())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = ours(source, guidance)
        assert found.dtype == dtype
        assert_close_rel(found, expected, HALF)
        found = ours.float()(source, guidance.float())
        assert found.dtype == dtype
        assert_close_rel(found, expected, HALF)
    found.sum().backward()
    assert ours.sigma_spatial.grad.isfinite()


def test_layouts():
    ours, _ = step(3, 5, 2)
    source, guidance = maps(2, 4, (4, 5), (8, 10))
    expected = ours(source, guidance)
    last = torch.channels_last
    assert_close_rel(ours(source.to(memory_format=last), guidance.to(memory_format=last)), expected, DOUBLE)
    assert_close_rel(ours(source[:1].expand(2, -1, -1, -1), guidance)[0], expected[0], DOUBLE)


def test_errors_are_one_line():
    module = featup.JBULearnedRange(3, 4, 5, radius=2)
    source, guidance = maps(1, 4, (4, 5), (8, 10), dtype=torch.float32)
    name = "JBULearnedRange: "
    for call, error, message in [
        (lambda: module(source[0], guidance), ValueError, name + "source: expected [B, C, h, w], got [4, 4, 5]"),
        (lambda: module(source, guidance[:, :2]), ValueError, name + "guidance: expected [B, 3, H, W] with B=1"),
        (lambda: module(source.expand(2, -1, -1, -1), guidance), ValueError, name + "guidance: expected [B, 3, H, W]"),
        (lambda: module(source.int(), guidance), TypeError, name + "source: expected float32"),
        (lambda: module(source, guidance.byte()), TypeError, name + "guidance: expected float32"),
        (lambda: module(source.numpy(), guidance), TypeError, name + "source: expected a tensor, got numpy.ndarray"),
        (lambda: module(source, guidance.to("meta")), ValueError, name + "guidance: expected device cpu"),
        (
            lambda: module(source, guidance[..., :2]),
            ValueError,
            name + "guidance: expected more than radius=2 pixels in height and width, got 8 x 2",
        ),
        (lambda: featup.JBUStack(4)(source, guidance[0]), ValueError, "JBUStack: guidance: expected [B, 3, H, W]"),
        (
            lambda: featup.JBULearnedRange(3, 4, 5, radius=-1),
            ValueError,
            name + "radius: expected an integer >= 0, got -1",
        ),
        (lambda: featup.JBULearnedRange(3, 4, 0), ValueError, name + "key_dim: expected an integer >= 1, got 0"),
        (
            lambda: featup.get_upsampler("ifa", 4),
            ValueError,
            "get_upsampler: upsampler: expected 'jbu_stack' or 'jbu_one' or 'bilinear', got 'ifa'",
        ),
    ]:
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value).startswith(message), caught.value
        assert "\n" not in str(caught.value)
