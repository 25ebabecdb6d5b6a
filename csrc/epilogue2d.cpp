// epilogue2d on the CPU: plain loops that the compiler vectorises, compiled once per instruction set (PF_ISA). The
// resampling, if any, is that of upfirdn2d; each row passes through the epilogue before it is stored.
#include "epilogue2d.h"

#include "cpu_math.h"
#include "upfirdn2d_planes.h"

namespace posgan_fast::PF_ISA {
namespace {

constexpr int kChunk = 1024;     // values between the sum and the store
constexpr int kShortPixel = 16;  // below so many channels, scales and biases are laid out for many pixels

template <Act kAct, typename T, typename A>
void activate(const A* __restrict v, T* __restrict out, int n, ActParams<A> p) {
  for (int i = 0; i < n; ++i) {
    from_acc(out + i, epilogue2d_act<kAct, PolynomialMath, A>(v[i], p.alpha, p.gain, p.clamp));
  }
}

template <typename T>
auto select_activation(Act act) {
  return dispatch_act(act, [](auto constant) { return &activate<constant, T, acc_t<T>>; });
}

// out = z * scale + noise + b over pixels of one channel; noise may be null.
template <typename Z, typename A>
void sum_pixels(const Z* __restrict z, A scale, const A* __restrict noise, A b, A* __restrict out, int n) {
  if (noise == nullptr) {
    for (int i = 0; i < n; ++i) out[i] = epilogue2d_sum<A>(to_acc(z[i]), scale, 0, b);
  } else {
    for (int i = 0; i < n; ++i) out[i] = epilogue2d_sum<A>(to_acc(z[i]), scale, noise[i], b);
  }
}

// out = z * scale + noise + b over channels of one pixel.
template <typename Z, typename A>
void sum_channels(const Z* __restrict z, const A* __restrict scale, A noise, const A* __restrict b, A* __restrict out,
                  int n) {
  for (int i = 0; i < n; ++i) out[i] = epilogue2d_sum<A>(to_acc(z[i]), scale[i], noise, b[i]);
}

// Applies scale, noise, bias and activation to parts of planes and stores them. A plane is one channel of one image in
// NCHW, one image in channels_last.
template <typename T>
class FusedEpilogue {
 public:
  using A = acc_t<T>;

  explicit FusedEpilogue(const Epilogue2dTask& task)
      : task_(task),
        p_(task.params),
        activation_(select_activation<T>(task.act)),
        act_params_{A(p_.alpha), A(p_.gain), A(p_.clamp)},
        cycle_(p_.channels_last ? (p_.c < kShortPixel ? kChunk / p_.c * p_.c : p_.c) : 0),
        cycles_(2 * cycle_) {
    for (int64_t i = 0; i < cycle_; ++i) biases_[i] = bias(i % p_.c);
  }

  A* target(T*, A* sums) const { return sums; }

  void operator()(const A* row, const OutputRow<T>& at, int64_t n) {
    apply(row, at.out, at.plane, at.oy * p_.w + at.ox, p_.channels_last ? n / p_.c : n);
  }

  // Reads pixels [first, first + pixels) of a plane from z on and writes them from out on.
  template <typename Z>
  void apply(const Z* z, T* out, int64_t plane, int64_t first, int64_t pixels) {
    if (plane != plane_) seek(plane);
    const A* noise = noise_ == nullptr ? nullptr : noise_ + first;
    if (!p_.channels_last) {
      for (int64_t i = 0; i < pixels; i += kChunk) {
        const int n = int(pixels - i < kChunk ? pixels - i : kChunk);
        sum_pixels(z + i, scale_, noise == nullptr ? nullptr : noise + i, bias_, sums_, n);
        emit(out + i, n);
      }
    } else if (p_.c > kChunk) {
      for (int64_t i = 0; i < pixels; ++i) {
        for (int64_t c = 0; c < p_.c; c += kChunk) {
          const int n = int(p_.c - c < kChunk ? p_.c - c : kChunk);
          sum_channels(z + i * p_.c + c, scales_ + c, noise == nullptr ? A(0) : noise[i], biases_ + c, sums_, n);
          emit(out + i * p_.c + c, n);
        }
      }
    } else {
      const int c = int(p_.c), most = kChunk / c;
      for (int64_t i = 0; i < pixels; i += most) {
        const int n = int(pixels - i < most ? pixels - i : most);
        sum_whole_pixels(z + i * c, noise == nullptr ? nullptr : noise + i, n, c);
        emit(out + i * c, n * c);
      }
    }
  }

 private:
  void seek(int64_t plane) {
    plane_ = plane;
    const int64_t n = p_.channels_last ? plane : plane / p_.c;
    const A* scale = static_cast<const A*>(task_.scale);
    scale = scale == nullptr ? nullptr : scale + n * p_.c;
    noise_ = static_cast<const A*>(task_.noise);
    noise_ = noise_ == nullptr ? nullptr : noise_ + n * p_.noise_stride_n;
    if (p_.channels_last) {
      for (int64_t i = 0; i < cycle_; ++i) scales_[i] = scale == nullptr ? A(1) : scale[i % p_.c];
    } else {
      scale_ = scale == nullptr ? A(1) : scale[plane % p_.c];
      bias_ = bias(plane % p_.c);
    }
  }

  A bias(int64_t c) const { return task_.b == nullptr ? A(0) : to_acc(static_cast<const T*>(task_.b)[c]); }

  template <typename Z>
  void sum_whole_pixels(const Z* z, const A* noise, int n, int c) {
    if (c >= kShortPixel) {
      for (int k = 0; k < n; ++k) {
        sum_channels(z + k * c, scales_, noise == nullptr ? A(0) : noise[k], biases_, sums_ + k * c, c);
      }
      return;
    }
    sum_channels(z, scales_, A(0), biases_, sums_, n * c);
    for (int k = 0; noise != nullptr && k < n; ++k) {
      for (int i = 0; i < c; ++i) sums_[k * c + i] += noise[k];
    }
  }

  void emit(T* out, int n) {
    if constexpr (std::is_same_v<T, float>) {  // the type that nontemporal_copy knows
      if (task_.fir.nontemporal) {
        activation_(sums_, results_, n, act_params_);
        return store_row(out, results_, n, true);
      }
    }
    activation_(sums_, out, n, act_params_);
  }

  const Epilogue2dTask& task_;
  const Epilogue2dParams& p_;
  void (*const activation_)(const A*, T*, int, ActParams<A>);
  const ActParams<A> act_params_;
  const int64_t cycle_;  // channels_last: the values before scales and biases repeat
  const Scratch<A> cycles_;
  int64_t plane_ = -1;
  A scale_ = 1, bias_ = 0;
  const A* noise_ = nullptr;
  A *const scales_ = cycles_.data, *const biases_ = cycles_.data + cycle_;  // [cycle_]
  A sums_[kChunk];
  T results_[kChunk];
};

template <typename T>
void compute_segments(const Epilogue2dTask& task, int64_t begin, int64_t end, FusedEpilogue<T>& epilogue) {
  const Upfirdn2dParams& p = task.fir.params;
  const int64_t lines = p.y.out * p.x.out / task.line, per_line = ceil_div(task.line, task.segment);
  const int64_t pixel = p.channels_last ? p.c : 1;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t plane = i / (lines * per_line), line = i / per_line % lines, start = i % per_line * task.segment;
    const int64_t n = p.channels_last ? plane : plane / p.c, c = p.channels_last ? 0 : plane % p.c;
    const T* x = static_cast<const T*>(task.fir.x) + n * p.in_stride_n + c * p.in_stride_c + line * p.in_stride_h;
    T* y = static_cast<T*>(task.fir.y) + n * p.out_stride_n + c * p.out_stride_c + line * p.out_stride_h;
    const int64_t left = task.line - start;
    epilogue.apply(x + start * pixel, y + start * pixel, plane, line * task.line + start,
                   left < task.segment ? left : task.segment);
  }
}

template <typename T>
void compute_items(const Epilogue2dTask& task, int64_t begin, int64_t end) {
  FusedEpilogue<T> epilogue(task);
  if (task.fir.fx == nullptr) return compute_segments<T>(task, begin, end, epilogue);
  resample<T>(task.fir, begin, end, epilogue);
}

}  // namespace

void epilogue2d(const Epilogue2dTask& task, int64_t begin, int64_t end) {
  dispatch_dtype(task.fir.dtype, [&](auto scalar) { compute_items<decltype(scalar)>(task, begin, end); });
}

}  // namespace posgan_fast::PF_ISA
