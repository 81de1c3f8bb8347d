"""Bridges: the contract, Flamingo's resampler from its formula and from its file, merged tokens."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from zoo.checkpoints.published.open_flamingo import to_bridge_names
from zoo.nn.bridges import MLPBridge, QueryBridge, merge_tokens


class Resampler(nn.Module):
    """The formula of Flamingo, Figure 5, in open_flamingo's names: k = v = [features ; latents]."""

    def __init__(self, width, depth, heads, head_width, latents, mult=4):
        super().__init__()
        self.heads = heads
        self.latents = nn.Parameter(torch.randn(latents, width))
        self.layers = nn.ModuleList()
        for _ in range(depth):
            attention = nn.Module()
            attention.norm_media, attention.norm_latents = nn.LayerNorm(width), nn.LayerNorm(width)
            attention.to_q = nn.Linear(width, heads * head_width, bias=False)
            attention.to_kv = nn.Linear(width, 2 * heads * head_width, bias=False)
            attention.to_out = nn.Linear(heads * head_width, width, bias=False)
            feed = nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width * mult, bias=False), nn.GELU(),
                nn.Linear(width * mult, width, bias=False),
            )  # fmt: skip
            self.layers.append(nn.ModuleList([attention, feed]))
        self.norm = nn.LayerNorm(width)

    def forward(self, features):
        x = self.latents.expand(len(features), -1, -1)
        for attention, feed in self.layers:
            media, latents = attention.norm_media(features), attention.norm_latents(x)
            q = rearrange(attention.to_q(latents), "b n (h c) -> b h n c", h=self.heads)
            kv = attention.to_kv(torch.cat([media, latents], 1))
            k, v = rearrange(kv, "b n (two h c) -> two b h n c", two=2, h=self.heads)
            weights = (q @ k.transpose(-1, -2) / k.shape[-1] ** 0.5).softmax(-1)
            x = x + attention.to_out(rearrange(weights @ v, "b h n c -> b n (h c)"))
            x = x + feed(x)
        return self.norm(x)


def test_flamingos_resampler_by_its_file_and_formula():
    torch.manual_seed(0)
    theirs = Resampler(24, 3, 4, 10, 5).eval()
    for p in theirs.parameters():
        p.data.add_(torch.randn_like(p) * 0.1)
    ours = QueryBridge(5, 24, 3, 4, 96, 24, 1, "joint", "pre", bias=False, dropout=0.0, head_width=10, eps=1e-5).eval()
    state = {f"perceiver.{name}": value for name, value in theirs.state_dict().items()} | {"lm.x": torch.zeros(1)}
    ours.load_state_dict(to_bridge_names(state), strict=True)
    features = torch.randn(2, 7, 24)
    torch.testing.assert_close(ours(features), theirs(features), rtol=1e-5, atol=1e-5)
    for name in ("joint", "self_then_cross"):  # the other mixing is another function
        other = QueryBridge(5, 24, 1, 4, 96, 24, 1, name, "pre", bias=False, dropout=0.0)
        assert ("crossattention" in str([n for n, _ in other.named_parameters()])) == (name != "joint")


def test_files_of_other_models_are_refused():
    with pytest.raises(ValueError, match="no perceiver resampler"):
        to_bridge_names({"a": torch.zeros(1)})
    bare = {"latents": torch.zeros(2, 4), "norm.weight": torch.ones(4)}
    for stray in ("layers.0.0.gate.weight", "layers.0.2.to_q.weight", "layers.0.0.stray"):
        with pytest.raises(ValueError, match=f"'{stray}', which images have no use for"):
            to_bridge_names(bare | {stray: torch.zeros(1)})
    with pytest.raises(ValueError, match="'frame_embs', which images have no use for"):
        to_bridge_names({"latents": torch.zeros(2, 4), "norm.weight": torch.ones(4), "frame_embs": torch.zeros(1, 4)})


@pytest.mark.parametrize("mixing", ["self_then_cross", "joint", "cross_only"])
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_every_query_reads_the_image(mixing, norm):
    torch.manual_seed(0)
    bridge = QueryBridge(3, 16, 2, 2, 32, 12, 1, mixing, norm, dropout=0.0)
    for p in bridge.parameters():
        p.data.add_(torch.randn_like(p) * 0.1)
    image = torch.randn(2, 5, 12, requires_grad=True)
    out = bridge(image)
    assert out.shape == (2, bridge.num_tokens, bridge.width) == (2, 3, 16)
    for query in range(3):
        (grad,) = torch.autograd.grad(out[0, query].square().sum(), image, retain_graph=True)
        assert (grad[0].abs().sum(1) > 0).all()
        assert grad[1].abs().sum() == 0
    moved = bridge(image.flip(1))  # a set of image tokens: their order does not matter
    torch.testing.assert_close(moved, out, rtol=1e-4, atol=1e-5)


def test_a_projector_is_its_linear_layers_with_gelu_between():
    torch.manual_seed(0)
    one, two = MLPBridge(6, 8, 4, depth=1), MLPBridge(6, 8, 4, depth=2)
    x = torch.randn(2, 4, 6)
    torch.testing.assert_close(one(x), x @ one[0].weight.t() + one[0].bias)
    hidden = F.gelu(x @ two[0].weight.t() + two[0].bias)  # exact GELU
    torch.testing.assert_close(two(x), hidden @ two[2].weight.t() + two[2].bias)
    assert [n for n, _ in two.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]  # LLaVA's names
    with pytest.raises(ValueError, match="at least 1 linear layer"):
        MLPBridge(6, 8, 4, depth=0)


def test_merged_tokens():
    x = torch.arange(2 * 8 * 3.0).view(2, 8, 3)
    merged = merge_tokens(x, 4)
    assert merged.shape == (2, 2, 12)
    assert torch.equal(merged[1, 1], x[1, 4:].flatten())
    with pytest.raises(ValueError, match="8 image tokens cannot be merged by 3"):
        merge_tokens(x, 3)
