"""XLA's flags in tests and in the programs that they start."""

# Of everything but the comparisons of whole runs on several numbers of devices, whose rounding is
# that of the code generator that users have: XLA's older one for fusions compiles a training step
# in half the time.
OLDER_FUSIONS = " --xla_cpu_use_fusion_emitters=false"


def xla_flags(devices: int) -> str:
    """Return flags for this many simulated devices and for a fast compiler.

    Almost every program of a test runs once or twice on little data, so that LLVM would take
    longer to optimize it than the optimization saves, and to split it among threads.
    """
    return (
        f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true --xla_cpu_parallel_codegen_split_count=1"
    )
