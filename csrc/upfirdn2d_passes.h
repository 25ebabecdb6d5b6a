// The two passes of upfirdn2d on the CPU over parts of rows: columns, then along the row. Plain loops, shaped for the
// compiler's vectoriser. Internal linkage, since this is compiled once per instruction set.
#pragma once

#include "cpu_kernels.h"
#include "lanes.h"

namespace posgan_fast {
namespace {

// row[i] = (accumulate ? row[i] : 0) + sum of kRows weighted rows. Overlapping blocks would add twice, so an
// accumulation walks its tail one by one.
template <int kRows, typename T, typename A>
void blend_rows(A* __restrict row, const T* const* rows, const A* weights, int64_t n, bool accumulate) {
  with_lanes<A>(n, [&](auto lanes) {
    constexpr int kCount = lanes();
    auto block = [&](int64_t i) {
      auto sum = accumulate ? Lanes<A, kCount>::read(row + i) : Lanes<A, kCount>::all(0);
      for (int r = 0; r < kRows; ++r) sum = fma(weights[r], read_as<kCount>(rows[r] + i), sum);
      sum.write(row + i);
    };
    if (!accumulate) return cover<kCount>(n, block);
    int64_t i = 0;
    for (; i + kCount <= n; i += kCount) block(i);
    for (; i < n; ++i) {
      for (int r = 0; r < kRows; ++r) row[i] += weights[r] * load(rows[r][i]);
    }
  });
}

// Input rows of one plane, in one tensor, or the even ones in one and the odd ones in another.
template <typename T>
struct InputRows {
  const T* base[2];
  int64_t stride[2];
  int parity;  // 1 if there are two

  const T* row(int64_t iy) const {
    const int64_t which = iy & parity;
    return base[which] + (iy >> parity) * stride[which];
  }
};

// row[0, n) = the input rows under an output row from their value first on, weighted by column taps. Returns false
// where no row lies there.
template <typename T, typename A>
bool column_pass(const Upfirdn2dParams& p, const Phase& phase, const InputRows<T>& in, const A* taps, int64_t first,
                 int64_t n, A* row) {
  const T* rows[4];
  A weights[4];
  int held = 0;
  bool any = false;
  auto flush = [&] {
    if (held == 1) blend_rows<1>(row, rows, weights, n, any);
    if (held == 2) blend_rows<2>(row, rows, weights, n, any);
    if (held == 3) blend_rows<3>(row, rows, weights, n, any);
    if (held == 4) blend_rows<4>(row, rows, weights, n, any);
    any = any || held > 0;
    held = 0;
  };
  // The row that the next output rows will ask for: rows are too short for the hardware to run ahead of them.
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

// Row pass with four taps over pixels of c values: n values of out, which must not be accumulated into.
template <typename A>
void row_pass_blur(const A* in, int64_t c, const A* taps, A* __restrict out, int64_t n) {
  const A weights[4] = {taps[0], taps[1], taps[2], taps[3]};
  with_lanes<A>(n, [&](auto lanes) {
    constexpr int kCount = lanes();
    cover<kCount>(n, [&](int64_t i) {
      auto sum = Lanes<A, kCount>::all(0);
      for (int t = 0; t < 4; ++t) sum = fma(weights[t], Lanes<A, kCount>::read(in + i + t * c), sum);
      sum.write(out + i);
    });
  });
}

template <typename A>
void row_pass_up2(const Phase* columns, const A* taps, const A* __restrict row, A* __restrict out, int64_t n) {
  const A *even = row + columns[0].first_in, *odd = row + (n > 1 ? columns[1].first_in : 0);
  const A *g = taps + columns[0].first_tap, *h = taps + 1 - columns[0].first_tap;  // each phase takes every second tap
  const int64_t pairs = n / 2;
  with_lanes<A>(pairs, [&](auto lanes) {
    constexpr int kCount = lanes();
    using L = Lanes<A, kCount>;
    cover<kCount>(pairs, [&](int64_t m) {
      const L a = fma(g[2], L::read(even + m + 1), fma(g[0], L::read(even + m), L::all(0)));
      const L b = fma(h[2], L::read(odd + m + 1), fma(h[0], L::read(odd + m), L::all(0)));
      interleave<0>(a, b).write(out + 2 * m);
      interleave<1>(a, b).write(out + 2 * m + kCount);
    });
  });
  if (n % 2) out[n - 1] = g[0] * even[pairs] + g[2] * even[pairs + 1];
}

template <typename A>
void row_pass_down2(const Phase* columns, const A* taps, const A* __restrict row, A* __restrict out, int64_t n) {
  const A* in = row + columns[0].first_in;
  // Whole vectors of the last block would read one value past the row's margin.
  with_lanes<A>(n - 1, [&](auto lanes) {
    constexpr int kCount = lanes();
    using L = Lanes<A, kCount>;
    cover<kCount>(n - 1, [&](int64_t m) {
      auto sum = L::all(0);
      for (int t = 0; t < 4; t += 2) {
        const L low = L::read(in + 2 * m + t), high = L::read(in + 2 * m + t + kCount);
        sum = fma(taps[t], every_second<0>(low, high), sum);
        sum = fma(taps[t + 1], every_second<1>(low, high), sum);
      }
      sum.write(out + m);
    });
  });
  const A* last = in + 2 * (n - 1);
  out[n - 1] = taps[0] * last[0] + taps[1] * last[1] + taps[2] * last[2] + taps[3] * last[3];
}

// Any factors and taps: each phase in blocks that fit registers, tap by tap.
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

// Row pass over pixels that are vectors of c channels.
template <typename A>
void row_pass_channels(const Axis& axis, const Phase* columns, const A* taps, const A* row, int64_t c,
                       A* __restrict out, bool accumulate) {
  with_lanes<A>(c, [&](auto lanes) {
    constexpr int kCount = lanes();
    for (int64_t o = 0; o < axis.out; ++o) {
      const Phase& phase = columns[o];
      const A* in = row + phase.first_in * c;
      const A* weights = taps + phase.first_tap;
      A* pixel = out + o * c;
      auto block = [&](int64_t i) {
        auto sum = accumulate ? Lanes<A, kCount>::read(pixel + i) : Lanes<A, kCount>::all(0);
        for (int t = 0; t < phase.taps; ++t) {
          sum = fma(weights[t * axis.up], Lanes<A, kCount>::read(in + t * c + i), sum);
        }
        sum.write(pixel + i);
      };
      if (!accumulate) {
        cover<kCount>(c, block);
        continue;
      }
      int64_t i = 0;
      for (; i + kCount <= c; i += kCount) block(i);
      for (; i < c; ++i) {
        for (int t = 0; t < phase.taps; ++t) pixel[i] += weights[t * axis.up] * in[t * c + i];
      }
    }
  });
}

// The same without decimation: neighbouring pixels are c values apart, so that each phase is one flat correlation,
// whatever c is. Several phases go through spare to their places.
template <typename A>
void row_pass_flat(const Axis& axis, const Phase* columns, const A* taps, const A* row, int64_t c, A* out, A* spare) {
  for (int q = 0; q < axis.up && q < axis.out; ++q) {
    const Phase& phase = columns[q];
    const int64_t pixels = (axis.out - q + axis.up - 1) / axis.up;
    const A* in = row + phase.first_in * c;
    A* to = axis.up == 1 ? out : spare;
    with_lanes<A>(pixels * c, [&](auto lanes) {
      constexpr int kCount = lanes();
      cover<kCount>(pixels * c, [&](int64_t i) {
        auto sum = Lanes<A, kCount>::all(0);
        for (int t = 0; t < phase.taps; ++t) {
          sum = fma(taps[phase.first_tap + t * axis.up], Lanes<A, kCount>::read(in + i + t * c), sum);
        }
        sum.write(to + i);
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
