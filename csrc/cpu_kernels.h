// What the CPU kernels and the library around them agree on. Each kernel works on a range of its work items, is
// compiled once per instruction set into a namespace of that name, and includes nothing that could emit code shared
// between them.
#pragma once

#include <cstdlib>
#include <cstring>
#include <new>

#include "bias_act.h"
#include "epilogue2d.h"
#include "modulated_conv2d.h"
#include "prologue2d.h"
#include "upfirdn2d.h"

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace posgan_fast {

enum class Type { kHalf, kBFloat16, kFloat, kDouble };

// Calls body with a value of the storage type.
template <typename Body>
static inline void with_scalar(Type type, const Body& body) {
  if (type == Type::kHalf) return body(Half());
  if (type == Type::kBFloat16) return body(BFloat16());
  if (type == Type::kFloat) return body(float());
  body(double());
}

// One work item is one output row of one plane (NCHW) or of one image (channels_last).
struct Upfirdn2dTask {
  Upfirdn2dParams params;
  Type type;
  const void* x;
  const void* odd = nullptr;  // the odd rows of the input where x has the even ones only
  int64_t odd_stride_n = 0, odd_stride_h = 0;
  const void *fx, *fy;  // taps in the arithmetic type and correlation order, gain folded in; fy null if not separable
  const Phase *columns, *rows;  // of every output column and row: divisions are slow, and rows of small images short
  void* y;
  bool stream;  // write past the caches: the result is too large to be found there again
};

// One work item is one element.
struct BiasActTask {
  BiasActParams params;
  Type type;
  Act act;
  int order;
  const void *x, *b, *ref, *dy;
  void* out;
  bool stream;
};

// Where one tap of every filter goes: its channels side by side, the filters `stride` elements apart. tap -1: zeros.
struct WeightPlace {
  int tap;
  void* data;
  int64_t stride;
};

// One work item is a group of filters [kFilterGroup, I, taps].
constexpr int kFilterGroup = 16;
struct ModulatedWeightTask {
  Type type;                           // of the results; weight, styles and scale are of its arithmetic type
  const void *weight, *styles;         // styles [N, I]
  void* scale;                         // [N, O], null for none
  double eps;                          // of scale
  int64_t samples, filters, channels;  // N, O, I
  int64_t taps;                        // kh * kw
  bool fold;                           // the styles of the single sample into the results
  const WeightPlace* places;           // where filters keep their channels side by side, or
  int64_t count;
  void* transposed;  // [I, taps, O]
  bool flip;         // of transposed
};

// One work item is one output row of one plane (NCHW) or of one image (channels_last).
struct Prologue2dTask {
  Prologue2dParams params;
  Type type;
  const void *x, *residual, *border;
  const void *styles, *columns, *rows;  // in the arithmetic type
  void* y;
  bool stream;
};

// One work item is one of upfirdn2d. Without a filter, fir.fx null, it is a segment of a line of pixels side by side:
// of a whole plane where both tensors are dense, else of a row.
struct Epilogue2dTask {
  Upfirdn2dTask fir;  // of input and output; without a filter only their strides and sizes
  Epilogue2dParams params;
  Act act;
  const void *scale, *noise, *b;  // scale and noise in the arithmetic type; null: none
  int64_t line, segment;          // pixels
};

#define PF_DECLARE(isa)                                                               \
  namespace isa {                                                                     \
  void upfirdn2d(const Upfirdn2dTask& task, int64_t begin, int64_t end);              \
  void bias_act(const BiasActTask& task, int64_t begin, int64_t end);                 \
  void prologue2d(const Prologue2dTask& task, int64_t begin, int64_t end);            \
  void epilogue2d(const Epilogue2dTask& task, int64_t begin, int64_t end);            \
  void modulated_weight(const ModulatedWeightTask& task, int64_t begin, int64_t end); \
  }
PF_DECLARE(baseline)
PF_DECLARE(avx2)
PF_DECLARE(avx512)
#undef PF_DECLARE

// Copies with non-temporal stores where the types are equal and the hardware has them; false: nothing was done.
template <typename T, typename A>
static inline bool stream_copy(T* out, const A* in, int64_t n) {
  return false;
}

#ifdef __AVX512F__
static inline bool stream_copy(float* out, const float* in, int64_t n) {
  int64_t i = 0;
  while (i < n && (reinterpret_cast<uintptr_t>(out + i) & 63u) != 0) {
    out[i] = in[i];
    ++i;
  }
  for (; i + 16 <= n; i += 16) _mm512_stream_ps(out + i, _mm512_loadu_ps(in + i));
  for (; i < n; ++i) out[i] = in[i];
  return true;
}
#endif

template <typename T, typename A>
static void store_row(T* __restrict out, const A* __restrict row, int64_t n, bool stream) {
  if (stream && stream_copy(out, row, n)) return;
  for (int64_t i = 0; i < n; ++i) store(out + i, row[i]);
}

}  // namespace posgan_fast
