// The CUDA kernels of upfirdn2d and their launch configurations. No torch; compiles for the host too (host_device.h).
//
// fir4 has StyleGAN2's filters and factors (upfirdn2d_fir4.cuh) and dense rows.
// fir4_channels_last is the same with channels innermost, four channels per thread.
// tiled has any strides, dtype, factors and taps whose tile fits into shared memory.
// direct has everything else.
#pragma once

#include "launch_overrides.h"
#include "upfirdn2d.h"
#include "upfirdn2d_fir4_channels_last.cuh"

namespace posgan_fast {

enum class Upfirdn2dKernel : int { kFir4, kFir4ChannelsLast, kTiled, kDirect };  // in the order of LaunchKernel

constexpr int64_t kSharedLimit = 48 * 1024;  // a block gets so much without opting in
constexpr int64_t kMaxGridY = 65535;

struct TileConfig {
  int tile_w, tile_h;  // outputs
  int inner;           // channels of a tile, innermost
  int64_t channel_groups;
  int in_w, in_h;
  int tiles_x;
  int taps;  // in shared memory
};

// An output of a tile: the first input under it, counted from that of the tile, and the tap that meets this input.
struct TilePhase {
  int in, tap;
};

PF_DEVICE TilePhase tile_phase(const Axis& a, int start, int o) {
  const int base = start + o * a.down;  // start in (-up, 0]
  const int in = base > 0 ? (base + a.up - 1) / a.up : 0;
  return {in, in * a.up - base};
}

// The tile of a block: shared memory, and the phases of its first output.
template <typename A>
struct Tile {
  A *taps, *in, *rows;  // in is the input, rows the input after the row pass of a separable filter
  int in_pitch, out_pitch;
  Phase x, y;
};

// Copies the input under a tile to shared memory; channels_left channels exist from the first one of the tile on.
template <typename T>
PF_DEVICE void load_tile(const Tile<acc_t<T>>& tile, const T* in, int64_t channels_left, const Upfirdn2dParams& p,
                         const TileConfig& s) {
  using A = acc_t<T>;
  for (int r = int(threadIdx.y); r < s.in_h; r += int(blockDim.y)) {
    const int64_t iy = tile.y.first_in + r;
    for (int e = int(threadIdx.x); e < tile.in_pitch; e += int(blockDim.x)) {
      const int column = e / s.inner, channel = e - column * s.inner;
      const int64_t ix = tile.x.first_in + column;
      const bool exists = iy >= 0 && iy < p.y.in && ix >= 0 && ix < p.x.in && channel < channels_left;
      tile.in[r * tile.in_pitch + e] =
          exists ? to_acc(in[iy * p.in_stride_h + ix * p.in_stride_w + channel * p.in_stride_c]) : A(0);
    }
  }
}

template <typename A>
PF_DEVICE void filter_tile_rows(const Tile<A>& tile, const Upfirdn2dParams& p, const TileConfig& s) {
  for (int e = int(threadIdx.x); e < tile.out_pitch; e += int(blockDim.x)) {
    const int column = e / s.inner, channel = e - column * s.inner;
    const TilePhase at = tile_phase(p.x, -tile.x.first_tap, column);
    for (int r = int(threadIdx.y); r < s.in_h; r += int(blockDim.y)) {
      const A* sample = tile.in + r * tile.in_pitch + at.in * s.inner + channel;
      A sum = 0;
      for (int k = at.tap; k < p.x.taps; k += p.x.up, sample += s.inner) sum += tile.taps[k] * *sample;
      tile.rows[r * tile.out_pitch + e] = sum;
    }
  }
}

// The sum over all taps of output e of a row, or over the vertical ones after the row pass.
template <bool kSeparable, typename A>
PF_DEVICE A filter_tile(const Tile<A>& tile, const TilePhase& at_y, int e, int column, int channel,
                        const Upfirdn2dParams& p, const TileConfig& s) {
  A sum = 0;
  if constexpr (kSeparable) {
    const A* sample = tile.rows + at_y.in * tile.out_pitch + e;
    for (int k = at_y.tap; k < p.y.taps; k += p.y.up, sample += tile.out_pitch) sum += tile.taps[k] * *sample;
  } else {
    const TilePhase at_x = tile_phase(p.x, -tile.x.first_tap, column);
    const A* row = tile.in + at_y.in * tile.in_pitch + at_x.in * s.inner + channel;
    for (int ky = at_y.tap; ky < p.y.taps; ky += p.y.up, row += tile.in_pitch) {
      const A* sample = row;
      for (int kx = at_x.tap; kx < p.x.taps; kx += p.x.up, sample += s.inner) {
        sum += tile.taps[ky * p.x.taps + kx] * *sample;
      }
    }
  }
  return sum;
}

// Each block copies its input tile to shared memory. A separable filter is applied along the rows, into shared memory,
// then along the columns; others are applied at once.
template <typename T, bool kSeparable>
__global__ void __launch_bounds__(kMaxThreads)
    upfirdn2d_tiled(const T* x, const acc_t<T>* f, T* y, Upfirdn2dParams p, TileConfig s) {
  using A = acc_t<T>;
  PF_DYNAMIC_SHARED(raw);
  const int tile_y = int(blockIdx.x) / s.tiles_x;
  const int tile_x = int(blockIdx.x) - tile_y * s.tiles_x;
  const int64_t ox = int64_t(tile_x) * s.tile_w, oy = int64_t(tile_y) * s.tile_h;
  const int in_pitch = s.in_w * s.inner;
  A* const taps = reinterpret_cast<A*>(raw);
  A* const samples = taps + s.taps;
  const Tile<A> tile = {
      taps, samples, samples + s.in_h * in_pitch, in_pitch, s.tile_w * s.inner, phase_of(p.x, ox), phase_of(p.y, oy)};

  for (int k = int(threadIdx.y * blockDim.x + threadIdx.x); k < s.taps; k += int(blockDim.x * blockDim.y)) {
    taps[k] = f[tap_index(k, s.taps, p.flip)];
  }

  for (int64_t plane = blockIdx.y; plane < p.n * s.channel_groups; plane += gridDim.y) {
    const int64_t n = plane / s.channel_groups;
    const int64_t first_channel = (plane - n * s.channel_groups) * s.inner;
    T* const out = y + n * p.out_stride_n + first_channel * p.out_stride_c;
    load_tile(tile, x + n * p.in_stride_n + first_channel * p.in_stride_c, p.c - first_channel, p, s);
    __syncthreads();
    if constexpr (kSeparable) {
      filter_tile_rows(tile, p, s);
      __syncthreads();
    }
    for (int r = int(threadIdx.y); r < s.tile_h; r += int(blockDim.y)) {
      const TilePhase at_y = tile_phase(p.y, -tile.y.first_tap, r);
      for (int e = int(threadIdx.x); e < tile.out_pitch; e += int(blockDim.x)) {
        const int column = e / s.inner, channel = e - column * s.inner;
        if (oy + r >= p.y.out || ox + column >= p.x.out || first_channel + channel >= p.c) continue;
        T* const to = out + (oy + r) * p.out_stride_h + (ox + column) * p.out_stride_w + channel * p.out_stride_c;
        from_acc(to, A(p.gain) * filter_tile<kSeparable>(tile, at_y, e, column, channel, p, s));
      }
    }
    if (!kSeparable && plane + gridDim.y < p.n * s.channel_groups) __syncthreads();  // the next tile replaces this one
  }
}

// Each thread computes one output straight from global memory.
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
#pragma unroll 1
    for (int j = 0; j < py.taps; ++j) {
      const int64_t iy = py.first_in + j;
      if (iy < 0 || iy >= p.y.in) continue;
      const int ky = tap_index(py.first_tap + j * p.y.up, p.y.taps, p.flip);
      A across = 0;
#pragma unroll 1
      for (int i_tap = 0; i_tap < px.taps; ++i_tap) {
        const int64_t ix = px.first_in + i_tap;
        if (ix < 0 || ix >= p.x.in) continue;
        const int kx = tap_index(px.first_tap + i_tap * p.x.up, p.x.taps, p.flip);
        const A tap = p.separable ? f[kx] : f[int64_t(ky) * p.x.taps + kx];
        across += tap * to_acc(in[iy * p.in_stride_h + ix * p.in_stride_w]);
      }
      sum += p.separable ? f[ky] * across : across;
    }
    from_acc(y + n * p.out_stride_n + c * p.out_stride_c + oy * p.out_stride_h + ox * p.out_stride_w, A(p.gain) * sum);
  }
}

// Finds a tile that fits into shared memory; tile_w is 0 if not even that of one output does.
template <typename T>
TileConfig tile_config(const Upfirdn2dParams& p) {
  constexpr int64_t kReach = int64_t(1) << 30;  // indices inside a tile are ints
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
      return {int(w),   int(h), int(inner), ceil_div(p.c, inner), int(in_w), int(in_h), int(ceil_div(p.x.out, w)),
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
  const bool factors = p.x.up == p.y.up && p.x.down == p.y.down && int64_t(p.x.up) * p.x.down <= 2;
  const bool taps = p.x.taps == kFirTaps && p.y.taps == kFirTaps;
  bool sizes = p.n < kSide && p.n * p.c < kSide;
  for (const Axis& a : {p.x, p.y}) sizes = sizes && a.in < kSide && a.out < kSide && a.pad0 < kSide && a.pad0 > -kSide;
  for (const int64_t stride : {p.in_stride_h, p.in_stride_w, p.out_stride_h, p.out_stride_w}) {
    sizes = sizes && stride < kSide;
  }
  if (sizeof(T) < sizeof(double) && factors && taps && sizes) {
    if (p.in_stride_w == 1 && p.out_stride_w == 1) return Upfirdn2dKernel::kFir4;
    bool vectors = p.in_stride_c == 1 && p.out_stride_c == 1;
    for (const int64_t offset :
         {p.c, p.in_stride_n, p.in_stride_h, p.in_stride_w, p.out_stride_n, p.out_stride_h, p.out_stride_w,
          int64_t(reinterpret_cast<uintptr_t>(x) / sizeof(T)), int64_t(reinterpret_cast<uintptr_t>(y) / sizeof(T))}) {
      vectors = vectors && offset % kFirChannels == 0;
    }
    if (vectors) return Upfirdn2dKernel::kFir4ChannelsLast;
  }
  return tile_config<T>(p).tile_w > 0 ? Upfirdn2dKernel::kTiled : Upfirdn2dKernel::kDirect;
}

struct Upfirdn2dTiling {
  int threads;             // of a block
  int max_inner_threads;   // of a block along a row (fir4) or along the channels (fir4_channels_last)
  int min_rows, max_rows;  // outputs of a fir4 thread, one below the other
  int resident_threads;    // of the device at once
};

struct Upfirdn2dTableRow {
  int sm;  // from this compute capability on
  Upfirdn2dKernel kernel;
  int width;  // from this output width on
  Upfirdn2dTiling tiling;
  const char* measured;
};

// The launch table, most specific row last. By their registers a multiprocessor holds 768 threads of fir4 and 512 of
// fir4_channels_last; A100, H100 and B200 have 108, 132 and 148 of them.
constexpr Upfirdn2dTableRow kUpfirdn2dTable[] = {
    // sm, kernel, width, {threads, max_inner_threads, min_rows, max_rows, resident_threads}, where measured
    {0, Upfirdn2dKernel::kFir4, 0, {128, 32, 8, 32, 108 * 768}, "not yet measured"},
    {0, Upfirdn2dKernel::kFir4, 33, {128, 192, 16, 64, 108 * 768}, "not yet measured"},
    {0, Upfirdn2dKernel::kFir4ChannelsLast, 0, {128, 16, 4, 64, 108 * 512}, "not yet measured"},
    {0, Upfirdn2dKernel::kTiled, 0, {256, 0, 0, 0, 0}, "not yet measured"},
    {0, Upfirdn2dKernel::kDirect, 0, {256, 0, 0, 0, 0}, "not yet measured"},
    {90, Upfirdn2dKernel::kFir4, 0, {128, 32, 8, 32, 132 * 768}, "not yet measured"},
    {90, Upfirdn2dKernel::kFir4, 33, {128, 192, 16, 64, 132 * 768}, "not yet measured"},
    {90, Upfirdn2dKernel::kFir4ChannelsLast, 0, {128, 16, 4, 64, 132 * 512}, "not yet measured"},
    {100, Upfirdn2dKernel::kFir4, 0, {128, 32, 8, 32, 148 * 768}, "not yet measured"},
    {100, Upfirdn2dKernel::kFir4, 33, {128, 192, 16, 64, 148 * 768}, "not yet measured"},
    {100, Upfirdn2dKernel::kFir4ChannelsLast, 0, {128, 16, 4, 64, 148 * 512}, "not yet measured"},
};

inline Upfirdn2dTiling upfirdn2d_tiling(int sm, Upfirdn2dKernel kernel, const Upfirdn2dParams& p) {
  const std::vector<int>& instead = launch_overrides().of(LaunchKernel(kernel));
  if (instead.size() == 5) return {instead[0], instead[1], instead[2], instead[3], instead[4]};
  if (!instead.empty()) return {instead[0], 0, 0, 0, 0};
  Upfirdn2dTiling found{};
  for (const Upfirdn2dTableRow& row : kUpfirdn2dTable) {
    if (row.kernel == kernel && sm >= row.sm && p.x.out >= row.width) found = row.tiling;
  }
  return found;
}

// The threads for a row of `columns`, chosen so that few of them idle. Where the row is narrow, a block has several
// planes.
inline int fir_inner_threads(int64_t columns, const Upfirdn2dTiling& t) {
  int best = t.max_inner_threads;
  for (int threads = 8; threads <= 32 && threads < t.max_inner_threads; threads *= 2) {
    if (columns <= threads) return threads;
  }
  for (int threads = t.max_inner_threads; threads >= 64; threads -= 32) {
    if (ceil_div(columns, threads) * threads < ceil_div(columns, best) * best) best = threads;
  }
  return best;
}

// The outputs of a thread, one below the other, that take the least time. A block takes as long as the rows that it
// reads and some more to start; the device runs blocks in waves of as many as it holds. There are `columns` blocks for
// each segment of rows.
template <typename W, int kUp>
int fir_segment(int64_t rows, int64_t columns, int threads, const Upfirdn2dTiling& t) {
  constexpr int64_t kStart = 8, kTries = 16;
  const int64_t resident = t.resident_threads > threads ? t.resident_threads / threads : 1;
  const int64_t fewest = ceil_div(rows, t.max_rows), most = ceil_div(rows, t.min_rows);
  int64_t best_time = INT64_MAX, best_stages = 1;
  for (int64_t segments = fewest; segments <= most && segments < fewest + kTries; ++segments) {
    const int64_t height = ceil_div(ceil_div(rows, segments), kUp) * kUp;
    const int64_t stages = ceil_div(W::span(int(height)), W::kStageIn);
    const int64_t time = ceil_div(columns * segments, resident) * (stages * W::kStageIn + kStart);
    if (time < best_time) best_time = time, best_stages = stages;
  }
  return W::outputs(int(best_stages));
}

inline dim3 grid_of(int64_t x, int64_t y, int64_t max_y) { return {unsigned(x), unsigned(y < max_y ? y : max_y), 1}; }

// The functions below call launch(grid, block, shared_bytes, kernel, arguments...).
template <typename T, int kUp, int kDown, typename Epilogue, typename Launch>
void run_fir4(const T* x, const acc_t<T>* f, T* y, const Upfirdn2dParams& p, const Epilogue& epilogue,
              const Upfirdn2dTiling& t, int64_t max_grid_y, const Launch& launch) {
  using W = SlidingWindow<kUp, kDown, false>;
  constexpr int kCols = kFirCols<T, kUp, kDown>;
  FirConfig s{};
  s.shift_x = W::shift(p.x);
  s.shift_y = W::shift(p.y);
  const int64_t columns = ceil_div(p.x.out + s.shift_x, kCols), rows = p.y.out + s.shift_y;
  s.inner_threads = fir_inner_threads(columns, t);
  s.row_vectors = int(ceil_div(W::span(s.inner_threads * kCols) + kVectorSize<T> - 1, kVectorSize<T>));
  const int64_t plane_bytes = int64_t(kFirStages) * W::kStageIn * s.row_vectors * 16;
  int threads = 2 * s.inner_threads > t.threads ? s.inner_threads : t.threads;
  while (threads / s.inner_threads * plane_bytes > kSharedLimit) threads -= 32;
  const int planes_per_block = threads / s.inner_threads;
  const int64_t deep = ceil_div(p.n * p.c, planes_per_block);
  s.tiles_x = int(ceil_div(columns, s.inner_threads));
  s.segment = fir_segment<W, kUp>(rows, s.tiles_x * deep, threads, t);
  launch(grid_of(s.tiles_x * ceil_div(rows, s.segment), deep, max_grid_y), dim3{unsigned(threads), 1, 1},
         size_t(planes_per_block * plane_bytes), upfirdn2d_fir4<T, kUp, kDown, Epilogue>, x, f, y, p, s, epilogue);
}

template <typename T, int kUp, int kDown, typename Epilogue, typename Launch>
void run_fir4_channels_last(const T* x, const acc_t<T>* f, T* y, const Upfirdn2dParams& p, const Epilogue& epilogue,
                            const Upfirdn2dTiling& t, int64_t max_grid_y, const Launch& launch) {
  using W = SlidingWindow<kUp, kDown, true>;
  FirConfig s{};
  s.shift_x = W::shift(p.x);
  s.shift_y = W::shift(p.y);
  const int64_t columns = ceil_div(p.x.out + s.shift_x, kFirColsChannelsLast<kDown>), rows = p.y.out + s.shift_y;
  const int64_t vectors = p.c / kFirChannels;
  s.inner_threads = int(vectors < t.max_inner_threads ? vectors : t.max_inner_threads);
  s.channel_groups = int(ceil_div(vectors, s.inner_threads));
  s.tiles_x = int(ceil_div(columns, t.threads / s.inner_threads));
  s.segment = fir_segment<W, kUp>(rows, int64_t(s.tiles_x) * s.channel_groups * p.n, t.threads, t);
  launch(grid_of(int64_t(s.tiles_x) * s.channel_groups * ceil_div(rows, s.segment), p.n, max_grid_y),
         dim3{unsigned(t.threads), 1, 1}, size_t(0), upfirdn2d_fir4_channels_last<T, kUp, kDown, Epilogue>, x, f, y, p,
         s, epilogue);
}

template <typename T, int kUp, int kDown, typename Epilogue, typename Launch>
void run_fir4_either(const T* x, const acc_t<T>* f, T* y, const Upfirdn2dParams& p, const Epilogue& epilogue,
                     Upfirdn2dKernel kernel, const Upfirdn2dTiling& t, int64_t max_grid_y, const Launch& launch) {
  if (kernel == Upfirdn2dKernel::kFir4) {
    run_fir4<T, kUp, kDown>(x, f, y, p, epilogue, t, max_grid_y, launch);
  } else {
    run_fir4_channels_last<T, kUp, kDown>(x, f, y, p, epilogue, t, max_grid_y, launch);
  }
}

// Runs fir4 or fir4_channels_last.
template <typename T, typename Epilogue, typename Launch>
void run_fir4_kernels(const T* x, const acc_t<T>* f, T* y, const Upfirdn2dParams& p, const Epilogue& epilogue,
                      Upfirdn2dKernel kernel, const Upfirdn2dTiling& t, int64_t max_grid_y, const Launch& launch) {
  if (p.x.up == 2) {
    run_fir4_either<T, 2, 1>(x, f, y, p, epilogue, kernel, t, max_grid_y, launch);
  } else if (p.x.down == 2) {
    run_fir4_either<T, 1, 2>(x, f, y, p, epilogue, kernel, t, max_grid_y, launch);
  } else {
    run_fir4_either<T, 1, 1>(x, f, y, p, epilogue, kernel, t, max_grid_y, launch);
  }
}

template <typename T, typename Launch>
void run_upfirdn2d(const T* x, const acc_t<T>* f, T* y, const Upfirdn2dParams& p, Upfirdn2dKernel kernel,
                   const Upfirdn2dTiling& t, int64_t max_grid_y, const Launch& launch) {
  const unsigned threads = unsigned(t.threads);
  if (kernel == Upfirdn2dKernel::kTiled) {
    const TileConfig s = tile_config<T>(p);
    const int64_t values = s.taps + int64_t(s.in_h) * s.inner * (s.in_w + (p.separable ? s.tile_w : 0));
    const unsigned across = threads >= 64 ? 32 : threads / 2;
    launch(grid_of(s.tiles_x * ceil_div(p.y.out, s.tile_h), p.n * s.channel_groups, max_grid_y),
           dim3{across, threads / across, 1}, size_t(values) * sizeof(acc_t<T>),
           p.separable ? upfirdn2d_tiled<T, true> : upfirdn2d_tiled<T, false>, x, f, y, p, s);
    return;
  }
  if (kernel == Upfirdn2dKernel::kDirect) {
    const int64_t blocks = ceil_div(p.n * p.c * p.y.out * p.x.out, threads);
    launch(dim3{unsigned(blocks < (1 << 30) ? blocks : 1 << 30), 1, 1}, dim3{threads, 1, 1}, size_t(0),
           upfirdn2d_direct<T>, x, f, y, p);
    return;
  }
  if constexpr (sizeof(T) < sizeof(double)) {
    run_fir4_kernels(x, f, y, p, NoEpilogue{}, kernel, t, max_grid_y, launch);
  }
}

}  // namespace posgan_fast
