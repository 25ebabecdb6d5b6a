// One output row of upfirdn2d at a time on the CPU, columns first, so that the row between the two passes stays in
// cache. Internal linkage, since this is compiled once per instruction set.
#pragma once

#include "upfirdn2d_passes.h"

namespace posgan_fast {
namespace {

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
      row_pass_blur(scratch, c, fx, to, n * c);
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
      filter_row(fx + int64_t(phase.first_tap + t * p.y.up) * p.x.taps, first_row, to, any);
      any = true;
    }
    complete(to, out, any);
    if (++r < end) at.next();
  }
  std::free(scratch);
}

}  // namespace
}  // namespace posgan_fast
