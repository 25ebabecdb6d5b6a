// Prepares the weight of a modulated convolution on the CPU in one pass: it casts to the dtype of the activations, puts
// the input channels innermost, as vendor convolutions of channels_last tensors read them, multiplies by the styles of
// a single sample and computes the demodulation coefficients. Compiled once per instruction set (PF_ISA).
#include "modulated_conv2d.h"
#include "cpu_kernels.h"

namespace posgan_fast::PF_ISA {
namespace {

constexpr int kBlock = 512;  // input channels at a time

template <typename T>
class WeightPreparation {
 public:
  using A = acc_t<T>;

  explicit WeightPreparation(const ModulatedWeightTask& t)
      : task(t),
        styles(static_cast<const A*>(t.styles)),
        dcoefs(static_cast<A*>(t.dcoefs)),
        samples(t.dcoefs != nullptr ? t.samples : 0),
        scratch(t.taps * kBlock),
        taps(scratch.data) {}

  void filter(int64_t o) {
    for (int64_t n = 0; n < samples; ++n) dcoefs[n * task.filters + o] = 0;
    for (int64_t first = 0; first < task.channels; first += kBlock) {
      const int count = int(task.channels - first < kBlock ? task.channels - first : kBlock);
      A squares[kBlock];
      read_block(o, first, count, squares);
      for (int64_t n = 0; n < samples; ++n) add_to_dcoef(n, o, first, count, squares);
      write_block(o, first, count);
    }
    for (int64_t n = 0; n < samples; ++n) {
      A& d = dcoefs[n * task.filters + o];
      d = A(1) / std::sqrt(d + A(task.eps));
    }
  }

  // Writes filters [first, first + count) innermost, one channel and tap of all of them at a time.
  void transpose(int64_t first, int count) {
    const int64_t pitch = task.channels * task.taps;
    const A* w = static_cast<const A*>(task.weight) + first * pitch;
    T* out = static_cast<T*>(task.transposed) + first;
    for (int64_t i = 0; i < task.channels; ++i) {
      const A factor = task.fold ? styles[i] : A(1);
      for (int64_t k = 0; k < task.taps; ++k) {
        const A* from = w + i * task.taps + (task.flip ? task.taps - 1 - k : k);
        T* to = out + (i * task.taps + k) * task.filters;
        for (int o = 0; o < count; ++o) from_acc(to + o, from[o * pitch] * factor);
      }
    }
  }

 private:
  // Puts the channels of each tap side by side and sums the squares of each channel over the taps.
  void read_block(int64_t o, int64_t first, int count, A* __restrict squares) {
    const A* w = static_cast<const A*>(task.weight) + (o * task.channels + first) * task.taps;
    for (int i = 0; i < count; ++i) squares[i] = 0;
    for (int64_t k = 0; k < task.taps; ++k) {
      A* to = taps + k * kBlock;
      for (int i = 0; i < count; ++i) {
        const A value = w[i * task.taps + k];
        to[i] = value;
        squares[i] += value * value;
      }
    }
  }

  void add_to_dcoef(int64_t n, int64_t o, int64_t first, int count, const A* squares) {
    const A* s = styles + n * task.channels + first;
    A partial[16] = {};  // partial sums vectorise; the compiler may not reorder a single one
    int i = 0;
    for (; i + 16 <= count; i += 16) {
      for (int l = 0; l < 16; ++l) partial[l] += squares[i + l] * (s[i + l] * s[i + l]);
    }
    A sum = 0;
    for (; i < count; ++i) sum += squares[i] * (s[i] * s[i]);
    for (const A value : partial) sum += value;
    dcoefs[n * task.filters + o] += sum;
  }

  void write_block(int64_t o, int64_t first, int count) {
    A factors[kBlock];
    for (int i = 0; i < count; ++i) factors[i] = task.fold ? styles[first + i] : A(1);
    for (int64_t p = 0; p < task.count; ++p) {
      const TapDestination& destination = task.destinations[p];
      T* out = static_cast<T*>(destination.data) + o * destination.stride + first;
      if (destination.tap < 0) {
        std::memset(static_cast<void*>(out), 0, size_t(count) * sizeof(T));
        continue;
      }
      const A* from = taps + destination.tap * kBlock;
      for (int i = 0; i < count; ++i) from_acc(out + i, from[i] * factors[i]);
    }
  }

  const ModulatedWeightTask& task;
  const A* const styles;
  A* const dcoefs;
  const int64_t samples;  // whose dcoefs are asked for
  const Scratch<A> scratch;
  A* const taps;  // [taps, kBlock]: a block of one filter, channels innermost
};

template <typename T>
void prepare_filters(const ModulatedWeightTask& task, int64_t begin, int64_t end) {
  WeightPreparation<T> preparation(task);
  for (int64_t group = begin; group < end; ++group) {
    const int64_t first = group * kFilterGroup, left = task.filters - first;
    const int count = int(left < kFilterGroup ? left : kFilterGroup);
    if (task.transposed != nullptr) preparation.transpose(first, count);
    if (task.transposed != nullptr && task.dcoefs == nullptr) continue;
    for (int o = 0; o < count; ++o) preparation.filter(first + o);
  }
}

}  // namespace

void modulated_weight(const ModulatedWeightTask& task, int64_t begin, int64_t end) {
  dispatch_dtype(task.dtype, [&](auto scalar) { prepare_filters<decltype(scalar)>(task, begin, end); });
}

}  // namespace posgan_fast::PF_ISA
