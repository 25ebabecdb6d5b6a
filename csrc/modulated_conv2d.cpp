// Prepares the weight of a modulated convolution on the CPU in one pass: input channels innermost, as vendor
// convolutions of channels_last tensors want it, times the styles of a single sample, in the dtype of the activations;
// and the sums of squares for the demodulation. Compiled once per instruction set (PF_ISA).
#include "cpu_kernels.h"

namespace posgan_fast::PF_ISA {
namespace {

constexpr int kBlock = 512;  // input channels at a time

// Filters innermost: one channel and tap of a whole group at a time.
template <typename T>
void transpose(const ModulatedWeightTask& task, int64_t first, int n) {
  using A = acc_t<T>;
  const int64_t pitch = task.channels * task.taps;
  const A* w = static_cast<const A*>(task.weight) + first * pitch;
  T* out = static_cast<T*>(task.transposed) + first;
  for (int64_t i = 0; i < task.channels; ++i) {
    const A factor = task.styles != nullptr ? static_cast<const A*>(task.styles)[i] : A(1);
    for (int64_t k = 0; k < task.taps; ++k) {
      const A* from = w + i * task.taps + (task.flip ? task.taps - 1 - k : k);
      T* to = out + (i * task.taps + k) * task.filters;
      for (int o = 0; o < n; ++o) store(to + o, from[o * pitch] * factor);
    }
  }
}

template <typename T>
void filters(const ModulatedWeightTask& task, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const int64_t channels = task.channels, taps = task.taps;
  const A* styles = static_cast<const A*>(task.styles);
  if (task.transposed != nullptr) {
    for (int64_t group = begin; group < end; ++group) {
      const int64_t first = group * kFilterGroup, left = task.filters - first;
      transpose<T>(task, first, int(left < kFilterGroup ? left : kFilterGroup));
    }
  }
  const int64_t last = end * kFilterGroup < task.filters ? end * kFilterGroup : task.filters;
  for (int64_t o = begin * kFilterGroup; o < last; ++o) {
    for (int64_t first = 0; first < channels; first += kBlock) {
      const int n = int(channels - first < kBlock ? channels - first : kBlock);
      const A* w = static_cast<const A*>(task.weight) + (o * channels + first) * taps;
      if (task.squares != nullptr) {
        A* sums = static_cast<A*>(task.squares) + o * channels + first;
        for (int i = 0; i < n; ++i) sums[i] = 0;
        for (int64_t k = 0; k < taps; ++k) {
          for (int i = 0; i < n; ++i) sums[i] += w[i * taps + k] * w[i * taps + k];
        }
      }
      A factors[kBlock];
      for (int i = 0; i < n; ++i) factors[i] = styles != nullptr ? styles[first + i] : A(1);
      for (int64_t p = 0; p < task.count; ++p) {
        const WeightPlace& place = task.places[p];
        T* out = static_cast<T*>(place.data) + o * place.stride + first;
        if (place.tap < 0) {
          std::memset(static_cast<void*>(out), 0, size_t(n) * sizeof(T));
        } else {
          for (int i = 0; i < n; ++i) store(out + i, w[i * taps + place.tap] * factors[i]);
        }
      }
    }
  }
}

}  // namespace

void modulated_weight(const ModulatedWeightTask& task, int64_t begin, int64_t end) {
  switch (task.type) {
    case Type::kHalf:
      return filters<Half>(task, begin, end);
    case Type::kBFloat16:
      return filters<BFloat16>(task, begin, end);
    case Type::kFloat:
      return filters<float>(task, begin, end);
    case Type::kDouble:
      return filters<double>(task, begin, end);
  }
}

}  // namespace posgan_fast::PF_ISA
