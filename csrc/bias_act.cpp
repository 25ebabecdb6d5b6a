// bias_act on the CPU: plain loops that the compiler vectorises, compiled once per instruction set (PF_ISA).
#include "bias_act.h"
#include "cpu_kernels.h"
#include "cpu_math.h"

namespace posgan_fast::PF_ISA {
namespace {

constexpr int kChunk = 1024;  // elements between a load and a store, and the biases laid out for them

template <Act kAct, int kGrad, bool kReadsOutput, typename T>
void compute_chunk(const T* x, const acc_t<T>* b, const T* ref, const T* dy, acc_t<T>* out, int n,
                   ActParams<acc_t<T>> p) {
  using A = acc_t<T>;
  for (int i = 0; i < n; ++i) {
    const A r = kGrad > 0 ? to_acc(ref[i]) : A(0);
    const A d = kGrad > 1 ? to_acc(dy[i]) : A(0);
    out[i] = bias_act_element<kAct, kGrad, kReadsOutput, PolynomialMath, A>(to_acc(x[i]), b[i], r, d, p.alpha, p.gain,
                                                                            p.clamp);
  }
}

// Lays the biases of consecutive elements out side by side: runs of one value, or a cycle of all channels where the
// bias dimension is innermost. A chunk reuses the values of the one before where they are the same.
template <typename T>
class BiasReader {
 public:
  BiasReader(const BiasActParams& p, const T* b, int64_t i) : p_(p), b_(b) {
    if (b == nullptr) return;
    channel_ = i / p.step % p.channels;
    left_ = p.step - i % p.step;
    cycle_ = p.step == 1 && p.channels <= kChunk ? kChunk / p.channels * p.channels : 0;
  }

  // The size of the next chunk: whole cycles, so that all chunks begin with the first channel, otherwise all that fits.
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
    const acc_t<T> value = to_acc(b_[channel_]);
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
void compute_elements(const BiasActTask& task, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const BiasActParams& p = task.params;
  const auto compute = dispatch_bias_act(task.act, task.grad, p.alpha, [](auto act, auto grad, auto reads_output) {
    return &compute_chunk<act, grad, reads_output, T>;
  });
  const ActParams<A> act_params = {A(p.alpha), A(p.gain), A(p.clamp)};
  const T *x = static_cast<const T*>(task.x), *b = static_cast<const T*>(task.b);
  const T *ref = static_cast<const T*>(task.ref), *dy = static_cast<const T*>(task.dy);
  T* out = static_cast<T*>(task.out);
  BiasReader<T> biases(p, b, begin);
  A results[kChunk];
  for (int64_t i = begin; i < end;) {
    const int n = biases.chunk(end - i);
    compute(x + i, biases.next(n), ref + i, dy + i, results, n, act_params);
    store_row(out + i, results, n, task.nontemporal);
    i += n;
  }
}

}  // namespace

void bias_act(const BiasActTask& task, int64_t begin, int64_t end) {
  dispatch_dtype(task.dtype, [&](auto scalar) { compute_elements<decltype(scalar)>(task, begin, end); });
}

}  // namespace posgan_fast::PF_ISA
