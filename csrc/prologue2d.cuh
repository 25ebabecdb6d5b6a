// The CUDA kernel of prologue2d and its launch configuration. No torch; compiles for the host too (host_device.h).
#pragma once

#include "elementwise.cuh"
#include "prologue2d.h"

namespace posgan_fast {

template <typename T>
struct Prologue2dPointers {
  const T *x, *residual, *border;  // null where there is none
  const acc_t<T>*styles, *columns, *rows;
  T* y;
};

// y is written in memory order, as lines along its innermost dimension, W or C.
struct Prologue2dIndexing {
  int64_t numel;
  bool aligned;     // y starts at a multiple of 16 bytes
  bool vectorized;  // every vector of y comes from one vector of x and one of the residual
  bool use_int32_index;
  FastDivmod inner, middle, outer;  // W, H, C or C, W, H of y
};

// The coordinates of an element of y.
struct Prologue2dCoords {
  int64_t n, c, oy, ox;

  // Moves to the next element in memory. Returns whether it is on another line.
  template <bool kChannelsLast>
  PF_DEVICE bool next(const Prologue2dParams& p) {
    int64_t& inner = kChannelsLast ? c : ox;
    if (++inner < (kChannelsLast ? p.out_c : p.out_w)) return false;
    inner = 0;
    int64_t& middle = kChannelsLast ? ox : oy;
    if (++middle != (kChannelsLast ? p.out_w : p.out_h)) return true;
    middle = 0;
    int64_t& outer = kChannelsLast ? oy : c;
    if (++outer != (kChannelsLast ? p.out_h : p.out_c)) return true;
    outer = 0;
    ++n;
    return true;
  }
};

template <bool kChannelsLast>
PF_DEVICE Prologue2dCoords prologue2d_coords(int64_t position, const Prologue2dParams& p, const Prologue2dIndexing& s) {
  int64_t at[4];
  if (s.use_int32_index) {
    uint32_t rest = uint32_t(position);
    const auto split = [&](const FastDivmod& d) {
      const uint32_t q = d.quotient(rest), r = rest - q * d.divisor;
      rest = q;
      return r;
    };
    at[0] = split(s.inner), at[1] = split(s.middle), at[2] = split(s.outer), at[3] = rest;
  } else {
    int64_t rest = position;
    const auto split = [&](int64_t size) {
      const int64_t q = rest / size, r = rest - q * size;
      rest = q;
      return r;
    };
    at[0] = split(kChannelsLast ? p.out_c : p.out_w);
    at[1] = split(kChannelsLast ? p.out_w : p.out_h);
    at[2] = split(kChannelsLast ? p.out_h : p.out_c);
    at[3] = rest;
  }
  if constexpr (kChannelsLast) return {at[3], at[0], at[2], at[1]};
  return {at[3], at[2], at[1], at[0]};
}

// Everything that is the same for all elements of a line of y. Pointers point to its first element.
template <typename T, bool kChannelsLast>
struct Prologue2dLine {
  using A = acc_t<T>;

  int64_t n, c, oy, ox;  // in y; c or ox is that of the current element
  int64_t i, j;          // row and, in channels_last, column in z; -1 if the whole line is border
  const T *x, *residual;
  EncodedChannel encoded;  // NCHW
  A style, row;            // NCHW: the style of the channel and its encoding from rows

  PF_DEVICE Prologue2dLine(const Prologue2dCoords& at, const Prologue2dParams& p, const Prologue2dPointers<T>& t)
      : n(at.n),
        c(at.c),
        oy(at.oy),
        ox(at.ox),
        x(nullptr),
        residual(nullptr),
        encoded{Encoding::kNone, 0},
        style(1),
        row(0) {
    i = source_index(p.border, oy - p.top, p.h);
    j = kChannelsLast ? source_index(p.border, ox - p.left, p.w) : 0;
    if (i < 0 || j < 0) return;
    const auto at_line = [&](const Prologue2dParams::Strides& stride) {
      return n * stride.n + i * stride.h + (kChannelsLast ? j * stride.w : c * stride.c);
    };
    if (kChannelsLast ? p.c > 0 : c < p.c) x = t.x + at_line(p.x);
    if (t.residual != nullptr) residual = t.residual + at_line(p.residual);
    if constexpr (!kChannelsLast) {
      if (t.styles != nullptr) style = t.styles[n * p.out_c + c];
      encoded = encoded_channel(p, c);
      if (encoded.table == Encoding::kRows) row = t.rows[encoded.k * p.rows.channel + i * p.rows.position];
    }
  }

  PF_DEVICE bool inside() const { return i >= 0 && j >= 0; }

  // The ring's value for an element of the border, or null if that is zero.
  PF_DEVICE const T* on_ring(const Prologue2dParams& p, const Prologue2dPointers<T>& t) const {
    if (p.border != Border::kInstance) return nullptr;
    return t.border + n * p.ring.stride_n + c * p.ring.stride_c + ring_offset(p.ring, oy, ox, p.h);
  }

  // The encoding of a channel and column of z.
  PF_DEVICE A encoding(int64_t channel, int64_t column, const Prologue2dParams& p,
                       const Prologue2dPointers<T>& t) const {
    const EncodedChannel e = kChannelsLast ? encoded_channel(p, channel) : encoded;
    if (e.table == Encoding::kColumns) return t.columns[e.k * p.columns.channel + column * p.columns.position];
    if constexpr (kChannelsLast) {
      return e.table == Encoding::kRows ? t.rows[e.k * p.rows.channel + i * p.rows.position] : A(0);
    }
    return row;
  }
};

// Computes a vector of y that lies on one line and on one side of every boundary.
template <typename T, bool kChannelsLast>
PF_DEVICE void prologue2d_vectorized(const Prologue2dCoords& at, const Prologue2dParams& p,
                                     const Prologue2dPointers<T>& t, acc_t<T> (&z)[kVectorSize<T>]) {
  using A = acc_t<T>;
  constexpr int kSize = kVectorSize<T>;
  const Prologue2dLine<T, kChannelsLast> line(at, p, t);
  const int64_t first = kChannelsLast ? at.c : at.ox;
  fill(z, A(0));
  if (!line.inside()) {
    if (const T* from = line.on_ring(p, t); from != nullptr) {
#pragma unroll
      for (int e = 0; e < kSize; ++e) z[e] = to_acc(from[e * p.ring.stride_c]);
    }
    return;
  }
  A residual[kSize] = {};
  if (line.x != nullptr && (!kChannelsLast || first < p.c)) to_acc(load_vector<kSize>(line.x + first), z);
  if (line.residual != nullptr) to_acc(load_vector<kSize>(line.residual + first), residual);
  if (p.half > 0) {
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      z[e] += line.encoding(kChannelsLast ? first + e : at.c, kChannelsLast ? line.j : first + e, p, t);
    }
  }
  if constexpr (kChannelsLast) {
    if (t.styles != nullptr) {
      A styles[kSize];
      load_to_acc(t.styles + line.n * p.out_c + first, styles);
#pragma unroll
      for (int e = 0; e < kSize; ++e) z[e] *= styles[e];
    }
  }
#pragma unroll
  for (int e = 0; e < kSize; ++e) z[e] = z[e] * line.style + residual[e];
}

// Computes a vector of y element by element, over any number of lines, with all loads before the first use.
template <typename T, bool kChannelsLast>
PF_DEVICE void prologue2d_elementwise(const Prologue2dCoords& first, int count, const Prologue2dParams& p,
                                      const Prologue2dPointers<T>& t, acc_t<T> (&z)[kVectorSize<T>]) {
  using A = acc_t<T>;
  constexpr int kSize = kVectorSize<T>;
  Prologue2dCoords at = first;
  Prologue2dLine<T, kChannelsLast> line(at, p, t);
  T values[kSize], residual[kSize];
  A encoding[kSize], style[kSize];
#pragma unroll
  for (int e = 0; e < kSize; ++e) {
    values[e] = residual[e] = T{};
    encoding[e] = 0;
    style[e] = 1;
    if (e >= count) continue;
    line.c = at.c;
    line.ox = at.ox;
    const int64_t column = kChannelsLast ? line.j : line.i < 0 ? -1 : source_index(p.border, at.ox - p.left, p.w);
    const int64_t inner = kChannelsLast ? at.c : column;
    if (line.i >= 0 && column >= 0) {
      if (line.x != nullptr && at.c < p.c) values[e] = line.x[inner];
      if (line.residual != nullptr) residual[e] = line.residual[inner];
      if (p.half > 0) encoding[e] = line.encoding(at.c, column, p, t);
      style[e] = kChannelsLast && t.styles != nullptr ? t.styles[line.n * p.out_c + at.c] : line.style;
    } else if (const T* from = line.on_ring(p, t); from != nullptr) {
      values[e] = *from;
    }
    if (e + 1 < count && at.next<kChannelsLast>(p)) line = Prologue2dLine<T, kChannelsLast>(at, p, t);
  }
#pragma unroll
  for (int e = 0; e < kSize; ++e) z[e] = (to_acc(values[e]) + encoding[e]) * style[e] + to_acc(residual[e]);
}

// A thread writes one vector of y.
template <typename T, bool kChannelsLast, bool kVectorized>
__global__ void __launch_bounds__(256)
    prologue2d_kernel(Prologue2dPointers<T> t, Prologue2dParams p, Prologue2dIndexing s) {
  constexpr int kSize = kVectorSize<T>;
  const int64_t position = (int64_t(blockIdx.x) * int(blockDim.x) + int(threadIdx.x)) * kSize;
  if (position >= s.numel) return;
  const Prologue2dCoords at = prologue2d_coords<kChannelsLast>(position, p, s);
  acc_t<T> z[kSize];
  if constexpr (kVectorized) {
    prologue2d_vectorized<T, kChannelsLast>(at, p, t, z);
  } else {
    const int64_t left = s.numel - position;
    prologue2d_elementwise<T, kChannelsLast>(at, left < kSize ? int(left) : kSize, p, t, z);
  }
  store_predicated(t.y, position, s.numel, s.aligned, from_acc<T, kSize>(z));
}

template <typename T>
Prologue2dIndexing prologue2d_indexing(const Prologue2dPointers<T>& t, const Prologue2dParams& p) {
  constexpr int64_t kSize = kVectorSize<T>;
  const auto vectors = [&](const T* from, const Prologue2dParams::Strides& stride) {
    const int64_t line = p.channels_last ? stride.w : stride.c;
    return aligned(from) && stride.n % kSize == 0 && stride.h % kSize == 0 && line % kSize == 0;
  };
  Prologue2dIndexing s;
  s.numel = p.n * p.out_c * p.out_h * p.out_w;
  s.aligned = aligned(t.y);
  s.vectorized = p.channels_last ? p.out_c % kSize == 0 && (!p.concat || p.c % kSize == 0) && aligned(t.styles)
                                 : p.w % kSize == 0 && p.out_w == p.w;
  s.vectorized =
      s.vectorized && (p.c == 0 || vectors(t.x, p.x)) && (t.residual == nullptr || vectors(t.residual, p.residual));
  s.use_int32_index = s.numel < kInt32IndexLimit;
  const auto divmod = [&](int64_t size) { return FastDivmod::by(s.use_int32_index ? size : 1); };
  s.inner = divmod(p.channels_last ? p.out_c : p.out_w);
  s.middle = divmod(p.channels_last ? p.out_w : p.out_h);
  s.outer = divmod(p.channels_last ? p.out_h : p.out_c);
  return s;
}

// Calls launch(blocks, kernel, arguments...). Returns whether the vectorized kernel ran.
template <typename T, typename Launch>
bool run_prologue2d(const Prologue2dPointers<T>& t, const Prologue2dParams& p, int threads, const Launch& launch) {
  const Prologue2dIndexing s = prologue2d_indexing(t, p);
  const auto run = [&](auto kernel) { launch(elementwise_blocks<T>(s.numel, threads, 1), kernel, t, p, s); };
  if (p.channels_last) {
    s.vectorized ? run(prologue2d_kernel<T, true, true>) : run(prologue2d_kernel<T, true, false>);
  } else {
    s.vectorized ? run(prologue2d_kernel<T, false, true>) : run(prologue2d_kernel<T, false, false>);
  }
  return s.vectorized;
}

}  // namespace posgan_fast
