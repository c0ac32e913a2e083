"""Every adaptation and head as other people's code computes it: logits, and gradients by every trained value.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install -r tests/python/requirements.txt
    /tmp/venv/bin/python tests/python/adaptation_fixtures.py            # write the fixtures anew
    /tmp/venv/bin/python tests/python/adaptation_fixtures.py --check    # today's packages against the committed files

LoRA, rsLoRA and DoRA are `peft`'s own, on transformers' ViT. The rest stands on timm's vision transformer: bottlenecks,
prompts and heads through deploy/python/tributary_timm.py, which is written from the papers; biases and whole weights
as timm's own parameters. The loss is half the sum of the squared logits. Of timm's models also what the first
image's second logit owes to each patch: attention rollout (arXiv:2005.00928) and attention times its gradient
(arXiv:2103.15679).

Every tensor is drawn by numpy's frozen generator under its name, norms, biases and scales too, and no trained value
is zero: a wrong mapping shows. The Rust test client/src/model/adaptation_parity.rs reads the files.
"""

import argparse
import json
import pathlib
import sys
import zlib

import numpy as np
import peft
import timm
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "deploy/python"))

import peft_parity  # noqa: E402
import tributary_timm  # noqa: E402

FIXTURES = ROOT / "client/tests/fixtures/adaptations"
TOLERANCE = 1e-4
IMAGES, OUTPUTS = 2, 3
PLAIN = dict(image_size=16, patch_size=4, channels=3, width=12, depth=2, heads=2, mlp_width=20)
RICH = {**PLAIN, "pool": "class_token_and_mean", "mlp": "swiglu", "register_tokens": 3, "layer_scale": True}
MEAN = {**PLAIN, "pool": "mean", "final_norm": "pooled", "embedding_norm": True}
BACKBONES = {"plain": PLAIN, "rich": RICH, "mean": MEAN}
LINEAR = {"kind": "linear"}
MAPS = {"q": "attn.q", "k": "attn.k", "v": "attn.v", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


def lora(**keys) -> dict:
    every = dict(kind="lora", rank=3, alpha=5.0, targets=list(MAPS))
    return {**every, **keys}


# Name: backbone, `[adapter]`, `[head]`.
CASES = {
    "lora": ("plain", lora(), LINEAR),
    "lora-last": ("plain", lora(targets=["q", "fc2"], last_blocks=1), LINEAR),
    "rslora": ("plain", lora(scaling="rslora", targets=["v", "proj"]), LINEAR),
    "dora": ("plain", lora(dora=True), LINEAR),
    "houlsby": ("rich", dict(kind="houlsby", bottleneck=4), LINEAR),
    "houlsby-mlp-head": ("plain", dict(kind="houlsby", bottleneck=3, last_blocks=1), dict(kind="mlp", hidden=5)),
    "adaptformer": ("rich", dict(kind="adaptformer", bottleneck=4, scale=0.3), LINEAR),
    "adaptformer-attention-pool": ("mean", dict(kind="adaptformer", bottleneck=3), dict(kind="attention_pool")),
    "prompts-shallow": ("rich", dict(kind="prompts", prompts=2), LINEAR),
    "prompts-deep": ("mean", dict(kind="prompts", prompts=3, deep=True), LINEAR),
    "prompts-last": ("plain", dict(kind="prompts", prompts=2, deep=True, last_blocks=1), LINEAR),
    "bitfit": ("rich", dict(kind="bitfit"), LINEAR),
    "last-blocks": ("mean", dict(kind="last_blocks", last_blocks=1), LINEAR),
    "full": ("rich", dict(kind="full"), LINEAR),
    "head-mlp": ("rich", dict(kind="head_only"), dict(kind="mlp", hidden=5)),
    "head-attention-pool": ("plain", dict(kind="head_only"), dict(kind="attention_pool")),
}


def drawn(name: str, shape, around: float = 0.0, deviation: float = 0.25) -> torch.Tensor:
    """A normal draw that depends on the name alone."""
    draw = np.random.RandomState(zlib.crc32(name.encode()))
    return torch.from_numpy((around + deviation * draw.standard_normal(tuple(shape))).astype(np.float32))


def layout(shape: dict) -> dict:
    """Every tensor of a backbone under Tributary's names, with its shape."""
    width, patch, side = shape["width"], shape["patch_size"], shape["image_size"] // shape["patch_size"]
    hidden = shape["mlp_width"]
    tensors = {
        "patch_embed.weight": (width, shape["channels"], patch, patch), "patch_embed.bias": (width,),
        "pos_embed": (1, 1 + side * side, width), "cls_token": (1, 1, width),
    }
    if shape.get("register_tokens"):
        tensors["reg_tokens"] = (1, shape["register_tokens"], width)
    norms = ["norm_pre"] if shape.get("embedding_norm") else []
    norms.append("fc_norm" if shape.get("final_norm") == "pooled" else "norm")
    for block in range(shape["depth"]):
        norms += [f"blocks.{block}.norm1", f"blocks.{block}.norm2"]
        inputs = hidden * (2 if shape.get("mlp") == "swiglu" else 1)
        widths = {"mlp.fc1": (inputs, width), "mlp.fc2": (width, hidden)}
        for module in MAPS.values():
            weight = widths.get(module, (width, width))
            tensors[f"blocks.{block}.{module}.weight"] = weight
            tensors[f"blocks.{block}.{module}.bias"] = weight[:1]
        if shape.get("layer_scale"):
            tensors[f"blocks.{block}.ls1.gamma"] = tensors[f"blocks.{block}.ls2.gamma"] = (width,)
    for norm in norms:
        tensors[f"{norm}.weight"] = tensors[f"{norm}.bias"] = (width,)
    return dict(sorted(tensors.items()))


def backbone(name: str) -> dict:
    def tensor(tensor: str, shape) -> torch.Tensor:
        scale = "norm" in tensor and tensor.endswith("weight") or tensor.endswith("gamma")
        # timm's patch embedding has no bias where a norm follows it.
        if BACKBONES[name].get("embedding_norm") and tensor == "patch_embed.bias":
            return torch.zeros(shape)
        return drawn(f"{name} {tensor}", shape, around=1.0 if scale else 0.0)

    return {n: tensor(n, shape) for n, shape in layout(BACKBONES[name]).items()}


def timm_weights(weights: dict, shape: dict) -> dict:
    """Tributary's names to timm's: fused q, k, v; with registers the class token's position is added to it."""
    theirs = {}
    for name, tensor in weights.items():
        if ".attn.q." in name:
            parts = [weights[name.replace(".q.", f".{part}.")] for part in "qkv"]
            theirs[name.replace(".q.", ".qkv.")] = torch.cat(parts)
        elif ".attn.k." not in name and ".attn.v." not in name:
            renamed = name.replace("patch_embed.", "patch_embed.proj.").replace("reg_tokens", "reg_token")
            theirs[renamed] = tensor
    if shape.get("embedding_norm"):
        del theirs["patch_embed.proj.bias"]
    if shape.get("register_tokens"):
        theirs["cls_token"] = weights["cls_token"] + weights["pos_embed"][:, :1]
        theirs["pos_embed"] = weights["pos_embed"][:, 1:]
    return theirs


def images(shape: dict) -> torch.Tensor:
    """Images that nobody drew: the same formula as in adaptation_parity.rs, exact in f32."""
    dims = (IMAGES, shape["channels"], shape["image_size"], shape["image_size"])
    index = np.arange(np.prod(dims), dtype=np.int64)
    pixels = (index * 7919 % 1000).astype(np.float32) / np.float32(500) - np.float32(1)
    return torch.from_numpy(pixels.reshape(dims))


def by_peft(adapter: dict) -> tuple:
    """Trained values and gradients of peft's LoRA on transformers' ViT, and the logits."""
    run = {"backbone": {"architecture": PLAIN}, "task": {"kind": "multi_class", "classes": list("abc")}}
    weights = backbone("plain")
    base = peft_parity.model_of(run, weights)
    major = int(transformers.__version__.split(".")[0])
    depth, last = PLAIN["depth"], adapter.get("last_blocks") or PLAIN["depth"]
    modules = [MAPS[target] for target in adapter["targets"]]
    adapted = [(b, m) for b in range(depth - last, depth) for m in modules]
    names = {peft_parity.BLOCK[major][m].format(b): f"blocks.{b}.{m}" for b, m in adapted}
    config = peft.LoraConfig(
        r=adapter["rank"], lora_alpha=adapter["alpha"], target_modules=list(names), modules_to_save=["classifier"],
        use_rslora=adapter.get("scaling") == "rslora", use_dora=adapter.get("dora", False),
    )
    model = peft.get_peft_model(base, config).eval()
    head = base.classifier.modules_to_save["default"]
    leaves = {"head.weight": head.weight, "head.bias": head.bias}
    offsets = {}
    for theirs, ours in names.items():
        module = base.get_submodule(theirs)
        leaves[f"{ours}.lora_A"] = module.lora_A["default"].weight
        leaves[f"{ours}.lora_B"] = module.lora_B["default"].weight
        if config.use_dora:
            name = f"{ours}.lora_magnitude"
            leaves[name] = module.lora_magnitude_vector["default"].weight
            # Ours is the change of the frozen rows' lengths, theirs the lengths.
            offsets[name] = weights[f"{ours}.weight"].norm(dim=1)
    trained = {}
    with torch.no_grad():
        for name, leaf in leaves.items():
            trained[name] = drawn(f"trained {name}", leaf.shape)
            leaf.copy_(trained[name] + offsets.get(name, 0.0))
    logits = model(pixel_values=images(PLAIN)).logits
    (0.5 * logits.square().sum()).backward()
    return trained, {name: leaf.grad for name, leaf in leaves.items()}, logits.detach(), {}


def changed(adapter: dict, shape: dict) -> list:
    """The backbone's tensors that are trained as changes of themselves."""
    first = shape["depth"] - (adapter.get("last_blocks") or shape["depth"])
    blocks = tuple(f"blocks.{block}." for block in range(first, shape["depth"]))
    rule = {
        "bitfit": lambda name: name.startswith(blocks) and name.endswith(".bias"),
        "last_blocks": lambda name: name.startswith((*blocks, "norm.", "fc_norm.")),
        "full": lambda name: True,
    }.get(adapter["kind"], lambda name: False)
    return [name for name in layout(shape) if rule(name)]


class Attention:
    """The attention probabilities of every block of timm's model, first block first."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.maps, self.normed = [], None
        model.norm.register_forward_hook(self.last)
        for block in model.blocks:
            block.attn.fused_attn = False
            block.attn.attn_drop.register_forward_hook(self.keep)

    def keep(self, _, __, probabilities: torch.Tensor) -> None:
        if not probabilities.requires_grad:
            probabilities.requires_grad_()
        self.maps.append(probabilities)

    def last(self, _, __, normed: torch.Tensor) -> None:
        self.normed = normed.detach()

    def explain(self, shape: dict, head: dict, logit: torch.Tensor, query: torch.Tensor | None) -> dict:
        """What the first image's `logit` owes to each patch, by rollout and by attention times gradient.

        `query` is an attention-pooling head's: how much it takes of a patch is how much the patch's row counts.
        """
        gradients = torch.autograd.grad(logit, self.maps, retain_graph=True)
        side = shape["image_size"] // shape["patch_size"]
        own = 1 + shape.get("register_tokens", 0) + side * side
        rollout, relevance = torch.eye(own), torch.eye(own)
        for probabilities, gradient in zip(self.maps, gradients):
            p, g = probabilities[0].detach(), gradient[0]
            tokens = p.shape[1]
            # Prompts enter from nowhere; those of an earlier block are carried on or replaced, as `tokens` says.
            fresh = torch.zeros(tokens - own, own)
            if rollout.shape[0] != tokens or head.get("deep"):
                rollout, relevance = torch.cat([rollout[:own], fresh]), torch.cat([relevance[:own], fresh])
            mixing = (p.mean(0) + torch.eye(tokens)) / 2
            rollout = mixing / mixing.sum(1, keepdim=True) @ rollout
            relevance = relevance + (p * g).clamp(min=0).mean(0) @ relevance
        heats = {}
        for name, matrix in (("rollout", rollout), ("relevance", relevance)):
            patches = matrix[:own, own - side * side :].clone()
            if name == "relevance":
                patches[own - side * side :] -= torch.eye(side * side)
            rows = patches[own - side * side :]
            cls, mean = patches[0], rows.mean(0)
            heat = {"class_token": cls, "mean": mean, "class_token_and_mean": cls + mean}[shape.get("pool", "class_token")]
            if query is not None:
                tokens = self.normed[0, -side * side :]
                heat = (tokens @ query / query.numel() ** 0.5).softmax(0) @ rows
            heats[name] = heat / heat.sum()
        return heats


def by_timm(name: str, adapter: dict, head: dict) -> tuple:
    """As `by_peft`, on timm's vision transformer. Gradients come through the change of names."""
    shape = BACKBONES[name]
    modular = adapter if adapter["kind"] in ("houlsby", "adaptformer", "prompts") else None
    model = tributary_timm.plain(shape, OUTPUTS)
    model = tributary_timm.adapt(model, shape, modular, head).eval()
    frozen, trained, changes = backbone(name), {}, changed(adapter, shape)
    own = {n: p.shape for n, p in model.named_parameters() if n.startswith("head") or ".adapter." in n or "prompts" in n}
    for tensor, dims in own.items():
        trained[tensor] = drawn(f"trained {tensor}", dims)
    for tensor in changes:
        trained[tensor] = drawn(f"trained {tensor}", frozen[tensor].shape, deviation=0.1)
    leaves = {n: t.clone().requires_grad_() for n, t in trained.items()}
    weights = {n: t + leaves[n] if n in changes else t for n, t in frozen.items()}
    state = {**timm_weights(weights, shape), **{n: leaves[n] for n in own}}
    missing = set(model.state_dict()) ^ set(state)
    assert not missing, missing
    attention = Attention(model)
    logits = torch.func.functional_call(model, state, (images(shape),))
    query = trained.get("head.query")
    heats = attention.explain(shape, {**head, "deep": adapter.get("deep")}, logits[0, 1], query)
    (0.5 * logits.square().sum()).backward()
    return trained, {n: leaf.grad for n, leaf in leaves.items()}, logits.detach(), heats


def computed(case: str) -> dict:
    """A case's tensors: `trained.*`, `gradient.*`, `logits`, and of timm's models `rollout` and `relevance`."""
    name, adapter, head = CASES[case]
    trained, gradients, logits, heats = by_peft(adapter) if adapter["kind"] == "lora" else by_timm(name, adapter, head)
    tensors = {f"trained.{n}": t for n, t in trained.items()}
    tensors.update({f"gradient.{n}": t for n, t in gradients.items()})
    return {n: t.contiguous() for n, t in {**tensors, **heats, "logits": logits}.items()}


def write_all() -> None:
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for name, shape in BACKBONES.items():
        metadata = {"tributary.architecture": json.dumps(shape)}
        save_file(backbone(name), FIXTURES / f"{name}.backbone.safetensors", metadata)
    for case, (name, adapter, head) in CASES.items():
        metadata = {"backbone": name, "adapter": json.dumps(adapter), "head": json.dumps(head)}
        save_file(computed(case), FIXTURES / f"{case}.safetensors", metadata)
    print(f"wrote {FIXTURES}")


def check() -> None:
    worst = 0.0
    for case in CASES:
        found = computed(case)
        with safe_open(FIXTURES / f"{case}.safetensors", "pt") as committed:
            if set(committed.keys()) != set(found):
                sys.exit(f"{case}: other tensors than committed: {set(committed.keys()) ^ set(found)}")
            for name, tensor in found.items():
                expected = committed.get_tensor(name)
                scale = max(1.0, expected.abs().max().item())
                difference = (tensor - expected).abs().max().item() / scale
                worst = max(worst, difference)
                if difference > TOLERANCE:
                    sys.exit(f"{case}: {name} differs from the committed one by {difference:.1e}")
    print(f"{len(CASES)} adaptations as committed, within {worst:.1e}")
    print(f"torch {torch.__version__}, peft {peft.__version__}, timm {timm.__version__}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files; nothing is written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    check() if arguments.check else write_all()


if __name__ == "__main__":
    main()
