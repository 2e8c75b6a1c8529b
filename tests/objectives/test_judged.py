"""Judged losses (VQGAN, adversarial VAE): terms, the adaptive weight, perceptual distances."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.models import vgg

from genkit import noise as rng
from genkit.codecs.autoencoder import Autoencoder
from genkit.codecs.bottlenecks import GaussianBottleneck
from genkit.codecs.vq import VectorQuantizer
from genkit.data.source import Batch
from genkit.nn.adversarial import PatchCritic
from genkit.nn.convnet import ConvNet
from genkit.objectives.adversarial import generator_loss
from genkit.objectives.judged import Judged, last_weight
from genkit.objectives.perceptual import Perceptual, by_classifier, by_lpips, difference
from genkit.objectives.quantised import Quantised
from genkit.objectives.reconstruction import Reconstruction, psnr
from genkit.train.objective import Noise


def model():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(1, 8, 4, 2, 1), nn.Tanh(), nn.Conv2d(8, 3, 4, 2, 1))
    decoder = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Tanh(), nn.Conv2d(16, 16, 3, padding=1))
    decoder.append(nn.PixelShuffle(4))
    return Autoencoder(encoder, VectorQuantizer(32, 3), decoder, (3, 4, 4))


def seen_apart(a, b):
    return (a - b).abs().mean(dim=(1, 2, 3)).sqrt()


def images(n=6, seed=0):
    return torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def noise(n=6, step=0):
    return Noise(0, torch.arange(n) + n * step)


def test_terms_add_up():
    """Oracle: mean squared error + penalty + weight x distance, recomputed from the model's outputs."""
    net, x = model(), images()
    objective = Judged(Quantised(net, "mse"), perceptual=seen_apart, perceptual_weight=0.5)
    for step in range(2):
        objective.loss("main", Batch(x), noise(step=step))
        objective.stepped()
    loss = objective.loss("main", Batch(x), noise(step=2))
    code, raw = net(x)
    by_hand = (raw - x).square().mean() + code.penalty.mean() + 0.5 * seen_apart(raw, x).mean()
    assert loss.total.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert loss.logs["commitment"] > 0


def test_a_held_out_batch_goes_through_once():
    """Oracle: the encoder's calls; PSNR is that of `decode`, the distance that of the model's outputs."""
    net, x, calls = model(), images(), []
    objective = Judged(Quantised(net, "mse"), perceptual=seen_apart, perceptual_weight=0.5)
    objective.loss("main", Batch(x), noise())
    objective.stepped()  # the codebook has its start
    objective.eval()
    with net.encoder.register_forward_hook(lambda *of: calls.append(of)):
        found = objective.evaluate(Batch(x), noise())
    assert len(calls) == 1
    back = net.decode(net.encode(x).z)
    torch.testing.assert_close(found["psnr"], psnr(x, back).mean())
    torch.testing.assert_close(found["perceptual"], seen_apart(net(x)[1], x).mean())


def gaussian_vae():
    """A VAE of colour-blind pixels with a learned sigma."""
    net = model()
    encoder = nn.Sequential(net.encoder, nn.Conv2d(3, 6, 1))
    return Autoencoder(encoder, GaussianBottleneck(), net.decoder, (3, 4, 4), learn_sigma=True)


def playing(kind="vqgan", weight=0.7):
    """A judged objective after one step of measuring its adaptive weight, and the images it saw."""
    torch.manual_seed(1)
    inner = Quantised(model(), "l1") if kind == "vqgan" else Reconstruction(gaussian_vae(), "gaussian", 0.1)
    objective = Judged(
        inner, perceptual=seen_apart, perceptual_weight=0.5, critic=PatchCritic(1, 4), critic_weight=weight
    )
    x = images()
    for step in range(2):
        objective.loss("main", Batch(x), noise(step=step))
        objective.stepped()
    return objective, x


def parts(objective, x):
    """(fit, opinion, penalty) of the model's reconstructions, by the formulas."""
    model = objective.model
    if isinstance(objective.inner, Quantised):
        code, raw = model(x)
        fit, penalty = (raw - x).abs().mean() + 0.5 * seen_apart(raw, x).mean(), code.penalty.mean()
    else:
        code, raw = model(x, noise=noise().normal(rng.POSTERIOR, model.latent_shape))
        nats = -torch.distributions.Normal(raw, model.log_sigma.exp()).log_prob(x).sum() / len(x)
        # the distance is summed over the 256 numbers of an image, as the nats are
        fit, penalty = nats + 0.5 * 256 * seen_apart(raw, x).mean(), 0.1 * code.penalty.mean()
    return fit, generator_loss(objective.critic(raw), "hinge"), penalty


@pytest.mark.parametrize("kind", ["vqgan", "vae"])
def test_the_adaptive_weight_is_the_ratio_of_slopes(kind):
    """Oracle: autograd of the two losses at the last layer's weight (eq. 7), for the weights of that step."""
    objective, x = playing(kind)
    fit, opinion, _ = parts(objective, x)
    last = last_weight(objective.model.decoder)
    a, b = (torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (fit, opinion))
    objective.loss("main", Batch(x), noise())
    objective.stepped()
    assert objective.balance.item() == pytest.approx((a / (b + 1e-4 * a)).item(), rel=1e-4)


@pytest.mark.parametrize("kind", ["vqgan", "vae"])
def test_the_gradient_is_that_of_the_weighted_sum(kind):
    """Oracle: backward through fit + penalty + weight x lambda x opinion, written down as one; that of the
    learned sigma included."""
    objective, x = playing(kind)
    fit, opinion, penalty = parts(objective, x)
    (fit + penalty + 0.7 * objective.balance * opinion).backward()
    expected = {k: p.grad.clone() for k, p in objective.model.named_parameters()}
    objective.zero_grad(set_to_none=True)
    objective.loss("main", Batch(x), noise()).total.backward()
    for name, p in objective.model.named_parameters():
        size = expected[name].abs().max().item()
        torch.testing.assert_close(p.grad, expected[name], atol=1e-5 * size, rtol=1e-4)
    assert all(p.grad is None for p in objective.critic.parameters())


@pytest.mark.parametrize("kind", ["vqgan", "vae"])
def test_a_compiled_game_is_the_same_game(kind):
    """Oracle: two steps of both phases without a compiler."""
    found = []
    for compiled in (False, True):
        objective, x = playing(kind)
        call = torch.compile(objective, backend="aot_eager") if compiled else objective
        totals = []
        for step in range(2):
            for phase in ("main", "critic"):
                loss = call(phase, Batch(x), noise(step=step))
                loss.total.backward()
                totals.append(loss.total.item())
            objective.stepped()
        found.append(totals)
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_accumulation_does_not_change_the_adaptive_weight():
    """Oracle: the whole batch; a mean of norms would differ from the norm of the mean."""
    (whole, x), (split, _) = playing(), playing()
    whole.loss("main", Batch(x), noise())
    for part in (slice(0, 3), slice(3, 6)):
        split.loss("main", Batch(x[part]), Noise(0, torch.arange(6)[part]))
    whole.stepped()
    split.stepped()
    assert whole.balance.item() == pytest.approx(split.balance.item(), rel=1e-5)


def test_the_critic_waits_for_its_start():
    """Oracle: no opinion before `start`, in a resumed objective too."""
    objective = Judged(Quantised(model()), critic=PatchCritic(1, 4), start=3)
    assert [p.start for p in objective.phases()] == [0, 3]
    heard = []
    for step in range(5):
        if step == 2:
            other = Judged(Quantised(model()), critic=PatchCritic(1, 4), start=3)
            other.load_state_dict(objective.state_dict())
            objective = other
        heard.append("generator" in objective.loss("main", Batch(images()), noise(step=step)).logs)
        objective.stepped()
    assert heard == [False, False, False, True, True]


def test_difference_by_hand():
    """Oracle: unit vectors at right angles are 2 apart, equal directions 0; the mean over two positions."""
    a = torch.tensor([[3.0, 1.0], [0.0, 0.0]]).view(1, 2, 1, 2)
    b = torch.tensor([[0.0, 5.0], [2.0, 0.0]]).view(1, 2, 1, 2)
    torch.testing.assert_close(difference([a, a], [b, b]), torch.tensor([2.0]))


@pytest.mark.parametrize("conditional", [False, True])
def test_a_classifier_as_a_distance(conditional):
    """Oracle: 0 for equal images, more for more noise; the gradient reaches the images and no weights; the
    last map is what the classifier's own features are of."""
    torch.manual_seed(0)
    net = ConvNet(1, 10, width=4, stride=1, conditional=conditional)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    distance, x = Perceptual(net, by_classifier), images()
    assert distance(x, x).abs().max() == 0
    little, much = (distance(x + s * images(seed=1), x).mean() for s in (0.05, 0.5))
    assert 0 < little < much
    y = x.clone().requires_grad_()
    distance(y, images(seed=1)).sum().backward()
    assert y.grad.abs().sum() > 0
    assert all(p.grad is None for p in net.parameters())
    assert not isinstance(distance, nn.Module)


@pytest.mark.parametrize("channels", [1, 3])
def test_lpips_with_random_weights(monkeypatch, channels):
    """Oracle: torch-fidelity's own forward on the same images as floats of 0 to 255."""
    from torch_fidelity import sample_similarity_lpips as module

    # only the convolutions of VGG16: filling its linear layers would take seconds
    features = vgg.make_layers(vgg.cfgs["D"])
    monkeypatch.setattr(
        module, "torchvision_load_pretrained_vgg16", lambda: SimpleNamespace(features=features)
    )
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *a, **k: {})
    monkeypatch.setattr(module.SampleSimilarityLPIPS, "load_state_dict", lambda self, state: None)
    torch.manual_seed(0)
    net = module.SampleSimilarityLPIPS("lpips")
    x, y = (images(2, s).repeat(1, channels, 1, 1).requires_grad_() for s in (0, 1))
    found = Perceptual(net, by_lpips)(x, y)
    byte = [(127.5 * (v.detach()[:, :1].repeat(1, 3, 1, 1) + 1)) for v in (x, y)]
    torch.testing.assert_close(found, net(*byte))
    found.sum().backward()
    assert x.grad.abs().sum() > 0
