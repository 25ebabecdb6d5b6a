"""The contract of each op: cases stated once, as classes whose tests take a fixture ``backend``.

A test file subclasses a contract and says which backends it runs: test_<op>.py the reference and the CPU kernels,
triton_interpreter_<op>.py Triton's interpreter, test_gpu.py a device.
"""

import pytest

# Only test files get pytest's readable assertions by themselves.
pytest.register_assert_rewrite(
    *(
        f"{__name__}.{name}"
        for name in (
            *("common", "bias_act", "upfirdn2d", "epilogue2d", "epilogue2d_backward", "prologue2d", "conv2d"),
            "modulated_conv2d",
        )
    )
)
