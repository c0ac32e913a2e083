"""Writes ../fixtures/loss/self_supervised.json: the losses of the self-supervised objectives and
their derivatives, by PyTorch 2. Needs torch (CPU) and numpy.

    python client/tests/python/self_supervised_fixtures.py
"""

import json
import pathlib

import numpy as np
import torch
import torch.nn.functional as F

rng = np.random.default_rng(11)
out = pathlib.Path(__file__).parent.parent / "fixtures" / "loss" / "self_supervised.json"


def numbers(*shape):
    """Exact in f32 and short in JSON."""
    return np.round(rng.normal(0, 1.5, shape) * 64) / 64


def leaf(values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def flat(values):
    return np.asarray(values).ravel().tolist()


def contrast(images, width, temperature):
    """NT-Xent as SimCLR's Algorithm 1: a cross-entropy over all other views."""
    values = numbers(images, 2, width)
    views = leaf(values)
    unit = F.normalize(views.reshape(-1, width), dim=1)
    scores = unit @ unit.T / temperature
    scores = scores.masked_fill(torch.eye(2 * images, dtype=torch.bool), float("-inf"))
    other = torch.arange(2 * images) ^ 1
    loss = F.cross_entropy(scores, other)
    loss.backward()
    return dict(width=width, temperature=temperature, projections=flat(values), loss=loss.item(),
                by_output=flat(views.grad))


def distillation(images, prototypes, local_views, centre):
    """DINOLoss of the authors' code: every global view of the teacher's with every other view."""
    student_t, teacher_t = 0.1, 0.04
    student_values = numbers(images * (2 + local_views), prototypes) / 10
    teacher_values = numbers(images, 2, prototypes) / 10
    student, teacher = leaf(student_values), torch.tensor(teacher_values)
    global_views = student[: 2 * images].reshape(images, 2, prototypes)
    views = [global_views[:, 0], global_views[:, 1]]
    if local_views:
        rest = student[2 * images :].reshape(images, local_views, prototypes)
        views += [rest[:, v] for v in range(local_views)]
    targets = F.softmax((teacher - torch.tensor(centre)) / teacher_t, dim=-1)
    total, terms = 0, 0
    for t in range(2):
        for v, view in enumerate(views):
            if v != t:
                total = total + torch.sum(-targets[:, t] * F.log_softmax(view / student_t, -1), -1).mean()
                terms += 1
    loss = total / terms
    loss.backward()
    return dict(prototypes=prototypes, local_views=local_views, student=flat(student_values),
                teacher=flat(teacher_values), centre=flat(centre), loss=loss.item(),
                by_output=flat(student.grad))


# A masked autoencoder of two 8 x 8 grey pictures: four patches of 4 x 4, one seen of each. Weight i
# of tensor number t (in the order of their names) is 0.15 sin(t + 0.7 i); norms' weights are that
# plus one. The fixture names what was hidden; pixels are numbers() of the seed.
WIDTH, MLP, HEADS, DECODER = 8, 12, 2, 32


def block_shapes(prefix, width, mlp):
    shapes = {}
    for norm in ["norm1", "norm2"]:
        shapes |= {f"{prefix}.{norm}.weight": (width,), f"{prefix}.{norm}.bias": (width,)}
    for name, o, i in [("attn.q", width, width), ("attn.k", width, width), ("attn.v", width, width),
                       ("attn.proj", width, width), ("mlp.fc1", mlp, width), ("mlp.fc2", width, mlp)]:
        shapes |= {f"{prefix}.{name}.weight": (o, i), f"{prefix}.{name}.bias": (o,)}
    return shapes


def block(w, prefix, x, heads):
    images, tokens, width = x.shape
    y = F.layer_norm(x, (width,), w[f"{prefix}.norm1.weight"], w[f"{prefix}.norm1.bias"], 1e-6)
    linear = lambda name, y: F.linear(y, w[f"{prefix}.{name}.weight"], w[f"{prefix}.{name}.bias"])
    split = lambda y: y.reshape(images, tokens, heads, width // heads).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(*[split(linear(f"attn.{p}", y)) for p in "qkv"])
    x = x + linear("attn.proj", mixed.transpose(1, 2).reshape(images, tokens, width))
    y = F.layer_norm(x, (width,), w[f"{prefix}.norm2.weight"], w[f"{prefix}.norm2.bias"], 1e-6)
    return x + linear("mlp.fc2", F.gelu(linear("mlp.fc1", y)))


def sincos(width, side):
    """The authors' fixed positions; the class token's is zero."""
    quarter = width // 4
    omega = 10000.0 ** (-np.arange(quarter) / quarter)
    rows = [np.zeros(width)]
    for patch in range(side * side):
        angles = [(patch % side) * omega, (patch // side) * omega]
        rows.append(np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)]))
    return torch.tensor(np.array(rows))


def weights():
    shapes = {"cls_token": (1, 1, WIDTH), "patch_embed.weight": (WIDTH, 1, 4, 4), "patch_embed.bias": (WIDTH,),
              "norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    shapes |= block_shapes("blocks.0", WIDTH, MLP)
    decoder = {"embed.weight": (DECODER, WIDTH), "embed.bias": (DECODER,), "mask_token": (1, 1, DECODER),
               "guess.weight": (16, DECODER), "guess.bias": (16,), "norm.weight": (DECODER,), "norm.bias": (DECODER,)}
    decoder |= block_shapes("blocks.0", DECODER, 4 * DECODER)
    shapes |= {f"head.decoder.{name}": shape for name, shape in decoder.items()}
    w = {}
    for t, name in enumerate(sorted(shapes)):
        values = 0.15 * np.sin(t + 0.7 * np.arange(int(np.prod(shapes[name]))))
        if "norm" in name and name.endswith("weight"):
            values = values + 1
        w[name] = leaf(values.astype(np.float32).reshape(shapes[name]))
    return w


def encoder(w, tokens):
    return F.layer_norm(block(w, "blocks.0", tokens, HEADS), (WIDTH,), w["norm.weight"], w["norm.bias"], 1e-6)


def masked_autoencoder():
    w = weights()
    order = [[2, 0, 1, 3], [1, 3, 2, 0]]
    seen, targets = numbers(2, 1, 16) / 4, numbers(2, 3, 16) / 4
    kernel = w["patch_embed.weight"].reshape(WIDTH, 16)
    patches = F.linear(torch.tensor(seen), kernel, w["patch_embed.bias"])
    places = torch.tensor([[1 + image[0]] for image in order])
    tokens = torch.cat([w["cls_token"].expand(2, 1, WIDTH), patches + sincos(WIDTH, 2)[places]], 1)
    encoded = encoder(w, tokens)
    d = {name.removeprefix("head.decoder."): tensor for name, tensor in w.items() if name.startswith("head.")}
    table = sincos(DECODER, 2)
    losses = {}
    for what in ["all", "class_token"]:
        given, first = (encoded, 0) if what == "all" else (encoded[:, :1], 1)
        x = F.linear(given, d["embed.weight"], d["embed.bias"])
        x = torch.cat([x, d["mask_token"].expand(2, 3, DECODER)], 1)
        rows = torch.tensor([[0] + [1 + place for place in image[first:]] for image in order])
        x = block(d, "blocks.0", x + table[rows], DECODER // 32)
        x = F.layer_norm(x, (DECODER,), d["norm.weight"], d["norm.bias"], 1e-6)
        guess = F.linear(x[:, -3:], d["guess.weight"], d["guess.bias"])
        loss = F.mse_loss(guess, torch.tensor(targets))
        for tensor in w.values():
            tensor.grad = None
        loss.backward(retain_graph=True)
        names = ["cls_token", "patch_embed.bias", "blocks.0.attn.q.bias", "head.decoder.mask_token"]
        gradients = {name: flat(w[name].grad) for name in names if w[name].grad is not None}
        losses[what] = dict(loss=loss.item(), gradients=gradients)
    return dict(order=order, seen=flat(seen), targets=flat(targets), losses=losses)


def smaller_pictures():
    """Class token features of two 8 x 8 pictures by a model of 16 x 16 ones: positions interpolated
    as by the authors of DINO."""
    w = weights()
    pixels, by_feature = numbers(2, 8, 8) / 4, numbers(2, WIDTH)
    images = torch.tensor(pixels).reshape(2, 1, 8, 8)
    patches = F.conv2d(images, w["patch_embed.weight"], w["patch_embed.bias"], stride=4).flatten(2).transpose(1, 2)
    table = sincos(WIDTH, 4)
    grid = table[1:].reshape(1, 4, 4, WIDTH).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(2, 2), mode="bicubic").permute(0, 2, 3, 1).reshape(1, 4, WIDTH)
    cls = (w["cls_token"] + table[0]).expand(2, 1, WIDTH)
    features = encoder(w, torch.cat([cls, patches + grid], 1))[:, 0]
    (features * torch.tensor(by_feature)).sum().backward()
    names = ["cls_token", "patch_embed.weight", "blocks.0.attn.q.bias"]
    return dict(pixels=flat(pixels), by_feature=flat(by_feature), features=flat(features.detach()),
                gradients={name: flat(w[name].grad) for name in names})


contrasts = [contrast(1, 3, 0.5), contrast(4, 5, 0.2), contrast(6, 2, 1.0)]
distillations = [distillation(2, 5, 0, numbers(5) / 10), distillation(3, 4, 2, np.zeros(4))]
golden = dict(contrasts=contrasts, distillations=distillations, masked=masked_autoencoder(), smaller=smaller_pictures())
out.write_text(json.dumps(golden, indent=1) + "\n")
