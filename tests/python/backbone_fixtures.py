"""Checkpoints as timm and transformers write them, with the features that they compute.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install torch timm transformers==5.* safetensors numpy
    /tmp/venv/bin/python tests/python/backbone_fixtures.py                       # write the fixtures anew
    /tmp/venv/bin/python tests/python/backbone_fixtures.py --check CLIENT        # today's packages, live

The Rust test client/tests/backbone_import.rs imports every committed file and holds our forward pass to the
committed features. `--check` makes the same models with the packages at hand, compares their features with the
committed ones, and lets `tributary-client` (CLIENT) import both the committed and the new file: the backbones
must be the same, bit for bit.

Every tensor is drawn by numpy's frozen generator, norms, biases and scales too: a wrong mapping shows.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field

import numpy as np
import timm.layers
import torch
import transformers
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

FIXTURES = pathlib.Path(__file__).parents[2] / "client/tests/fixtures/backbones"
TOLERANCE = 1e-4
IMAGES = 2
WIDTH, DEPTH, HEADS, PATCH, SIZE = 12, 2, 2, 4, 16


@dataclass
class Case:
    """A file, how it is imported, and the features to expect."""

    file: str
    architecture: dict
    write: object
    features: object
    image_size: int = SIZE
    arguments: list = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.file.split(".")[0]


def drawn(model: torch.nn.Module, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """Every parameter 0.25 times a standard normal, norms and scales around 1, rounded to `dtype`."""
    draw = np.random.RandomState(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = 0.25 * draw.standard_normal(tuple(parameter.shape))
            if any(part in name for part in ("norm", "gamma", "lambda")) and name.endswith(
                ("weight", "gamma", "lambda1")
            ):
                values += 1.0
            parameter.copy_(torch.from_numpy(values).to(dtype))
    return model.eval()


def images(size: int) -> torch.Tensor:
    """Images that nobody drew: the same formula as in backbone_import.rs, exact in f32."""
    index = np.arange(IMAGES * 3 * size * size, dtype=np.int64)
    pixels = (index * 7919 % 1000).astype(np.float32) / np.float32(500) - np.float32(1)
    return torch.from_numpy(pixels.reshape(IMAGES, 3, size, size))


def timm_model(**options) -> VisionTransformer:
    shape = dict(img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_ratio=2)
    return VisionTransformer(**{**shape, "num_classes": 2, **options})


def timm_features(model: VisionTransformer, size: int = SIZE) -> torch.Tensor:
    """What timm's own head would see."""
    return model.forward_head(model.forward_features(images(size)), pre_logits=True)


def class_and_mean(tokens: torch.Tensor, prefix: int) -> torch.Tensor:
    return torch.cat([tokens[:, 0], tokens[:, prefix:].mean(1)], dim=1)


def shape(**options) -> dict:
    plain = dict(image_size=SIZE, patch_size=PATCH, channels=3, width=WIDTH, depth=DEPTH, heads=HEADS, mlp_width=24)
    return {**plain, **options}


def torch_save(content) -> object:
    return lambda path: torch.save(content, path)


def safe_save(tensors: dict) -> object:
    return lambda path: save_file({name: t.contiguous() for name, t in tensors.items()}, path, {"format": "pt"})


def pretrained_save(model) -> object:
    """What `save_pretrained` writes, which is what the Hub holds."""

    def write(path: pathlib.Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            path.write_bytes((pathlib.Path(folder) / "model.safetensors").read_bytes())

    return write


def timm_cases() -> list:
    plain = drawn(timm_model())
    giant_options = dict(
        init_values=1e-5, reg_tokens=4, no_embed_class=True, mlp_ratio=4,
        mlp_layer=timm.layers.SwiGLUPacked, act_layer=torch.nn.SiLU, num_classes=0,
    )
    giant = drawn(timm_model(**giant_options))
    giant_shape = shape(mlp="swiglu", register_tokens=4, layer_scale=True, pool="class_token_and_mean")
    bf16 = drawn(timm_model(reg_tokens=3, init_values=1e-5), torch.bfloat16)
    retfound = drawn(timm_model(global_pool="avg"))
    clip_options = dict(pre_norm=True, act_layer=timm.layers.QuickGELU, num_classes=0)
    clip = drawn(timm_model(**clip_options), torch.float16)
    bare_options = dict(class_token=False, global_pool="avg", fc_norm=False, qkv_bias=False, num_classes=0)
    bare = drawn(timm_model(**bare_options))
    larger = drawn(timm_model(**bare_options))
    larger.set_input_size(img_size=(24, 24))
    smaller = drawn(timm_model())
    smaller.set_input_size(img_size=(8, 8))

    # As DINOv2's training code saves: other names, blocks in chunks, student and teacher.
    def original(name: str) -> str:
        name = name.replace("reg_token", "register_tokens")
        name = name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")
        return name.replace("blocks.1.", "blocks.1.1.").replace("blocks.0.", "blocks.0.0.")

    teacher = {f"backbone.{original(n)}": t.double() for n, t in giant.state_dict().items()}
    student = {name: t + 1 for name, t in teacher.items()}
    args = argparse.Namespace(model="vit_large_patch16", blr=5e-3, output_dir=pathlib.PosixPath("out"), nb_classes=2)
    nested = {
        "model": retfound.state_dict(), "args": args, "epoch": 50, "best": np.float64(0.5),
        "optimizer": torch.optim.AdamW(retfound.parameters()).state_dict(),
    }
    # The published RETFound is an autoencoder's: norm of the tokens, decoder, no fc_norm.
    encoder = {n.replace("fc_norm", "norm"): t for n, t in retfound.state_dict().items() if "head" not in n}
    autoencoder = {**encoder, "mask_token": torch.ones(1, 1, 8), "decoder_embed.weight": torch.ones(8, WIDTH)}
    fresh = drawn(timm_model(global_pool="avg"))
    fresh.fc_norm.reset_parameters()
    pooled = shape(pool="mean", final_norm="pooled")
    giant_features = lambda: class_and_mean(giant.forward_features(images(SIZE)), 5)
    # Views into one larger storage, one of them transposed: nothing says that a file has none.
    viewed = {n: torch.stack([torch.zeros_like(t), t])[1] for n, t in plain.state_dict().items()}
    name = "blocks.0.mlp.fc1.weight"
    viewed[name] = viewed[name].T.contiguous().T
    return [
        Case("timm-plain.pth", shape(), torch_save(plain.state_dict()), lambda: timm_features(plain)),
        Case("timm-views.pth", shape(), torch_save(viewed), lambda: timm_features(plain)),
        Case("timm-giant.safetensors", giant_shape, safe_save(giant.state_dict()), giant_features),
        Case("dinov2-training.pth", giant_shape, torch_save({"student": student, "teacher": teacher}), giant_features,
             arguments=["--prefix", "teacher.backbone"]),
        Case("timm-registers-bf16.pth", shape(register_tokens=3, layer_scale=True),
             torch_save({n: t.bfloat16() for n, t in bf16.state_dict().items()}), lambda: timm_features(bf16)),
        Case("retfound-tuned.pth", pooled, torch_save(nested), lambda: timm_features(retfound)),
        Case("retfound-published.pth", pooled, torch_save({"model": autoencoder}), lambda: timm_features(fresh)),
        Case("timm-clip-f16.safetensors", shape(embedding_norm=True, gelu="quick"),
             safe_save({n: t.half() for n, t in clip.state_dict().items()}), lambda: timm_features(clip)),
        Case("timm-bare.safetensors", shape(class_token=False, pool="mean"), safe_save(bare.state_dict()),
             lambda: timm_features(bare)),
        Case("timm-larger.safetensors", shape(class_token=False, pool="mean"), safe_save(bare.state_dict()),
             lambda: timm_features(larger, 24), 24),
        Case("timm-smaller.pth", shape(), torch_save(plain.state_dict()), lambda: timm_features(smaller, 8), 8),
    ]


def transformers_cases() -> list:
    from transformers import (
        Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel, ViTConfig,
        ViTForImageClassification, ViTModel,
    )

    common = dict(hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, image_size=SIZE, patch_size=PATCH)
    vit_config = ViTConfig(**common, intermediate_size=24, layer_norm_eps=1e-12)
    vit, classifier = drawn(ViTModel(vit_config)), drawn(ViTForImageClassification(vit_config))
    vit_shape = shape(layer_norm_eps=1e-12)
    dino = drawn(Dinov2Model(Dinov2Config(**common, mlp_ratio=2)))
    registers = drawn(Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**common, mlp_ratio=2, num_register_tokens=4)))
    giant = drawn(Dinov2Model(Dinov2Config(**common, mlp_ratio=4, use_swiglu_ffn=True)))
    giant_shape = shape(layer_scale=True, mlp="swiglu", mlp_width=32, pool="class_token_and_mean")
    def tokens(model, size=SIZE):
        options = {"interpolate_pos_encoding": True} if model is vit else {}
        return model(pixel_values=images(size), **options).last_hidden_state
    giant_features = lambda: class_and_mean(tokens(giant), 1)
    return [
        Case("transformers-vit-saved.safetensors", vit_shape, pretrained_save(vit), lambda: tokens(vit)[:, 0]),
        Case("transformers-vit-memory.safetensors", vit_shape, safe_save(classifier.state_dict()),
             lambda: tokens(classifier.vit)[:, 0]),
        Case("transformers-vit-larger.bin", vit_shape, torch_save(vit.state_dict()), lambda: tokens(vit, 24)[:, 0], 24),
        Case("transformers-dinov2-smaller.safetensors", shape(layer_scale=True), pretrained_save(dino),
             lambda: tokens(dino, 12)[:, 0], 12),
        Case("transformers-registers.safetensors", shape(layer_scale=True, register_tokens=4, pool="mean"),
             pretrained_save(registers), lambda: tokens(registers)[:, 5:].mean(1)),
        Case("transformers-registers-smaller.bin", shape(layer_scale=True, register_tokens=4),
             torch_save(registers.state_dict()), lambda: tokens(registers, 12)[:, 0], 12),
        Case("transformers-giant-saved.safetensors", giant_shape, pretrained_save(giant), giant_features),
        Case("transformers-giant-memory.bin", giant_shape, torch_save(giant.state_dict()), giant_features),
    ]


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch tributary-unpickled",)


def write_hostile(folder: pathlib.Path) -> None:
    weights = drawn(timm_model()).state_dict()
    torch.save({"model": weights, "args": Evil()}, folder / "hostile.pth")
    torch.save({"a": torch.ones(2)}, folder / "legacy.pth", _use_new_zipfile_serialization=False)


def card(case: Case) -> dict:
    with torch.no_grad():
        features = case.features()
    return {
        "file": case.file,
        "image_size": case.image_size,
        "prefix": case.arguments[1] if case.arguments else None,
        "architecture": case.architecture,
        "features": [[round(value, 7) for value in row] for row in features.tolist()],
    }


def write_all() -> None:
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for case in timm_cases() + transformers_cases():
        case.write(FIXTURES / case.file)
        (FIXTURES / f"{case.name}.json").write_text(json.dumps(card(case), indent=1) + "\n")
    write_hostile(FIXTURES)
    print(f"wrote {FIXTURES}")


def imported(client: str, case: Case, file: pathlib.Path, folder: pathlib.Path) -> str:
    """The digest of the backbone that `tributary-client` makes of the file."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in case.architecture.items()]
    description = folder / "arch.toml"
    description.write_text("mean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n[architecture]\n" + "\n".join(lines))
    command = [client, "backbone", "import", file, "--arch", description, "--out", folder / "out.safetensors"]
    resized = ["--image-size", str(case.image_size)] if case.image_size != SIZE else []
    done = subprocess.run([*command, *resized, *case.arguments, "--format", "json"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{file}: {done.stdout}{done.stderr}")
    return json.loads(done.stdout)["data"]["backbone"]["digest"]


def check(client: str) -> None:
    worst = 0.0
    cases = timm_cases() + transformers_cases()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for case in cases:
            committed = json.loads((FIXTURES / f"{case.name}.json").read_text())
            found = card(case)
            difference = np.abs(np.array(found["features"]) - np.array(committed["features"])).max()
            worst = max(worst, difference)
            if difference > TOLERANCE:
                sys.exit(f"{case.name}: today's features differ from the committed ones by {difference:.1e}")
            case.write(folder / case.file)
            digests = {imported(client, case, place / case.file, folder) for place in (FIXTURES, folder)}
            if len(digests) != 1:
                sys.exit(f"{case.name}: the committed and today's file give different backbones")
    print(f"{len(cases)} files read as committed, features within {worst:.1e}")
    print(f"torch {torch.__version__}, timm {timm.__version__}, transformers {transformers.__version__}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", metavar="CLIENT", help="a tributary-client; nothing is written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.check:
        check(arguments.check)
    else:
        write_all()


if __name__ == "__main__":
    main()
