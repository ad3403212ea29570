"""The other side: what a user would assemble from PyTorch, timm, transformers and mv-extractor.

Runs in an environment of its own (`make .venv-parity/.installed`), started by `benchmarks.peer`. It
reads one JSON object a line and answers each with one: `{"make": NAME, ...}` sets a job up and
gives its `id`, `{"run": ID}` does it once and gives its `seconds`, `{"output": ID, "path": FILE}`
writes what it computed last as `.npy`. It works on CUDA where torch has it. Nothing of this
project is imported here.
"""

import collections
import json
import os
import sys
import tempfile
import time
import traceback
import types

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch_timm import import_timm
from torch_vectors import accumulated_fields, own_vectors_field, reencode

# What the published recipe trains with.
LEARNING_RATE, ADAM_EPS, WEIGHT_DECAY = 0.01, 1e-3, 1e-4
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class MotionNetwork(nn.Module):
    """BatchNorm of the input, timm's EfficientNet, logits averaged over the segments."""

    def __init__(self, weights, classes, architecture="efficientnet_b0"):
        super().__init__()
        from safetensors.torch import load_file

        self.input_norm = nn.BatchNorm2d(2)
        self.backbone = import_timm().create_model(architecture, in_chans=2, num_classes=classes)
        missing, unexpected = self.backbone.load_state_dict(load_file(weights), strict=False)
        assert not unexpected and all("num_batches" in name for name in missing), missing

    def forward(self, fields):
        """uint8 [B, S, H, W, 2] -> [B, classes]."""
        batch, segments = fields.shape[:2]
        fields = fields.flatten(0, 1).permute(0, 3, 1, 2).float() / 255 - 0.5
        return self.backbone(self.input_norm(fields)).view(batch, segments, -1).mean(1)

    def features(self, fields):
        """uint8 [N, H, W, 2] -> [N, 1280]."""
        fields = fields.permute(0, 3, 1, 2).float() / 255 - 0.5
        maps = self.backbone.forward_features(self.input_norm(fields))
        return self.backbone.forward_head(maps, pre_logits=True)


def loaded(file):
    """Return a file's array on the device."""
    return torch.from_numpy(np.load(file)).to(DEVICE)


def synchronize():
    """Wait until the device has done its work."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def seconds_of(work):
    """Do the work and return the seconds that it took."""
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def faster_layout(model, work):
    """Place the model into torch's contiguous or channels-last form, whichever `work` is faster in.

    Both are what a user may well do, so the other side gets the better one.
    """
    times = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        model.to(memory_format=layout)
        seconds_of(work)
        times[layout] = min(seconds_of(work) for _ in range(3))
    best = min(times, key=times.get)
    model.to(memory_format=best)
    return str(best).removeprefix("torch.")


def products_in_bfloat16(narrow):
    """Return a context in which PyTorch multiplies in bfloat16, if it is to."""
    return torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=narrow)


class Job:
    """Something to time: `run` does it once, `output` is what it computed last."""

    info: collections.abc.Mapping = types.MappingProxyType({})
    output = None

    def run(self):
        """Do the work; may return seconds of its stages."""
        raise NotImplementedError


class Sgemm(Job):
    """A square product of float32."""

    def __init__(self, side):
        self.matrix = torch.rand(side, side)

    def run(self):
        """Do the work."""
        self.output = self.matrix @ self.matrix


class MotionInference(Job):
    """Logits of fields, one video."""

    def __init__(self, weights, classes, architecture, fields, narrow=False):
        self.model = MotionNetwork(weights, classes, architecture).eval()
        self.narrow = narrow
        self.fields = loaded(fields)
        self.info = {"layout": faster_layout(self.model, self.run)}

    @torch.inference_mode()
    def run(self):
        """Do the work."""
        with products_in_bfloat16(self.narrow):
            self.output = self.model(self.fields).float()


class MotionTraining(Job):
    """One step: forward, backward, Adam with three learning rates and coupled L2."""

    def __init__(self, weights, classes, fields, labels):
        self.model = MotionNetwork(weights, classes).train()
        self.fields = loaded(fields)
        self.labels = loaded(labels).long()
        groups = collections.defaultdict(list)
        for name, parameter in self.model.named_parameters():
            stem = name.startswith("input_norm") or "conv_stem" in name
            factor = 1.0 if "classifier" in name else 0.1 if stem else 0.01
            groups[factor].append(parameter)
        self.optimizer = torch.optim.Adam(
            [
                {"params": list(members), "lr": LEARNING_RATE * factor}
                for factor, members in groups.items()
            ],
            eps=ADAM_EPS,
            weight_decay=WEIGHT_DECAY,
        )
        state = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.info = {"layout": faster_layout(self.model, self.run)}
        # The passes that chose the layout have trained; the timed ones begin where ours do.
        self.model.load_state_dict(state)
        self.optimizer.state.clear()

    def run(self):
        """Do the work."""
        self.optimizer.zero_grad()
        loss = functional.cross_entropy(self.model(self.fields), self.labels)
        loss.backward()
        self.optimizer.step()
        self.output = loss.detach()


class ClipTower(Job):
    """transformers' CLIP image tower, with its default attention."""

    def __init__(self, folder, images, narrow=False):
        from transformers import CLIPVisionModelWithProjection

        self.model = CLIPVisionModelWithProjection.from_pretrained(folder).to(DEVICE).eval()
        self.images = loaded(images).permute(0, 3, 1, 2)
        self.narrow = narrow
        self.info = {
            "layout": faster_layout(self.model, self.run),
            "attention": self.model.config._attn_implementation,
        }

    @torch.inference_mode()
    def run(self):
        """Do the work."""
        with products_in_bfloat16(self.narrow):
            self.output = self.model(pixel_values=self.images).image_embeds.float()


class HeadTraining(Job):
    """A plain loop over cached features in memory: AdamW, batches of 64, a random view of each."""

    def __init__(self, motion, appearance, label, classes, epochs, batch_size):
        self.motion, self.appearance = loaded(motion), loaded(appearance)
        self.labels = loaded(label).long()
        self.classes, self.epochs, self.batch_size = classes, epochs, batch_size

    def run(self):
        """Do the work."""
        width = self.motion.shape[2] + self.appearance.shape[1]
        head = nn.Sequential(
            nn.Linear(width, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, self.classes)
        )
        optimizer = torch.optim.AdamW(head.parameters(), lr=1e-4, weight_decay=0.01)
        for _ in range(self.epochs):
            order = torch.randperm(len(self.labels))
            views = torch.randint(self.motion.shape[1], order.shape)
            for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
                rows = order[start : start + self.batch_size]
                features = torch.cat([self.motion[rows, views[rows]], self.appearance[rows]], 1)
                loss = functional.cross_entropy(head(features), self.labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        self.output = loss.detach()


class FileToLabel(Job):
    """mv-extractor reads the file, timm and transformers look at it, a linear head tells.

    With `accumulated` the fields are those that our side makes, by the loop over vectors that one
    writes from the definition. Without, each field holds the frame's own vectors, one frame
    at a time: less work than ours, and another input than the published network has.

    With `reencoded` the file is first brought to the published form by all threads, as the command
    `ffmpeg -vf scale=340:256 -c:v mpeg4 -q:v 1 -g 12` does. `narrow` multiplies in bfloat16.
    """

    def __init__(
        self, weights, classes, architecture, clip, video, segments, accumulated, reencoded, narrow
    ):
        from transformers import CLIPVisionModelWithProjection

        self.network = MotionNetwork(weights, classes, architecture).eval()
        self.clip = CLIPVisionModelWithProjection.from_pretrained(clip).to(DEVICE).eval()
        self.head = nn.Sequential(
            nn.Linear(1280 + self.clip.config.projection_dim, 512),
            nn.ReLU(),
            nn.Linear(512, classes),
        ).eval()
        self.video, self.segments, self.accumulated = video, segments, accumulated
        self.reencoded, self.narrow = reencoded, narrow
        blank = torch.full((segments, 224, 224, 2), 128, dtype=torch.uint8)

        @torch.inference_mode()
        def work():
            with products_in_bfloat16(narrow):
                self.network.features(blank)

        self.info = {"layout": faster_layout(self.network, work)}
        # torchvision-free, so the slow processor of Pillow: resize, crop, scale.
        self.mean = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
        self.std = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)

    def read(self):
        """Return type and vectors of every frame, and the image of the middle one."""
        if not self.reencoded:
            return self.read_vectors(self.video)
        with tempfile.NamedTemporaryFile(suffix=".avi") as file:
            reencode(self.video, file.name, torch.get_num_threads())
            return self.read_vectors(file.name)

    def read_vectors(self, path):
        """Return what `read` does of a file as it is."""
        from mvextractor.videocap import VideoCap

        capture = VideoCap()
        capture.open(path)
        motion, frames = [], []
        while True:
            success, frame, vectors, kind, *_ = capture.read()
            if not success:
                break
            motion.append((kind, vectors))
            frames.append(frame)
        capture.release()
        return motion, frames[len(frames) // 2]

    def fields(self, motion, height, width):
        """Return uint8 [segments, 224, 224, 2] as the network takes them."""
        import cv2

        last = len(motion) - 1
        wanted = [
            min(round(last / self.segments * (segment + 0.5)) + 1, last)
            for segment in range(self.segments)
        ]
        # An I-frame has no vectors; the frame before it is taken.
        wanted = [index - (motion[index][0] == "I" and index > 0) for index in wanted]
        if self.accumulated:
            made = accumulated_fields(motion, set(wanted), height, width)
        else:
            made = {index: own_vectors_field(motion[index][1], height, width) for index in wanted}
        fields = []
        for index in wanted:
            scaled = (made[index] * 127.5 / 20).astype(np.int32) + 128
            scaled = np.clip(scaled, 0, 255).astype(np.uint8)
            fields.append(cv2.resize(scaled, (256, 256))[16:240, 16:240])
        return torch.from_numpy(np.stack(fields)).to(DEVICE)

    def clip_image(self, bgr):
        """Return float [1, 3, 224, 224] as CLIP takes it."""
        from PIL import Image

        image = Image.fromarray(np.ascontiguousarray(bgr[..., ::-1]))
        scale = 224 / min(image.size)
        width, height = (round(side * scale) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - 224) // 2, (height - 224) // 2
        pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / 255
        scaled = (pixels - self.mean) / self.std
        return torch.from_numpy(scaled).to(DEVICE).permute(2, 0, 1)[None]

    @torch.inference_mode()
    def run(self):
        """Do the work; returns seconds of its stages."""
        clock = [time.perf_counter()]

        def lap():
            synchronize()
            clock.append(time.perf_counter())
            return clock[-1] - clock[-2]

        stages = {}
        vectors, middle = self.read()
        stages["read"] = lap()
        fields = self.fields(vectors, *middle.shape[:2])
        image = self.clip_image(middle)
        stages["views"] = lap()
        with products_in_bfloat16(self.narrow):
            motion = self.network.features(fields).mean(0, keepdim=True)
        stages["motion network"] = lap()
        with products_in_bfloat16(self.narrow):
            appearance = self.clip(pixel_values=image).image_embeds
        stages["CLIP"] = lap()
        self.output = self.head(torch.cat([motion, appearance], 1).float()).softmax(-1)
        stages["head"] = lap()
        return stages


JOBS = {
    "sgemm": Sgemm,
    "motion_inference": MotionInference,
    "motion_training": MotionTraining,
    "clip_tower": ClipTower,
    "head_training": HeadTraining,
    "file_to_label": FileToLabel,
}


def versions():
    """Return the versions of what is compared with."""
    import importlib.metadata

    names = ("torch", "timm", "transformers", "motion-vector-extractor")
    return {name: importlib.metadata.version(name) for name in names}


def main():
    """Answer requests until there are no more."""
    # Whatever a library prints goes to standard error, and not between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    torch.set_default_device(DEVICE)
    jobs = []
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "make" in request:
                jobs.append(JOBS[request.pop("make")](**request))
                answer = {"id": len(jobs) - 1, "info": dict(jobs[-1].info)}
            elif "run" in request:
                start = time.perf_counter()
                stages = jobs[request["run"]].run()
                synchronize()
                answer = {"seconds": time.perf_counter() - start, "stages": stages or {}}
            elif "output" in request:
                np.save(request["path"], jobs[request["output"]].output.cpu().numpy())
                answer = {}
            elif "drop" in request:
                jobs[request["drop"]] = None
                answer = {}
            else:
                answer = {"versions": versions(), "threads": torch.get_num_threads()}
                answer["device"] = torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
