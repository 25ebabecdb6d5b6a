// The two passes of a separable upfirdn2d on the CPU over parts of rows: column_pass sums input rows, row_pass filters
// along the result. Everything has internal linkage, because every instruction set compiles its own copy.
#pragma once

#include "cpu_kernels.h"
#include "upfirdn2d.h"
#include "vec.h"

namespace posgan_fast {
namespace {

// row[i] = (accumulate ? row[i] : 0) + the weighted sum of kRows rows. Overlapping blocks would add twice, so
// accumulation takes the last values one by one.
template <int kRows, typename T, typename A>
void sum_rows(A* __restrict row, const T* const* rows, const A* weights, int64_t n, bool accumulate) {
  dispatch_vec_size<A>(n, [&](auto size) {
    constexpr int kSize = size();
    auto block = [&](int64_t i) {
      auto sum = accumulate ? Vec<A, kSize>::load(row + i) : Vec<A, kSize>::broadcast(0);
      for (int r = 0; r < kRows; ++r) sum = fma(weights[r], load_to_acc<kSize>(rows[r] + i), sum);
      sum.store(row + i);
    };
    if (!accumulate) return for_each_block<kSize>(n, block);
    int64_t i = 0;
    for (; i + kSize <= n; i += kSize) block(i);
    for (; i < n; ++i) {
      for (int r = 0; r < kRows; ++r) row[i] += weights[r] * to_acc(rows[r][i]);
    }
  });
}

// The input rows of one plane: all in one tensor, or the even rows in one and the odd rows in another.
template <typename T>
struct InputRows {
  const T* base[2];
  int64_t stride[2];
  int parity;  // 1: two tensors

  const T* row(int64_t iy) const {
    const int64_t odd = iy & parity;
    return base[odd] + (iy >> parity) * stride[odd];
  }
};

// row[0, n) = values [first, first + n) of the input rows under an output row, weighted by the vertical taps and
// summed. Returns false, and leaves row as it is, if all those rows lie outside the image.
template <typename T, typename A>
bool column_pass(const Upfirdn2dParams& p, const Phase& phase, const InputRows<T>& in, const A* taps, int64_t first,
                 int64_t n, A* row) {
  const T* rows[4];
  A weights[4];
  int held = 0;
  bool any = false;
  auto flush = [&] {
    if (held == 1) sum_rows<1>(row, rows, weights, n, any);
    if (held == 2) sum_rows<2>(row, rows, weights, n, any);
    if (held == 3) sum_rows<3>(row, rows, weights, n, any);
    if (held == 4) sum_rows<4>(row, rows, weights, n, any);
    any = any || held > 0;
    held = 0;
  };
  // Prefetch the row that the next output rows will ask for: rows are too short for the hardware prefetcher.
  const int64_t next = phase.first_in + phase.taps + 1;
  if (next >= 0 && next < p.y.in) {
    const char* ahead = reinterpret_cast<const char*>(in.row(next) + first);
    for (int64_t i = 0; i < n * int64_t(sizeof(T)); i += 64) __builtin_prefetch(ahead + i);
  }
  for (int t = 0; t < phase.taps; ++t) {
    const int64_t iy = phase.first_in + t;
    if (iy < 0 || iy >= p.y.in) continue;
    rows[held] = in.row(iy) + first;
    weights[held++] = taps[phase.first_tap + t * p.y.up];
    if (held == 4) flush();
  }
  flush();
  return any;
}

// Four taps without resampling, over pixels of c values each; writes out[0, n).
template <typename A>
void row_pass_blur(const A* in, int64_t c, const A* taps, A* __restrict out, int64_t n) {
  const A weights[4] = {taps[0], taps[1], taps[2], taps[3]};
  dispatch_vec_size<A>(n, [&](auto size) {
    constexpr int kSize = size();
    for_each_block<kSize>(n, [&](int64_t i) {
      auto sum = Vec<A, kSize>::broadcast(0);
      for (int t = 0; t < 4; ++t) sum = fma(weights[t], Vec<A, kSize>::load(in + i + t * c), sum);
      sum.store(out + i);
    });
  });
}

// Four taps with upsampling by 2: each of the two phases has every second tap.
template <typename A>
void row_pass_up2(const Phase* columns, const A* taps, const A* __restrict row, A* __restrict out, int64_t n) {
  const A *even = row + columns[0].first_in, *odd = even + 1 - columns[0].first_tap;
  const A *g = taps + columns[0].first_tap, *h = taps + 1 - columns[0].first_tap;
  const int64_t pairs = n / 2;
  dispatch_vec_size<A>(pairs, [&](auto size) {
    constexpr int kSize = size();
    using V = Vec<A, kSize>;
    for_each_block<kSize>(pairs, [&](int64_t m) {
      const V a = fma(g[2], V::load(even + m + 1), fma(g[0], V::load(even + m), V::broadcast(0)));
      const V b = fma(h[2], V::load(odd + m + 1), fma(h[0], V::load(odd + m), V::broadcast(0)));
      interleave<0>(a, b).store(out + 2 * m);
      interleave<1>(a, b).store(out + 2 * m + kSize);
    });
  });
  // In the order of a vector, so that a result does not depend on its place.
  using One = Vec<A, 1>;
  if (n % 2) fma(g[2], One::load(even + pairs + 1), fma(g[0], One::load(even + pairs), One{})).store(out + n - 1);
}

// Four taps with downsampling by 2.
template <typename A>
void row_pass_down2(const Phase* columns, const A* taps, const A* __restrict row, A* __restrict out, int64_t n) {
  const A* in = row + columns[0].first_in;
  // The last output is computed alone: a whole vector would read one value past the padding.
  dispatch_vec_size<A>(n - 1, [&](auto size) {
    constexpr int kSize = size();
    using V = Vec<A, kSize>;
    for_each_block<kSize>(n - 1, [&](int64_t m) {
      auto sum = V::broadcast(0);
      for (int t = 0; t < 4; t += 2) {
        const V low = V::load(in + 2 * m + t), high = V::load(in + 2 * m + t + kSize);
        sum = fma(taps[t], deinterleave<0>(low, high), sum);
        sum = fma(taps[t + 1], deinterleave<1>(low, high), sum);
      }
      sum.store(out + m);
    });
  });
  using One = Vec<A, 1>;
  One last = One::broadcast(0);  // summed in the order of a vector, so that a result does not depend on its place
  for (int t = 0; t < 4; ++t) last = fma(taps[t], One::load(in + 2 * (n - 1) + t), last);
  last.store(out + n - 1);
}

// Any factors and taps. Blocks of one phase have sums that fit registers, to which the taps are added one by one.
template <typename A>
void row_pass_any(const Axis& axis, const Phase* columns, const A* taps, const A* __restrict row, A* __restrict out,
                  bool accumulate) {
  constexpr int kBlock = 128;
  for (int q = 0; q < axis.up && q < axis.out; ++q) {
    const Phase& phase = columns[q];
    const int64_t count = (axis.out - q + axis.up - 1) / axis.up;
    for (int64_t m0 = 0; m0 < count; m0 += kBlock) {
      const int n = int(count - m0 < kBlock ? count - m0 : kBlock);
      A sums[kBlock];
      for (int i = 0; i < n; ++i) sums[i] = accumulate ? out[q + (m0 + i) * axis.up] : A(0);
      for (int t = 0; t < phase.taps; ++t) {
        const A weight = taps[phase.first_tap + t * axis.up];
        const A* in = row + phase.first_in + m0 * axis.down + t;
        if (axis.down == 1) {
          for (int i = 0; i < n; ++i) sums[i] += weight * in[i];
        } else {
          for (int i = 0; i < n; ++i) sums[i] += weight * in[i * axis.down];
        }
      }
      for (int i = 0; i < n; ++i) out[q + (m0 + i) * axis.up] = sums[i];
    }
  }
}

// Filters along one row of a plane.
template <typename A>
void row_pass(const Axis& axis, const Phase* columns, const A* taps, const A* row, A* out, bool accumulate) {
  const bool four = axis.taps == 4 && !accumulate;
  if (four && axis.up == 1 && axis.down == 1) {
    row_pass_blur(row + columns[0].first_in, 1, taps + columns[0].first_tap, out, axis.out);
  } else if (four && axis.up == 2 && axis.down == 1) {
    row_pass_up2(columns, taps, row, out, axis.out);
  } else if (four && axis.up == 1 && axis.down == 2) {
    row_pass_down2(columns, taps, row, out, axis.out);
  } else {
    row_pass_any(axis, columns, taps, row, out, accumulate);
  }
}

// Filters along a row whose pixels have c channels side by side.
template <typename A>
void row_pass_channels(const Axis& axis, const Phase* columns, const A* taps, const A* row, int64_t c,
                       A* __restrict out, bool accumulate) {
  dispatch_vec_size<A>(c, [&](auto size) {
    constexpr int kSize = size();
    for (int64_t o = 0; o < axis.out; ++o) {
      const Phase& phase = columns[o];
      const A* in = row + phase.first_in * c;
      const A* weights = taps + phase.first_tap;
      A* pixel = out + o * c;
      auto block = [&](int64_t i) {
        auto sum = accumulate ? Vec<A, kSize>::load(pixel + i) : Vec<A, kSize>::broadcast(0);
        for (int t = 0; t < phase.taps; ++t) {
          sum = fma(weights[t * axis.up], Vec<A, kSize>::load(in + t * c + i), sum);
        }
        sum.store(pixel + i);
      };
      if (!accumulate) {
        for_each_block<kSize>(c, block);
        continue;
      }
      int64_t i = 0;
      for (; i + kSize <= c; i += kSize) block(i);
      for (; i < c; ++i) {
        for (int t = 0; t < phase.taps; ++t) pixel[i] += weights[t * axis.up] * in[t * c + i];
      }
    }
  });
}

// The same without decimation: neighbouring pixels are c values apart, so that each phase is one flat correlation,
// whatever c is. Several phases go through spare to their destinations.
template <typename A>
void row_pass_flat(const Axis& axis, const Phase* columns, const A* taps, const A* row, int64_t c, A* out, A* spare) {
  for (int q = 0; q < axis.up && q < axis.out; ++q) {
    const Phase& phase = columns[q];
    const int64_t pixels = (axis.out - q + axis.up - 1) / axis.up;
    const A* in = row + phase.first_in * c;
    A* to = axis.up == 1 ? out : spare;
    dispatch_vec_size<A>(pixels * c, [&](auto size) {
      constexpr int kSize = size();
      for_each_block<kSize>(pixels * c, [&](int64_t i) {
        auto sum = Vec<A, kSize>::broadcast(0);
        for (int t = 0; t < phase.taps; ++t) {
          sum = fma(taps[phase.first_tap + t * axis.up], Vec<A, kSize>::load(in + i + t * c), sum);
        }
        sum.store(to + i);
      });
    });
    if (to == out) return;
    for (int64_t m = 0; m < pixels; ++m) {
      for (int64_t i = 0; i < c; ++i) out[(m * axis.up + q) * c + i] = spare[m * c + i];
    }
  }
}

}  // namespace
}  // namespace posgan_fast
