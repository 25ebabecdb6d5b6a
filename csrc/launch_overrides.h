// POSGAN_FAST_CUDA_TABLE replaces rows of the launch tables of the CUDA library, so that a GPU can be tuned without a
// build. No torch.
//
//   POSGAN_FAST_CUDA_TABLE="fir4_channels_last=128,16,4,64,67584;elementwise=256"
//
// An entry, at most one a kernel, stands for every row of that kernel, whatever the architecture and the size. The
// numbers are those of the row, as README.md says too:
//
//   fir4, fir4_channels_last   threads, max_inner_threads, min_rows, max_rows, resident_threads   (upfirdn2d.cuh)
//   tiled, direct              threads                                                            (upfirdn2d.cuh)
//   elementwise                threads                                                            (elementwise.cuh)
//
// The variable is read at the first launch, and again after reread_launch_overrides(): no launch looks it up, because
// getenv() races with a program that sets variables.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace posgan_fast {

enum class LaunchKernel : int { kFir4, kFir4ChannelsLast, kTiled, kDirect, kElementwise };
constexpr const char* kLaunchKernelNames[] = {"fir4", "fir4_channels_last", "tiled", "direct", "elementwise"};
constexpr int kLaunchKernels = 5;

struct LaunchOverrides {
  std::array<std::vector<int>, kLaunchKernels> rows;  // empty where the table stands

  const std::vector<int>& of(LaunchKernel kernel) const { return rows[size_t(kernel)]; }
};

// Thrown with a message that names the variable, what was expected and what came.
struct LaunchOverrideError : std::runtime_error {
  LaunchOverrideError(const std::string& expected, const std::string& got)
      : std::runtime_error("POSGAN_FAST_CUDA_TABLE: expected " + expected + ", got '" + got + "'") {}
};

// Returns the parts of a text without the spaces around each.
inline std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  for (size_t start = 0; start <= text.size();) {
    const size_t end = std::min(text.find(separator, start), text.size());
    size_t first = start, last = end;
    while (first < last && text[first] == ' ') ++first;
    while (first < last && text[last - 1] == ' ') --last;
    parts.push_back(text.substr(first, last - first));
    start = end + 1;
  }
  return parts;
}

// Reads up to nine digits, so that every number fits an int.
inline int parse_launch_number(const std::string& text, const std::string& entry) {
  if (text.empty() || text.size() > 9 || text.find_first_not_of("0123456789") != std::string::npos) {
    throw LaunchOverrideError("whole numbers between commas", entry);
  }
  return std::stoi(text);
}

// Refuses numbers with which a launch would fail or hang. They are compiled into the kernels: blocks of 256 threads at
// most, 224 of them along a row of fir4 because of its shared memory.
inline void check_launch_row(LaunchKernel kernel, const std::vector<int>& row, const std::string& entry) {
  const auto require = [&](bool holds, const char* expected) {
    if (!holds) throw LaunchOverrideError(std::string(kLaunchKernelNames[int(kernel)]) + " with " + expected, entry);
  };
  require(row[0] % 32 == 0 && row[0] >= 32 && row[0] <= 256, "threads a multiple of 32 from 32 to 256");
  if (row.size() == 1) return;
  const bool fir4 = kernel == LaunchKernel::kFir4;
  require(row[1] >= 1, "max_inner_threads of at least 1");
  if (fir4) require(row[1] % 32 == 0 && row[1] <= 224, "max_inner_threads a multiple of 32 up to 224");
  if (!fir4) require(row[1] <= row[0], "max_inner_threads up to threads");
  require(row[2] >= 1 && row[2] <= row[3] && row[3] <= 1 << 16, "1 <= min_rows <= max_rows <= 65536");
  require(row[4] >= 256, "resident_threads of at least 256");
}

inline LaunchOverrides parse_launch_overrides(const std::string& text) {
  LaunchOverrides found;
  for (const std::string& entry : split(text, ';')) {
    if (entry.empty()) continue;
    const std::vector<std::string> sides = split(entry, '=');
    int kernel = 0;
    while (kernel < kLaunchKernels && sides[0] != kLaunchKernelNames[kernel]) ++kernel;
    if (sides.size() != 2 || kernel == kLaunchKernels) {
      throw LaunchOverrideError(
          "entries KERNEL=NUMBERS between semicolons, KERNEL one of fir4, fir4_channels_last,"
          " tiled, direct, elementwise",
          entry);
    }
    std::vector<int> row;
    for (const std::string& number : split(sides[1], ',')) row.push_back(parse_launch_number(number, entry));
    const bool five = kernel <= int(LaunchKernel::kFir4ChannelsLast);
    if (row.size() != (five ? 5 : 1)) {
      throw LaunchOverrideError(std::string(sides[0]) + (five ? "=threads,max_inner_threads,min_rows,max_rows,"
                                                                "resident_threads"
                                                              : "=threads"),
                                entry);
    }
    check_launch_row(LaunchKernel(kernel), row, entry);
    if (!found.rows[size_t(kernel)].empty()) throw LaunchOverrideError("each kernel once", entry);
    found.rows[size_t(kernel)] = row;
  }
  return found;
}

inline std::atomic<const LaunchOverrides*> current_launch_overrides;

// Lets the next launch read the variable again. The overrides so far stay in memory, where a launch may still read
// them.
inline void reread_launch_overrides() { current_launch_overrides = nullptr; }

inline const LaunchOverrides& launch_overrides() {
  const LaunchOverrides* found = current_launch_overrides;
  if (found == nullptr) {
    const char* const text = std::getenv("POSGAN_FAST_CUDA_TABLE");
    found = new LaunchOverrides(parse_launch_overrides(text == nullptr ? "" : text));
    current_launch_overrides = found;
  }
  return *found;
}

}  // namespace posgan_fast
