// One output row of upfirdn2d at a time on the CPU, columns first, so that the row between the two passes stays in
// cache. Plain loops, shaped for the compiler's vectoriser. Internal linkage, since this is compiled once per
// instruction set.
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

// Row pass over pixels of one value with four taps. out must not be accumulated into.
template <typename A>
void row_pass_blur(const Phase* columns, const A* taps, const A* __restrict row, A* __restrict out, int64_t n) {
  const A* in = row + columns[0].first_in;
  with_lanes<A>(n, [&](auto lanes) {
    constexpr int kCount = lanes();
    cover<kCount>(n, [&](int64_t i) {
      auto sum = Lanes<A, kCount>::all(0);
      for (int t = 0; t < 4; ++t) sum = fma(taps[t], Lanes<A, kCount>::read(in + i + t), sum);
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
    row_pass_blur(columns, taps, row, out, axis.out);
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

// Where values go that lie side by side: in a plane, in a row of it, from a pixel on.
template <typename T>
struct OutputRow {
  T* out;
  int64_t plane, oy, ox;
};

// Output rows of one task, one after the other across planes; a plane is one image, or in NCHW one channel of it.
template <typename T>
struct Cursor {
  const Upfirdn2dTask& task;
  int64_t plane, oy;
  InputRows<T> in = {};
  T* out = nullptr;

  Cursor(const Upfirdn2dTask& t, int64_t row) : task(t), plane(row / t.params.y.out), oy(row % t.params.y.out) {
    seek();
  }

  OutputRow<T> row() const { return {out + oy * task.params.out_stride_h, plane, oy, 0}; }

  void next() {
    if (++oy < task.params.y.out) return;
    oy = 0;
    ++plane;
    seek();
  }

 private:
  void seek() {
    const Upfirdn2dParams& p = task.params;
    const int64_t n = p.channels_last ? plane : plane / p.c, c = p.channels_last ? 0 : plane % p.c;
    const T* x = static_cast<const T*>(task.x) + n * p.in_stride_n + c * p.in_stride_c;
    const T* odd = static_cast<const T*>(task.odd) + n * task.odd_stride_n;
    in = {{x, odd}, {p.in_stride_h, task.odd_stride_h}, task.odd != nullptr};
    out = static_cast<T*>(task.y) + n * p.out_stride_n + c * p.out_stride_c;
  }
};

// out[i] = the sum of weighted values taps pixels apart.
template <int kTaps, typename A>
void correlate_pixels(const A* in, int64_t c, const A* taps, A* __restrict out, int64_t n) {
  A weights[kTaps];
  for (int t = 0; t < kTaps; ++t) weights[t] = taps[t];
  with_lanes<A>(n, [&](auto lanes) {
    constexpr int kCount = lanes();
    cover<kCount>(n, [&](int64_t i) {
      auto sum = Lanes<A, kCount>::all(0);
      for (int t = 0; t < kTaps; ++t) sum = fma(weights[t], Lanes<A, kCount>::read(in + i + t * c), sum);
      sum.write(out + i);
    });
  });
}

constexpr int64_t kPiece = 2048;  // values of a row that go through both passes while they are in the nearest cache

// The work items [begin, end) of a task whose rows four taps filter as they are, channels_last, in pieces of rows. The
// last pixels of one are the first of the next.
template <typename T, typename Finish>
void blur_rows(const Upfirdn2dTask& task, int64_t begin, int64_t end, Finish& finish) {
  using A = acc_t<T>;
  const Upfirdn2dParams& p = task.params;
  const int64_t c = p.c, most = kPiece / c < 1 ? 1 : kPiece / c, kept = 3 * c;
  A* scratch = static_cast<A*>(std::malloc(size_t(kept + 2 * most * c) * sizeof(A)));
  if (scratch == nullptr) throw std::bad_alloc();
  A* sums = scratch + kept + most * c;
  const A* fx = static_cast<const A*>(task.fx) + task.columns[0].first_tap;
  const A* fy = static_cast<const A*>(task.fy);
  Cursor<T> at(task, begin);
  for (int64_t r = begin; r < end; ++r) {
    if (r > begin) at.next();
    const Phase& phase = task.rows[at.oy];
    // Columns [x, x + n) of the input, weighted; beyond its edges and where no row lies: the padding.
    auto read = [&](int64_t x, int64_t n, A* to) {
      const int64_t before = x < 0 ? (-x < n ? -x : n) : 0;
      int64_t inside = (x + n < p.x.in ? x + n : p.x.in) - (x + before);
      inside = inside < 0 ? 0 : inside;
      A* middle = to + before * c;
      if (inside == 0 || !column_pass(p, phase, at.in, fy, (x + before) * c, inside * c, middle)) inside = 0;
      std::memset(to, 0, size_t(before * c) * sizeof(A));
      std::memset(middle + inside * c, 0, size_t((n - before - inside) * c) * sizeof(A));
    };
    OutputRow<T> out = at.row();
    int64_t x = task.columns[0].first_in;
    read(x, 3, scratch);
    while (out.ox < p.x.out) {
      const int64_t left = p.x.out - out.ox, n = left < most ? left : most;
      read(x + 3, n, scratch + kept);
      A* to = finish.target(out.out, sums);
      correlate_pixels<4>(scratch, c, fx, to, n * c);
      finish(to, out, n * c);
      std::memmove(scratch, scratch + n * c, size_t(kept) * sizeof(A));
      out.out += n * c;
      out.ox += n;
      x += n;
    }
  }
  std::free(scratch);
}

// The work items [begin, end) of a task. finish has target(out, sums): where to compute the row at out, sums if in
// doubt; and (row, OutputRow, n): called with each row of n values where it was computed.
template <typename T, typename Finish>
void resample_rows(const Upfirdn2dTask& task, int64_t begin, int64_t end, Finish& finish) {
  using A = acc_t<T>;
  constexpr int kBatch = 16;
  const Upfirdn2dParams& p = task.params;
  const int64_t pixel = p.channels_last ? p.c : 1;  // values side by side in one pixel
  const int64_t in_n = p.x.in * pixel, out_n = p.x.out * pixel;
  if (p.channels_last && p.separable && p.x.up == 1 && p.x.down == 1 && p.x.taps == 4 && in_n > kPiece) {
    return blur_rows<T>(task, begin, end, finish);
  }
  // The row pass reads past both ends: the zeros there are the padding.
  int64_t low = task.columns[0].first_in, high = task.columns[p.x.out - 1].first_in + (p.x.taps + p.x.up - 1) / p.x.up;
  low = low < 0 ? low : 0;
  high = high > p.x.in ? high : p.x.in;
  const int64_t pitch = (high - low) * pixel;
  // Reading a short row right after writing it waits for the stores, so short rows go through both passes in batches.
  const int64_t fitting = p.separable ? 1024 / in_n : 1;
  const int batch = int(fitting < 1 ? 1 : fitting > kBatch ? kBatch : fitting);
  A* scratch = static_cast<A*>(std::calloc(size_t(batch * pitch + 2 * out_n), sizeof(A)));
  if (scratch == nullptr) throw std::bad_alloc();
  A* first_row = scratch - low * pixel;
  A* sums = scratch + batch * pitch;
  A* spare = sums + out_n;
  const A* fx = static_cast<const A*>(task.fx);
  const A* fy = static_cast<const A*>(task.fy);

  auto filter_row = [&](const A* taps, const A* row, A* to, bool accumulate) {
    const bool flat = p.x.down == 1 && !accumulate && (p.x.up == 1 || pixel < 8);
    if (p.channels_last && flat) {
      row_pass_flat(p.x, task.columns, taps, row, pixel, to, spare);
    } else if (p.channels_last) {
      row_pass_channels(p.x, task.columns, taps, row, pixel, to, accumulate);
    } else {
      row_pass(p.x, task.columns, taps, row, to, accumulate);
    }
  };
  auto complete = [&](A* row, const OutputRow<T>& at, bool any) {
    if (!any) std::memset(row, 0, size_t(out_n) * sizeof(A));
    finish(row, at, out_n);
  };

  Cursor<T> at(task, begin);
  for (int64_t r = begin; r < end;) {
    if (p.separable) {
      const int held = int(end - r < batch ? end - r : batch);
      OutputRow<T> outs[kBatch];
      bool any[kBatch];
      for (int k = 0; k < held; ++k, at.next()) {
        outs[k] = at.row();
        any[k] = column_pass(p, task.rows[at.oy], at.in, fy, 0, in_n, first_row + k * pitch);
        if (r + k + 1 == end) break;  // the next plane may not exist
      }
      for (int k = 0; k < held; ++k) {
        A* to = finish.target(outs[k].out, sums);
        if (any[k]) filter_row(fx, first_row + k * pitch, to, false);
        complete(to, outs[k], any[k]);
      }
      r += held;
      continue;
    }
    const Phase& phase = task.rows[at.oy];
    const OutputRow<T> out = at.row();
    A* to = finish.target(out.out, sums);
    bool any = false;
    for (int t = 0; t < phase.taps; ++t) {
      const int64_t iy = phase.first_in + t;
      if (iy < 0 || iy >= p.y.in) continue;
      const T* source = at.in.row(iy);
      for (int64_t i = 0; i < in_n; ++i) first_row[i] = load(source[i]);
      filter_row(fx + (phase.first_tap + t * p.y.up) * p.x.taps, first_row, to, any);
      any = true;
    }
    complete(to, out, any);
    if (++r < end) at.next();
  }
  std::free(scratch);
}

}  // namespace
}  // namespace posgan_fast
