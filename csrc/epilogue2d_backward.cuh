// The CUDA kernel of epilogue2d_backward and its launch configuration. No torch; compiles for the host too
// (host_device.h).
//
// An image is rows of columns: channels of pixels in NCHW, pixels of channels in channels_last. A block reads a tile of
// pixels, all channels of it, once. Its threads stand in a rectangle, tx along the columns, a vector each, and ty along
// the rows. Sums down the columns stay in registers until the tile ends; sums along the rows go through shared memory,
// a few rows at a time.
#pragma once

#include "bias_act.cuh"
#include "elementwise.cuh"
#include "epilogue2d_backward.h"

namespace posgan_fast {

template <typename T>
struct Epilogue2dBackwardPointers {
  const T *dy, *y, *x, *b;  // null where there is none
  const acc_t<T>*scale, *noise;
  T* dx;
  acc_t<T>*channel_sums, *pixel_sums;
};

struct Epilogue2dBackwardTiling {
  int tx, ty;
  int64_t columns, rows;  // of an image
  bool aligned;           // every vector starts at a multiple of 16 bytes
};

constexpr int kBackwardRows = 2;    // rows of a thread between two sums along the rows
constexpr int kBackwardFold = 8;    // values that a thread adds up in the first step of such a sum
constexpr int kBackwardMost = 256;  // threads of a block

// A sum along rows of shared memory, in two steps so that many threads take part. The sum of row r ends up at its
// start, where thread r modulo the size of the block may read it.
template <typename A>
PF_DEVICE void fold_rows(A* values, int rows, int width, int pitch) {
  const int thread = int(threadIdx.x), threads = int(blockDim.x);
  const int fold = width < kBackwardFold ? width : kBackwardFold, parts = width / fold;
  for (int i = thread; i < rows * parts; i += threads) {
    A* const part = values + i / parts * pitch + i % parts * fold;
    A sum = part[0];
    for (int k = 1; k < fold; ++k) sum += part[k];
    part[0] = sum;
  }
  __syncthreads();
  for (int r = thread; r < rows && parts > 1; r += threads) {
    A sum = values[r * pitch];
    for (int k = 1; k < parts; ++k) sum += values[r * pitch + k * fold];
    values[r * pitch] = sum;
  }
}

template <typename T, Act kAct, bool kReadsOutput>
struct BackwardBlock {
  using A = acc_t<T>;
  static constexpr int kSize = kVectorSize<T>;

  const Epilogue2dBackwardPointers<T>& t;
  const Epilogue2dBackwardParams& p;
  const Epilogue2dBackwardTiling& s;
  A* const shared;  // two areas for sums along the rows, reused for those down the columns
  int64_t n, tile, first, rows, row0, column_end;
  int tx, ty, pitch;

  PF_DEVICE BackwardBlock(const Epilogue2dBackwardPointers<T>& pointers, const Epilogue2dBackwardParams& params,
                          const Epilogue2dBackwardTiling& tiling, A* memory)
      : t(pointers), p(params), s(tiling), shared(memory) {
    n = int64_t(blockIdx.x) / p.tiles;
    tile = int64_t(blockIdx.x) - n * p.tiles;
    first = tile * p.tile;
    const int64_t end = first + p.tile < p.pixels ? first + p.tile : p.pixels;
    row0 = p.channels_last ? first : 0;
    rows = p.channels_last ? end - first : p.c;
    column_end = p.channels_last ? p.c : end;
    ty = int(threadIdx.x) / s.tx;
    tx = int(threadIdx.x) - ty * s.tx;
    pitch = s.tx + (s.tx > 1);  // odd, so that neighbouring rows lie in other banks
  }

  // The vectors of one row, loaded ahead of their use.
  struct Vectors {
    AlignedVector<T, kSize> dy, y, x;
  };

  PF_DEVICE Vectors load(int64_t row, int64_t column, int count) const {
    const int64_t at = (n * s.rows + row) * s.columns + column;
    const auto vector = [&](const T* from) { return load_predicated(from, at, at + count, s.aligned); };
    Vectors v{zero_vector<T, kSize>(), zero_vector<T, kSize>(), zero_vector<T, kSize>()};
    if (count == 0) return v;
    v.dy = vector(t.dy);
    if constexpr (kReadsOutput) v.y = vector(t.y);
    if (p.products || reads_sum()) v.x = vector(t.x);
    return v;
  }

  PF_DEVICE bool reads_sum() const { return epilogue2d_reads_sum(kAct, p.clamp, kReadsOutput); }

  PF_DEVICE A* area(int k) const { return shared + k * (kBackwardRows * s.ty * pitch); }

  // v = x * scale + noise + b of a vector.
  PF_DEVICE void sums(const A (&x)[kSize], int64_t row, int64_t column, int count, A (&v)[kSize]) const {
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      if (e >= count) {
        v[e] = 0;
        continue;
      }
      const int64_t c = p.channels_last ? column + e : row, pixel = p.channels_last ? row : column + e;
      v[e] = epilogue2d_sum<A>(x[e], t.scale == nullptr ? A(1) : t.scale[n * p.c + c],
                               t.noise == nullptr ? A(0) : t.noise[n * p.noise_stride_n + pixel],
                               t.b == nullptr ? A(0) : A(to_acc(t.b[c])));
    }
  }

  // g of a vector of `count` elements, and x where it was loaded; zero beyond them.
  PF_DEVICE void gradient(const Vectors& v, int64_t row, int64_t column, int count, A (&g)[kSize],
                          A (&x)[kSize]) const {
    A dy[kSize], ref[kSize];
    to_acc(v.dy, dy);
    to_acc(v.y, ref);
    to_acc(v.x, x);
    if constexpr (!kReadsOutput) {
      if (reads_sum()) sums(x, row, column, count, ref);
    }
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      const A value =
          epilogue2d_gradient<kAct, kReadsOutput, MathOf<T>, A>(dy[e], ref[e], A(p.alpha), A(p.gain), A(p.clamp));
      g[e] = e < count ? value : A(0);
    }
    if (t.dx != nullptr && count > 0) store_dx((n * s.rows + row) * s.columns + column, row, column, count, g);
  }

  PF_DEVICE void store_dx(int64_t at, int64_t row, int64_t column, int count, const A (&g)[kSize]) const {
    A v[kSize];
#pragma unroll
    for (int e = 0; e < kSize; ++e) v[e] = g[e];
    if (t.scale != nullptr) {
      const A* const scale = t.scale + n * p.c + (p.channels_last ? column : row);
#pragma unroll
      for (int e = 0; e < kSize; ++e) {
        if (e < count) v[e] *= scale[p.channels_last ? e : 0];
      }
    }
    store_predicated(t.dx, at, at + count, s.aligned, from_acc<T, kSize>(v));
  }

  // Handles the columns [column0, column0 + tx * kSize), the first ones of the tile or more.
  PF_DEVICE void run(int64_t column0, bool more) {
    const int64_t column = column0 + tx * kSize, left = column_end - column;
    const int width = left < 0 ? 0 : left < kSize ? int(left) : kSize;
    A down[kSize] = {}, down_products[kSize] = {};
    const int batch = kBackwardRows * s.ty;
    for (int64_t r0 = 0; r0 < rows; r0 += batch) {
      Vectors vectors[kBackwardRows];
#pragma unroll
      for (int k = 0; k < kBackwardRows; ++k) {
        const int64_t r = r0 + k * s.ty + ty;
        vectors[k] = load(row0 + r, column, r < rows ? width : 0);
      }
#pragma unroll
      for (int k = 0; k < kBackwardRows; ++k) {
        const int64_t r = r0 + k * s.ty + ty;
        A g[kSize], x[kSize], along = 0, along_products = 0;
        gradient(vectors[k], row0 + r, column, r < rows ? width : 0, g, x);
#pragma unroll
        for (int e = 0; e < kSize; ++e) {
          down[e] += g[e], down_products[e] += g[e] * x[e];
          along += g[e], along_products += g[e] * x[e];
        }
        if (!sums_rows()) continue;
        area(0)[(k * s.ty + ty) * pitch + tx] = along;
        if (!p.channels_last && p.products) area(1)[(k * s.ty + ty) * pitch + tx] = along_products;
      }
      if (sums_rows()) finish_rows(r0, rows - r0 < batch ? int(rows - r0) : batch, more);
    }
    finish_columns(column0, down, down_products);
  }

  PF_DEVICE bool sums_rows() const { return (p.channels_last ? t.pixel_sums : t.channel_sums) != nullptr; }

  // Adds up the batch of rows in shared memory and stores the sums, or adds them to those of the columns before.
  PF_DEVICE void finish_rows(int64_t r0, int count, bool more) const {
    const bool products = !p.channels_last && p.products;
    __syncthreads();
    fold_rows(area(0), count, s.tx, pitch);
    if (products) fold_rows(area(1), count, s.tx, pitch);
    for (int r = int(threadIdx.x); r < count; r += int(blockDim.x)) {
      A* const to = p.channels_last ? t.pixel_sums + n * p.pixels + row0 + r0 + r : channel_sum(0, r0 + r);
      *to = area(0)[r * pitch] + (more ? *to : A(0));
      if (products) *channel_sum(1, r0 + r) = area(1)[r * pitch] + (more ? *channel_sum(1, r0 + r) : A(0));
    }
    __syncthreads();
  }

  // Adds up what the threads of a column have, and stores the sums.
  PF_DEVICE void finish_columns(int64_t column0, const A (&down)[kSize], const A (&down_products)[kSize]) const {
    A* const sums = p.channels_last ? t.channel_sums : t.pixel_sums;
    if (sums == nullptr) return;
    const int width = s.tx * kSize;
    for (int q = 0; q < (p.channels_last && p.products ? 2 : 1); ++q) {
      __syncthreads();
#pragma unroll
      for (int e = 0; e < kSize; ++e) shared[ty * width + tx * kSize + e] = q == 0 ? down[e] : down_products[e];
      __syncthreads();
      for (int i = int(threadIdx.x); i < width && column0 + i < column_end; i += int(blockDim.x)) {
        A sum = 0;
        for (int r = 0; r < s.ty; ++r) sum += shared[r * width + i];
        *(p.channels_last ? channel_sum(q, column0 + i) : t.pixel_sums + n * p.pixels + column0 + i) = sum;
      }
    }
    __syncthreads();
  }

  PF_DEVICE A* channel_sum(int q, int64_t c) const {
    return t.channel_sums + ((q * p.n + n) * p.tiles + tile) * p.c + c;
  }
};

template <typename T, Act kAct, bool kReadsOutput>
__global__ void __launch_bounds__(kBackwardMost, 2)
    epilogue2d_backward_kernel(Epilogue2dBackwardPointers<T> t, Epilogue2dBackwardParams p,
                               Epilogue2dBackwardTiling s) {
  PF_DYNAMIC_SHARED(raw);
  BackwardBlock<T, kAct, kReadsOutput> block(t, p, s, reinterpret_cast<acc_t<T>*>(raw));
  const int64_t first = p.channels_last ? 0 : block.first;
  for (int64_t column = first; column < block.column_end; column += s.tx * kVectorSize<T>) {
    block.run(column, column > first);
  }
}

template <typename T>
Epilogue2dBackwardTiling epilogue2d_backward_tiling(const Epilogue2dBackwardPointers<T>& t,
                                                    const Epilogue2dBackwardParams& p, int threads) {
  constexpr int kSize = kVectorSize<T>;
  Epilogue2dBackwardTiling s;
  s.columns = p.channels_last ? p.c : p.pixels;
  s.rows = p.channels_last ? p.pixels : p.c;
  const int64_t wide = p.channels_last ? p.c : p.tile;
  s.tx = 1;
  while (s.tx < threads && s.tx * kSize < wide) s.tx *= 2;
  s.ty = threads / s.tx;
  s.aligned = aligned(t.dy) && aligned(t.y) && aligned(t.x) && aligned(t.dx) && s.columns % kSize == 0 &&
              (p.channels_last || p.tile % kSize == 0);
  return s;
}

// Calls launch(grid, block, shared_bytes, kernel, arguments...). `threads` is a power of two of at most 256.
template <typename T, typename Launch>
void run_epilogue2d_backward(const Epilogue2dBackwardPointers<T>& t, const Epilogue2dBackwardParams& p, Act act,
                             int threads, const Launch& launch) {
  const Epilogue2dBackwardTiling s = epilogue2d_backward_tiling(t, p, threads);
  const int along = 2 * kBackwardRows * s.ty * (s.tx + (s.tx > 1)), down = s.ty * s.tx * kVectorSize<T>;
  const size_t bytes = size_t(along > down ? along : down) * sizeof(acc_t<T>);
  dispatch_epilogue2d_backward(act, t.y != nullptr, [&](auto constant, auto reads_output) {
    launch(dim3{unsigned(p.n * p.tiles), 1, 1}, dim3{unsigned(threads), 1, 1}, bytes,
           epilogue2d_backward_kernel<T, constant, reads_output>, t, p, s);
  });
}

}  // namespace posgan_fast
