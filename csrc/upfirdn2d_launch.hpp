// Launches the CUDA kernels of upfirdn2d, for the native ops that resample.
#pragma once

#include "cuda_launch.hpp"
#include "upfirdn2d.h"

namespace posgan_fast {

// Writes the resampled x to y, whose parameters are complete; the device is current.
void launch_upfirdn2d(const CudaDeviceGuard& device, const Tensor& x, const Tensor& f, const Tensor& y,
                      const Upfirdn2dParams& p);

}  // namespace posgan_fast
