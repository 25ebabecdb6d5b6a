// CUDA kernels of upfirdn2d and the geometry of their launches. No torch; compiles for the host too (host_device.h).
//
//   fir4                4 x 4 taps, both axes at (up, down) in {(1, 1), (2, 1), (1, 2)}, rows dense: the StyleGAN2 cases
//   fir4_channels_last  the same with channels innermost, 16 bytes of channels per thread
//   tiled               any factors and taps whose tile fits into shared memory, any strides, and double
//   direct              the rest
#pragma once

#include "host_device.h"
#include "upfirdn2d.h"

namespace posgan_fast {

enum class Upfirdn2dKernel : int { kFir4, kFir4ChannelsLast, kTiled, kDirect };

// A row of the launch table: how the threads of a fir4 block are laid out, as powers of two. What is left of
// kThreadsLog2 goes to planes (fir4) or to channel vectors' neighbours along x (fir4_channels_last).
struct Upfirdn2dTiling {
  int lanes_log2;   // fir4: threads along x; fir4_channels_last: channel vectors
  int strips_log2;  // fir4: threads along y, each kRows outputs high
  int threads_log2;
};

constexpr int kFirTaps = 4;
constexpr int kFirRows = 8;  // outputs a thread makes, one below the other
constexpr int kMaxThreads = 256;
constexpr int64_t kSharedLimit = 48 * 1024;  // what a block gets without asking
constexpr int64_t kMaxGridY = 65535;

// Outputs a fir4 thread makes side by side: both phases when upsampling; two halves fill a bank of shared memory.
template <typename T, int kUp, int kDown>
constexpr int kFirCols = kUp == 2 || (kDown == 1 && sizeof(T) == 2) ? 2 : 1;

// Inputs under consecutive outputs, the first of which meets a sample with its first tap.
template <int kUp, int kDown>
constexpr PF_HD int fir_span(int outputs) {
  return ((outputs - 1) * kDown + kFirTaps - 1) / kUp + 1;
}

// Outputs to start before 0 so that the first tap of the first one meets a sample.
template <int kUp>
PF_HD int fir_shift(const Axis& a) {
  return ((a.pad0 % kUp) + kUp) % kUp;
}

template <bool kSeparable>
constexpr int kFirCoefficients = kSeparable ? 2 * kFirTaps : kFirTaps * kFirTaps;

// Separable: horizontal taps, then vertical ones times gain. Otherwise the filter times gain, row by row.
template <bool kSeparable, typename A>
PF_DEVICE void read_fir(const A* f, bool flip, A gain, A (&taps)[kFirCoefficients<kSeparable>]) {
  constexpr int count = kSeparable ? kFirTaps : kFirTaps * kFirTaps;
#pragma unroll
  for (int k = 0; k < count; ++k) {
    const A tap = f[tap_index(k, count, flip)];
    if constexpr (kSeparable) {
      taps[k] = tap;
      taps[kFirTaps + k] = gain * tap;
    } else {
      taps[k] = gain * tap;
    }
  }
}

// Adds input row r of a strip to the outputs it reaches. Every index is a constant once the loops are unrolled.
template <int kUp, int kDown, bool kSeparable, int kCols, typename A>
PF_DEVICE void add_row(int r, const A (&taps)[kFirCoefficients<kSeparable>], const A (&in)[fir_span<kUp, kDown>(kCols)],
                       A (&acc)[kFirRows][kCols]) {
#pragma unroll
  for (int col = 0; col < kCols; ++col) {
    A across = 0;
    if constexpr (kSeparable) {
#pragma unroll
      for (int k = 0; k < kFirTaps; ++k) {
        const int u = col * kDown + k;
        if (u % kUp == 0) across += taps[k] * in[u / kUp];
      }
    }
#pragma unroll
    for (int o = 0; o < kFirRows; ++o) {
      const int ky = r * kUp - o * kDown;
      if (ky < 0 || ky >= kFirTaps) continue;
      if constexpr (kSeparable) {
        acc[o][col] += taps[kFirTaps + ky] * across;
      } else {
#pragma unroll
        for (int k = 0; k < kFirTaps; ++k) {
          const int u = col * kDown + k;
          if (u % kUp == 0) acc[o][col] += taps[ky * kFirTaps + k] * in[u / kUp];
        }
      }
    }
  }
}

// The input row of a strip after which output row o is complete.
template <int kUp, int kDown>
constexpr PF_HD int last_row(int o) {
  return (o * kDown + kFirTaps - 1) / kUp;
}

struct Fir4Shape {
  int lanes_log2, strips_log2;  // threads of one tile along x and y; the others of a block take further planes
  int tiles_x;
  int in_rows;      // rows of a tile in shared memory
  int row_vectors;  // 16-byte vectors per such row
  int row_step;     // rows the threads of a tile load at once
  int shift_x, shift_y;
};

// A block copies its input tiles to shared memory as they lie in memory, 16 bytes at a time, whatever the alignment of
// the rows: each row starts at the aligned address at or before its first element, and readers add the difference. Then
// every thread walks down a strip, filtering each row horizontally in registers and adding it to the outputs below.
template <typename T, int kUp, int kDown, bool kSeparable>
__global__ void __launch_bounds__(kMaxThreads)
    upfirdn2d_fir4(const T* x, const acc_t<T>* f, T* y, Upfirdn2dParams p, Fir4Shape s) {
  using A = acc_t<T>;
  constexpr int kCols = kFirCols<T, kUp, kDown>;
  constexpr int kSpan = fir_span<kUp, kDown>(kCols);
  constexpr int kVector = Pack<T>::kSize;
  PF_DYNAMIC_SHARED(raw);

  const int tile_threads_log2 = s.lanes_log2 + s.strips_log2;
  const int thread = int(threadIdx.x) & ((1 << tile_threads_log2) - 1);
  const int slot = int(threadIdx.x) >> tile_threads_log2;  // which plane of the block
  const int slots = int(blockDim.x) >> tile_threads_log2;
  const int row_pitch = s.row_vectors * kVector;
  T* const tile = reinterpret_cast<T*>(raw) + slot * s.in_rows * row_pitch;

  const int tile_y = int(blockIdx.x) / s.tiles_x;
  const int tile_x = int(blockIdx.x) - tile_y * s.tiles_x;
  const int out_x0 = (tile_x << s.lanes_log2) * kCols - s.shift_x;
  const int out_y0 = (tile_y << s.strips_log2) * kFirRows - s.shift_y;
  const int in_x0 = (out_x0 * kDown - p.x.pad0) / kUp;  // exact
  const int in_y0 = (out_y0 * kDown - p.y.pad0) / kUp;
  const int in_w = int(p.x.in), in_h = int(p.y.in);
  const int out_w = int(p.x.out), out_h = int(p.y.out);
  const int planes = int(p.n * p.c);

  const int lane = thread & ((1 << s.lanes_log2) - 1);
  const int strip = thread >> s.lanes_log2;
  const int load_row = thread / s.row_vectors;
  const int load_vector = thread - load_row * s.row_vectors;

  A taps[kFirCoefficients<kSeparable>];
  read_fir<kSeparable>(f, p.flip, A(p.gain), taps);

  for (int first = int(blockIdx.y) * slots; first < planes; first += int(gridDim.y) * slots) {
    const int plane = first + slot;
    const int n = plane / int(p.c), c = plane - n * int(p.c);
    const T* const in = x + n * p.in_stride_n + c * p.in_stride_c;
    // Elements between an aligned address and the first element of tile row r: (skew + r * in_stride_h) % kVector.
    const unsigned stride = unsigned(p.in_stride_h);
    const unsigned skew =
        unsigned(reinterpret_cast<uintptr_t>(in) / sizeof(T)) + unsigned(in_y0) * stride + unsigned(in_x0);

    if (plane < planes && load_row < s.row_step) {
      for (int r = load_row; r < s.in_rows; r += s.row_step) {
        T* const to = tile + r * row_pitch + load_vector * kVector;
        const int iy = in_y0 + r;
        const int ix = in_x0 + load_vector * kVector - int((skew + unsigned(r) * stride) & (kVector - 1));
        const bool row_exists = iy >= 0 && iy < in_h;
        if (!row_exists || ix <= -kVector || ix >= in_w) {
          store16(to, Pack<T>{});
          continue;
        }
        const T* const from = in + iy * p.in_stride_h;
        if (ix >= 0 && ix + kVector <= in_w) {
          copy16_async(to, from + ix);
        } else {
#pragma unroll
          for (int e = 0; e < kVector; ++e) to[e] = ix + e >= 0 && ix + e < in_w ? from[ix + e] : T{};
        }
      }
    }
    copy_wait();
    __syncthreads();

    if (plane < planes) {
      const int strip_row = strip * kFirRows * kDown / kUp;
      const int column = lane * kCols * kDown / kUp;
      const int ox = out_x0 + lane * kCols;
      const int oy = out_y0 + strip * kFirRows;
      T* const out = y + n * p.out_stride_n + c * p.out_stride_c;
      A acc[kFirRows][kCols] = {};
#pragma unroll
      for (int r = 0; r < fir_span<kUp, kDown>(kFirRows); ++r) {
        const unsigned offset = (skew + unsigned(strip_row + r) * stride) & (kVector - 1);
        const T* const row = tile + (strip_row + r) * row_pitch + offset + column;
        A in_row[kSpan];
#pragma unroll
        for (int i = 0; i < kSpan; ++i) in_row[i] = widen(row[i]);
        add_row<kUp, kDown, kSeparable, kCols>(r, taps, in_row, acc);
#pragma unroll
        for (int o = 0; o < kFirRows; ++o) {
          if (last_row<kUp, kDown>(o) != r || oy + o < 0 || oy + o >= out_h) continue;
          T* const to = out + (oy + o) * p.out_stride_h + ox;
          T value[kCols];
#pragma unroll
          for (int col = 0; col < kCols; ++col) narrow(&value[col], acc[o][col]);
          if constexpr (kCols == 2) {
            if (ox >= 0 && ox + 1 < out_w && reinterpret_cast<uintptr_t>(to) % (2 * sizeof(T)) == 0) {
              store_pair(to, value[0], value[1]);
              continue;
            }
          }
#pragma unroll
          for (int col = 0; col < kCols; ++col) {
            if (ox + col >= 0 && ox + col < out_w) to[col] = value[col];
          }
        }
      }
    }
    if (first + int(gridDim.y) * slots < planes) __syncthreads();  // the next tiles replace these
  }
}

struct Fir4ChannelsLastShape {
  int lanes_log2;  // channel vectors of a block; its other threads lie along x
  int chunks;      // such groups of channels
  int tiles_x;
  int shift_x, shift_y;
};

// A thread owns 16 bytes of channels and walks down a strip. Neighbours along x read the same pixels, which come from
// the L1 cache; nothing is shared, so nothing is synchronised.
template <typename T, int kUp, int kDown, bool kSeparable>
__global__ void __launch_bounds__(kMaxThreads)
    upfirdn2d_fir4_channels_last(const T* x, const acc_t<T>* f, T* y, Upfirdn2dParams p, Fir4ChannelsLastShape s) {
  using A = acc_t<T>;
  constexpr int kCols = kUp;
  constexpr int kSpan = fir_span<kUp, kDown>(kCols);
  constexpr int kVector = Pack<T>::kSize;

  const int lane = int(threadIdx.x) & ((1 << s.lanes_log2) - 1);
  const int pixel = int(threadIdx.x) >> s.lanes_log2;
  const int pixels = int(blockDim.x) >> s.lanes_log2;
  const int tile = int(blockIdx.x) / s.chunks;
  const int chunk = int(blockIdx.x) - tile * s.chunks;
  const int tile_y = tile / s.tiles_x;
  const int tile_x = tile - tile_y * s.tiles_x;

  const int channel = ((chunk << s.lanes_log2) + lane) * kVector;
  const int ox = (tile_x * pixels + pixel) * kCols - s.shift_x;
  const int oy = tile_y * kFirRows - s.shift_y;
  const int ix = (ox * kDown - p.x.pad0) / kUp;  // exact
  const int iy = (oy * kDown - p.y.pad0) / kUp;
  const int in_w = int(p.x.in), in_h = int(p.y.in);
  const int out_w = int(p.x.out), out_h = int(p.y.out);
  if (channel >= p.c || ox >= out_w) return;

  A taps[kFirCoefficients<kSeparable>];
  read_fir<kSeparable>(f, p.flip, A(p.gain), taps);

  for (int64_t n = blockIdx.y; n < p.n; n += gridDim.y) {
    const T* const in = x + n * p.in_stride_n + channel;
    T* const out = y + n * p.out_stride_n + channel;
    A acc[kVector][kFirRows][kCols] = {};
#pragma unroll
    for (int r = 0; r < fir_span<kUp, kDown>(kFirRows); ++r) {
      if (iy + r >= 0 && iy + r < in_h) {
        const T* const row = in + (iy + r) * p.in_stride_h;
        Pack<T> pixels_in[kSpan];
#pragma unroll
        for (int i = 0; i < kSpan; ++i) {
          pixels_in[i] = ix + i >= 0 && ix + i < in_w ? load16_readonly(row + (ix + i) * p.in_stride_w) : Pack<T>{};
        }
#pragma unroll
        for (int e = 0; e < kVector; ++e) {
          A in_row[kSpan];
#pragma unroll
          for (int i = 0; i < kSpan; ++i) in_row[i] = widen(pixels_in[i].v[e]);
          add_row<kUp, kDown, kSeparable, kCols>(r, taps, in_row, acc[e]);
        }
      }
#pragma unroll
      for (int o = 0; o < kFirRows; ++o) {
        if (last_row<kUp, kDown>(o) != r || oy + o < 0 || oy + o >= out_h) continue;
#pragma unroll
        for (int col = 0; col < kCols; ++col) {
          if (ox + col < 0 || ox + col >= out_w) continue;
          Pack<T> value;
#pragma unroll
          for (int e = 0; e < kVector; ++e) narrow(&value.v[e], acc[e][o][col]);
          store16(out + (oy + o) * p.out_stride_h + (ox + col) * p.out_stride_w, value);
        }
      }
    }
  }
}

struct TiledShape {
  int tile_w, tile_h;  // outputs
  int inner;           // channels of a tile, innermost
  int64_t chunks;      // such groups of channels
  int in_w, in_h;
  int tiles_x;
  int taps;  // coefficients held in shared memory
};

// Position of an output inside a tile: first input under it, relative to the tile's, and the tap meeting that input.
struct TilePhase {
  int in, tap;
};

PF_HD TilePhase tile_phase(const Axis& a, int start, int o) {
  const int base = start + o * a.down;  // start in (-up, 0]
  const int in = base > 0 ? (base + a.up - 1) / a.up : 0;
  return {in, in * a.up - base};
}

// Input tile -> shared memory; separable: rows filtered into shared memory, then columns; otherwise both at once.
template <typename T, bool kSeparable>
__global__ void __launch_bounds__(kMaxThreads)
    upfirdn2d_tiled(const T* x, const acc_t<T>* f, T* y, Upfirdn2dParams p, TiledShape s) {
  using A = acc_t<T>;
  PF_DYNAMIC_SHARED(raw);
  const int in_pitch = s.in_w * s.inner, out_pitch = s.tile_w * s.inner;
  A* const taps = reinterpret_cast<A*>(raw);
  A* const tile = taps + s.taps;
  A* const across = tile + s.in_h * in_pitch;

  const int tile_y = int(blockIdx.x) / s.tiles_x;
  const int tile_x = int(blockIdx.x) - tile_y * s.tiles_x;
  const int64_t ox = int64_t(tile_x) * s.tile_w, oy = int64_t(tile_y) * s.tile_h;
  const Phase phase_x = phase_of(p.x, ox), phase_y = phase_of(p.y, oy);

  for (int k = int(threadIdx.y * blockDim.x + threadIdx.x); k < s.taps; k += int(blockDim.x * blockDim.y)) {
    taps[k] = f[tap_index(k, s.taps, p.flip)];
  }

  for (int64_t plane = blockIdx.y; plane < p.n * s.chunks; plane += gridDim.y) {
    const int64_t n = plane / s.chunks;
    const int64_t first_channel = (plane - n * s.chunks) * s.inner;
    const T* const in = x + n * p.in_stride_n + first_channel * p.in_stride_c;
    T* const out = y + n * p.out_stride_n + first_channel * p.out_stride_c;

    for (int r = int(threadIdx.y); r < s.in_h; r += int(blockDim.y)) {
      const int64_t iy = phase_y.first_in + r;
      for (int e = int(threadIdx.x); e < in_pitch; e += int(blockDim.x)) {
        const int column = e / s.inner, channel = e - column * s.inner;
        const int64_t ix = phase_x.first_in + column;
        const bool exists = iy >= 0 && iy < p.y.in && ix >= 0 && ix < p.x.in && first_channel + channel < p.c;
        tile[r * in_pitch + e] =
            exists ? widen(in[iy * p.in_stride_h + ix * p.in_stride_w + channel * p.in_stride_c]) : A(0);
      }
    }
    __syncthreads();

    if constexpr (kSeparable) {
      for (int e = int(threadIdx.x); e < out_pitch; e += int(blockDim.x)) {
        const int column = e / s.inner, channel = e - column * s.inner;
        const TilePhase at = tile_phase(p.x, -phase_x.first_tap, column);
        for (int r = int(threadIdx.y); r < s.in_h; r += int(blockDim.y)) {
          const A* sample = tile + r * in_pitch + at.in * s.inner + channel;
          A sum = 0;
          for (int k = at.tap; k < p.x.taps; k += p.x.up, sample += s.inner) sum += taps[k] * *sample;
          across[r * out_pitch + e] = sum;
        }
      }
      __syncthreads();
    }

    for (int r = int(threadIdx.y); r < s.tile_h; r += int(blockDim.y)) {
      const TilePhase at_y = tile_phase(p.y, -phase_y.first_tap, r);
      for (int e = int(threadIdx.x); e < out_pitch; e += int(blockDim.x)) {
        const int column = e / s.inner, channel = e - column * s.inner;
        if (oy + r >= p.y.out || ox + column >= p.x.out || first_channel + channel >= p.c) continue;
        A sum = 0;
        if constexpr (kSeparable) {
          const A* sample = across + at_y.in * out_pitch + e;
          for (int k = at_y.tap; k < p.y.taps; k += p.y.up, sample += out_pitch) sum += taps[k] * *sample;
        } else {
          const TilePhase at_x = tile_phase(p.x, -phase_x.first_tap, column);
          const A* row = tile + at_y.in * in_pitch + at_x.in * s.inner + channel;
          for (int ky = at_y.tap; ky < p.y.taps; ky += p.y.up, row += in_pitch) {
            const A* sample = row;
            for (int kx = at_x.tap; kx < p.x.taps; kx += p.x.up, sample += s.inner) {
              sum += taps[ky * p.x.taps + kx] * *sample;
            }
          }
        }
        T* const to = out + (oy + r) * p.out_stride_h + (ox + column) * p.out_stride_w + channel * p.out_stride_c;
        narrow(to, A(p.gain) * sum);
      }
    }
    if (plane + gridDim.y < p.n * s.chunks) __syncthreads();  // the next tile replaces this one
  }
}

// One thread per output, straight from memory.
template <typename T>
__global__ void __launch_bounds__(kMaxThreads)
    upfirdn2d_direct(const T* x, const acc_t<T>* f, T* y, Upfirdn2dParams p) {
  using A = acc_t<T>;
  const int64_t total = p.n * p.c * p.y.out * p.x.out;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += int64_t(gridDim.x) * blockDim.x) {
    int64_t rest = i;
    const int64_t inner = p.channels_last ? p.c : 1;
    const int64_t c_inner = rest % inner;
    rest /= inner;
    const int64_t ox = rest % p.x.out;
    rest /= p.x.out;
    const int64_t oy = rest % p.y.out;
    rest /= p.y.out;
    const int64_t outer = p.c / inner;
    const int64_t c = p.channels_last ? c_inner : rest % outer;
    const int64_t n = rest / outer;

    const Phase px = phase_of(p.x, ox), py = phase_of(p.y, oy);
    const T* const in = x + n * p.in_stride_n + c * p.in_stride_c;
    A sum = 0;
    for (int j = 0; j < py.taps; ++j) {
      const int64_t iy = py.first_in + j;
      if (iy < 0 || iy >= p.y.in) continue;
      const int ky = tap_index(py.first_tap + j * p.y.up, p.y.taps, p.flip);
      A across = 0;
      for (int i_tap = 0; i_tap < px.taps; ++i_tap) {
        const int64_t ix = px.first_in + i_tap;
        if (ix < 0 || ix >= p.x.in) continue;
        const int kx = tap_index(px.first_tap + i_tap * p.x.up, p.x.taps, p.flip);
        const A tap = p.separable ? f[kx] : f[int64_t(ky) * p.x.taps + kx];
        across += tap * widen(in[iy * p.in_stride_h + ix * p.in_stride_w]);
      }
      sum += p.separable ? f[ky] * across : across;
    }
    narrow(y + n * p.out_stride_n + c * p.out_stride_c + oy * p.out_stride_h + ox * p.out_stride_w, A(p.gain) * sum);
  }
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int ceil_log2(int64_t v) {
  int bits = 0;
  while ((int64_t(1) << bits) < v) ++bits;
  return bits;
}

// A tile that fits into shared memory, or tile_w == 0 where not even one output does.
template <typename T>
TiledShape tiled_shape(const Upfirdn2dParams& p) {
  constexpr int64_t kReach = int64_t(1) << 30;  // positions inside a tile are ints
  const int64_t taps = p.separable ? p.x.taps : int64_t(p.x.taps) * p.y.taps;
  int64_t inner = p.channels_last ? (p.c < 32 ? p.c : 32) : 1;
  int64_t w = p.x.out < 64 ? p.x.out : 64, h = p.y.out < 32 ? p.y.out : 32;
  if (p.channels_last) w = w < 16 ? w : 16, h = h < 16 ? h : 16;
  while (true) {
    const int64_t reach_x = (w - 1) * p.x.down + p.x.taps - 1, reach_y = (h - 1) * p.y.down + p.y.taps - 1;
    const int64_t in_w = reach_x / p.x.up + 1, in_h = reach_y / p.y.up + 1;
    const bool in_reach = reach_x + p.x.up < kReach && reach_y + p.y.up < kReach;
    const bool small = taps < kSharedLimit && in_w < kSharedLimit && in_h < kSharedLimit;
    const int64_t values = small ? taps + in_h * inner * (in_w + (p.separable ? w : 0)) : kSharedLimit;
    const int64_t tiles = ceil_div(p.x.out, w) * ceil_div(p.y.out, h);
    if (in_reach && values * int64_t(sizeof(acc_t<T>)) <= kSharedLimit && tiles < kReach) {
      return {int(w), int(h), int(inner), ceil_div(p.c, inner), int(in_w), int(in_h), int(ceil_div(p.x.out, w)),
              int(taps)};
    }
    if (w == 1 && h == 1 && inner == 1) return {};
    int64_t& largest = inner > 4 || (w == 1 && h == 1) ? inner : (w >= h ? w : h);
    largest = (largest + 1) / 2;
  }
}

template <typename T>
Upfirdn2dKernel choose_kernel(const T* x, const T* y, const Upfirdn2dParams& p) {
  constexpr int64_t kSide = int64_t(1) << 28;
  const bool factors = p.x.up == p.y.up && p.x.down == p.y.down && p.x.up * p.x.down <= 2;
  const bool taps = p.x.taps == kFirTaps && p.y.taps == kFirTaps;
  const bool sizes = p.x.in < kSide && p.y.in < kSide && p.x.out < kSide && p.y.out < kSide && p.c < kSide &&
                     p.n * p.c < kSide && p.x.pad0 < kSide && p.y.pad0 < kSide && p.x.pad0 > -kSide &&
                     p.y.pad0 > -kSide;
  if (sizeof(T) < sizeof(double) && factors && taps && sizes) {
    if (p.in_stride_w == 1 && p.out_stride_w == 1) return Upfirdn2dKernel::kFir4;
    bool vectors = p.in_stride_c == 1 && p.out_stride_c == 1;
    for (const int64_t offset : {p.c, p.in_stride_n, p.in_stride_h, p.in_stride_w, p.out_stride_n, p.out_stride_h,
                                 p.out_stride_w, int64_t(reinterpret_cast<uintptr_t>(x) / sizeof(T)),
                                 int64_t(reinterpret_cast<uintptr_t>(y) / sizeof(T))}) {
      vectors = vectors && offset % Pack<T>::kSize == 0;
    }
    if (vectors) return Upfirdn2dKernel::kFir4ChannelsLast;
  }
  return tiled_shape<T>(p).tile_w > 0 ? Upfirdn2dKernel::kTiled : Upfirdn2dKernel::kDirect;
}

// Calls launch(grid, block, shared_bytes, kernel, arguments...) once. max_grid_y bounds what the loop over planes leaves
// to the grid.
template <typename T, int kUp, int kDown, bool kSeparable, typename Launch>
void run_fir4(const T* x, const acc_t<T>* f, T* y, const Upfirdn2dParams& p, Upfirdn2dKernel kernel,
              const Upfirdn2dTiling& tiling, int64_t max_grid_y, const Launch& launch) {
  const int shift_x = fir_shift<kUp>(p.x), shift_y = fir_shift<kUp>(p.y);
  const int64_t out_w = p.x.out + shift_x, out_h = p.y.out + shift_y;
  const unsigned threads = 1u << tiling.threads_log2;
  const auto grid = [&](int64_t blocks_x, int64_t blocks_y) {
    return dim3{unsigned(blocks_x), unsigned(blocks_y < max_grid_y ? blocks_y : max_grid_y), 1};
  };
  if (kernel == Upfirdn2dKernel::kFir4ChannelsLast) {
    const int pixels = int(threads) >> tiling.lanes_log2;
    const int64_t chunks = ceil_div(p.c, int64_t(Pack<T>::kSize) << tiling.lanes_log2);
    const int64_t tiles_x = ceil_div(out_w, pixels * kUp);
    const Fir4ChannelsLastShape s{tiling.lanes_log2, int(chunks), int(tiles_x), shift_x, shift_y};
    launch(grid(tiles_x * ceil_div(out_h, kFirRows) * chunks, p.n), dim3{threads, 1, 1}, 0,
           upfirdn2d_fir4_channels_last<T, kUp, kDown, kSeparable>, x, f, y, p, s);
    return;
  }
  constexpr int kVector = Pack<T>::kSize;
  const int tile_threads_log2 = tiling.lanes_log2 + tiling.strips_log2;
  const int cols = kFirCols<T, kUp, kDown> << tiling.lanes_log2, rows = kFirRows << tiling.strips_log2;
  const int slots = int(threads) >> tile_threads_log2;
  Fir4Shape s;
  s.lanes_log2 = tiling.lanes_log2;
  s.strips_log2 = tiling.strips_log2;
  s.tiles_x = int(ceil_div(out_w, cols));
  s.in_rows = fir_span<kUp, kDown>(rows);
  s.row_vectors = int(ceil_div(fir_span<kUp, kDown>(cols) + kVector - 1, kVector));
  s.row_step = (1 << tile_threads_log2) / s.row_vectors;
  s.shift_x = shift_x;
  s.shift_y = shift_y;
  launch(grid(s.tiles_x * ceil_div(out_h, rows), ceil_div(p.n * p.c, slots)), dim3{threads, 1, 1},
         size_t(slots) * s.in_rows * s.row_vectors * sizeof(Pack<T>), upfirdn2d_fir4<T, kUp, kDown, kSeparable>, x, f, y,
         p, s);
}

template <typename T, typename Launch>
void run_upfirdn2d(const T* x, const acc_t<T>* f, T* y, const Upfirdn2dParams& p, Upfirdn2dKernel kernel,
                   const Upfirdn2dTiling& tiling, int64_t max_grid_y, const Launch& launch) {
  if (kernel == Upfirdn2dKernel::kTiled) {
    const TiledShape s = tiled_shape<T>(p);
    const int64_t planes = p.n * s.chunks;
    const int64_t values = s.taps + int64_t(s.in_h) * s.inner * (s.in_w + (p.separable ? s.tile_w : 0));
    const unsigned threads = 1u << tiling.threads_log2;
    const unsigned across = threads < 32 ? threads : 32;
    const dim3 grid{unsigned(s.tiles_x * ceil_div(p.y.out, s.tile_h)),
                    unsigned(planes < max_grid_y ? planes : max_grid_y), 1};
    launch(grid, dim3{across, threads / across, 1}, size_t(values) * sizeof(acc_t<T>),
           p.separable ? upfirdn2d_tiled<T, true> : upfirdn2d_tiled<T, false>, x, f, y, p, s);
    return;
  }
  if (kernel == Upfirdn2dKernel::kDirect) {
    const unsigned threads = 1u << tiling.threads_log2;
    const int64_t blocks = ceil_div(p.n * p.c * p.y.out * p.x.out, threads);
    launch(dim3{unsigned(blocks < kMaxGridY ? blocks : kMaxGridY), 1, 1}, dim3{threads, 1, 1}, 0, upfirdn2d_direct<T>, x,
           f, y, p);
    return;
  }
  if constexpr (sizeof(T) < sizeof(double)) {
    const auto run = [&](auto up, auto down) {
      if (p.separable) {
        run_fir4<T, up.value, down.value, true>(x, f, y, p, kernel, tiling, max_grid_y, launch);
      } else {
        run_fir4<T, up.value, down.value, false>(x, f, y, p, kernel, tiling, max_grid_y, launch);
      }
    };
    using One = std::integral_constant<int, 1>;
    using Two = std::integral_constant<int, 2>;
    if (p.x.up == 2) {
      run(Two{}, One{});
    } else if (p.x.down == 2) {
      run(One{}, Two{});
    } else {
      run(One{}, One{});
    }
  }
}

}  // namespace posgan_fast
