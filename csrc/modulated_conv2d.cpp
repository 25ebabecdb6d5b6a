// Prepares the weight of a modulated convolution on the CPU in one pass: input channels innermost, as vendor
// convolutions of channels_last tensors want it, times the styles of a single sample, in the dtype of the activations;
// and the demodulation coefficients. Compiled once per instruction set (PF_ISA).
#include "cpu_kernels.h"

namespace posgan_fast::PF_ISA {
namespace {

constexpr int kBlock = 512;  // input channels at a time

template <typename T>
struct Preparation {
  using A = acc_t<T>;
  const ModulatedWeightTask& task;
  const A* styles;
  A* scale;
  A* taps;  // [taps, kBlock]: a block of one filter, channels innermost

  explicit Preparation(const ModulatedWeightTask& t)
      : task(t), styles(static_cast<const A*>(t.styles)), scale(static_cast<A*>(t.scale)) {
    taps = static_cast<A*>(std::malloc(size_t(t.taps * kBlock) * sizeof(A)));
    if (taps == nullptr) throw std::bad_alloc();
  }
  ~Preparation() { std::free(taps); }
  Preparation(const Preparation&) = delete;

  void filter(int64_t o) {
    for (int64_t n = 0; n < task.samples && scale != nullptr; ++n) scale[n * task.filters + o] = 0;
    for (int64_t first = 0; first < task.channels; first += kBlock) {
      const int count = int(task.channels - first < kBlock ? task.channels - first : kBlock);
      block(o, first, count);
    }
    for (int64_t n = 0; n < task.samples && scale != nullptr; ++n) {
      A& d = scale[n * task.filters + o];
      d = A(1) / std::sqrt(d + A(task.eps));
    }
  }

  // Filters innermost: one channel and tap of a whole group at a time.
  void transpose(int64_t first, int count) {
    const int64_t pitch = task.channels * task.taps;
    const A* w = static_cast<const A*>(task.weight) + first * pitch;
    T* out = static_cast<T*>(task.transposed) + first;
    for (int64_t i = 0; i < task.channels; ++i) {
      const A factor = task.fold ? styles[i] : A(1);
      for (int64_t k = 0; k < task.taps; ++k) {
        const A* from = w + i * task.taps + (task.flip ? task.taps - 1 - k : k);
        T* to = out + (i * task.taps + k) * task.filters;
        for (int o = 0; o < count; ++o) store(to + o, from[o * pitch] * factor);
      }
    }
  }

 private:
  void block(int64_t o, int64_t first, int count) {
    const A* w = static_cast<const A*>(task.weight) + (o * task.channels + first) * task.taps;
    A squares[kBlock];
    for (int i = 0; i < count; ++i) squares[i] = 0;
    for (int64_t k = 0; k < task.taps; ++k) {
      A* to = taps + k * kBlock;
      for (int i = 0; i < count; ++i) {
        const A value = w[i * task.taps + k];
        to[i] = value;
        squares[i] += value * value;
      }
    }
    for (int64_t n = 0; n < task.samples && scale != nullptr; ++n) {
      const A* s = styles + n * task.channels + first;
      A lanes[16] = {};  // sums side by side: the compiler may not reorder a single one
      int i = 0;
      for (; i + 16 <= count; i += 16) {
        for (int l = 0; l < 16; ++l) lanes[l] += squares[i + l] * (s[i + l] * s[i + l]);
      }
      A sum = 0;
      for (; i < count; ++i) sum += squares[i] * (s[i] * s[i]);
      for (const A lane : lanes) sum += lane;
      scale[n * task.filters + o] += sum;
    }
    A factors[kBlock];
    for (int i = 0; i < count; ++i) factors[i] = task.fold ? styles[first + i] : A(1);
    for (int64_t p = 0; p < task.count; ++p) {
      const WeightPlace& place = task.places[p];
      T* out = static_cast<T*>(place.data) + o * place.stride + first;
      if (place.tap < 0) {
        std::memset(static_cast<void*>(out), 0, size_t(count) * sizeof(T));
        continue;
      }
      const A* from = taps + place.tap * kBlock;
      for (int i = 0; i < count; ++i) store(out + i, from[i] * factors[i]);
    }
  }
};

template <typename T>
void filters(const ModulatedWeightTask& task, int64_t begin, int64_t end) {
  Preparation<T> preparation(task);
  for (int64_t group = begin; group < end; ++group) {
    const int64_t first = group * kFilterGroup, left = task.filters - first;
    const int count = int(left < kFilterGroup ? left : kFilterGroup);
    if (task.transposed != nullptr) preparation.transpose(first, count);
    if (task.transposed != nullptr && task.scale == nullptr) continue;
    for (int o = 0; o < count; ++o) preparation.filter(first + o);
  }
}

}  // namespace

void modulated_weight(const ModulatedWeightTask& task, int64_t begin, int64_t end) {
  with_scalar(task.type, [&](auto scalar) { filters<decltype(scalar)>(task, begin, end); });
}

}  // namespace posgan_fast::PF_ISA
