# moclip_jax for CPU, or with --build-arg EXTRAS=train,cuda for training on NVIDIA GPUs.
#   docker build -t moclip-jax .
#   docker run --rm -v "$PWD:/data" moclip-jax predict --workdir=/data/runs/demo /data/clip.mp4
FROM python:3.11-slim-bookworm

# Extras of pyproject.toml, separated by commas: train, app, cuda. Inference needs none.
ARG EXTRAS=""

WORKDIR /opt/moclip_jax
COPY pyproject.toml README.md LICENSE requirements*.txt ./
COPY configs configs
COPY input_pipeline input_pipeline
COPY moclip_jax moclip_jax
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[${EXTRAS}]" && useradd --uid 1000 --create-home user

USER 1000
WORKDIR /data
ENTRYPOINT ["moclip-jax"]
CMD ["--help"]
