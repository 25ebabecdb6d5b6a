// Resamples planes in NCHW whose rows are not long on the CPU, rows first: what one row costs beyond its values is more
// than the values themselves, so that all rows of a plane are filtered as one, and then the columns whose windows leave
// the image are computed anew. Everything has internal linkage, because every instruction set compiles its own copy.
#pragma once

#include "upfirdn2d_rows.h"

namespace posgan_fast {
namespace {

// Whether planes of 8 to 512 columns, 128 where they are enlarged, follow without gaps before and after their filter:
// it has four taps, and the width changes by the factor.
inline bool filters_planes(const Upfirdn2dTask& task) {
  const Upfirdn2dParams& p = task.params;
  if (p.channels_last || !p.separable || task.odd_rows != nullptr) return false;
  const bool factors = p.x.up * p.x.down <= 2 && p.y.up == p.x.up && p.y.down == p.x.down;
  const bool proportional = p.x.out * p.x.down == p.x.in * p.x.up && p.in_stride_h == p.x.in;
  const int64_t longest = p.x.up == 1 ? 512 : 128;  // beyond, single rows are as fast
  return factors && proportional && p.x.taps == 4 && p.y.taps == 4 && p.x.in >= 8 && p.x.in <= longest;
}

inline int64_t clamp(int64_t value, int64_t most) { return value < 0 ? 0 : value > most ? most : value; }

// As many rows of sums as stay in the nearest cache.
inline int64_t rows_together(const Axis& x) { return kCachedValues / x.out; }

// A part of a plane: output rows [oy, oy + count), and the input rows [first, end) that they ask for.
struct PlanePart {
  int64_t oy, count, first, end;

  PlanePart(const Upfirdn2dTask& task, int64_t oy, int64_t count) : oy(oy), count(count) {
    const Phase& last = task.row_phases[oy + count - 1];
    first = task.row_phases[oy].first_in, end = last.first_in + last.taps;
  }
};

// Sums kTaps neighbouring pixels of every row. The number of taps is a constant, because its loop is the innermost one.
template <int kTaps, typename T>
void sum_column(const Axis& axis, const T* in, const T* taps, int64_t rows, T* out) {
  for (int64_t r = 0; r < rows; ++r) {
    T sum = 0;
    for (int t = 0; t < kTaps; ++t) sum += taps[t * axis.up] * in[r * axis.in + t];
    out[r * axis.out] = sum;
  }
}

// Computes column o of filtered rows, whose window leaves the image.
template <typename T>
void filter_edge(const Upfirdn2dTask& task, int64_t o, const T* in, int64_t rows, T* out) {
  const Axis& axis = task.params.x;
  const Phase& phase = task.column_phases[o];
  const int64_t begin = phase.first_in < 0 ? -phase.first_in : 0, left = axis.in - phase.first_in;
  const int64_t count = (phase.taps < left ? phase.taps : left) - begin;  // of taps that meet a pixel
  out += o;
  if (count <= 0) return sum_column<0, T>(axis, nullptr, nullptr, rows, out);
  const T* taps = static_cast<const T*>(task.fx) + phase.first_tap + begin * axis.up;
  in += phase.first_in + begin;
  if (count == 1) return sum_column<1>(axis, in, taps, rows, out);
  if (count == 2) return sum_column<2>(axis, in, taps, rows, out);
  sum_column<3>(axis, in, taps, rows, out);
}

// Filters `rows` rows along x.
template <typename T>
void filter_plane_rows(const Upfirdn2dTask& task, const T* in, int64_t rows, T* out) {
  const Axis& axis = task.params.x;
  const Phase* columns = task.column_phases;
  int64_t first = 0, end = axis.out;  // the columns whose windows are inside
  while (first < end && columns[first].first_in < 0) ++first;
  while (end > first && columns[end - 1].first_in + columns[end - 1].taps > axis.in) --end;
  Axis all = axis;
  all.out = (rows - 1) * axis.out + end - first;
  if (rows > 0 && end > first) row_pass(all, columns + first, static_cast<const T*>(task.fx), in, out + first, false);
  for (int64_t o = 0; o < first; ++o) filter_edge(task, o, in, rows, out);
  for (int64_t o = end; o < axis.out; ++o) filter_edge(task, o, in, rows, out);
}

// Sums filtered rows, which begin with row part.first of the input, to the rows of a part.
template <typename T, typename Epilogue>
void sum_plane_rows(const Upfirdn2dTask& task, const PlanePart& part, OutputRow<T> out, const T* filtered, T* sums,
                    Epilogue& epilogue) {
  const Axis &x = task.params.x, &y = task.params.y;
  const T* fy = static_cast<const T*>(task.fy);
  const bool dense = y.up == 1 && y.down == 1 && task.params.out_stride_h == x.out;  // then all rows have the same taps
  const int64_t together = dense ? rows_together(x) : 1;
  for (int64_t k = 0; k < part.count; k += together) {
    const Phase& phase = task.row_phases[part.oy + k];
    const T* rows[4];
    T weights[4];
    for (int t = 0; t < phase.taps; ++t) {
      rows[t] = filtered + (phase.first_in - part.first + t) * x.out;
      weights[t] = fy[phase.first_tap + t * y.up];
    }
    T* to = epilogue.target(out.out, sums);
    const int64_t left = part.count - k, n = (left < together ? left : together) * x.out;
    if (phase.taps == 2) {
      sum_rows<2>(to, rows, weights, n, false);
    } else {
      sum_rows<4>(to, rows, weights, n, false);
    }
    epilogue(to, out, n);
    out.oy += together, out.out += together * task.params.out_stride_h;
  }
}

// Computes the output rows [begin, end) of a task for which filters_planes holds, in parts that stay in the second
// cache.
template <typename T, typename Epilogue>
void resample_planes(const Upfirdn2dTask& task, int64_t begin, int64_t end, Epilogue& epilogue) {
  const Upfirdn2dParams& p = task.params;
  const int64_t most = 1 + (int64_t(1) << 14) / p.x.out, rows = most * p.y.down / p.y.up + p.y.taps;
  const Scratch<T> filtered((rows + rows_together(p.x)) * p.x.out);
  for (int64_t r = begin; r < end;) {
    const RowCursor<T> at(task, r);
    int64_t count = p.y.out - at.oy < end - r ? p.y.out - at.oy : end - r;
    count = count < most ? count : most;
    const PlanePart part(task, at.oy, count);
    const int64_t all = part.end - part.first, before = clamp(-part.first, all);
    const int64_t low = clamp(part.first, p.y.in), inside = clamp(part.end, p.y.in) - low;
    T* const image = filtered.data + before * p.x.out;
    std::memset(filtered.data, 0, size_t(before * p.x.out) * sizeof(T));
    std::memset(image + inside * p.x.out, 0, size_t((all - before - inside) * p.x.out) * sizeof(T));
    filter_plane_rows(task, at.in.row(low), inside, image);
    sum_plane_rows(task, part, at.row(), filtered.data, filtered.data + rows * p.x.out, epilogue);
    r += count;
  }
}

// Computes the output rows [begin, end) of a task. epilogue.target(out, sums) chooses where the sums of the row at out
// are computed: there, or in the buffer `sums`. epilogue(row, OutputRow, n) then receives the n values of the row, or
// of several rows that follow each other in memory.
template <typename T, typename Epilogue>
void resample(const Upfirdn2dTask& task, int64_t begin, int64_t end, Epilogue& epilogue) {
  if constexpr (std::is_same_v<T, acc_t<T>>) {
    if (filters_planes(task)) return resample_planes<T>(task, begin, end, epilogue);
  }
  resample_rows<T>(task, begin, end, epilogue);
}

}  // namespace
}  // namespace posgan_fast
