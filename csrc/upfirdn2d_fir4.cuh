// The fir4 kernels of upfirdn2d: 4 x 4 taps, both axes at (up, down) in {(1, 1), (2, 1), (1, 2)}, which are
// StyleGAN2's. upfirdn2d.cuh chooses and launches them. No torch; compiles for the host too (host_device.h).
#pragma once

#include <type_traits>

#include "host_device.h"
#include "upfirdn2d.h"

namespace posgan_fast {

constexpr int kFirTaps = 4;
constexpr int kMaxThreads = 256;  // of a block

// How the fir4 kernels walk down the image. Input row r of a walk reaches outputs o with 0 <= r * up - o * down < 4,
// kLive of them at a time, so sums live in registers and rotate. Rows come in stages, after which the rotation repeats.
template <int kUp, int kDown, bool kChannelsLast>
struct Walk {
  static constexpr int kLive = kDown == 2 ? 2 : 4;
  static constexpr int kStageIn = (kChannelsLast ? 4 : 8) / kUp;
  static constexpr int kStageOut = kStageIn * kUp / kDown;
  static_assert(kStageOut % kLive == 0);

  // Inputs under consecutive outputs, the first of which meets a sample with its first tap.
  static constexpr PF_BOTH int span(int outputs) { return ((outputs - 1) * kDown + kFirTaps - 1) / kUp + 1; }

  // The most outputs, in whole steps of kUp, that so many stages complete.
  static constexpr PF_BOTH int outputs(int stages) {
    return ((stages * kStageIn * kUp - kFirTaps) / kDown + 1) / kUp * kUp;
  }

  // Outputs to start before 0 so that the first tap of the first one meets a sample.
  static PF_BOTH int shift(const Axis& a) { return ((a.pad0 % kUp) + kUp) % kUp; }

  static constexpr PF_BOTH int tap(int r, int o) { return r * kUp - o * kDown; }
  static constexpr PF_BOTH bool meets(int r, int o) { return tap(r, o) >= 0 && tap(r, o) < kFirTaps; }
  static constexpr PF_BOTH bool first(int r, int o) { return tap(r, o) < kUp; }
  static constexpr PF_BOTH bool last(int r, int o) { return meets(r, o) && tap(r, o) + kUp >= kFirTaps; }
  static constexpr PF_BOTH int slot(int o) { return (o + kLive) % kLive; }
};

// Four by four taps in registers, times gain. A 2-D filter that is an outer product, as those of StyleGAN2 are, is
// taken apart here, on the device, where its values are: half the arithmetic, and nobody has to wait for them.
template <typename A>
struct Fir {
  A taps[kFirTaps * kFirTaps];  // factored: horizontal taps, then vertical ones
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

// Adds input row r of a stage to the outputs it reaches. Every index is a constant once the loops are unrolled.
template <typename W, int kUp, int kDown, bool kFactored, int kCols, typename A>
PF_DEVICE void add_row(int r, const Fir<A>& fir, const A (&in)[W::span(kCols)], A (&acc)[W::kLive][kCols]) {
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
    for (int o = 1 - W::kLive; o < W::kStageOut; ++o) {
      if (!W::meets(r, o)) continue;
      const int ky = W::tap(r, o);
      A& sum = acc[W::slot(o)][col];
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

// Outputs a fir4 thread makes side by side: both phases when upsampling; two halves fill a bank of shared memory.
template <typename T, int kUp, int kDown>
constexpr int kFirCols = kUp == 2 || (kDown == 1 && sizeof(T) == 2) ? 2 : 1;
template <int kDown>
constexpr int kFirColsChannelsLast = kDown == 2 ? 1 : 2;
constexpr int kFirChannels = 4;

struct FirShape {
  int lanes;    // fir4: threads side by side in one plane; channels_last: threads side by side in channels
  int segment;  // outputs a thread makes, one below the other
  int tiles_x;
  int chunks;       // channels_last: groups of channels
  int row_vectors;  // fir4: 16-byte vectors per row in shared memory
  int shift_x, shift_y;
};

constexpr int kFirStages = 3;  // one being read while two arrive

// The part of an output column or row range that exists.
struct Range {
  int begin, count;
  PF_DEVICE bool contains(int i) const { return unsigned(i - begin) < unsigned(count); }
};

// Every block walks down a segment of one plane, or of several narrow ones. Input rows arrive in a ring in shared
// memory as they lie in memory, 16 bytes at a time, whatever their alignment: a row starts at the aligned address at or
// before its first element, and readers add the difference. A thread filters each row horizontally in registers and
// adds it to the outputs it reaches.
template <typename T, int kUp, int kDown>
__global__ void __launch_bounds__(kMaxThreads, 3)
    upfirdn2d_fir4(const T* x, const acc_t<T>* f, T* y, Upfirdn2dParams p, FirShape s) {
  using A = acc_t<T>;
  using W = Walk<kUp, kDown, false>;
  constexpr int kCols = kFirCols<T, kUp, kDown>;
  constexpr int kSpan = W::span(kCols);
  constexpr int kVector = kVectorSize<T>;
  PF_DYNAMIC_SHARED(raw);

  const int slot = int(threadIdx.x) / s.lanes;  // which plane of the block
  const int lane = int(threadIdx.x) - slot * s.lanes;
  const int slots = int(blockDim.x) / s.lanes;
  const int pitch = s.row_vectors * kVector;
  T* const ring = reinterpret_cast<T*>(raw) + slot * (kFirStages * W::kStageIn * pitch);

  const int segment = int(blockIdx.x) / s.tiles_x;
  const int tile = int(blockIdx.x) - segment * s.tiles_x;
  const int out_x0 = tile * s.lanes * kCols - s.shift_x;
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

  const int load_row = lane / s.row_vectors, load_vector = lane - load_row * s.row_vectors;
  const int row_step = s.lanes / s.row_vectors, vector_step = s.lanes - row_step * s.row_vectors;

  const int ox = out_x0 + lane * kCols;
  const int column = lane * kCols * kDown / kUp;
  const Range out_rows{out_y0 < 0 ? -out_y0 : 0, rows_out - (out_y0 < 0 ? -out_y0 : 0)};
  const Range out_columns{0, out_w};

  Fir<A> fir;
  fir.read(f, p.separable, p.flip, A(p.gain));

  for (int first = int(blockIdx.y) * slots; first < planes; first += int(gridDim.y) * slots) {
    const int plane = first + slot;
    const bool active = plane < planes && slot < slots;
    const int n = plane / int(p.c), c = plane - n * int(p.c);
    const T* const in = x + n * p.in_stride_n + c * p.in_stride_c;
    // Elements between an aligned address and the first element of input row r: (skew + r * in_stride) % kVector.
    const unsigned skew =
        unsigned(reinterpret_cast<uintptr_t>(in) / sizeof(T)) + unsigned(in_y0) * unsigned(in_stride) + unsigned(in_x0);

    const auto load_stage = [&](int stage) {
      T* const to_stage = ring + stage % kFirStages * (W::kStageIn * pitch);
      const int first_row = stage * W::kStageIn;
      const int rows = rows_in - first_row < W::kStageIn ? rows_in - first_row : W::kStageIn;
      int r = load_row, vector = load_vector;
      while (active && r < rows) {
        T* const to = to_stage + r * pitch + vector * kVector;
        const int iy = in_y0 + first_row + r;
        const int ix =
            in_x0 + vector * kVector - int((skew + unsigned(first_row + r) * unsigned(in_stride)) & (kVector - 1));
        if (iy < 0 || iy >= in_h || ix <= -kVector || ix >= in_w) {
          store_pack(to, zero_pack<T, kVector>());
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

    A acc[W::kLive][kCols] = {};
    T* to = y + (n * p.out_stride_n + c * p.out_stride_c + int64_t(out_y0 + 1 - W::kLive) * out_stride + ox);
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
        for (int i = 0; i < kSpan; ++i) in_row[i] = widen(row[i]);
        add_row<W, kUp, kDown, factored.value, kCols>(r, fir, in_row, acc);
#pragma unroll
        for (int o = 1 - W::kLive; o < W::kStageOut; ++o) {
          if (!W::last(r, o)) continue;
          if (out_rows.contains(stage * W::kStageOut + o)) {
            const A(&value)[kCols] = acc[W::slot(o)];
            if constexpr (kCols == 2) {
              if (paired) store_pack(to, narrow<T, 2>(value));
            }
#pragma unroll
            for (int col = 0; col < kCols; ++col) {
              if (!paired && out_columns.contains(ox + col)) narrow(to + col, value[col]);
            }
          }
          to += out_stride;
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
    if (first + int(gridDim.y) * slots < planes) __syncthreads();  // the next planes reuse the ring
  }
}

// A thread owns four channels of neighbouring columns and walks down a segment. The pixels that its neighbours read as
// well come from the L1 cache; nothing is shared, so nothing is synchronised.
template <typename T, int kUp, int kDown>
__global__ void __launch_bounds__(kMaxThreads, 2)
    upfirdn2d_fir4_channels_last(const T* x, const acc_t<T>* f, T* y, Upfirdn2dParams p, FirShape s) {
  using A = acc_t<T>;
  using W = Walk<kUp, kDown, true>;
  constexpr int kCols = kFirColsChannelsLast<kDown>;
  constexpr int kSpan = W::span(kCols);

  const int pixel = int(threadIdx.x) / s.lanes;
  const int lane = int(threadIdx.x) - pixel * s.lanes;
  const int pixels = int(blockDim.x) / s.lanes;
  const int tile = int(blockIdx.x) / s.chunks;
  const int chunk = int(blockIdx.x) - tile * s.chunks;
  const int segment = tile / s.tiles_x;
  const int tile_x = tile - segment * s.tiles_x;

  const int channel = (chunk * s.lanes + lane) * kFirChannels;
  const int ox = (tile_x * pixels + pixel) * kCols - s.shift_x;
  const int out_y0 = segment * s.segment - s.shift_y;
  const int ix = (ox * kDown - p.x.pad0) / kUp;  // exact
  const int in_y0 = (out_y0 * kDown - p.y.pad0) / kUp;
  const int out_w = int(p.x.out), out_h = int(p.y.out);
  const int rows_out = out_h - out_y0 < s.segment ? out_h - out_y0 : s.segment;
  const int rows_in = W::span(rows_out);
  const int in_stride = int(p.in_stride_w), out_stride = int(p.out_stride_w);
  const Range in_rows{0, int(p.y.in)}, in_columns{0, int(p.x.in)};
  const Range out_rows{out_y0 < 0 ? -out_y0 : 0, rows_out - (out_y0 < 0 ? -out_y0 : 0)};
  const Range out_columns{0, out_w};
  if (pixel >= pixels || channel >= p.c || ox >= out_w) return;

  Fir<A> fir;
  fir.read(f, p.separable, p.flip, A(p.gain));

  for (int64_t n = blockIdx.y; n < p.n; n += gridDim.y) {
    int64_t from = n * p.in_stride_n + in_y0 * p.in_stride_h + ix * p.in_stride_w + channel;
    int64_t at = n * p.out_stride_n + (out_y0 + 1 - W::kLive) * p.out_stride_h + ox * p.out_stride_w + channel;
    A acc[kFirChannels][W::kLive][kCols] = {};

    const auto add_stage = [&](int stage, auto factored) {
#pragma unroll
      for (int r = 0; r < W::kStageIn; ++r) {
        const int row = stage * W::kStageIn + r;
        const bool exists = row < rows_in && in_rows.contains(in_y0 + row);
        A in[kSpan][kFirChannels];
#pragma unroll
        for (int i = 0; i < kSpan; ++i) {
          Pack<T, kFirChannels> pack = zero_pack<T, kFirChannels>();
          if (exists && in_columns.contains(ix + i)) {
            pack = load_pack<kFirChannels>(x + (from + i * in_stride));
          }
          widen(pack, in[i]);
        }
        from += p.in_stride_h;
#pragma unroll
        for (int e = 0; e < kFirChannels; ++e) {
          A in_row[kSpan];
#pragma unroll
          for (int i = 0; i < kSpan; ++i) in_row[i] = in[i][e];
          add_row<W, kUp, kDown, factored.value, kCols>(r, fir, in_row, acc[e]);
        }
#pragma unroll
        for (int o = 1 - W::kLive; o < W::kStageOut; ++o) {
          if (!W::last(r, o)) continue;
          if (out_rows.contains(stage * W::kStageOut + o)) {
#pragma unroll
            for (int col = 0; col < kCols; ++col) {
              if (!out_columns.contains(ox + col)) continue;
              A value[kFirChannels];
#pragma unroll
              for (int e = 0; e < kFirChannels; ++e) value[e] = acc[e][W::slot(o)][col];
              store_pack(y + (at + col * out_stride), narrow<T, kFirChannels>(value));
            }
          }
          at += p.out_stride_h;
        }
      }
    };

    if (fir.factored) {
      for (int stage = 0; stage * W::kStageIn < rows_in; ++stage) add_stage(stage, std::true_type{});
    } else {
      for (int stage = 0; stage * W::kStageIn < rows_in; ++stage) add_stage(stage, std::false_type{});
    }
  }
}

}  // namespace posgan_fast
