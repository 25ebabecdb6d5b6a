// Resamples one output row at a time on the CPU, columns first, so that the row between the two passes stays in cache.
// Everything has internal linkage, because every instruction set compiles its own copy.
#pragma once

#include "upfirdn2d_passes.h"

namespace posgan_fast {
namespace {

// Consecutive output values: they begin at pixel ox of row oy of a plane and go to out.
template <typename T>
struct OutputRow {
  T* out;
  int64_t plane, oy, ox;
};

// Walks over the output rows of a task, across planes. A plane is one channel of one image in NCHW, one image in
// channels_last.
template <typename T>
struct RowCursor {
  const Upfirdn2dTask& task;
  int64_t plane, oy;
  InputRows<T> in = {};
  T* out = nullptr;

  RowCursor(const Upfirdn2dTask& t, int64_t row) : task(t), plane(row / t.params.y.out), oy(row % t.params.y.out) {
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
    const T* odd = static_cast<const T*>(task.odd_rows) + n * task.odd_rows_stride_n;
    in = {{x, odd}, {p.in_stride_h, task.odd_rows_stride_h}, task.odd_rows != nullptr};
    out = static_cast<T*>(task.y) + n * p.out_stride_n + c * p.out_stride_c;
  }
};

// The number of values of a row that stay in the nearest cache through both passes.
constexpr int64_t kCachedValues = 2048;

// Computes the output rows [begin, end) of a task in channels_last with four taps and without resampling, in parts of
// rows. Neighbouring parts share three pixels, which are kept from one to the next.
template <typename T, typename Epilogue>
void blur_rows(const Upfirdn2dTask& task, int64_t begin, int64_t end, Epilogue& epilogue) {
  using A = acc_t<T>;
  const Upfirdn2dParams& p = task.params;
  const int64_t c = p.c, most = kCachedValues / c < 1 ? 1 : kCachedValues / c, kept = 3 * c;
  const Scratch<A> scratch(kept + 2 * most * c);
  A* const part = scratch.data;
  A* const sums = part + kept + most * c;
  const A* fx = static_cast<const A*>(task.fx) + task.column_phases[0].first_tap;
  const A* fy = static_cast<const A*>(task.fy);
  RowCursor<T> at(task, begin);
  for (int64_t r = begin; r < end; ++r) {
    if (r > begin) at.next();
    const Phase& phase = task.row_phases[at.oy];
    // Sums columns [x, x + n) of the input rows; what lies outside the image is zero.
    auto sum_columns = [&](int64_t x, int64_t n, A* to) {
      const int64_t before = x < 0 ? (-x < n ? -x : n) : 0;
      int64_t inside = (x + n < p.x.in ? x + n : p.x.in) - (x + before);
      inside = inside < 0 ? 0 : inside;
      A* middle = to + before * c;
      if (inside == 0 || !column_pass(p, phase, at.in, fy, (x + before) * c, inside * c, middle)) inside = 0;
      std::memset(to, 0, size_t(before * c) * sizeof(A));
      std::memset(middle + inside * c, 0, size_t((n - before - inside) * c) * sizeof(A));
    };
    OutputRow<T> out = at.row();
    int64_t x = task.column_phases[0].first_in;
    sum_columns(x, 3, part);
    while (out.ox < p.x.out) {
      const int64_t left = p.x.out - out.ox, n = left < most ? left : most;
      sum_columns(x + 3, n, part + kept);
      A* to = epilogue.target(out.out, sums);
      row_pass_blur(part, c, fx, to, n * c);
      epilogue(to, out, n * c);
      std::memmove(part, part + n * c, size_t(kept) * sizeof(A));
      out.out += n * c;
      out.ox += n;
      x += n;
    }
  }
}

template <typename A>
struct RowBuffers {
  int64_t in_n, out_n;  // values of an input row, of an output row
  int64_t pitch;        // values from one buffered row to the next, zero padding included
  A* rows;              // the first value of the image in the first buffered row
  A *sums, *spare;      // [out_n]
};

// The row pass that fits the memory format and the factors.
template <typename A>
void filter_row(const Upfirdn2dTask& task, const RowBuffers<A>& buffers, const A* taps, const A* row, A* to,
                bool accumulate) {
  const Upfirdn2dParams& p = task.params;
  const bool flat = p.x.down == 1 && !accumulate && (p.x.up == 1 || p.c < 8);
  if (p.channels_last && flat) {
    row_pass_flat(p.x, task.column_phases, taps, row, p.c, to, buffers.spare);
  } else if (p.channels_last) {
    row_pass_channels(p.x, task.column_phases, taps, row, p.c, to, accumulate);
  } else {
    row_pass(p.x, task.column_phases, taps, row, to, accumulate);
  }
}

constexpr int kMaxBatch = 16;

// A column and a row pass. Reading a short row right after writing it waits for the stores, so `batch` short rows go
// through one pass before the other begins.
template <typename T, typename Epilogue>
void resample_separable(const Upfirdn2dTask& task, int64_t begin, int64_t end, int batch,
                        const RowBuffers<acc_t<T>>& buffers, Epilogue& epilogue) {
  using A = acc_t<T>;
  const Upfirdn2dParams& p = task.params;
  const A* fx = static_cast<const A*>(task.fx);
  const A* fy = static_cast<const A*>(task.fy);
  RowCursor<T> at(task, begin);
  for (int64_t r = begin; r < end; r += batch) {
    const int held = int(end - r < batch ? end - r : batch);
    OutputRow<T> outs[kMaxBatch];
    bool any[kMaxBatch];
    for (int k = 0; k < held; ++k, at.next()) {
      outs[k] = at.row();
      any[k] = column_pass(p, task.row_phases[at.oy], at.in, fy, 0, buffers.in_n, buffers.rows + k * buffers.pitch);
      if (r + k + 1 == end) break;  // the next plane may not exist
    }
    for (int k = 0; k < held; ++k) {
      A* to = epilogue.target(outs[k].out, buffers.sums);
      if (any[k]) {
        filter_row(task, buffers, fx, buffers.rows + k * buffers.pitch, to, false);
      } else {
        std::memset(to, 0, size_t(buffers.out_n) * sizeof(A));
      }
      epilogue(to, outs[k], buffers.out_n);
    }
  }
}

// Adds up one row of the filter after the other.
template <typename T, typename Epilogue>
void resample_2d(const Upfirdn2dTask& task, int64_t begin, int64_t end, const RowBuffers<acc_t<T>>& buffers,
                 Epilogue& epilogue) {
  using A = acc_t<T>;
  const Upfirdn2dParams& p = task.params;
  const A* f = static_cast<const A*>(task.fx);
  RowCursor<T> at(task, begin);
  for (int64_t r = begin; r < end; ++r) {
    if (r > begin) at.next();
    const Phase& phase = task.row_phases[at.oy];
    const OutputRow<T> out = at.row();
    A* to = epilogue.target(out.out, buffers.sums);
    bool any = false;
    for (int t = 0; t < phase.taps; ++t) {
      const int64_t iy = phase.first_in + t;
      if (iy < 0 || iy >= p.y.in) continue;
      const T* source = at.in.row(iy);
      for (int64_t i = 0; i < buffers.in_n; ++i) buffers.rows[i] = to_acc(source[i]);
      filter_row(task, buffers, f + int64_t(phase.first_tap + t * p.y.up) * p.x.taps, buffers.rows, to, any);
      any = true;
    }
    if (!any) std::memset(to, 0, size_t(buffers.out_n) * sizeof(A));
    epilogue(to, out, buffers.out_n);
  }
}

// Computes the output rows [begin, end) of a task, whose epilogue is that of `resample`.
template <typename T, typename Epilogue>
void resample_rows(const Upfirdn2dTask& task, int64_t begin, int64_t end, Epilogue& epilogue) {
  using A = acc_t<T>;
  const Upfirdn2dParams& p = task.params;
  const int64_t pixel = p.channels_last ? p.c : 1;
  const int64_t in_n = p.x.in * pixel, out_n = p.x.out * pixel;
  if (p.channels_last && p.separable && p.x.up == 1 && p.x.down == 1 && p.x.taps == 4 && in_n > kCachedValues) {
    return blur_rows<T>(task, begin, end, epilogue);
  }
  // The row pass reads past both ends of the image, where the buffers hold zeros.
  const int64_t first_in = task.column_phases[0].first_in;
  const int64_t end_in = task.column_phases[p.x.out - 1].first_in + (p.x.taps + p.x.up - 1) / p.x.up;
  const int64_t low = first_in < 0 ? first_in : 0, high = end_in > p.x.in ? end_in : p.x.in;
  const int64_t pitch = (high - low) * pixel;
  const int64_t short_rows = p.separable ? 1024 / in_n : 1;
  const int batch = int(short_rows < 1 ? 1 : short_rows > kMaxBatch ? kMaxBatch : short_rows);
  const Scratch<A> scratch(batch * pitch + 2 * out_n);
  std::memset(scratch.data, 0, size_t(batch * pitch) * sizeof(A));
  A* const sums = scratch.data + batch * pitch;
  const RowBuffers<A> buffers = {in_n, out_n, pitch, scratch.data - low * pixel, sums, sums + out_n};
  if (p.separable) {
    resample_separable<T>(task, begin, end, batch, buffers, epilogue);
  } else {
    resample_2d<T>(task, begin, end, buffers, epilogue);
  }
}

}  // namespace
}  // namespace posgan_fast
