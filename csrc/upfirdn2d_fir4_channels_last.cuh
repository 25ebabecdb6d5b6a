// The kernel fir4_channels_last of upfirdn2d: the filters and factors of upfirdn2d_fir4.cuh, channels innermost. No
// torch; compiles for the host too (host_device.h).
#pragma once

#include "upfirdn2d_fir4.cuh"

namespace posgan_fast {

// A thread slides down a segment of neighbouring columns of four channels. Its neighbours read the same pixels, which
// the L1 cache holds, so there is no shared memory and no barrier.
template <typename T, int kUp, int kDown, typename Epilogue>
__global__ void __launch_bounds__(kMaxThreads, 2)
    upfirdn2d_fir4_channels_last(const T* x, const acc_t<T>* f, T* y, Upfirdn2dParams p, FirConfig s,
                                 Epilogue epilogue) {
  using A = acc_t<T>;
  using W = SlidingWindow<kUp, kDown, true>;
  constexpr int kCols = kFirColsChannelsLast<kDown>;
  constexpr int kSpan = W::span(kCols);

  const int pixel = int(threadIdx.x) / s.inner_threads;
  const int inner_thread = int(threadIdx.x) - pixel * s.inner_threads;
  const int pixels = int(blockDim.x) / s.inner_threads;
  const int tile = int(blockIdx.x) / s.channel_groups;
  const int channel_group = int(blockIdx.x) - tile * s.channel_groups;
  const int segment = tile / s.tiles_x;
  const int tile_x = tile - segment * s.tiles_x;

  const int channel = (channel_group * s.inner_threads + inner_thread) * kFirChannels;
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

  FirTaps<A> fir;
  fir.read(f, p.separable, p.flip, A(p.gain));

  for (int64_t n = blockIdx.y; n < p.n; n += gridDim.y) {
    int64_t from = n * p.in_stride_n + in_y0 * p.in_stride_h + ix * p.in_stride_w + channel;
    int64_t to = n * p.out_stride_n + (out_y0 + 1 - W::kAccRows) * p.out_stride_h + ox * p.out_stride_w + channel;
    auto at = epilogue.template begin<kFirChannels>(n, channel, p.c, int64_t(out_y0 + 1 - W::kAccRows) * out_w + ox);
    A acc[kFirChannels][W::kAccRows][kCols] = {};

    // The vectors of an input row, those of the next one while the current one is added: memory is never idle while
    // this thread computes. Filters that are no outer products have sixteen taps in registers, which leaves no room for
    // that.
    AlignedVector<T, kFirChannels> next[kSpan];
    const auto load_row = [&](int row) {
      const bool exists = row < rows_in && in_rows.contains(in_y0 + row);
#pragma unroll
      for (int i = 0; i < kSpan; ++i) {
        next[i] = zero_vector<T, kFirChannels>();
        if (exists && in_columns.contains(ix + i)) next[i] = load_vector<kFirChannels>(x + (from + i * in_stride));
      }
      from += p.in_stride_h;
    };

    const auto add_stage = [&](int stage, auto factored) {
#pragma unroll
      for (int r = 0; r < W::kStageIn; ++r) {
        const int row = stage * W::kStageIn + r;
        if constexpr (!factored.value) load_row(row);
        A in[kSpan][kFirChannels];
#pragma unroll
        for (int i = 0; i < kSpan; ++i) to_acc(next[i], in[i]);
        if constexpr (factored.value) load_row(row + 1);
        A noise[W::kAccRows][kCols] = {};
        read_noise<W>(epilogue, at, r, stage * W::kStageOut, ox, out_rows, out_columns, noise);
#pragma unroll
        for (int e = 0; e < kFirChannels; ++e) {
          A in_row[kSpan];
#pragma unroll
          for (int i = 0; i < kSpan; ++i) in_row[i] = in[i][e];
          add_row<W, kUp, kDown, factored.value, kCols>(r, fir, in_row, acc[e]);
        }
#pragma unroll
        for (int o = 1 - W::kAccRows; o < W::kStageOut; ++o) {
          if (!W::last(r, o)) continue;
          if (out_rows.contains(stage * W::kStageOut + o)) {
#pragma unroll
            for (int col = 0; col < kCols; ++col) {
              if (!out_columns.contains(ox + col)) continue;
              A value[kFirChannels];
#pragma unroll
              for (int e = 0; e < kFirChannels; ++e) {
                value[e] = epilogue.finish(at, e, noise[W::acc_row(o)][col], acc[e][W::acc_row(o)][col]);
              }
              store_vector(y + (to + col * out_stride), from_acc<T, kFirChannels>(value));
            }
          }
          to += p.out_stride_h;
          at.next_row(out_w);
        }
      }
    };

    if (fir.factored) {
      load_row(0);
      for (int stage = 0; stage * W::kStageIn < rows_in; ++stage) add_stage(stage, std::true_type{});
    } else {
      for (int stage = 0; stage * W::kStageIn < rows_in; ++stage) add_stage(stage, std::false_type{});
    }
  }
}

}  // namespace posgan_fast
