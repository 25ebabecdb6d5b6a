// The fir4 kernels of upfirdn2d, for StyleGAN2's filters: 4 x 4 taps, (up, down) of both axes (1, 1), (2, 1) or (1, 2).
// This file has what they share and the kernel for dense rows; upfirdn2d.cuh chooses and launches them. No torch;
// compiles for the host too (host_device.h).
//
// The kernels take an Epilogue, which finishes each value right before it is stored: NoEpilogue, or that of epilogue2d
// (epilogue2d_fir4.cuh).
#pragma once

#include <type_traits>

#include "host_device.h"
#include "upfirdn2d.h"

namespace posgan_fast {

constexpr int kFirTaps = 4;
constexpr int kMaxThreads = 256;  // of a block

// A fir4 thread slides down the image. Input row r contributes to the output rows o with 0 <= r * up - o * down < 4,
// which are kAccRows at a time; their sums stay in registers, those of output row o in accumulator acc_row(o). Rows are
// read in stages, after which this assignment repeats, so that every index is a constant.
template <int kUp, int kDown, bool kChannelsLast>
struct SlidingWindow {
  static constexpr int kAccRows = kDown == 2 ? 2 : 4;
  static constexpr int kStageIn = (kChannelsLast ? 4 : 8) / kUp;
  static constexpr int kStageOut = kStageIn * kUp / kDown;
  static_assert(kStageOut % kAccRows == 0);

  // The inputs under consecutive outputs, if the first tap of the first output meets a sample.
  static constexpr PF_HD_MEMBER int span(int outputs) { return ((outputs - 1) * kDown + kFirTaps - 1) / kUp + 1; }

  // The outputs that so many stages complete, in whole steps of kUp.
  static constexpr PF_HD_MEMBER int outputs(int stages) {
    return ((stages * kStageIn * kUp - kFirTaps) / kDown + 1) / kUp * kUp;
  }

  // How many outputs before 0 to start, so that the first tap of the first one meets a sample.
  static PF_HD_MEMBER int shift(const Axis& a) { return ((a.pad0 % kUp) + kUp) % kUp; }

  static constexpr PF_HD_MEMBER int tap(int r, int o) { return r * kUp - o * kDown; }
  static constexpr PF_HD_MEMBER bool meets(int r, int o) { return tap(r, o) >= 0 && tap(r, o) < kFirTaps; }
  static constexpr PF_HD_MEMBER bool first(int r, int o) { return tap(r, o) < kUp; }
  static constexpr PF_HD_MEMBER bool last(int r, int o) { return meets(r, o) && tap(r, o) + kUp >= kFirTaps; }
  static constexpr PF_HD_MEMBER int acc_row(int o) { return (o + kAccRows) % kAccRows; }
};

// 4 x 4 taps in registers, times gain. A 2-D filter that is an outer product, as those of StyleGAN2 are, is factored
// here and not on the host, which would have to wait for its values. That halves the arithmetic.
template <typename A>
struct FirTaps {
  A taps[kFirTaps * kFirTaps];  // if factored, the horizontal and then the vertical taps
  bool factored;

  PF_DEVICE void read(const A* f, bool separable, bool flip, A gain) {
    factored = true;
    if (separable) {
#pragma unroll
      for (int k = 0; k < kFirTaps; ++k) {
        taps[k] = f[tap_index(k, kFirTaps, flip)];
        taps[kFirTaps + k] = gain * taps[k];
      }
      return;
    }
#pragma unroll
    for (int k = 0; k < kFirTaps * kFirTaps; ++k) taps[k] = f[tap_index(k, kFirTaps * kFirTaps, flip)];
    const A pivot = taps[kFirTaps + 1];
    A across[kFirTaps], down[kFirTaps];
#pragma unroll
    for (int k = 0; k < kFirTaps; ++k) {
      across[k] = taps[kFirTaps + k] / pivot;
      down[k] = taps[k * kFirTaps + 1];
    }
#pragma unroll
    for (int ky = 0; ky < kFirTaps; ++ky) {
#pragma unroll
      for (int kx = 0; kx < kFirTaps; ++kx) {
        const A tap = taps[ky * kFirTaps + kx];
        const A error = down[ky] * across[kx] - tap;
        const A rounding = A(0x1p-22) * (tap < 0 ? -tap : tap);  // of quotient and product
        factored = factored && error <= rounding && -error <= rounding;
      }
    }
#pragma unroll
    for (int k = 0; k < kFirTaps * kFirTaps; ++k) taps[k] *= gain;
    if (!factored) return;
#pragma unroll
    for (int k = 0; k < kFirTaps; ++k) {
      taps[k] = across[k];
      taps[kFirTaps + k] = gain * down[k];
    }
  }
};

// Adds input row r of a stage to the output rows that it contributes to.
template <typename W, int kUp, int kDown, bool kFactored, int kCols, typename A>
PF_DEVICE void add_row(int r, const FirTaps<A>& fir, const A (&in)[W::span(kCols)], A (&acc)[W::kAccRows][kCols]) {
#pragma unroll
  for (int col = 0; col < kCols; ++col) {
    A across = 0;
    if constexpr (kFactored) {
#pragma unroll
      for (int k = 0; k < kFirTaps; ++k) {
        if ((col * kDown + k) % kUp == 0) across += fir.taps[k] * in[(col * kDown + k) / kUp];
      }
    }
#pragma unroll
    for (int o = 1 - W::kAccRows; o < W::kStageOut; ++o) {
      if (!W::meets(r, o)) continue;
      const int ky = W::tap(r, o);
      A& sum = acc[W::acc_row(o)][col];
      if (W::first(r, o)) sum = 0;
      if constexpr (kFactored) {
        sum += fir.taps[kFirTaps + ky] * across;
      } else {
#pragma unroll
        for (int k = 0; k < kFirTaps; ++k) {
          if ((col * kDown + k) % kUp == 0) sum += fir.taps[ky * kFirTaps + k] * in[(col * kDown + k) / kUp];
        }
      }
    }
  }
}

// The indices of a range that exist.
struct Range {
  int begin, count;
  PF_DEVICE bool contains(int i) const { return unsigned(i - begin) < unsigned(count); }
};

// Reads the noise of the outputs that row r of a stage completes, before their sums, so that the loads have time.
template <typename W, typename Epilogue, typename At, typename A, int kCols>
PF_DEVICE void read_noise(const Epilogue& epilogue, At at, int r, int first_out, int ox, const Range& rows,
                          const Range& columns, A (&noise)[W::kAccRows][kCols]) {
#pragma unroll
  for (int o = 1 - W::kAccRows; o < W::kStageOut; ++o) {
    if (!W::last(r, o)) continue;
#pragma unroll
    for (int col = 0; col < kCols; ++col) {
      if (rows.contains(first_out + o) && columns.contains(ox + col)) {
        noise[W::acc_row(o)][col] = epilogue.noise(at, col);
      }
    }
    at.next_row(columns.count);
  }
}

// The outputs of a fir4 thread side by side: both phases when upsampling, and two of half precision, which fill a bank
// of shared memory.
template <typename T, int kUp, int kDown>
constexpr int kFirCols = kUp == 2 || (kDown == 1 && sizeof(T) == 2) ? 2 : 1;
template <int kDown>
constexpr int kFirColsChannelsLast = kDown == 2 ? 1 : 2;
constexpr int kFirChannels = 4;

struct FirConfig {
  int inner_threads;  // of a block along a row (fir4) or along the channels (fir4_channels_last)
  int segment;        // outputs of a thread, one below the other
  int tiles_x;
  int channel_groups;  // fir4_channels_last
  int row_vectors;     // fir4: 16-byte vectors of a row in shared memory
  int shift_x, shift_y;
};

// Stores the filtered values as they are. An epilogue that finishes them has these functions as well.
struct NoEpilogue {
  // The factors of kCount neighbouring channels, and a pixel, which moves down the image.
  template <int kCount>
  struct At {
    PF_DEVICE void next_row(int64_t) {}
  };
  template <int kCount>
  PF_DEVICE At<kCount> begin(int64_t /*n*/, int64_t /*c*/, int64_t /*channels*/, int64_t /*pixel*/) const {
    return {};
  }
  // The noise `columns` beside the pixel. It is asked for well before finish() so that its load has time.
  template <int kCount>
  PF_DEVICE float noise(const At<kCount>&, int /*columns*/) const {
    return 0;
  }
  template <int kCount, typename A>
  PF_DEVICE A finish(const At<kCount>&, int /*channel*/, A /*noise*/, A v) const {
    return v;
  }
};

constexpr int kFirStages = 3;  // one is read while two arrive

// Every block slides down a segment of one plane, or of several narrow ones. Input rows are copied to a ring buffer in
// shared memory, 16 bytes at a time, whatever their alignment: a copied row starts at the aligned address at or before
// its first element, and readers add the difference. A thread filters each row horizontally in registers and adds it to
// the outputs that it contributes to.
template <typename T, int kUp, int kDown, typename Epilogue>
__global__ void __launch_bounds__(kMaxThreads, std::is_same_v<Epilogue, NoEpilogue> ? 3 : 2)
    upfirdn2d_fir4(const T* x, const acc_t<T>* f, T* y, Upfirdn2dParams p, FirConfig s, Epilogue epilogue) {
  using A = acc_t<T>;
  using W = SlidingWindow<kUp, kDown, false>;
  constexpr int kCols = kFirCols<T, kUp, kDown>;
  constexpr int kSpan = W::span(kCols);
  constexpr int kVector = kVectorSize<T>;
  PF_DYNAMIC_SHARED(raw);

  const int plane_in_block = int(threadIdx.x) / s.inner_threads;
  const int inner_thread = int(threadIdx.x) - plane_in_block * s.inner_threads;
  const int planes_per_block = int(blockDim.x) / s.inner_threads;
  const int pitch = s.row_vectors * kVector;
  T* const ring = reinterpret_cast<T*>(raw) + plane_in_block * (kFirStages * W::kStageIn * pitch);

  const int segment = int(blockIdx.x) / s.tiles_x;
  const int tile = int(blockIdx.x) - segment * s.tiles_x;
  const int out_x0 = tile * s.inner_threads * kCols - s.shift_x;
  const int out_y0 = segment * s.segment - s.shift_y;
  const int in_x0 = (out_x0 * kDown - p.x.pad0) / kUp;  // exact
  const int in_y0 = (out_y0 * kDown - p.y.pad0) / kUp;
  const int in_w = int(p.x.in), in_h = int(p.y.in);
  const int out_w = int(p.x.out), out_h = int(p.y.out);
  const int planes = int(p.n * p.c);
  const int in_stride = int(p.in_stride_h), out_stride = int(p.out_stride_h);
  const int rows_out = out_h - out_y0 < s.segment ? out_h - out_y0 : s.segment;
  const int rows_in = W::span(rows_out);
  const int stages = (rows_in + W::kStageIn - 1) / W::kStageIn;

  const int copy_row = inner_thread / s.row_vectors, copy_vector = inner_thread - copy_row * s.row_vectors;
  const int row_step = s.inner_threads / s.row_vectors, vector_step = s.inner_threads - row_step * s.row_vectors;

  const int ox = out_x0 + inner_thread * kCols;
  const int column = inner_thread * kCols * kDown / kUp;
  const Range out_rows{out_y0 < 0 ? -out_y0 : 0, rows_out - (out_y0 < 0 ? -out_y0 : 0)};
  const Range out_columns{0, out_w};

  FirTaps<A> fir;
  fir.read(f, p.separable, p.flip, A(p.gain));

  for (int first = int(blockIdx.y) * planes_per_block; first < planes; first += int(gridDim.y) * planes_per_block) {
    const int plane = first + plane_in_block;
    const bool active = plane < planes && plane_in_block < planes_per_block;
    const int n = plane / int(p.c), c = plane - n * int(p.c);
    const T* const in = x + n * p.in_stride_n + c * p.in_stride_c;
    // Elements between an aligned address and the first element of input row r: (skew + r * in_stride) % kVector.
    const unsigned skew =
        unsigned(reinterpret_cast<uintptr_t>(in) / sizeof(T)) + unsigned(in_y0) * unsigned(in_stride) + unsigned(in_x0);

    const auto load_stage = [&](int stage) {
      T* const to_stage = ring + stage % kFirStages * (W::kStageIn * pitch);
      const int first_row = stage * W::kStageIn;
      const int rows = rows_in - first_row < W::kStageIn ? rows_in - first_row : W::kStageIn;
      int r = copy_row, vector = copy_vector;
      while (active && r < rows) {
        T* const to = to_stage + r * pitch + vector * kVector;
        const int iy = in_y0 + first_row + r;
        const int ix =
            in_x0 + vector * kVector - int((skew + unsigned(first_row + r) * unsigned(in_stride)) & (kVector - 1));
        if (iy < 0 || iy >= in_h || ix <= -kVector || ix >= in_w) {
          store_vector(to, zero_vector<T, kVector>());
        } else {
          const T* const from = in + (int64_t(iy) * in_stride + ix);
          if (ix >= 0 && ix + kVector <= in_w) {
            copy16_async(to, from);
          } else {
#pragma unroll 1
            for (int e = 0; e < kVector; ++e) to[e] = ix + e >= 0 && ix + e < in_w ? from[e] : T{};
          }
        }
        r += row_step;
        vector += vector_step;
        if (vector >= s.row_vectors) vector -= s.row_vectors, ++r;
      }
      copy_commit();
    };

    A acc[W::kAccRows][kCols] = {};
    T* to = y + (n * p.out_stride_n + c * p.out_stride_c + int64_t(out_y0 + 1 - W::kAccRows) * out_stride + ox);
    auto at =
        epilogue.template begin<1>(active ? n : 0, active ? c : 0, p.c, int64_t(out_y0 + 1 - W::kAccRows) * out_w + ox);
    const bool paired = kCols == 2 && out_columns.contains(ox) && out_columns.contains(ox + 1) &&
                        (reinterpret_cast<uintptr_t>(to) / sizeof(T) | unsigned(out_stride)) % 2 == 0;

    const auto add_stage = [&](int stage, auto factored) {
      const T* const rows = ring + stage % kFirStages * (W::kStageIn * pitch) + column;
#pragma unroll
      for (int r = 0; r < W::kStageIn; ++r) {
        const unsigned offset = (skew + unsigned(stage * W::kStageIn + r) * unsigned(in_stride)) & (kVector - 1);
        const T* const row = rows + r * pitch + offset;
        A in_row[kSpan];
#pragma unroll
        for (int i = 0; i < kSpan; ++i) in_row[i] = to_acc(row[i]);
        A noise[W::kAccRows][kCols] = {};
        read_noise<W>(epilogue, at, r, stage * W::kStageOut, ox, out_rows, out_columns, noise);
        add_row<W, kUp, kDown, factored.value, kCols>(r, fir, in_row, acc);
#pragma unroll
        for (int o = 1 - W::kAccRows; o < W::kStageOut; ++o) {
          if (!W::last(r, o)) continue;
          if (out_rows.contains(stage * W::kStageOut + o)) {
            A value[kCols];
#pragma unroll
            for (int col = 0; col < kCols; ++col) {
              value[col] = epilogue.finish(at, 0, noise[W::acc_row(o)][col], acc[W::acc_row(o)][col]);
            }
            if constexpr (kCols == 2) {
              if (paired) store_vector(to, from_acc<T, 2>(value));
            }
#pragma unroll
            for (int col = 0; col < kCols; ++col) {
              if (!paired && out_columns.contains(ox + col)) from_acc(to + col, value[col]);
            }
          }
          to += out_stride;
          at.next_row(out_w);
        }
      }
    };

    load_stage(0);
    if (stages > 1) load_stage(1);
    for (int stage = 0; stage < stages; ++stage) {
      if (stage + 1 < stages) {
        copy_wait<1>();
      } else {
        copy_wait<0>();
      }
      __syncthreads();  // everybody's part of this stage is there, and everybody has read the one before
      if (stage + 2 < stages) load_stage(stage + 2);
      if (!active) continue;
      if (fir.factored) {
        add_stage(stage, std::true_type{});
      } else {
        add_stage(stage, std::false_type{});
      }
    }
    if (first + int(gridDim.y) * planes_per_block < planes) __syncthreads();  // the next planes reuse the ring
  }
}

}  // namespace posgan_fast
