"""What the other side does with files: fields of mv-extractor's vectors, and FFmpeg's encoder."""

import numpy as np


# Columns of mv-extractor's vectors: source, width, height, source x, y, destination x, y, ...
def accumulated_fields(motion, wanted, height, width):
    """Return float32 [height, width, 2] of each wanted frame: motion since its I-frame."""
    start = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)
    origin, made = start, {}
    for index, (kind, vectors) in enumerate(motion):
        if kind == "I":
            origin = start
            continue
        before, origin = origin, origin.copy()
        for _, w, h, source_x, source_y, x, y, *_ in vectors.tolist():
            if source_x == x and source_y == y:
                continue
            # The part of the block that lies in the image, at both ends.
            left, top = x - w // 2, y - h // 2
            dx, dy = source_x - x, source_y - y
            x0, x1 = max(left, 0, -dx), min(left + w, width, width - dx)
            y0, y1 = max(top, 0, -dy), min(top + h, height, height - dy)
            if x0 < x1 and y0 < y1:
                origin[y0:y1, x0:x1] = before[y0 + dy : y1 + dy, x0 + dx : x1 + dx]
        if index in wanted:
            made[index] = (start - origin).astype(np.float32)
    return made


def own_vectors_field(vectors, height, width):
    """Return float32 [height, width, 2], the motion of each block of 8 pixels."""
    grid = np.zeros((-(-height // 8), -(-width // 8), 2), np.float32)
    left = (vectors[:, 5] - vectors[:, 1] // 2) // 8
    top = (vectors[:, 6] - vectors[:, 2] // 2) // 8
    for down in range(2):
        for right in range(2):
            inside = (vectors[:, 2] > 8 * down) & (vectors[:, 1] > 8 * right)
            rows = np.clip(top[inside] + down, 0, grid.shape[0] - 1)
            columns = np.clip(left[inside] + right, 0, grid.shape[1] - 1)
            grid[rows, columns] = (vectors[:, 5:7] - vectors[:, 3:5])[inside]
    return np.kron(grid, np.ones((8, 8, 1), np.float32))[:height, :width]


def reencode(video, path, threads):
    """Write a video in the published form."""
    import av

    options = {"flags": "+qscale", "global_quality": "118", "g": "12"}
    with av.open(video) as source, av.open(path, "w") as target:
        source.streams.video[0].thread_type = "AUTO"
        stream = target.add_stream("mpeg4", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 340, 256, "yuv420p"
        stream.thread_count = threads
        for frame in source.decode(video=0):
            frame.pict_type = 0
            target.mux(stream.encode(frame.reformat(340, 256, "yuv420p")))
        target.mux(stream.encode(None))
