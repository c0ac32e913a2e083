"""Loads what `tributary-client export --as timm` writes, onto timm's vision transformer.

    import tributary_timm
    model = tributary_timm.load("exported")      # a timm VisionTransformer in evaluation mode
    logits = model(images)                       # normalised with model.pretrained_cfg["mean"] and ["std"]

An adaptation that is a change of weights (LoRA, DoRA, BitFit, last blocks, full) is merged by the export, and
under a linear head the directory is then a plain timm model. This module puts the rest around timm's model: the
adaptations that are modules of their own (`houlsby`, `adaptformer`, `prompts`), heads that are not linear, bags and
segmentation. Their tensors keep Tributary's names beside timm's:

    blocks.N.{attn,mlp}.adapter.{down,up}.{weight,bias}    bottlenecks
    blocks.N.prompts                                       tokens that enter block N
    head.{weight,bias}                                     the last linear map, as in timm
    head.hidden.{weight,bias}                              the hidden layer of an MLP head
    head.query                                             the query of an attention-pooling head
    head.attention.{content,gate,score}.{weight,bias}      gated attention over a bag
    head.decoder.{down,convolution,up}.{weight,bias}       a segmentation's decoder

Needs torch, timm and safetensors. It is one file: copy it beside your code.
"""

import json
import pathlib
from functools import partial

import timm
import torch
from safetensors.torch import load_file
from timm.layers import LayerNorm, SwiGLUPacked
from torch import nn
from torch.nn import functional

__all__ = ["adapt", "load", "plain"]

# What timm calls the GELUs.
GELU = {"exact": "gelu", "tanh": "gelu_tanh", "quick": "quick_gelu"}
POOL = {"class_token": "token", "mean": "avg", "class_token_and_mean": ""}


def load(folder) -> nn.Module:
    """The exported model of a directory, in evaluation mode."""
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text())
    run = config["tributary"]
    model = plain(run["architecture"], config["num_classes"])
    model = adapt(model, run["architecture"], run["adapter"], run["head"], run["bags"], run["decoder"])
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    model.pretrained_cfg = {**model.pretrained_cfg, **config["pretrained_cfg"]}
    return model.eval()


def plain(architecture: dict, outputs: int) -> nn.Module:
    """timm's vision transformer of `[backbone.architecture]` under a linear head."""
    shape = architecture
    width, registers = shape["width"], shape.get("register_tokens", 0)
    pool = shape.get("pool", "class_token")
    options = dict(
        img_size=shape["image_size"], patch_size=shape["patch_size"], in_chans=shape["channels"],
        embed_dim=width, depth=shape["depth"], num_heads=shape["heads"], num_classes=outputs,
        class_token=shape.get("class_token", True), reg_tokens=registers, no_embed_class=registers > 0,
        init_values=1e-5 if shape.get("layer_scale", False) else None,
        pre_norm=shape.get("embedding_norm", False),
        global_pool=POOL[pool], fc_norm=shape.get("final_norm", "tokens") == "pooled",
        norm_layer=partial(LayerNorm, eps=shape.get("layer_norm_eps", 1e-6)),
    )
    # Half an element above: timm rounds the product down.
    if shape.get("mlp", "gelu") == "swiglu":
        swiglu = dict(mlp_ratio=(2 * shape["mlp_width"] + 0.5) / width, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU)
        options.update(swiglu)
    else:
        options.update(mlp_ratio=(shape["mlp_width"] + 0.5) / width, act_layer=GELU[shape.get("gelu", "exact")])
    return timm.create_model("vit_base_patch16_224", **options)


class Bottleneck(nn.Module):
    """up(activation(down(x)))."""

    def __init__(self, width: int, narrow: int, activation) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, narrow), nn.Linear(narrow, width)
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.activation(self.down(x)))


class GatedAttention(nn.Module):
    """One row of a bag's rows (Ilse et al. 2018, arXiv:1802.04712)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.content, self.gate = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.score = nn.Linear(hidden, 1)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        scores = self.score(torch.tanh(self.content(rows)) * torch.sigmoid(self.gate(rows)))
        return (rows * scores.softmax(0)).sum(0, keepdim=True)


class Decoder(nn.Module):
    """A residual convolution on the grid of patch tokens."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, channels), nn.Linear(channels, width)
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        images, patches, _ = tokens.shape
        side = round(patches**0.5)
        grid = self.down(tokens).transpose(1, 2).reshape(images, -1, side, side)
        mixed = functional.gelu(self.convolution(grid)).flatten(2).transpose(1, 2)
        return tokens + self.up(mixed)


class Head(nn.Linear):
    """From the last block's normed tokens to logits; with bags the images of one call are one bag."""

    def __init__(self, architecture: dict, outputs: int, head: dict, bags: dict, decoder: dict) -> None:
        kind = head["kind"]
        width, pool = architecture["width"], architecture.get("pool", "class_token")
        pooled = 2 * width if pool == "class_token_and_mean" and kind != "attention_pool" else width
        super().__init__(head["hidden"] if kind == "mlp" else pooled, outputs)
        self.pool, self.cells = pool, None
        self.patches = (architecture["image_size"] // architecture["patch_size"]) ** 2
        self.image_size = architecture["image_size"]
        if kind == "mlp":
            self.hidden = nn.Linear(pooled, head["hidden"])
        if kind == "attention_pool":
            self.query = nn.Parameter(torch.zeros(width))
        if bags:
            self.attention = GatedAttention(pooled, bags["attention_width"])
        if decoder:
            self.cells = decoder["cells"]
            if decoder["kind"] == "convolutional":
                self.decoder = Decoder(width, decoder["channels"])

    def pooled(self, tokens: torch.Tensor) -> torch.Tensor:
        patches = tokens[:, -self.patches:]
        if hasattr(self, "query"):
            scores = patches @ self.query / patches.shape[2] ** 0.5
            return (scores.softmax(1).unsqueeze(2) * patches).sum(1)
        parts = {"class_token": [tokens[:, 0]], "mean": [patches.mean(1)]}
        return torch.cat(parts.get(self.pool, [tokens[:, 0], patches.mean(1)]), 1)

    def forward_tokens(self, tokens: torch.Tensor, fc_norm: nn.Module) -> torch.Tensor:
        if self.cells is not None:
            return self.segmented(tokens[:, -self.patches:])
        rows = fc_norm(self.pooled(tokens))
        if hasattr(self, "attention"):
            rows = self.attention(rows)
        if hasattr(self, "hidden"):
            rows = functional.gelu(self.hidden(rows))
        return self(rows)

    def segmented(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits `[images, classes, height, width]`."""
        outputs = self(self.decoder(tokens) if hasattr(self, "decoder") else tokens)
        images, patches, _ = outputs.shape
        side, cells = round(patches**0.5), self.cells
        grid = outputs.reshape(images, side, side, -1, cells, cells).permute(0, 3, 1, 4, 2, 5)
        grid = grid.reshape(images, -1, side * cells, side * cells)
        return functional.interpolate(grid, size=self.image_size, mode="bilinear", align_corners=False)


def adapt(model: nn.Module, architecture: dict, adapter, head: dict, bags=None, decoder=None) -> nn.Module:
    """Attaches to timm's `model` what an adaptation (None: merged) and a head add, with random values.

    The tables are those of a run's manifest; `decoder` has `cells` beside them, logits along a patch's side.
    """
    special = bags or decoder or architecture.get("pool") == "class_token_and_mean" or head["kind"] != "linear"
    if special:
        model.head = Head(architecture, model.head.out_features, head, bags, decoder)
        model.forward_head = lambda tokens, **_: model.head.forward_tokens(tokens, model.fc_norm)
    kind = adapter["kind"] if adapter else None
    if kind is None:
        return model
    depth = architecture["depth"]
    blocks = range(depth - (adapter.get("last_blocks") or depth), depth)
    attach = {"houlsby": houlsby, "adaptformer": adaptformer, "prompts": prompts}.get(kind)
    if attach is None:
        raise ValueError(f"kind = {kind!r} is merged into the weights by the export")
    attach(model, [model.blocks[block] for block in blocks], architecture["width"], adapter)
    return model


def houlsby(_, blocks, width: int, adapter: dict) -> None:
    """h + up(gelu(down(h))) after attention and after the perceptron (arXiv:1902.00751)."""
    for block in blocks:
        for part, end in ((block.attn, block.ls1), (block.mlp, block.ls2)):
            part.adapter = Bottleneck(width, adapter["bottleneck"], functional.gelu)
            end.register_forward_hook(lambda _, __, h, adapter=part.adapter: h + adapter(h))


def adaptformer(_, blocks, width: int, adapter: dict) -> None:
    """scale * up(relu(down(norm2(x)))) beside the perceptron (arXiv:2205.13535)."""
    for block in blocks:
        beside = Bottleneck(width, adapter["bottleneck"], functional.relu)
        block.mlp.adapter = beside
        scale, added = adapter.get("scale", 0.1), []
        block.norm2.register_forward_hook(
            lambda _, __, x, beside=beside, added=added: added.append(scale * beside(x))
        )
        block.ls2.register_forward_hook(lambda _, __, h, added=added: h + added.pop())


def prompts(model: nn.Module, blocks, width: int, adapter: dict) -> None:
    """Tokens after an image's own, new ones before every block if `deep` (arXiv:2203.12119)."""
    own = model.patch_embed.num_patches + model.num_prefix_tokens

    def enter(block, arguments):
        x = arguments[0][:, :own]
        return (torch.cat([x, block.prompts.expand(x.shape[0], -1, -1)], 1), *arguments[1:])

    for block in blocks if adapter.get("deep", False) else blocks[:1]:
        block.prompts = nn.Parameter(torch.zeros(adapter["prompts"], width))
        block.register_forward_pre_hook(enter)
    model.blocks[-1].register_forward_hook(lambda _, __, x: x[:, :own])
