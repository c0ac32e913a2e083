"""PyTorch's side of `cargo trainer-bench`: the same transformer, LoRA, batch and threads.

    python3 tests/python/trainer_bench.py --size small --image-size 224 --batch 8 --steps 5 \
        --rank 8 --threads 2 --precision f32 --last-blocks 0

prints one JSON line. `--last-blocks 4` adapts the last four blocks alone, `--precision bf16` runs
under autocast. transformers' ViT with its fused attention, peft's LoRA on queries and
values with the classifier trained too, torch's AdamW, float32, eager.
"""

import argparse
import json
import resource
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import ViTConfig, ViTForImageClassification

WIDTHS = {"tiny": 192, "small": 384, "base": 768}


def model(options: argparse.Namespace) -> torch.nn.Module:
    width = WIDTHS[options.size]
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=12,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        image_size=options.image_size,
        patch_size=16,
        layer_norm_eps=1e-6,
        num_labels=2,
    )
    first = 12 - options.last_blocks if options.last_blocks else 0
    blocks = "|".join(str(block) for block in range(first, 12))
    lora = LoraConfig(
        r=options.rank,
        lora_alpha=options.rank,
        target_modules=rf".*\.layers?\.({blocks})\..*\.(q_proj|v_proj|query|value)",
        modules_to_save=["classifier"],
    )
    return get_peft_model(ViTForImageClassification(config), lora)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=WIDTHS, required=True)
    parser.add_argument("--precision", choices=["f32", "bf16"], required=True)
    for name in ["image-size", "batch", "steps", "rank", "threads", "last-blocks"]:
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    net = model(options)
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    size = options.image_size
    images = torch.randn(options.batch, 3, size, size)
    labels = torch.randint(0, 2, (options.batch,))

    mixed = torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16")

    def forward_pass() -> torch.Tensor:
        with mixed:
            return net(pixel_values=images).logits.float()

    def step() -> None:
        optimizer.zero_grad()
        logits = forward_pass()
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()

    def timed(work) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    net.eval()
    with torch.inference_mode():
        forward = sorted(timed(forward_pass) for _ in range(5))[2]
    net.train()
    step()
    steps = [timed(step) for _ in range(options.steps)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    data = {"step_s": steps, "forward_s": forward, "peak_bytes": peak}
    print(json.dumps({"schema_version": 1, "status": "ok", "data": data}))


if __name__ == "__main__":
    main()
