"""Makes clip.npz: what transformers' and open_clip's models give for tiny CLIPs of every kind.

Run it in an environment of its own (torch is no dependency of this project):

    python -m venv /tmp/torchenv
    /tmp/torchenv/bin/pip install torch==2.13.0 transformers==5.24.0 numpy==2.4.6 ftfy
    /tmp/torchenv/bin/pip install --no-deps open_clip_torch==3.3.0 timm==1.0.31
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
from open_clip_model import open_clip_model
from transformers import AutoConfig, AutoModel


def hidden_states(layers, run):
    """Returns what enters the first block and what leaves each: [layers + 1, N, T, width]."""
    states = []
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
        if "model_cfg" in config:
            model = open_clip_model(config["model_cfg"])
            vision, text = model.visual.transformer.resblocks, model.transformer.resblocks
        else:
            model = AutoModel.from_config(AutoConfig.for_model(**config)).eval()
            vision, text = model.vision_model.encoder.layers, model.text_model.encoder.layers
        state = model.state_dict()
        weights = {key: make_weight(name, key, tuple(value.shape)) for key, value in state.items()}
        model.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
        images = make_images(config)
        tokens = make_tokens(config)
        pixels, ids = torch.from_numpy(images), torch.from_numpy(tokens.astype(np.int64))

        def encode(pixels=pixels, ids=ids, model=model):
            """Returns the embeddings of images and texts."""
            if hasattr(model, "encode_image"):
                return model.encode_image(pixels), model.encode_text(ids)
            image = model.get_image_features(pixels).pooler_output
            return image, model.get_text_features(ids).pooler_output

        def logits(pixels=pixels, ids=ids, model=model):
            """Returns the logits, images by texts."""
            if hasattr(model, "get_logits"):
                return model.get_logits(pixels, ids)[0]
            return model(input_ids=ids, pixel_values=pixels).logits_per_image

        vision_states, (image_embeds, _) = hidden_states(vision, encode)
        text_states, (_, text_embeds) = hidden_states(text, encode)
        with torch.no_grad():
            logits_per_image = logits()
        golden |= {
            f"{name}/shapes": json.dumps({key: value.shape for key, value in weights.items()}),
            f"{name}/checksum": sum(value.sum(dtype=np.float64) for value in weights.values())
            + images.sum(dtype=np.float64)
            + tokens.sum(),
            f"{name}/vision_states": vision_states,
            f"{name}/text_states": text_states,
            f"{name}/image_embeds": image_embeds.numpy(),
            f"{name}/text_embeds": text_embeds.numpy(),
            f"{name}/logits_per_image": logits_per_image.numpy(),
        }
    np.savez_compressed(path, **golden)


if __name__ == "__main__":
    main(sys.argv[1])
