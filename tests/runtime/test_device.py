"""What is left to the machine: dtypes, batch sizes and attention by device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moclip_jax.models.attention import attention, attention_implementation
from moclip_jax.models.efficientnet import EfficientNetConfig
from moclip_jax.runtime import device
from moclip_jax.runtime.device import (
    batch_size_for_memory,
    compiler_options,
    computation_dtype,
    free_memory,
    matmul_dtype,
)
from moclip_jax.training.features import bytes_per_video

GIB = 2**30


@pytest.mark.parametrize(
    ("setting", "backend", "dtype"),
    [
        ("auto", "cpu", "float32"),
        ("auto", "gpu", "bfloat16"),
        ("auto", "tpu", "bfloat16"),
        ("float32", "gpu", "float32"),
        ("bfloat16", "cpu", "bfloat16"),
    ],
)
def test_the_dtype_is_the_requested_one_or_what_the_device_is_fast_in(setting, backend, dtype):
    assert computation_dtype(setting, backend) == jnp.dtype(dtype)


def test_without_a_backend_it_is_the_one_that_runs():
    assert computation_dtype("auto") == jnp.float32


@pytest.mark.parametrize(
    ("setting", "flags", "dtype"),
    [
        ("auto", ("avx512f", "avx512_bf16", "amx_bf16"), "bfloat16"),
        ("auto", ("avx512f", "avx512_bf16"), "float32"),
        ("auto", (), "float32"),
        ("float32", ("amx_bf16",), "float32"),
        ("bfloat16", (), "bfloat16"),
    ],
)
def test_a_frozen_clip_multiplies_in_bfloat16_where_the_processor_has_units_for_it(
    monkeypatch, setting, flags, dtype
):
    monkeypatch.setattr(device, "_processor_flags", lambda: frozenset(flags))
    assert matmul_dtype(setting) == jnp.dtype(dtype)


def test_whole_registers_are_used_where_they_do_not_slow_the_processor_down(monkeypatch):
    for flags, options in (
        (("avx512f", "avx512_bf16"), {"xla_cpu_prefer_vector_width": 512}),
        (("avx512f",), {}),
        ((), {}),
    ):
        monkeypatch.setattr(device, "_processor_flags", lambda flags=flags: frozenset(flags))
        assert compiler_options() == options
    # XLA knows the option, and a name that it does not know is an error.
    double = jax.jit(lambda x: 2 * x, compiler_options={"xla_cpu_prefer_vector_width": 512})
    np.testing.assert_array_equal(double(jnp.arange(3)), [0, 2, 4])
    with pytest.raises(Exception, match="xla_cpu_no_such_option"):
        jax.jit(lambda x: 2 * x, compiler_options={"xla_cpu_no_such_option": 1})(jnp.arange(3))


@pytest.mark.parametrize(
    ("backend", "dtype", "head_size", "queries", "expected"),
    [
        ("gpu", jnp.bfloat16, 64, 50, "cudnn"),
        ("gpu", jnp.float16, 128, 50, "cudnn"),
        ("gpu", jnp.float32, 64, 50, "xla"),
        ("gpu", jnp.bfloat16, 136, 50, "xla"),
        ("gpu", jnp.bfloat16, 60, 50, "xla"),
        ("tpu", jnp.bfloat16, 64, 50, "xla"),
        ("cpu", jnp.bfloat16, 64, 50, "xla"),
        ("gpu", jnp.bfloat16, 64, 1, "xla"),
    ],
)
def test_the_fused_kernel_is_taken_where_it_fits(backend, dtype, head_size, queries, expected):
    assert attention_implementation(backend, dtype, head_size, queries) == expected


@pytest.mark.parametrize("causal", [False, True])
def test_attention_follows_its_definition(causal):
    rng = np.random.default_rng(0)
    query, key, value = rng.normal(size=(3, 2, 5, 3, 8))
    result = attention(*(jnp.float32(x) for x in (query, key, value)), causal=causal)
    for n in range(2):
        for h in range(3):
            for t in range(5):
                seen = slice(0, t + 1 if causal else 5)
                scores = key[n, seen, h] @ query[n, t, h] / np.sqrt(8)
                weights = np.exp(scores) / np.exp(scores).sum()
                expected = weights @ value[n, seen, h]
                np.testing.assert_allclose(result[n, t, h], expected, rtol=1e-4, atol=1e-5)


def test_a_batch_takes_a_quarter_of_the_memory_and_divides_into_files():
    for devices in (1, 2, 4, 8):
        for gib in (1, 4, 16, 80):
            size = batch_size_for_memory(GIB // 10, gib * GIB, devices)
            of_each = size // devices
            assert size % devices == 0 and of_each & (of_each - 1) == 0
            assert device.MAX_BATCH_SIZE % size == 0
            assert of_each == 1 or of_each * GIB // 10 <= gib * GIB / 4
            fits_twice = 2 * of_each * GIB // 10 <= gib * GIB / 4
            assert not fits_twice or 2 * size > device.MAX_BATCH_SIZE
    assert batch_size_for_memory(GIB, GIB, 4) == 4


def test_the_bytes_of_a_video_are_its_views_and_the_largest_maps_of_one():
    b0 = EfficientNetConfig.named("b0", in_channels=2)
    # The widest maps of a B0 are the 96 channels at half the side.
    assert bytes_per_video(b0, side=224, segments=25, views=10, images=1) == (
        10 * 25 * 224 * 224 * 2 + 224 * 224 * 3 + 25 * 3 * 96 * 112 * 112 * 4
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_bytes_of_a_video_are_not_less_than_what_xla_reserves(dtype):
    from flax import nnx

    from moclip_jax.models.depthwise import depthwise_implementation
    from moclip_jax.models.motion_network import MotionNetwork, MotionNetworkConfig

    config = EfficientNetConfig.named("small", in_channels=2, num_classes=3, dtype=dtype)
    graphdef, state = nnx.split(MotionNetwork(MotionNetworkConfig(config), rngs=nnx.Rngs(0)))
    fields = jnp.zeros((1, 6, 96, 96, 2), jnp.uint8)
    with depthwise_implementation("convolution"):
        compiled = (
            jax.jit(lambda state, x: nnx.merge(graphdef, state).features(x))
            .lower(state, fields)
            .compile()
        )
    counted = bytes_per_video(config, side=96, segments=6, views=1, images=0)
    assert compiled.memory_analysis().temp_size_in_bytes <= 1.5 * counted


def test_free_memory_is_that_of_the_smallest_device_and_cpus_share_the_hosts(monkeypatch):
    class Device:
        def __init__(self, stats):
            self.stats = stats

        def memory_stats(self):
            return self.stats

    large = Device({"bytes_limit": 8 * GIB, "bytes_in_use": GIB})
    small = Device({"bytes_limit": 4 * GIB, "bytes_in_use": 0})
    assert free_memory([large, small]) == 4 * GIB
    monkeypatch.setattr(device, "_free_host_memory", lambda: 6 * GIB)
    assert free_memory([Device(None), Device(None)]) == 3 * GIB
