"""Makes torch_zip.pth and torch_row.pth: one state dict in both layouts that torch writes.

In the environment of `make parity`; made with torch 2.13.0:

    .venv-parity/bin/python tests/golden/make_torch_files.py tests/golden
"""

import sys
from collections import OrderedDict
from pathlib import Path

import torch

numbers = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 3
state = OrderedDict(
    plain=numbers,
    turned=numbers.T,
    part=numbers[1:3, ::2],
    half=numbers[0].half(),
    double=numbers[1].double(),
    count=torch.tensor(7),
    empty=torch.empty(0, 3),
)
for name, layout in (("torch_zip.pth", True), ("torch_row.pth", False)):
    torch.save(state, Path(sys.argv[1]) / name, _use_new_zipfile_serialization=layout)
