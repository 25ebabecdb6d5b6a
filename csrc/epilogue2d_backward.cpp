// epilogue2d_backward on the CPU: plain loops that the compiler vectorises, compiled once per instruction set (PF_ISA).
// A tile is read once, in spans that stay in the first cache while every result takes its part of them.
#include "epilogue2d_backward.h"

#include "cpu_kernels.h"
#include "cpu_math.h"

namespace posgan_fast::PF_ISA {
namespace {

constexpr int kSpan = 1024;  // values
constexpr int kLanes = 16;   // partial sums, so that a sum vectorises

template <Act kAct, bool kReadsOutput, typename T, typename A, typename Ref>
void differentiate(const T* __restrict dy, const Ref* __restrict ref, A* __restrict g, int n, ActParams<A> p) {
  for (int i = 0; i < n; ++i) {
    const A at = ref == nullptr ? A(0) : A(to_acc(ref[i]));
    g[i] = epilogue2d_gradient<kAct, kReadsOutput, PolynomialMath, A>(to_acc(dy[i]), at, p.alpha, p.gain, p.clamp);
  }
}

template <typename A>
A total(const A* __restrict v, int n) {
  A lanes[kLanes] = {}, sum = 0;
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] += v[i + l];
  }
  for (; i < n; ++i) sum += v[i];
  for (const A lane : lanes) sum += lane;
  return sum;
}

template <typename A, typename T>
A total_product(const A* __restrict g, const T* __restrict x, int n) {
  A lanes[kLanes] = {}, sum = 0;
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] += g[i + l] * A(to_acc(x[i + l]));
  }
  for (; i < n; ++i) sum += g[i] * A(to_acc(x[i]));
  for (const A lane : lanes) sum += lane;
  return sum;
}

template <typename T, Act kAct, bool kReadsOutput>
class TileGradient {
 public:
  using A = acc_t<T>;

  explicit TileGradient(const Epilogue2dBackwardTask& task)
      : task_(task),
        p_(task.params),
        act_{A(p_.alpha), A(p_.gain), A(p_.clamp)},
        reads_sum_(epilogue2d_reads_sum(kAct, p_.clamp, kReadsOutput)) {}

  void run(int64_t n, int64_t tile) {
    const int64_t first = tile * p_.tile, left = p_.pixels - first;
    const int64_t pixels = left < p_.tile ? left : p_.tile;
    n_ = n;
    channel_sums_ = static_cast<A*>(task_.channel_sums);
    if (channel_sums_ != nullptr) channel_sums_ += (n * p_.tiles + tile) * p_.c;
    pixel_sums_ = static_cast<A*>(task_.pixel_sums);
    if (pixel_sums_ != nullptr) pixel_sums_ += n * p_.pixels + first;
    clear(pixels);
    if (p_.channels_last) {
      run_pixels(first, pixels);
    } else {
      run_planes(first, pixels);
    }
  }

 private:
  const A* scale() const { return static_cast<const A*>(task_.scale); }
  const A* noise(int64_t pixel) const {
    return task_.noise == nullptr ? nullptr : static_cast<const A*>(task_.noise) + n_ * p_.noise_stride_n + pixel;
  }
  A bias(int64_t c) const { return task_.b == nullptr ? A(0) : A(to_acc(static_cast<const T*>(task_.b)[c])); }
  A* products() const { return channel_sums_ + p_.n * p_.tiles * p_.c; }
  static const T* at(const void* image, int64_t offset) {
    return image == nullptr ? nullptr : static_cast<const T*>(image) + offset;
  }

  void clear(int64_t pixels) {
    for (int64_t c = 0; channel_sums_ != nullptr && c < p_.c; ++c) {
      channel_sums_[c] = 0;
      if (p_.products) products()[c] = 0;
    }
    for (int64_t i = 0; pixel_sums_ != nullptr && i < pixels; ++i) pixel_sums_[i] = 0;
  }

  void differentiate_span(int64_t offset, int n) {
    if (reads_sum_) {
      differentiate<kAct, kReadsOutput>(at(task_.dy, offset), sums_, g_, n, act_);
    } else {
      differentiate<kAct, kReadsOutput>(at(task_.dy, offset), at(kReadsOutput ? task_.y : nullptr, offset), g_, n,
                                        act_);
    }
  }

  // Spans of a plane: the channel's factors are numbers.
  void run_planes(int64_t first, int64_t pixels) {
    for (int64_t c = 0; c < p_.c; ++c) {
      const A factor = scale() == nullptr ? A(1) : scale()[n_ * p_.c + c];
      for (int64_t i = 0; i < pixels; i += kSpan) {
        const int n = int(pixels - i < kSpan ? pixels - i : kSpan);
        const int64_t offset = (n_ * p_.c + c) * p_.pixels + first + i;
        const T* x = at(task_.x, offset);
        if (reads_sum_) {
          const A *noises = noise(first + i), b = bias(c);
          for (int k = 0; k < n; ++k) {
            sums_[k] = epilogue2d_sum<A>(to_acc(x[k]), factor, noises == nullptr ? A(0) : noises[k], b);
          }
        }
        differentiate_span(offset, n);
        if (task_.dx != nullptr) {
          T* dx = static_cast<T*>(task_.dx) + offset;
          for (int k = 0; k < n; ++k) from_acc(dx + k, g_[k] * factor);
        }
        if (channel_sums_ != nullptr) channel_sums_[c] += total(g_, n);
        if (p_.products) products()[c] += total_product(g_, x, n);
        if (pixel_sums_ != nullptr) add(g_, pixel_sums_ + i, n);
      }
    }
  }

  // Spans of whole pixels, or of parts of one that has more channels than a span.
  void run_pixels(int64_t first, int64_t pixels) {
    const int64_t width = p_.c < kSpan ? p_.c : kSpan, most = kSpan / width;
    for (int64_t i = 0; i < pixels; i += most) {
      const int count = int(pixels - i < most ? pixels - i : most);
      for (int64_t c = 0; c < p_.c; c += width) {
        run_span(first + i, count, c, int(p_.c - c < width ? p_.c - c : width), i);
      }
    }
  }

  // The channels [c, c + width) of `count` pixels, one after another in memory; `place` is the first one's in the tile.
  void run_span(int64_t pixel, int count, int64_t c, int width, int64_t place) {
    const int64_t offset = (n_ * p_.pixels + pixel) * p_.c + c;
    const T* x = at(task_.x, offset);
    const A* factors = scale() == nullptr ? nullptr : scale() + n_ * p_.c + c;
    if (reads_sum_) {
      const A* noises = noise(pixel);
      for (int k = 0; k < count; ++k) {
        for (int e = 0; e < width; ++e) {
          sums_[k * width + e] = epilogue2d_sum<A>(to_acc(x[k * width + e]), factors == nullptr ? A(1) : factors[e],
                                                   noises == nullptr ? A(0) : noises[k], bias(c + e));
        }
      }
    }
    differentiate_span(offset, count * width);
    for (int k = 0; k < count; ++k) {
      const A* g = g_ + k * width;
      if (task_.dx != nullptr) scale_pixel(g, factors, static_cast<T*>(task_.dx) + offset + k * width, width);
      if (channel_sums_ != nullptr) add(g, channel_sums_ + c, width);
      if (p_.products) add_product(g, x + k * width, products() + c, width);
      if (pixel_sums_ != nullptr) pixel_sums_[place + k] += total(g, width);
    }
  }

  static void scale_pixel(const A* __restrict g, const A* __restrict factors, T* __restrict dx, int n) {
    if (factors == nullptr) {
      for (int i = 0; i < n; ++i) from_acc(dx + i, g[i]);
    } else {
      for (int i = 0; i < n; ++i) from_acc(dx + i, g[i] * factors[i]);
    }
  }

  static void add(const A* __restrict g, A* __restrict sums, int n) {
    for (int i = 0; i < n; ++i) sums[i] += g[i];
  }

  static void add_product(const A* __restrict g, const T* __restrict x, A* __restrict sums, int n) {
    for (int i = 0; i < n; ++i) sums[i] += g[i] * A(to_acc(x[i]));
  }

  const Epilogue2dBackwardTask& task_;
  const Epilogue2dBackwardParams& p_;
  const ActParams<A> act_;
  const bool reads_sum_;
  int64_t n_ = 0;
  A *channel_sums_ = nullptr, *pixel_sums_ = nullptr;
  A g_[kSpan], sums_[kSpan];
};

template <typename T>
void compute_tiles(const Epilogue2dBackwardTask& task, int64_t begin, int64_t end) {
  dispatch_epilogue2d_backward(task.act, task.y != nullptr, [&](auto act, auto reads_output) {
    TileGradient<T, act, reads_output> gradient(task);
    for (int64_t i = begin; i < end; ++i) gradient.run(i / task.params.tiles, i % task.params.tiles);
  });
}

}  // namespace

void epilogue2d_backward(const Epilogue2dBackwardTask& task, int64_t begin, int64_t end) {
  dispatch_dtype(task.dtype, [&](auto scalar) { compute_tiles<decltype(scalar)>(task, begin, end); });
}

}  // namespace posgan_fast::PF_ISA
