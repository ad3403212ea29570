"""XLA's flags in tests and in the programs that they start."""


def xla_flags(devices: int) -> str:
    """Return flags for this many simulated devices and for a fast compiler.

    Almost every program of a test runs once or twice on little data, so that LLVM would take
    longer to optimize it than the optimization saves. XLA's older code generator for fusions
    compiles a training step in half the time of the one by MLIR.
    """
    return (
        f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
    )
