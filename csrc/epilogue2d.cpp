// epilogue2d on the CPU: resampling, if any, as in upfirdn2d, each row finished before it is stored. Compiled once per
// instruction set (PF_ISA); plain loops, shaped for the compiler's vectoriser.
#include "cpu_math.h"
#include "upfirdn2d_rows.h"

namespace posgan_fast::PF_ISA {
namespace {

constexpr int kChunk = 1024;     // values between the sum and the store
constexpr int kShortPixel = 16;  // channels below which scales and biases are laid out for many pixels

template <Act kAct, typename T, typename A>
void activate(const A* __restrict v, T* __restrict out, int n, Scalars<A> s) {
  for (int i = 0; i < n; ++i) store(out + i, epilogue2d_act<kAct, Math, A>(v[i], s.alpha, s.gain, s.clamp));
}

template <typename T>
auto select_activation(Act act) {
  return with_act(act, [](auto constant) { return &activate<constant, T, acc_t<T>>; });
}

// out = z * scale + noise + b over pixels of one channel; noise null: none.
template <typename Z, typename A>
void sum_pixels(const Z* __restrict z, A scale, const A* __restrict noise, A b, A* __restrict out, int n) {
  if (noise == nullptr) {
    for (int i = 0; i < n; ++i) out[i] = epilogue2d_sum<A>(load(z[i]), scale, 0, b);
  } else {
    for (int i = 0; i < n; ++i) out[i] = epilogue2d_sum<A>(load(z[i]), scale, noise[i], b);
  }
}

// The same over channels.
template <typename Z, typename A>
void sum_channels(const Z* __restrict z, const A* __restrict scale, A noise, const A* __restrict b, A* __restrict out,
                  int n) {
  for (int i = 0; i < n; ++i) out[i] = epilogue2d_sum<A>(load(z[i]), scale[i], noise, b[i]);
}

// Finishes rows: scale, noise, bias, activation, store. A plane is one image, or in NCHW one channel of it.
template <typename T>
class Finish {
 public:
  using A = acc_t<T>;

  explicit Finish(const Epilogue2dTask& task)
      : task_(task),
        p_(task.params),
        activation_(select_activation<T>(task.act)),
        scalars_{A(p_.alpha), A(p_.gain), A(p_.clamp)},
        cycle_(p_.c < kShortPixel ? kChunk / p_.c * p_.c : p_.c) {
    if (!p_.channels_last) return;
    scales_ = static_cast<A*>(std::malloc(size_t(2 * cycle_) * sizeof(A)));
    if (scales_ == nullptr) throw std::bad_alloc();
    biases_ = scales_ + cycle_;
    for (int64_t i = 0; i < cycle_; ++i) biases_[i] = bias(i % p_.c);
  }
  Finish(const Finish&) = delete;
  Finish& operator=(const Finish&) = delete;
  ~Finish() { std::free(scales_); }

  A* target(T*, A* sums) const { return sums; }

  void operator()(const A* row, const OutputRow<T>& at, int64_t n) {
    finish(row, at.out, at.plane, at.oy * p_.w + at.ox, p_.channels_last ? n / p_.c : n);
  }

  // Pixels [first, first + pixels) of a plane, in memory from z on, to out on.
  template <typename Z>
  void finish(const Z* z, T* out, int64_t plane, int64_t first, int64_t pixels) {
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

  A bias(int64_t c) const { return task_.b == nullptr ? A(0) : load(static_cast<const T*>(task_.b)[c]); }

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
    if constexpr (std::is_same_v<T, float>) {  // the type that stream_copy knows
      if (task_.fir.stream) {
        activation_(sums_, results_, n, scalars_);
        return store_row(out, results_, n, true);
      }
    }
    activation_(sums_, out, n, scalars_);
  }

  const Epilogue2dTask& task_;
  const Epilogue2dParams& p_;
  void (*const activation_)(const A*, T*, int, Scalars<A>);
  const Scalars<A> scalars_;
  const int64_t cycle_;
  int64_t plane_ = -1;
  A scale_ = 1, bias_ = 0;
  const A* noise_ = nullptr;
  A *scales_ = nullptr, *biases_ = nullptr;  // channels_last: [cycle]
  A sums_[kChunk];
  T results_[kChunk];
};

// Work items of a task without a filter: segments of lines of pixels that lie side by side.
template <typename T>
void segments(const Epilogue2dTask& task, int64_t begin, int64_t end, Finish<T>& finish) {
  const Upfirdn2dParams& p = task.fir.params;
  const int64_t lines = p.y.out * p.x.out / task.line, per_line = ceil_div(task.line, task.segment);
  const int64_t pixel = p.channels_last ? p.c : 1;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t plane = i / (lines * per_line), line = i / per_line % lines, start = i % per_line * task.segment;
    const int64_t n = p.channels_last ? plane : plane / p.c, c = p.channels_last ? 0 : plane % p.c;
    const T* x = static_cast<const T*>(task.fir.x) + n * p.in_stride_n + c * p.in_stride_c + line * p.in_stride_h;
    T* y = static_cast<T*>(task.fir.y) + n * p.out_stride_n + c * p.out_stride_c + line * p.out_stride_h;
    const int64_t left = task.line - start;
    finish.finish(x + start * pixel, y + start * pixel, plane, line * task.line + start,
                  left < task.segment ? left : task.segment);
  }
}

template <typename T>
void items(const Epilogue2dTask& task, int64_t begin, int64_t end) {
  Finish<T> finish(task);
  if (task.fir.fx == nullptr) return segments<T>(task, begin, end, finish);
  resample_rows<T>(task.fir, begin, end, finish);
}

}  // namespace

void epilogue2d(const Epilogue2dTask& task, int64_t begin, int64_t end) {
  with_scalar(task.fir.type, [&](auto scalar) { items<decltype(scalar)>(task, begin, end); });
}

}  // namespace posgan_fast::PF_ISA
