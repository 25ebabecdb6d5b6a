// upfirdn2d on the CPU: one output row at a time, columns first, so that the row between the two passes stays in cache.
// Compiled once per instruction set (PF_ISA); plain loops, shaped for the compiler's vectoriser.
#include "cpu_kernels.h"

namespace posgan_fast::PF_ISA {
namespace {

template <typename A, typename T, int kRows>
void blend_rows(A* __restrict row, const T* const* rows, const A* taps, int64_t n, bool accumulate) {
  for (int64_t i = 0; i < n; ++i) {
    A sum = accumulate ? row[i] : A(0);
    for (int r = 0; r < kRows; ++r) sum += taps[r] * load(rows[r][i]);
    row[i] = sum;
  }
}

// row[0, n) = the input rows under output row oy, weighted by column taps. Returns false where no row lies there.
template <typename T, typename A>
bool column_pass(const Upfirdn2dParams& p, const Phase& phase, const T* plane, const A* taps, int64_t n, A* row) {
  const T* rows[4];
  A weights[4];
  int held = 0;
  bool any = false;
  auto flush = [&] {
    if (held == 1) blend_rows<A, T, 1>(row, rows, weights, n, any);
    if (held == 2) blend_rows<A, T, 2>(row, rows, weights, n, any);
    if (held == 3) blend_rows<A, T, 3>(row, rows, weights, n, any);
    if (held == 4) blend_rows<A, T, 4>(row, rows, weights, n, any);
    any = any || held > 0;
    held = 0;
  };
  for (int t = 0; t < phase.taps; ++t) {
    const int64_t iy = phase.first_in + t;
    if (iy < 0 || iy >= p.y.in) continue;
    rows[held] = plane + iy * p.in_stride_h;
    weights[held++] = taps[phase.first_tap + t * p.y.up];
    if (held == 4) flush();
  }
  flush();
  return any;
}

// Row pass over pixels of one value, with the factors and taps known: out[kUp * m + q] reads consecutive inputs.
template <typename A, int kUp, int kDown, int kTaps>
void row_pass_fixed(const Axis& axis, const Phase* columns, const A* taps, const A* __restrict row, A* __restrict out,
                    bool accumulate) {
  constexpr int kPer = kTaps / kUp;  // taps of each phase
  const A* in[kUp];
  A weights[kUp][kPer];
  for (int q = 0; q < kUp; ++q) {
    in[q] = row + (q < axis.out ? columns[q].first_in : 0);
    for (int t = 0; t < kPer; ++t) weights[q][t] = q < axis.out ? taps[columns[q].first_tap + t * kUp] : A(0);
  }
  const int64_t groups = axis.out / kUp;
  for (int64_t m = 0; m < groups; ++m) {
    for (int q = 0; q < kUp; ++q) {
      A sum = accumulate ? out[kUp * m + q] : A(0);
      for (int t = 0; t < kPer; ++t) sum += weights[q][t] * in[q][kDown * m + t];
      out[kUp * m + q] = sum;
    }
  }
  for (int64_t o = groups * kUp; o < axis.out; ++o) {
    A sum = accumulate ? out[o] : A(0);
    for (int t = 0; t < kPer; ++t) sum += weights[o - groups * kUp][t] * row[columns[o].first_in + t];
    out[o] = sum;
  }
}

// The same for any factors and taps: each phase in blocks that fit registers, tap by tap.
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
  const bool four = axis.taps == 4;
  if (four && axis.up == 2 && axis.down == 1) {
    row_pass_fixed<A, 2, 1, 4>(axis, columns, taps, row, out, accumulate);
  } else if (four && axis.up == 1 && axis.down == 2) {
    row_pass_fixed<A, 1, 2, 4>(axis, columns, taps, row, out, accumulate);
  } else if (four && axis.up == 1 && axis.down == 1) {
    row_pass_fixed<A, 1, 1, 4>(axis, columns, taps, row, out, accumulate);
  } else {
    row_pass_any(axis, columns, taps, row, out, accumulate);
  }
}

template <typename A, int kTaps>
void pixel_fixed(const A* taps, int up, const A* __restrict in, int64_t c, A* __restrict out, bool accumulate) {
  for (int64_t i = 0; i < c; ++i) {
    A sum = accumulate ? out[i] : A(0);
    for (int t = 0; t < kTaps; ++t) sum += taps[t * up] * in[t * c + i];
    out[i] = sum;
  }
}

// Row pass over pixels that are vectors of c channels.
template <typename A>
void row_pass_channels(const Axis& axis, const Phase* columns, const A* taps, const A* row, int64_t c, A* out,
                       bool accumulate) {
  for (int64_t o = 0; o < axis.out; ++o, out += c) {
    const Phase& phase = columns[o];
    const A* in = row + phase.first_in * c;
    const A* weights = taps + phase.first_tap;
    if (phase.taps == 4) {
      pixel_fixed<A, 4>(weights, axis.up, in, c, out, accumulate);
    } else if (phase.taps == 2) {
      pixel_fixed<A, 2>(weights, axis.up, in, c, out, accumulate);
    } else {
      if (!accumulate) std::memset(out, 0, size_t(c) * sizeof(A));
      for (int t = 0; t < phase.taps; ++t) {
        const A weight = weights[t * axis.up];
        for (int64_t i = 0; i < c; ++i) out[i] += weight * in[t * c + i];
      }
    }
  }
}

template <typename T, typename A>
void store_row(T* __restrict out, const A* __restrict row, int64_t n, bool stream) {
  if (stream && stream_copy(out, row, n)) return;
  for (int64_t i = 0; i < n; ++i) store(out + i, row[i]);
}

template <typename T>
void rows(const Upfirdn2dTask& task, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const Upfirdn2dParams& p = task.params;
  const int64_t pixel = p.channels_last ? p.c : 1;  // values side by side in one pixel
  const int64_t in_n = p.x.in * pixel, out_n = p.x.out * pixel;
  // The row pass reads past both ends: the zeros there are the padding.
  int64_t low = task.columns[0].first_in, high = task.columns[p.x.out - 1].first_in + (p.x.taps + p.x.up - 1) / p.x.up;
  low = low < 0 ? low : 0;
  high = high > p.x.in ? high : p.x.in;
  A* scratch = static_cast<A*>(std::calloc(size_t((high - low) * pixel + out_n), sizeof(A)));
  if (scratch == nullptr) throw std::bad_alloc();
  A* row = scratch - low * pixel;
  A* sums = scratch + (high - low) * pixel;
  const A* fx = static_cast<const A*>(task.fx);
  const A* fy = static_cast<const A*>(task.fy);

  auto filter_row = [&](const A* taps, bool accumulate) {
    if (p.channels_last && p.x.up == 1 && p.x.down == 1 && p.x.taps == 4) {
      // Neighbouring pixels are c values apart: one flat correlation, whatever c is.
      const A* in = row + task.columns[0].first_in * pixel;
      for (int64_t i = 0; i < out_n; ++i) {
        const A sum = taps[0] * in[i] + taps[1] * in[i + pixel] + taps[2] * in[i + 2 * pixel] + taps[3] * in[i + 3 * pixel];
        sums[i] = accumulate ? sums[i] + sum : sum;
      }
    } else if (p.channels_last) {
      row_pass_channels(p.x, task.columns, taps, row, pixel, sums, accumulate);
    } else {
      row_pass(p.x, task.columns, taps, row, sums, accumulate);
    }
  };

  int64_t plane = begin / p.y.out, oy = begin % p.y.out;  // a plane is one image, or one channel of it in NCHW
  for (int64_t r = begin; r < end; ++r) {
    const int64_t n = p.channels_last ? plane : plane / p.c, c = p.channels_last ? 0 : plane % p.c;
    const T* in = static_cast<const T*>(task.x) + n * p.in_stride_n + c * p.in_stride_c;
    T* out = static_cast<T*>(task.y) + n * p.out_stride_n + c * p.out_stride_c + oy * p.out_stride_h;
    bool any = false;
    if (p.separable) {
      any = column_pass(p, task.rows[oy], in, fy, in_n, row);
      if (any) filter_row(fx, false);
    } else {
      const Phase& phase = task.rows[oy];
      for (int t = 0; t < phase.taps; ++t) {
        const int64_t iy = phase.first_in + t;
        if (iy < 0 || iy >= p.y.in) continue;
        const T* source = in + iy * p.in_stride_h;
        for (int64_t i = 0; i < in_n; ++i) row[i] = load(source[i]);
        filter_row(fx + (phase.first_tap + t * p.y.up) * p.x.taps, any);
        any = true;
      }
    }
    if (!any) std::memset(sums, 0, size_t(out_n) * sizeof(A));
    store_row(out, sums, out_n, task.stream);
    if (++oy == p.y.out) {
      oy = 0;
      ++plane;
    }
  }
  std::free(scratch);
}

}  // namespace

void upfirdn2d(const Upfirdn2dTask& task, int64_t begin, int64_t end) {
  switch (task.type) {
    case Type::kHalf: return rows<Half>(task, begin, end);
    case Type::kBFloat16: return rows<BFloat16>(task, begin, end);
    case Type::kFloat: return rows<float>(task, begin, end);
    case Type::kDouble: return rows<double>(task, begin, end);
  }
}

}  // namespace posgan_fast::PF_ISA
