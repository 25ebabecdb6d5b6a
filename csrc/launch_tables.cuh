// The launch tables of the CUDA library as text, for programs that tune them.
#pragma once

#include <string>

#include "elementwise.cuh"
#include "upfirdn2d.cuh"

namespace posgan_fast {

// One line for each row: kernel, compute capability and size from which on it serves (the output width, or the number
// of elements), and the numbers as POSGAN_FAST_CUDA_TABLE takes them.
inline std::string describe_launch_tables() {
  std::string text;
  const auto add = [&](LaunchKernel kernel, int sm, int64_t size, const std::string& numbers) {
    const char* const name = kLaunchKernelNames[int(kernel)];
    text += std::string(name) + " " + std::to_string(sm) + " " + std::to_string(size) + " " + numbers + "\n";
  };
  for (const Upfirdn2dTableRow& row : kUpfirdn2dTable) {
    const Upfirdn2dTiling& t = row.tiling;
    std::string numbers = std::to_string(t.threads);
    if (row.kernel == Upfirdn2dKernel::kFir4 || row.kernel == Upfirdn2dKernel::kFir4ChannelsLast) {
      for (const int number : {t.max_inner_threads, t.min_rows, t.max_rows, t.resident_threads}) {
        numbers += "," + std::to_string(number);
      }
    }
    add(LaunchKernel(row.kernel), row.sm, row.width, numbers);
  }
  for (const ElementwiseTableRow& row : kElementwiseTable) {
    add(LaunchKernel::kElementwise, row.sm, row.numel, std::to_string(row.threads));
  }
  return text;
}

}  // namespace posgan_fast
