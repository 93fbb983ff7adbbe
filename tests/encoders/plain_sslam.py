"""EAT/SSLAM a second time, in plain numpy and float64, token by token, from the paper and the published names alone."""

import math

import numpy as np

STEPS, BANDS, PATCH, WIDTH, LAYERS, HEADS, HIDDEN, TABLE_STEPS = 4, 2, 4, 16, 2, 2, 24, 6
TINY = {"image_frames": STEPS * PATCH, "num_mels": BANDS * PATCH, "patch_size": PATCH, "hidden_size": WIDTH}
TINY |= {"num_layers": LAYERS, "num_heads": HEADS, "intermediate_size": HIDDEN, "position_steps": TABLE_STEPS}
IMAGE = "modality_encoders.IMAGE."
Array = np.ndarray


def log_mel(wav: Array, num_mels: int) -> list[Array]:
    """Kaldi's log-mel frames, by a Fourier sum and triangles written out."""
    wav = wav.astype(np.float64) - wav.mean()
    mels = [1127 * math.log(1 + hertz / 700) for hertz in (20, 8000)]
    edges = np.linspace(*mels, num_mels + 2)
    waves = np.exp(-2j * np.pi * np.outer(np.arange(256), np.arange(400)) / 512)
    frames = []
    for start in range(0, len(wav) - 399, 160):
        frame = wav[start : start + 400] - wav[start : start + 400].mean()
        emphasised = [frame[i] - 0.97 * frame[max(i - 1, 0)] for i in range(400)]
        windowed = [value * (0.5 - 0.5 * math.cos(2 * math.pi * i / 399)) for i, value in enumerate(emphasised)]
        power = np.abs(waves @ np.array(windowed)) ** 2
        row = []
        for left, centre, right in zip(edges, edges[1:], edges[2:], strict=False):
            total = 0.0
            for point, value in enumerate(power):
                mel = 1127 * math.log(1 + point * 16_000 / 512 / 700)
                total += value * max(min((mel - left) / (centre - left), (right - mel) / (right - centre)), 0)
            row.append(math.log(max(total, 2.0**-23)))
        frames.append(np.array(row))
    return frames


def published_shapes(width: int, layers: int, hidden: int, patch: int, rows: int, classes: int = 0) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the training code's encoder."""
    shapes: dict[str, tuple[int, ...]] = {
        IMAGE + "extra_tokens": (1, 1, width),
        IMAGE + "local_encoder.proj.weight": (width, 1, patch, patch),
        IMAGE + "local_encoder.proj.bias": (width,),
        IMAGE + "fixed_positional_encoder.positions": (1, rows, width),
        IMAGE + "context_encoder.norm.weight": (width,),
        IMAGE + "context_encoder.norm.bias": (width,),
    }
    maps = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    for layer in range(layers):
        for name, shape in maps.items():
            shapes[f"blocks.{layer}.{name}.weight"], shapes[f"blocks.{layer}.{name}.bias"] = shape, shape[:1]
        for name in ("norm1", "norm2"):
            shapes[f"blocks.{layer}.{name}.weight"] = shapes[f"blocks.{layer}.{name}.bias"] = (width,)
    if classes:
        shapes |= {"fc_norm.weight": (width,), "fc_norm.bias": (width,), "head.weight": (classes, width), "head.bias": (classes,)}
    return shapes


def hub_name(name: str) -> str:
    """A name of the training code in the files of the model hub."""
    name = name.replace(IMAGE + "context_encoder.norm", "pre_norm").replace(IMAGE, "")
    return "model." + name


def position(step: int, band: int, width: int) -> list[float]:
    rates = [10_000 ** (-k / (width // 4)) for k in range(width // 4)]
    by_band = [math.sin(band * w) for w in rates] + [math.cos(band * w) for w in rates]
    return by_band + [math.sin(step * w) for w in rates] + [math.cos(step * w) for w in rates]


def tiny_weights(seed: int, classes: int = 0) -> dict[str, Array]:
    """Random weights, by the training code's names; the table of positions is the true one."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in published_shapes(WIDTH, LAYERS, HIDDEN, PATCH, TABLE_STEPS * BANDS, classes).items():
        is_gain = "norm" in name and name.endswith("weight")
        weights[name] = (is_gain + 0.3 * rng.standard_normal(shape)).astype(np.float32)
    rows = [position(step, band, WIDTH) for step in range(TABLE_STEPS) for band in range(BANDS)]
    weights[IMAGE + "fixed_positional_encoder.positions"] = np.array([rows], dtype=np.float32)
    return weights


def tiny_image(seed: int) -> Array:
    """(mel frames, mel bins)."""
    return np.random.default_rng(seed).standard_normal((STEPS * PATCH, BANDS * PATCH)).astype(np.float32)


def norm(x: Array, weights: dict[str, Array], name: str) -> Array:
    spread = np.sqrt(((x - x.mean()) ** 2).mean() + 1e-6)
    return (x - x.mean()) / spread * weights[name + ".weight"] + weights[name + ".bias"]


def linear(x: Array, weights: dict[str, Array], name: str) -> Array:
    return weights[name + ".weight"] @ x + weights[name + ".bias"]


def attention(tokens: list[Array], weights: dict[str, Array], name: str) -> list[Array]:
    size = WIDTH // HEADS
    rows = [linear(token, weights, name + ".qkv") for token in tokens]
    queries, keys, values = ([row[part * WIDTH : (part + 1) * WIDTH] for row in rows] for part in range(3))
    mixed = []
    for query in queries:
        heads = []
        for head in range(HEADS):
            cut = slice(head * size, (head + 1) * size)
            scores = np.array([query[cut] @ key[cut] / math.sqrt(size) for key in keys])
            shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
            heads.append(sum(share * value[cut] for share, value in zip(shares, values, strict=True)))
        mixed.append(linear(np.concatenate(heads), weights, name + ".proj"))
    return mixed


def gelu(x: Array) -> Array:
    return np.array([value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x])


def encode(image: Array, weights: dict[str, Array]) -> list[list[Array]]:
    """What enters the first layer and every layer's output; each CLS, then (step 0, band 0), (step 0, band 1), ..."""
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    tokens = [weights[IMAGE + "extra_tokens"][0, 0]]
    for step in range(STEPS):
        for band in range(BANDS):
            patch = image[step * PATCH : (step + 1) * PATCH, band * PATCH : (band + 1) * PATCH].astype(np.float64)
            kernels, bias = weights[IMAGE + "local_encoder.proj.weight"], weights[IMAGE + "local_encoder.proj.bias"]
            embedded = np.array([(kernel[0] * patch).sum() for kernel in kernels]) + bias
            tokens.append(embedded + weights[IMAGE + "fixed_positional_encoder.positions"][0, step * BANDS + band])
    tokens = [norm(token, weights, IMAGE + "context_encoder.norm") for token in tokens]
    states = [tokens]
    for layer in range(LAYERS):
        name = f"blocks.{layer}"
        mixed = attention(tokens, weights, name + ".attn")
        tokens = [norm(x + y, weights, name + ".norm1") for x, y in zip(tokens, mixed, strict=True)]
        fed = [linear(gelu(linear(x, weights, name + ".mlp.fc1")), weights, name + ".mlp.fc2") for x in tokens]
        tokens = [norm(x + y, weights, name + ".norm2") for x, y in zip(tokens, fed, strict=True)]
        states.append(tokens)
    return states


def classify(cls_token: Array, weights: dict[str, Array]) -> Array:
    return 1 / (1 + np.exp(-linear(norm(cls_token, weights, "fc_norm"), weights, "head")))
