"""Makes clip.npz: what transformers' CLIPModel gives for two tiny CLIPs.

Run it in an environment of its own (torch is no dependency of this project):

    python -m venv /tmp/torchenv
    /tmp/torchenv/bin/pip install torch==2.13.0 transformers==5.23.0 numpy==2.4.6
    /tmp/torchenv/bin/python tests/golden/make_clip.py tests/golden/clip.npz

Weights, images and tokens are not stored: `clip_recipe.py` makes them from their names on both
sides. The sums that are stored tell if the recipe ever gave other numbers.
"""

import json
import sys

import numpy as np
import torch
import transformers
from clip_recipe import CONFIGS, make_images, make_tokens, make_weight
from transformers import CLIPConfig, CLIPModel


def hidden_states(tower, run):
    """Returns what enters the first block and what leaves each: [layers + 1, N, T, width]."""
    states = []
    layers = tower.encoder.layers
    hooks = [layers[0].register_forward_pre_hook(lambda module, args: states.append(args[0]))]
    hooks += [
        layer.register_forward_hook(
            lambda module, args, out: states.append(out[0] if isinstance(out, tuple) else out)
        )
        for layer in layers
    ]
    with torch.no_grad():
        result = run()
    for hook in hooks:
        hook.remove()
    return np.stack([state.numpy() for state in states]), result


def main(path):
    golden = {
        "versions": json.dumps({lib.__name__: lib.__version__ for lib in (torch, transformers, np)})
    }
    torch.set_num_threads(1)
    for name, config in CONFIGS.items():
        model = CLIPModel(CLIPConfig(**config)).eval()
        state = model.state_dict()
        weights = {key: make_weight(name, key, tuple(value.shape)) for key, value in state.items()}
        model.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
        images = make_images(config)
        tokens = make_tokens(config)

        vision_states, image_embeds = hidden_states(
            model.vision_model,
            lambda model=model, images=images: model.get_image_features(
                torch.from_numpy(images)
            ).pooler_output.numpy(),
        )
        text_states, text_embeds = hidden_states(
            model.text_model,
            lambda model=model, tokens=tokens: model.get_text_features(
                torch.from_numpy(tokens.astype(np.int64))
            ).pooler_output.numpy(),
        )
        with torch.no_grad():
            output = model(
                input_ids=torch.from_numpy(tokens.astype(np.int64)),
                pixel_values=torch.from_numpy(images),
            )
        norms = np.linalg.norm(image_embeds, axis=-1, keepdims=True)
        np.testing.assert_allclose(output.image_embeds.numpy(), image_embeds / norms, atol=1e-6)
        golden |= {
            f"{name}/shapes": json.dumps({key: value.shape for key, value in weights.items()}),
            f"{name}/checksum": sum(value.sum(dtype=np.float64) for value in weights.values())
            + images.sum(dtype=np.float64)
            + tokens.sum(),
            f"{name}/vision_states": vision_states,
            f"{name}/text_states": text_states,
            f"{name}/image_embeds": image_embeds,
            f"{name}/text_embeds": text_embeds,
            f"{name}/logits_per_image": output.logits_per_image.numpy(),
        }
    np.savez_compressed(path, **golden)


if __name__ == "__main__":
    main(sys.argv[1])
