// bias_act on the CPU. Compiled once per instruction set (PF_ISA); plain loops, shaped for the compiler's vectoriser.
#include "cpu_kernels.h"
#include "cpu_math.h"

namespace posgan_fast::PF_ISA {
namespace {

constexpr int kChunk = 1024;  // elements whose biases are laid out at a time

template <Act kAct, int kOrder, bool kReadsOutput, typename T>
void span(const T* x, const acc_t<T>* b, const T* ref, const T* dy, acc_t<T>* out, int n, Scalars<acc_t<T>> s) {
  using A = acc_t<T>;
  for (int i = 0; i < n; ++i) {
    const A r = kOrder > 0 ? load(ref[i]) : A(0);
    const A d = kOrder > 1 ? load(dy[i]) : A(0);
    out[i] = bias_act_point<kAct, kOrder, kReadsOutput, Math, A>(load(x[i]), b[i], r, d, s.alpha, s.gain, s.clamp);
  }
}

template <typename T>
auto select_span(Act act, int order, bool reads_output) {
  return with_act(act, [&](auto constant) {
    constexpr Act kAct = constant;
    if (order == 0) return &span<kAct, 0, false, T>;
    if constexpr (kAct == Act::kRelu || kAct == Act::kLrelu) {
      if (order == 1 && reads_output) return &span<kAct, 1, true, T>;
    }
    if (order == 1) return &span<kAct, 1, false, T>;
    return &span<kAct, 2, false, T>;
  });
}

// The biases of consecutive elements, laid out side by side: runs of one value where the bias dimension has a step, a
// cycle where it is innermost. What one chunk leaves in the buffer serves the next where it can.
template <typename T>
class Biases {
 public:
  Biases(const BiasActParams& p, const T* b, int64_t i) : p_(p), b_(b) {
    if (b == nullptr) return;
    channel_ = i / p.step % p.channels;
    left_ = p.step - i % p.step;
    cycle_ = p.step == 1 && p.channels <= kChunk ? kChunk / p.channels * p.channels : 0;
  }

  // Elements of the next chunk: whole cycles begin alike, every other chunk is full.
  int chunk(int64_t remaining) const {
    const int64_t most = cycle_ > 0 ? cycle_ : kChunk;
    return int(remaining < most ? remaining : most);
  }

  const acc_t<T>* next(int n) {
    if (b_ == nullptr || (cycle_ > 0 && filled_)) return values_;
    if (left_ >= n && p_.step > 1) {
      if (constant_ != channel_) fill(0, kChunk < p_.step ? kChunk : int(p_.step));
      constant_ = channel_;
      advance(n);
    } else {
      constant_ = -1;
      const int end = cycle_ > 0 ? int(cycle_) : n;
      for (int k = 0; k < end;) {
        const int run = int(left_ < end - k ? left_ : end - k);
        fill(k, run);
        advance(run);
        k += run;
      }
    }
    filled_ = true;
    return values_;
  }

 private:
  void fill(int k, int n) {
    const acc_t<T> value = load(b_[channel_]);
    for (int end = k + n; k < end; ++k) values_[k] = value;
  }

  void advance(int n) {
    left_ -= n;
    if (left_ > 0) return;
    left_ = p_.step;
    channel_ = channel_ + 1 == p_.channels ? 0 : channel_ + 1;
  }

  const BiasActParams& p_;
  const T* b_;
  int64_t channel_ = 0, left_ = 0, cycle_ = 0, constant_ = -1;
  bool filled_ = false;
  acc_t<T> values_[kChunk] = {};
};

template <typename T>
void elements(const BiasActTask& task, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const BiasActParams& p = task.params;
  const auto span = select_span<T>(task.act, task.order, reads_output(task.act, p.alpha));
  const Scalars<A> scalars = {A(p.alpha), A(p.gain), A(p.clamp)};
  const T *x = static_cast<const T*>(task.x), *b = static_cast<const T*>(task.b);
  const T *ref = static_cast<const T*>(task.ref), *dy = static_cast<const T*>(task.dy);
  T* out = static_cast<T*>(task.out);
  Biases<T> biases(p, b, begin);
  A results[kChunk];
  for (int64_t i = begin; i < end;) {
    const int n = biases.chunk(end - i);
    span(x + i, biases.next(n), ref + i, dy + i, results, n, scalars);
    store_row(out + i, results, n, task.stream);
    i += n;
  }
}

}  // namespace

void bias_act(const BiasActTask& task, int64_t begin, int64_t end) {
  with_scalar(task.type, [&](auto scalar) { elements<decltype(scalar)>(task, begin, end); });
}

}  // namespace posgan_fast::PF_ISA
