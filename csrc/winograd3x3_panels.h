// The transform of a weight of Winograd's convolution on the CPU, panel by panel. Everything has internal linkage,
// because every instruction set compiles its own copy.
#pragma once

#include "winograd3x3_transforms.h"

namespace posgan_fast {
namespace {

// The kernels of one channel of a panel.
typedef float Kernels[9][kWinogradPanel];

// Transforms kernels into 36 vectors that are `step` apart.
inline void transform_kernels(WinogradForm form, const Kernels& taps, float* to, int64_t step) {
  for (int lane = 0; lane < kWinogradPanel; lane += kLanes) {
    Values half[6 * 3];
    for (int j = 0; j < 3; ++j) {
      const Values column[3] = {V::load(taps[j] + lane).v, V::load(taps[3 + j] + lane).v,
                                V::load(taps[6 + j] + lane).v};
      transform_kernel(form, column, half + j, 3);
    }
    for (int i = 0; i < 6; ++i) {
      Values whole[6];
      transform_kernel(form, half + i * 3, whole, 1);
      for (int j = 0; j < 6; ++j) V{whole[j]}.store(to + (i * 6 + j) * step + lane);
    }
  }
}

inline void write_squares(const Kernels& taps, float* to, int64_t count) {
  for (int64_t f = 0; f < count; ++f) {
    float sum = 0;
    for (int k = 0; k < 9; ++k) sum += taps[k][f] * taps[k][f];
    to[f] = sum;
  }
}

// Transposes a square. A loop over the steps would keep the rows in memory.
template <int kStep = 1>
inline void transpose(V* rows) {
  if constexpr (kStep < kLanes) {
    V next[kLanes];
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = interleave<0>(rows[i], rows[i + kLanes / 2]);
      next[2 * i + 1] = interleave<1>(rows[i], rows[i + kLanes / 2]);
    }
    transpose<2 * kStep>(next);
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

// Reads the kernels of kLanes channels and `count` filters, which lie one after the other in memory.
inline void read_dense_kernels(const float* weight, int64_t stride_o, bool flip, int64_t count, Kernels* to) {
  for (int64_t first = 0; first < kWinogradPanel; first += kLanes) {
    for (int part = 0; part < 9; ++part) {
      V rows[kLanes];
      for (int f = 0; f < kLanes; ++f) {
        const bool known = first + f < count;
        rows[f] = known ? V::load(weight + (first + f) * stride_o + part * kLanes) : V::broadcast(0);
      }
      transpose(rows);
      for (int lane = 0; lane < kLanes; ++lane) {
        const int tap = (part * kLanes + lane) % 9;
        rows[lane].store(to[(part * kLanes + lane) / 9][flip ? 8 - tap : tap] + first);
      }
    }
  }
}

// Reads the kernels of the channels [begin, end), at most kLanes, of a panel.
inline void read_kernels(const WinogradWeightTask& task, int64_t panel, int64_t begin, int64_t end, Kernels* to) {
  const int64_t count = winograd_filters_of(panel, task.filters);
  const float* weight = task.weight + panel * kWinogradPanel * task.stride_o + begin * task.stride_i;
  const bool flip = task.stride_w == -1;
  const bool dense = task.stride_i == 9 && (flip ? task.stride_h == -3 : task.stride_h == 3 && task.stride_w == 1);
  if (dense && end - begin == kLanes) {
    return read_dense_kernels(flip ? weight - 8 : weight, task.stride_o, flip, count, to);
  }
  std::memset(to, 0, size_t(end - begin) * sizeof(Kernels));
  for (int64_t i = 0; i < end - begin; ++i) {
    for (int64_t f = 0; f < count; ++f) {
      const float* w = weight + f * task.stride_o + i * task.stride_i;
      for (int k = 0; k < 9; ++k) to[i][k][f] = w[k / 3 * task.stride_h + k % 3 * task.stride_w];
    }
  }
}

// Transforms the channels [begin, end) of a panel into 36 matrices [., kWinogradPanel] that are `step` apart. Writes
// the sums of squares of a channel's kernels to squares + i * pitch, unless squares is null.
inline void transform_panel(const WinogradWeightTask& task, int64_t panel, int64_t begin, int64_t end, float* to,
                            int64_t step, float* squares, int64_t pitch) {
  const int64_t count = winograd_filters_of(panel, task.filters);
  for (int64_t first = begin; first < end; first += kLanes) {
    const int64_t last = first + kLanes < end ? first + kLanes : end;
    Kernels kernels[kLanes];
    read_kernels(task, panel, first, last, kernels);
    for (int64_t i = first; i < last; ++i) {
      transform_kernels(task.form, kernels[i - first], to + (i - begin) * kWinogradPanel, step);
      if (squares == nullptr) continue;
      write_squares(kernels[i - first], squares + i * pitch, count);
    }
  }
}

}  // namespace
}  // namespace posgan_fast
