"""The product of a gradient with a number on the device, which the host does not wait for."""

import triton
import triton.language as tl


@triton.jit
def scale_kernel(grad, upstream, n, step, BLOCK: tl.constexpr):
    """Multiplies in place, and touches nothing where the number is 1, as it is almost always."""
    factor = tl.load(upstream)
    if factor != 1.0:
        for start in range(tl.program_id(0).to(tl.int64) * BLOCK, n, step):
            i = start + tl.arange(0, BLOCK)
            x = tl.load(grad + i, mask=i < n, other=0.0)
            if x.dtype == tl.float64:
                product = x * factor.to(tl.float64)
            else:
                product = x.to(tl.float32) * factor.to(tl.float32)
            tl.store(grad + i, product, mask=i < n)
