"""Loads an exported adapter with Hugging Face's own code and compares logits.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install torch transformers==5.* peft safetensors
    /tmp/venv/bin/python tests/python/peft_parity.py            # compare with the committed logits
    /tmp/venv/bin/python tests/python/peft_parity.py --update   # write them anew

The fixture's other files are written by the Rust test `write_the_peft_fixture`
(client/tests/ml_artifacts.rs), which also holds our own forward pass to the same logits.
"""

import argparse
import json
import pathlib
import sys
import tomllib

import numpy as np
import torch
import transformers
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import ViTConfig, ViTForImageClassification

FIXTURE = pathlib.Path(__file__).parents[2] / "client/tests/fixtures/peft"
TOLERANCE = 1e-4
IMAGES = 3

# Our names to those of transformers, by major version; `{}` is the block.
STEM = {
    "patch_embed": "vit.embeddings.patch_embeddings.projection",
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "norm": "vit.layernorm",
}
BLOCK = {
    4: {
        "norm1": "vit.encoder.layer.{}.layernorm_before",
        "attn.q": "vit.encoder.layer.{}.attention.attention.query",
        "attn.k": "vit.encoder.layer.{}.attention.attention.key",
        "attn.v": "vit.encoder.layer.{}.attention.attention.value",
        "attn.proj": "vit.encoder.layer.{}.attention.output.dense",
        "norm2": "vit.encoder.layer.{}.layernorm_after",
        "mlp.fc1": "vit.encoder.layer.{}.intermediate.dense",
        "mlp.fc2": "vit.encoder.layer.{}.output.dense",
    },
    5: {
        "norm1": "vit.layers.{}.layernorm_before",
        "attn.q": "vit.layers.{}.attention.q_proj",
        "attn.k": "vit.layers.{}.attention.k_proj",
        "attn.v": "vit.layers.{}.attention.v_proj",
        "attn.proj": "vit.layers.{}.attention.o_proj",
        "norm2": "vit.layers.{}.layernorm_after",
        "mlp.fc1": "vit.layers.{}.mlp.fc1",
        "mlp.fc2": "vit.layers.{}.mlp.fc2",
    },
}


def their_name(name: str, major: int) -> str:
    if name in STEM:
        return STEM[name]
    stem, _, part = name.rpartition(".")
    if stem.startswith("blocks."):
        _, block, module = stem.split(".", 2)
        return f"{BLOCK[major][module].format(block)}.{part}"
    return f"{STEM[stem]}.{part}"


def base_model(run: dict, backbone: pathlib.Path) -> ViTForImageClassification:
    weights = {name: torch.from_numpy(values) for name, values in load_file(backbone).items()}
    return model_of(run, weights)


def model_of(run: dict, backbone: dict) -> ViTForImageClassification:
    """transformers' model of a run with the backbone's tensors, the head as it comes."""
    shape = run["backbone"]["architecture"]
    if shape.get("pool", "class_token") != "class_token" or not shape.get("class_token", True):
        sys.exit("ViTForImageClassification reads the class token; this run's pool is another")
    classes = run["task"]["classes"]
    config = ViTConfig(
        hidden_size=shape["width"],
        num_hidden_layers=shape["depth"],
        num_attention_heads=shape["heads"],
        intermediate_size=shape["mlp_width"],
        image_size=shape["image_size"],
        patch_size=shape["patch_size"],
        num_channels=shape["channels"],
        layer_norm_eps=shape.get("layer_norm_eps", 1e-6),
        hidden_act="gelu" if shape.get("gelu", "exact") == "exact" else "gelu_pytorch_tanh",
        num_labels=1 if run["task"]["kind"] == "binary" else len(classes),
    )
    model = ViTForImageClassification(config).eval()
    major = int(transformers.__version__.split(".")[0])
    weights = {their_name(name, major): values for name, values in backbone.items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or any(not name.startswith("classifier.") for name in missing):
        sys.exit(f"backbone does not fit: missing {missing}, unexpected {unexpected}")
    return model


def images(run: dict) -> torch.Tensor:
    """Images that nobody drew: the same formula as in ml_artifacts.rs, exact in f32."""
    shape = run["backbone"]["architecture"]
    dims = (IMAGES, shape["channels"], shape["image_size"], shape["image_size"])
    index = np.arange(np.prod(dims), dtype=np.int64)
    pixels = (index * 7919 % 1000).astype(np.float32) / np.float32(500) - np.float32(1)
    return torch.from_numpy(pixels.reshape(dims))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", type=pathlib.Path, default=FIXTURE / "run.toml")
    parser.add_argument("--backbone", type=pathlib.Path, default=FIXTURE / "backbone.safetensors")
    parser.add_argument("--adapter", type=pathlib.Path, default=None, help="exported directory")
    parser.add_argument("--expected", type=pathlib.Path, default=FIXTURE / "logits.json")
    parser.add_argument("--update", action="store_true", help="write --expected instead")
    arguments = parser.parse_args()
    major = int(transformers.__version__.split(".")[0])
    adapter = arguments.adapter or FIXTURE / f"transformers-{major}"

    run = tomllib.loads(arguments.run.read_text())
    pixels = images(run)
    with torch.no_grad():
        base = base_model(run, arguments.backbone)
        plain = base(pixel_values=pixels).logits
        adapted_model = PeftModel.from_pretrained(base, adapter).eval()
        adapted = adapted_model(pixel_values=pixels).logits
    # Every file's factor must have found its place: peft only warns about the others.
    in_file = load_file(adapter / "adapter_model.safetensors")
    in_model = {n for n, _ in adapted_model.named_parameters() if "lora_" in n}
    factors = sum("lora_" in name for name in in_file)
    if factors and factors != len(in_model):
        sys.exit(f"{factors} factors in the file, {len(in_model)} in the model")
    found = {
        "transformers": transformers.__version__,
        "torch": torch.__version__.split("+")[0],
        "logits": adapted.tolist(),
    }
    print(f"the adapter moves the logits by {(adapted - plain).abs().max().item():.3f}")
    if arguments.update:
        arguments.expected.write_text(json.dumps(found, indent=1) + "\n")
        print(f"wrote {arguments.expected}")
        return
    expected = torch.tensor(json.loads(arguments.expected.read_text())["logits"])
    difference = (adapted - expected).abs().max().item()
    print(f"largest difference {difference:.2e} (allowed {TOLERANCE:.0e})")
    if difference > TOLERANCE:
        sys.exit("the exported adapter does not compute the committed logits")


if __name__ == "__main__":
    main()
